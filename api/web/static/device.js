// The charts of a device: columns from the server, drawn by Chart.js (the global Chart) in the viewer's zone.

const LINES = {
  vehicle: {
    power: [
      { column: "acKw", label: "AC, at the meter", unit: "kW", colour: "--ink", lostTo: "dcKw" },
      { column: "dcKw", label: "DC, into the battery", unit: "kW", colour: "--good", dash: [8, 2] },
      { column: "dcUnlinkedKw", label: "DC while linked with no meter", unit: "kW", colour: "--link", dash: [2, 2] },
    ],
    efficiency: [
      { column: "efficiency", label: "Efficiency", unit: "%", colour: "--ink", times: "efficiencyTimes", step: "efficiencyStepS", scale: 100, dots: 2 },
      { level: "lowEfficiency", label: "Low efficiency begins here", unit: "%", colour: "--lost", dash: [6, 4], scale: 100 },
    ],
    soc: [{ column: "soc", label: "State of charge", unit: "%", colour: "--ink" }],
    temperature: [{ column: "batteryTemp", label: "Battery temperature", unit: "°C", colour: "--ink" }],
  },
  meter: {
    power: [{ column: "acKw", label: "AC", unit: "kW", colour: "--ink" }],
    energy: [{ column: "energyKwh", label: "AC", unit: "kWh", colour: "--link", times: "energyTimes", step: "energyStepS", bars: true }],
    voltage: [{ column: "voltage", label: "Voltage", unit: "V", colour: "--ink" }],
  },
};
const BOUNDS = {
  power: { min: 0 },
  energy: { min: 0 },
  efficiency: { suggestedMin: 50, suggestedMax: 100 },
  soc: { min: 0, max: 100 },
  voltage: { grace: "10%" },
  temperature: { grace: "10%" },
};
const ROWS = {
  vehicle: [
    { column: "acKwh", heading: "AC, kWh", merge: sum },
    { column: "dcKwh", heading: "DC, kWh", merge: sum },
    { column: "dcUnlinkedKwh", heading: "DC while linked with no meter, kWh", merge: sum, optional: true },
    { column: "efficiency", heading: "Lowest efficiency, %", merge: lowest, times: "efficiencyTimes", scale: 100 },
    { column: "soc", heading: "State of charge, %", merge: mean },
    { column: "batteryTemp", heading: "Battery, °C", merge: mean },
  ],
  meter: [
    { column: "acKwh", heading: "AC, kWh", merge: sum },
    { column: "voltage", heading: "Voltage, V", merge: mean },
  ],
};
const ROWS_MAX = 50;
const ROW_STEPS_S = [1, 4, 24, 48, 96, 192].map((hours) => hours * 3600);
const HOUR_S = 3600;
const DAY_S = 24 * HOUR_S;

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const MOMENT = { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" };
const amount = new Intl.NumberFormat(undefined, { maximumSignificantDigits: 3 });

const page = document.getElementById("charts");
const kind = page.dataset.kind;
const drawn = [];

function sum(values) {
  return values.reduce((all, value) => all + value, 0);
}

function mean(values) {
  return sum(values) / values.length;
}

function lowest(values) {
  return Math.min(...values);
}

// What a column is at each of its steps: from, to, and the value or null. A step may be cut by the window.
function steps(data, line) {
  const times = data[line.times ?? "times"];
  return times.map((from, n) => ({
    from: Math.max(from, data.from),
    to: times[n + 1] ?? data.to,
    middle: 1000 * (line.bars ? from + data[line.step] / 2 : (from + (times[n + 1] ?? data.to)) / 2),
    value: data[line.column][n] === null ? null : data[line.column][n] * (line.scale ?? 1),
  }));
}

// Whether clocks are moved between two times.
function areClocksMoved(from, to) {
  return new Date(1000 * from).getTimezoneOffset() !== new Date(1000 * to).getTimezoneOffset();
}

// Times in words. Where clocks are set back an hour comes twice, so near that each time says which of the two it is.
function moments(data) {
  const isNear = areClocksMoved(data.from - HOUR_S, data.to + HOUR_S);
  return new Intl.DateTimeFormat(undefined, isNear ? { ...MOMENT, timeZoneName: "short" } : MOMENT);
}

function between(moment, { from, to }) {
  // A range would say the offset of its end alone.
  if (areClocksMoved(from, to)) return [from, to].map((at) => moment.format(1000 * at)).join(" – ");
  return moment.formatRange(1000 * from, 1000 * to);
}

function shown(value, unit) {
  return `${amount.format(value)}\u00a0${unit}`;
}

// A style sheet's colour as the browser means it at the moment, light or dark.
function colour(name, opacity = 1) {
  const probe = document.createElement("span");
  probe.style.color = `color-mix(in srgb, var(${name}) ${100 * opacity}%, transparent)`;
  page.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

// A line needs two points in a row; one that stands alone is a dot.
function radii(points, dots) {
  return points.map((point, n) => dots ?? (points[n - 1]?.y == null && points[n + 1]?.y == null ? 2 : 0));
}

// What lies between a line and the one below it is lost.
function fillOf(line, lines) {
  const below = lines.findIndex((other) => line.lostTo && other.column === line.lostTo);
  return below < 0 ? false : { target: below, above: colour("--lost", 0.35), below: "transparent" };
}

function dataset(data, line, lines) {
  const ink = colour(line.colour);
  const look = { label: line.label, unit: line.unit, borderColor: ink, borderWidth: 1.5, borderDash: line.dash ?? [] };
  if (line.level) {
    const y = data[line.level] * line.scale;
    const ends = [data.from, data.to].map((at) => ({ x: 1000 * at, y }));
    return { ...look, data: ends, pointRadius: 0, pointHitRadius: 0, isLevel: true };
  }
  const columns = steps(data, line);
  const points = columns.map((step) => ({ x: step.middle, y: step.value, step }));
  if (line.bars) return { ...look, data: points, type: "bar", backgroundColor: ink, borderWidth: 0 };
  const dots = { pointRadius: radii(points, line.dots), pointBackgroundColor: ink, pointHoverBackgroundColor: ink };
  return { ...look, ...dots, data: points, fill: fillOf(line, lines), spanGaps: false };
}

function timeAxis(data) {
  const length = data.to - data.from;
  const isShort = length <= 2 * DAY_S;
  return {
    type: "time",
    min: 1000 * data.from,
    max: 1000 * data.to,
    time: { minUnit: isShort ? (length > DAY_S / 4 ? "hour" : "minute") : "day" },
    grid: { color: colour("--line") },
    ticks: {
      color: colour("--soft"),
      maxRotation: 0,
      autoSkipPadding: 24,
      callback: (at) => (isShort ? clock : day).format(at),
    },
  };
}

function options(data, name, lines) {
  const moment = moments(data);
  return {
    animation: false,
    responsive: true,
    maintainAspectRatio: false,
    interaction: { mode: "index", intersect: false },
    scales: {
      x: timeAxis(data),
      y: {
        ...BOUNDS[name],
        title: { display: true, text: lines[0].unit, color: colour("--soft") },
        grid: { color: colour("--line") },
        ticks: { color: colour("--soft") },
      },
    },
    plugins: {
      legend: { display: lines.length > 1, labels: { color: colour("--ink"), boxHeight: 0, boxWidth: 24 } },
      tooltip: {
        filter: (item) => !item.dataset.isLevel,
        callbacks: {
          title: ([item]) => (item ? between(moment, item.raw.step) : ""),
          label: (item) => `${item.dataset.label}: ${shown(item.raw.y, item.dataset.unit)}`,
        },
      },
    },
  };
}

function isEmpty(data, line) {
  return data[line.column].every((value) => value === null);
}

// In words what the lines show, for everybody and for screen readers above all.
function summary(data, lines) {
  const moment = moments(data);
  const sentences = lines.filter((line) => line.column).map((line) => {
    const known = steps(data, line).filter((step) => step.value !== null);
    const values = known.map((step) => step.value);
    const [least, most] = [Math.min(...values), Math.max(...values)];
    const when = moment.format(1000 * known[values.indexOf(most)].from);
    return `${line.label}: ${shown(least, line.unit)} to ${shown(most, line.unit)}, the most at ${when}.`;
  });
  return sentences.join(" ") || "Nothing in this window.";
}

function draw(data) {
  const { fontSize, fontFamily } = getComputedStyle(page);
  Object.assign(Chart.defaults.font, { size: 0.75 * parseFloat(fontSize), family: fontFamily });
  while (drawn.length) drawn.pop().destroy();
  for (const figure of page.querySelectorAll("[data-chart]")) {
    const name = figure.dataset.chart;
    const lines = LINES[kind][name].filter((line) => line.level || !isEmpty(data, line));
    const isBlank = lines.every((line) => line.level);
    const canvas = figure.querySelector("canvas");
    const words = summary(data, lines);
    figure.classList.toggle("empty", isBlank);
    figure.querySelector("[data-summary]").textContent = words;
    canvas.setAttribute("aria-label", `${figure.querySelector("h2").textContent}. ${words}`);
    if (isBlank) continue;
    const datasets = lines.map((line) => dataset(data, line, lines));
    drawn.push(new Chart(canvas, { type: "line", data: { datasets }, options: options(data, name, lines) }));
  }
}

// The same numbers by longer steps, so that there are few rows.
function rowsOf(data, columns) {
  const length = data.to - data.from;
  const step = ROW_STEPS_S.find((size) => size >= data.stepS && length / size < ROWS_MAX - 1) ?? ROW_STEPS_S.at(-1);
  const rows = new Map();
  for (const [n, column] of columns.entries()) {
    for (const { from, value } of steps(data, column)) {
      const begins = from - (from % step);
      if (!rows.has(begins)) rows.set(begins, columns.map(() => []));
      if (value !== null) rows.get(begins)[n].push(value);
    }
  }
  return [...rows].sort(([one], [other]) => one - other);
}

function cell(row, text, scope) {
  const made = document.createElement(scope ? "th" : "td");
  made.textContent = text;
  if (scope) made.scope = scope;
  if (row.childElementCount) made.className = "n";
  row.append(made);
}

function tabulate(data) {
  const moment = moments(data);
  const table = document.querySelector("#numbers table");
  const columns = ROWS[kind].filter((column) => !column.optional || !isEmpty(data, column));
  const head = table.createTHead().insertRow();
  cell(head, "From", "col");
  for (const column of columns) cell(head, column.heading, "col");
  const body = table.createTBody();
  for (const [begins, values] of rowsOf(data, columns)) {
    const row = body.insertRow();
    cell(row, moment.format(1000 * Math.max(begins, data.from)), "row");
    columns.forEach((column, n) => cell(row, values[n].length ? amount.format(column.merge(values[n])) : "–"));
  }
  document.getElementById("numbers").hidden = false;
}

function say(text) {
  const status = document.getElementById("drawing");
  status.hidden = !text;
  status.textContent = text;
}

async function load() {
  const answer = await fetch(page.dataset.from);
  if (answer.ok) return answer.json();
  const problem = await answer.json().catch(() => null); // a proxy in between answers with a page of its own
  throw new Error(problem?.detail ?? `the server answered with ${answer.status}`);
}

say("The charts are being drawn …");
try {
  const data = await load();
  draw(data);
  tabulate(data);
  say("");
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(data));
} catch (error) {
  say(`The charts cannot be drawn (${error.message}). Load the page again to try once more.`);
  page.hidden = true;
}
