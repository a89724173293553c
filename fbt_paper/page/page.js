"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const dialog = document.getElementById("runs");
const body = document.getElementById("runs-body");
const title = document.getElementById("runs-title");
let opener = null;

// ---------------------------------------------------------------- small helpers

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function say(text) {
  const said = document.getElementById("said");
  said.textContent = "";
  requestAnimationFrame(() => { said.textContent = text; });
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { said.textContent = ""; }, 4000);
}

function numberOf(text) {
  const match = /^[+-]?\d[\d.]*/.exec(text.trim());
  return match ? Number(match[0]) : null;
}

// ---------------------------------------------------------------- sorting

function measureOf(table) {
  return table.closest("section").querySelector("[data-measure]")?.value ?? "value";
}

function valueOf(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset[measureOf(row.closest("table"))] ?? cell.dataset.value ?? cell.textContent;
  const number = numberOf(text);
  return number === null ? text.trim().toLowerCase() : number;
}

function compare(first, second) {
  const kinds = [typeof first, typeof second];
  if (kinds[0] !== kinds[1]) return kinds[0] === "number" ? -1 : 1;
  return kinds[0] === "number" ? first - second : first.localeCompare(second);
}

function order(table, key, sign = 1) {
  const rows = [...table.tBodies[0].rows].filter((row) => !row.classList.contains("closing"));
  const closing = [...table.tBodies[0].rows].filter((row) => row.classList.contains("closing"));
  const known = rows.filter((row) => key(row) !== "");
  const unknown = rows.filter((row) => key(row) === "");
  known.sort((first, second) => sign * compare(key(first), key(second)));
  table.tBodies[0].append(...known, ...unknown, ...closing);
}

function sortBy(button) {
  const heading = button.closest("th");
  const column = Number(button.dataset.column);
  const first = column === 0 ? "ascending" : "descending";
  const other = first === "ascending" ? "descending" : "ascending";
  sortTo(button, heading.getAttribute("aria-sort") === first ? other : first);
}

function sortTo(button, direction) {
  const table = button.closest("table");
  const column = Number(button.dataset.column);
  for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
  button.closest("th").setAttribute("aria-sort", direction);
  order(table, (row) => valueOf(row, column), direction === "ascending" ? 1 : -1);
  const reset = table.closest("section").querySelector("[data-reset]");
  if (reset) reset.hidden = false;
  const what = column && measureOf(table) !== "value" ? `, ${measureOf(table)}` : "";
  say(`Sorted by ${button.textContent.trim()}${what}, ${direction}.`);
}

function changeMeasure(choice) {
  const heading = choice.closest("section").querySelector("th[aria-sort]");
  if (heading) sortTo(heading.querySelector(".sort"), heading.getAttribute("aria-sort"));
  else say(`Headings sort by ${choice.value}.`);
}

function resetOrder(button) {
  const table = button.closest("section").querySelector("table");
  for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
  const rows = [...table.tBodies[0].rows].sort((a, b) => a.dataset.place - b.dataset.place);
  table.tBodies[0].append(...rows);
  table.querySelector(".sort").focus();
  button.hidden = true;
  say("Rows are in the printed order.");
}

// ---------------------------------------------------------------- copying

async function copy(button) {
  const kind = button.dataset.copy;
  const text = data.copies[button.dataset.table][kind];
  const name = kind === "latex" ? "LaTeX" : "CSV";
  if (await toClipboard(text)) say(`${name} copied.`);
  else showText(text, `${name}: select and copy`);
}

async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text);
  }
}

function copyBySelection(text) {
  const area = make("textarea", { "aria-hidden": "true", style: "position:fixed;left:-999px" });
  const focused = document.activeElement;
  area.value = text;
  document.body.append(area);
  area.select();
  let copied = false;
  try { copied = document.execCommand("copy"); } catch { copied = false; }
  area.remove();
  focused?.focus();
  return copied;
}

function showText(text, heading) {
  opener = document.activeElement;
  title.textContent = heading;
  const area = make("textarea", { class: "copy", readonly: "", "aria-label": heading });
  area.value = text;
  body.replaceChildren(area);
  dialog.showModal();
  area.select();
}

// ---------------------------------------------------------------- runs

function openCell(button) {
  opener = button;
  const notes = [button.dataset.note, button.dataset.source && `Printed number: ${button.dataset.source}`];
  shown = [];
  show({ heading: button.dataset.name, notes: notes.filter(Boolean), ids: button.dataset.runs.split(" ") });
  history.replaceState(null, "", `#cell=${button.dataset.id}`);
}

