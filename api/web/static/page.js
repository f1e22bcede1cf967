// What every page does: times in the viewer's zone, and ages that go on counting.

const clock = new Intl.DateTimeFormat(undefined, { dateStyle: "short", timeStyle: "short" });
// Ages are counted by the server's clock, since the viewer's may be wrong.
const ahead = Date.now() - Date.parse(document.body.dataset.now);
const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

function age(seconds) {
  const [size, unit] = UNITS.find(([size]) => seconds >= size) ?? [1, "s"];
  return `${Math.max(0, Math.floor(seconds / size))}\u00a0${unit}`;
}

export function localize(root) {
  for (const time of root.querySelectorAll("time[datetime]:not([data-age])")) {
    time.textContent = clock.format(new Date(time.dateTime));
  }
  countAges(root);
}

function countAges(root) {
  for (const time of root.querySelectorAll("time[data-age]")) {
    time.textContent = age((Date.now() - ahead - Date.parse(time.dateTime)) / 1000);
  }
}

localize(document);
setInterval(() => countAges(document), 1000);
const zone = document.getElementById("zone");
if (zone) zone.textContent = Intl.DateTimeFormat().resolvedOptions().timeZone;
