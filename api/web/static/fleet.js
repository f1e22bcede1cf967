// The first page moves: parts that the server renders replace what is shown, as server-sent events.

import { localize } from "./page.js";

const TABLE_EVERY_MS = 10_000;
// A browser opens no more than six connections to a host over HTTP/1.1, and a stream keeps one for itself. So only the
// pages that were opened or looked at last have a stream, of those that are seen at all.
const STREAMS_MAX = 3;

const link = document.getElementById("link");
const others = new BroadcastChannel("fleetwatt streams");
const name = Math.random();
const later = new Set(); // the pages that opened a stream since this one did, and still have it
let events = null;

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
  if (events || document.hidden) return;
  later.clear();
  others.postMessage({ name, hasStream: true });
  const opened = new EventSource("/live");
  events = opened;
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
    if (opened.readyState === EventSource.CLOSED) setTimeout(() => comeBack(opened), 5000);
  });
}

function rest() {
  if (!events) return;
  events.close();
  events = null;
  others.postMessage({ name, hasStream: false });
}

async function comeBack(refused) {
  const answer = await fetch("/devices").catch(() => null);
  if (answer?.status === 401) return location.reload(); // the session is over: to the sign-in
  if (refused !== events) return; // the page rests, or has come back already
  rest();
  follow();
}

function look() {
  if (events || document.hidden) return;
  follow();
  refreshTable();
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

others.addEventListener("message", ({ data }) => {
  if (data.hasStream) later.add(data.name);
  else later.delete(data.name);
  if (!events || later.size < STREAMS_MAX) return;
  rest();
  say("The figures stand still, since others of your pages show them. Click here and they move on.");
});
document.addEventListener("visibilitychange", () => { if (document.hidden) rest(); else look(); });
addEventListener("pagehide", rest);
addEventListener("pageshow", look);
addEventListener("focus", look);
addEventListener("pointerdown", look);
follow();
setInterval(refreshTable, TABLE_EVERY_MS);