// What the dialog has shown, the present last: a run that another one needs can be opened and left again.
let shown = [];

function show(view) {
  shown.push(view);
  const back = shown.length > 1 && make("button", { type: "button", "data-back": "" }, `Back to ${shown.at(-2).heading}`);
  title.textContent = view.heading;
  body.replaceChildren(
    ...(back ? [back] : []),
    ...view.notes.map((note) => make("p", {}, note)),
    make("div", { class: "curves" }, ...drawCurves(view.ids)),
    ...view.ids.map(describeRun),
  );
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  title.focus();
}

function goBack() {
  shown.pop();
  show(shown.pop());
}

function neededRuns(spec) {
  const needed = { "Its teacher": spec.teacher?.weights, "It starts from": spec.student?.weights };
  return Object.entries(needed)
    .map(([name, weights]) => [name, String(weights).startsWith("run:") && weights.slice(4)])
    .filter(([, id]) => data.runs[id]);
}

function linkRun([name, id]) {
  return make("p", {}, `${name}: `, make("button", { type: "button", class: "needed", "data-run": id }, id));
}

function howAgain(id) {
  const named = (text) => make("code", {}, text.replaceAll("RUN", id));
  return make("p", {}, "To train it again, delete the folder ", named(data.again.folder), ", then call ", named(data.again.command));
}

function describeRun(id) {
  const run = data.runs[id];
  const section = make("section", { class: "run" }, make("h3", {}, `Seed ${run.seed}: `, make("code", {}, id)));
  section.append(
    list(results(run)),
    ...neededRuns(run.spec).map(linkRun),
    howAgain(id),
    fold("Recipe", list(flatten(run.spec.recipe ?? {}))),
    fold("Whole spec", make("pre", { tabindex: "0" }, JSON.stringify(run.spec, null, 1))),
    fold("Versions and machine", list({ ...run.versions, ...flatten(run.execution) })),
    fold("End of the log", make("pre", { tabindex: "0" }, run.log.join("\n") || "no log is left")),
  );
  return section;
}

