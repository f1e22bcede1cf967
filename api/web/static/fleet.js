// The first page moves: parts that the server renders replace what is shown, as server-sent events.

import { localize } from "./page.js";

const TABLE_EVERY_MS = 10_000;

const link = document.getElementById("link");

const all = (element, selector) => [...element.querySelectorAll(selector)];
const focusable = (element) => all(element, "a, summary, [tabindex]");

// What the viewer did to a part is carried over to its successor: what had the focus, what was unfolded, and how far a
// table was scrolled sideways.
function replace(element, html) {
  const focused = focusable(element).indexOf(document.activeElement);
  const unfolded = all(element, "details").map((one) => one.open);
  const scrolled = all(element, ".scroll").map((one) => one.scrollLeft);
  // A part is a template of ours, in which names of devices are escaped.
  element.innerHTML = html;
  localize(element);
  all(element, "details").forEach((one, n) => { one.open = unfolded[n] ?? false; });
  all(element, ".scroll").forEach((one, n) => { one.scrollLeft = scrolled[n] ?? 0; });
  // Or the keyboard would start from the top.
  focusable(element)[focused]?.focus({ preventScroll: true });
}

function say(text) {
  link.hidden = !text;
  link.textContent = text;
}

function follow() {
  const events = new EventSource("/live");
  events.addEventListener("open", () => say(""));
  events.addEventListener("parts", (event) => {
    say("");
    for (const [id, html] of Object.entries(JSON.parse(event.data))) {
      replace(document.getElementById(id), html);
    }
  });
  events.addEventListener("trouble", (event) => say(`The figures stand still: ${event.data}`));
  events.addEventListener("error", () => {
    say("The connection is lost, the figures stand still. Trying again …");
    // The browser tries again by itself, unless it was refused.
    if (events.readyState === EventSource.CLOSED) setTimeout(comeBack, 5000);
  });
}

async function comeBack() {
  const answer = await fetch("/devices").catch(() => null);
  if (answer?.status === 401) location.reload(); // the session is over: to the sign-in
  else follow();
}

async function refreshTable() {
  const table = document.getElementById("table");
  if (document.hidden || table.contains(document.activeElement)) return;
  try {
    const answer = await fetch(table.dataset.from);
    if (answer.ok) replace(table, await answer.text());
  } catch {
    // The stream says that the connection is lost.
  }
}

follow();
setInterval(refreshTable, TABLE_EVERY_MS);