function results(run) {
  const score = (part) => part && `${part.top1.toFixed(2)} % (epoch ${part.epoch})`;
  return {
    "best top-1": score(run.best),
    "last top-1": score(run.last),
    "EMA top-1": score(run.ema),
    "wall time": duration(run.seconds),
    "speed": run.images_per_second && `${Math.round(run.images_per_second)} images/s`,
    "peak memory": run.peak_memory_mb && `${Math.round(run.peak_memory_mb)} MB`,
    "parameters": run.parameters && run.parameters.toLocaleString("en"),
    "weights (sha256)": run.weights_sha256,
    "code": run.git_sha && `${run.git_sha}${run.git_dirty ? " with uncommitted changes" : ""}`,
    "started": run.started,
    "finished": run.finished,
  };
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return null;
  if (seconds < 90) return `${seconds.toFixed(0)} s`;
  if (seconds < 5400) return `${(seconds / 60).toFixed(0)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

function flatten(value, prefix = "", found = {}) {
  for (const [key, item] of Object.entries(value)) {
    const path = prefix ? `${prefix}.${key}` : key;
    if (item === null) continue;
    if (typeof item === "object" && !Array.isArray(item)) flatten(item, path, found);
    else found[path] = Array.isArray(item) ? item.join(", ") : String(item);
  }
  return found;
}

function list(pairs) {
  const known = Object.entries(pairs).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return make("dl", {}, ...known.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))]));
}

function fold(name, content) {
  return make("details", {}, make("summary", {}, name), content);
}

function close() {
  dialog.close();
}

// ---------------------------------------------------------------- curves as inline SVG

const DASHES = ["", "6 3", "2 3", "8 3 2 3"];
const COLOURS = ["var(--first)", "var(--second)", "#009e73", "#b5547f", "#7a5cc0", "#8a6d00"];

function drawCurves(ids) {
  const accuracy = ids.map((id) => ({ name: `seed ${data.runs[id].seed}`, x: data.runs[id].curves.epoch, y: data.runs[id].curves.top1 }));
  const charts = [chart("Top-1 accuracy (%) by epoch", accuracy)];
  for (const run of ids.map((id) => data.runs[id])) {
    const terms = Object.entries(run.curves.terms).map(([name, y]) => ({ name: name.replaceAll("_", " "), x: run.curves.epoch, y }));
    if (terms.length) charts.push(chart(`Loss terms by epoch (seed ${run.seed})`, terms));
  }
  return charts.filter(Boolean);
}

function chart(heading, lines) {
  const points = lines.flatMap((line) => line.y.map((y, i) => [line.x[i], y])).filter((point) => point[1] !== null);
  if (!points.length) return null;
  const [xs, ys] = [points.map((p) => p[0]), points.map((p) => p[1])];
  const x = scale(Math.min(...xs), Math.max(...xs), 40, 350);
  const y = scale(Math.min(...ys), Math.max(...ys), 165, 12);
  const svg = shape("svg", { viewBox: "0 0 360 195", role: "img", "aria-label": `${heading}: ${spoken(lines)}` });
  for (const value of ticks(Math.min(...ys), Math.max(...ys), 4)) {
    svg.append(shape("line", { class: "grid", x1: 40, x2: 350, y1: y(value), y2: y(value) }));
    svg.append(label(36, y(value) + 4, "end", shorten(value)));
  }
  for (const value of ticks(Math.min(...xs), Math.max(...xs), 5).filter(Number.isInteger)) svg.append(label(x(value), 180, "middle", value));
  svg.append(shape("path", { class: "axis", d: "M40 12V165H350", fill: "none" }));
  lines.forEach((line, index) => svg.append(curve(line, x, y, index)));
  return make("figure", {}, make("h3", {}, heading), svg, key(lines));
}

function curve(line, x, y, index) {
  const known = line.x.map((value, i) => [value, line.y[i]]).filter((point) => point[1] !== null);
  const path = known.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
  return shape("path", { d: path, fill: "none", "stroke-width": 1.6, ...look(index) });
}

function look(index) {
  const dash = DASHES[Math.floor(index / COLOURS.length + index) % DASHES.length];
  return { stroke: COLOURS[index % COLOURS.length], "stroke-dasharray": dash };
}

function key(lines) {
  return make("ul", { class: "key" }, ...lines.map((line, index) => {
    const sample = shape("svg", { viewBox: "0 0 26 8", "aria-hidden": "true" });
    sample.append(shape("path", { d: "M0 4H26", "stroke-width": 2, ...look(index) }));
    return make("li", {}, sample, line.name);
  }));
}

function spoken(lines) {
  return lines.map((line) => `${line.name} from ${shorten(line.y[0])} to ${shorten(line.y[line.y.length - 1])}`).join("; ");
}

function shape(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) if (value !== "") element.setAttribute(key, value);
  return element;
}

function label(x, y, anchor, text) {
  const element = shape("text", { x, y, "text-anchor": anchor });
  element.textContent = text;
  return element;
}

function scale(low, high, start, end) {
  const span = high - low || 1;
  return (value) => start + ((high === low ? 0.5 : (value - low) / span)) * (end - start);
}

function ticks(low, high, count) {
  if (low === high) return [low];
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const sizes = [10, 5, 2, 1, 0.5].map((factor) => factor * power).filter((size) => size <= 2.5 * raw);
  const found = sizes.map((step) => multiples(low, high, step));
  return found.find((values) => values.length >= 3) ?? found.at(-1);
}

function multiples(low, high, step) {
  const found = [];
  for (let i = Math.ceil(low / step - 1e-6); i * step <= high + step * 1e-6; i += 1) found.push(Number((i * step).toPrecision(12)));
  return found;
}

function shorten(value) {
  return value === null || value === undefined ? "unknown" : String(Number(Number(value).toPrecision(4)));
}

// ---------------------------------------------------------------- wiring

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.matches(".sort")) sortBy(button);
  else if (button.matches("[data-copy]")) copy(button);
  else if (button.matches("[data-reset]")) resetOrder(button);
  else if (button.matches("button.cell")) openCell(button);
  else if (button.matches("[data-run]")) show({ heading: `Run ${button.dataset.run}`, notes: [], ids: [button.dataset.run] });
  else if (button.matches("[data-back]")) goBack();
  else if (button.id === "close") close();
});
document.addEventListener("change", (event) => { if (event.target.matches("[data-measure]")) changeMeasure(event.target); });
dialog.addEventListener("click", (event) => { if (event.target === dialog) close(); });
dialog.addEventListener("close", () => {
  if (location.hash.startsWith("#cell=")) history.replaceState(null, "", location.pathname + location.search);
  opener?.focus();
});
if (location.hash.startsWith("#cell=")) {
  const wanted = decodeURIComponent(location.hash.slice(6));
  const button = [...document.querySelectorAll("button.cell")].find((cell) => cell.dataset.id === wanted);
  if (button) openCell(button);
}
for (const picture of document.querySelectorAll("figure img")) {
  const fit = () => picture.style.setProperty("--natural", `${picture.naturalWidth / 2}px`);
  if (picture.complete && picture.naturalWidth) fit();
  else picture.addEventListener("load", fit);
}
