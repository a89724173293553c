"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const dialog = document.getElementById("runs");
const body = document.getElementById("runs-body");
const title = document.getElementById("runs-title");
let opener = null;
// Equal parts of runs are stored once.
const whole = (value) => (value && typeof value === "object" && "=" in value ? data.shared[value["="]] : value);
for (const run of Object.values(data.runs)) {
  for (const key of Object.keys(run)) run[key] = whole(run[key]);
  for (const key of Object.keys(run.spec)) run.spec[key] = whole(run.spec[key]);
}

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

function headings(table) {
  return table.tHead.rows[table.tHead.rows.length - 1].cells;
}

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
  for (const cell of headings(table)) cell.removeAttribute("aria-sort");
  button.closest("th").setAttribute("aria-sort", direction);
  order(table, (row) => valueOf(row, column), direction === "ascending" ? 1 : -1);
  const reset = table.closest("section").querySelector("[data-reset]");
  if (reset) reset.hidden = false;
  const what = column && measureOf(table) !== "value" ? `, ${measureOf(table)}` : "";
  say(`Sorted by ${button.textContent.trim()}${what}, ${direction}.`);
}

function changeMeasure(choice) {
  const matrix = choice.closest("section").querySelector(".matrix");
  if (matrix) showMeasure(matrix, choice.value);
  const heading = choice.closest("section").querySelector("th[aria-sort]");
  if (heading) sortTo(heading.querySelector(".sort"), heading.getAttribute("aria-sort"));
  else say(`Headings sort by ${choice.value}.`);
}

// A matrix shows one number per cell; a gap or a gain is coloured by its sign and size.
const MOST = 40;

function showMeasure(table, measure) {
  table.classList.toggle("values", measure !== "ours");
  const cells = [...table.tBodies[0].querySelectorAll("td")];
  const sizes = cells.filter((cell) => !cell.parentElement.classList.contains("closing")).map((cell) => Math.abs(Number(cell.dataset[measure] || 0)));
  const largest = Math.max(...sizes, 0.01);
  for (const cell of cells) {
    const shown = cell.querySelector(".ours");
    if (!shown) continue;
    shown.dataset.html ??= shown.innerHTML;
    cell.style.backgroundColor = "";
    // The closing line is a gain already.
    if (measure === "ours" || (measure === "gain" && cell.parentElement.classList.contains("closing"))) { shown.innerHTML = shown.dataset.html; continue; }
    const text = cell.dataset[measure];
    const signed = measure !== "paper";
    shown.textContent = text === "" ? "-" : `${signed && text >= 0 ? "+" : ""}${Number(text).toFixed(2)}`;
    if (signed && text !== "") cell.style.backgroundColor = heat(Number(text) / largest);
  }
}

function heat(share) {
  const part = Math.round(MOST * Math.min(1, Math.abs(share)));
  return `color-mix(in srgb, var(${share < 0 ? "--below" : "--above"}) ${part}%, var(--paper))`;
}

function resetOrder(button) {
  const table = button.closest("section").querySelector("table");
  for (const cell of headings(table)) cell.removeAttribute("aria-sort");
  const rows = [...table.tBodies[0].rows].sort((a, b) => a.dataset.place - b.dataset.place);
  table.tBodies[0].append(...rows);
  table.querySelector(".sort").focus();
  button.hidden = true;
  say("Rows are in the printed order.");
}

// ---------------------------------------------------------------- copying

function copy(button) {
  const kind = button.dataset.copy;
  return give(data.copies[button.dataset.table][kind], kind === "latex" ? "LaTeX" : "CSV");
}

async function give(text, what) {
  const name = what[0].toUpperCase() + what.slice(1);
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
  // What is outside of an open dialog cannot be selected.
  (dialog.open ? body : document.body).append(area);
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
  if (!dialog.open) dialog.showModal();
  area.select();
}

// ---------------------------------------------------------------- runs

function openCell(button) {
  opener = button;
  shown = [];
  const cell = data.cells[button.dataset.id];
  const notes = [cell.note, cell.source && `Printed number: ${cell.source}`];
  show({ heading: cell.name, notes: notes.filter(Boolean), ids: cell.runs, cell });
  history.replaceState(null, "", `#cell=${button.dataset.id}`);
}

// ---------------------------------------------------------------- the evidence card

function evidence(cell) {
  const runs = cell.runs.map((id) => data.runs[id]);
  const done = runs.filter((run) => run.best);
  const spec = runs[0]?.spec ?? {};
  return [stats(cell, spec), chain(spec), done.length > 1 && seedDots(done), copyButtons(cell), settings(spec)].filter(Boolean);
}

function stats(cell, spec) {
  const first = data.runs[cell.runs[0]] ?? {};
  const fixed = (value, sign) => (value === null || value === undefined ? null : `${sign && value >= 0 ? "+" : ""}${value.toFixed(2)}`);
  const teacher = data.runs[String(spec.teacher?.weights ?? "").replace(/^run:/, "")];
  const spread = cell.spread === null || cell.spread === undefined ? "" : ` ± ${fixed(cell.spread)}${cell.one_seed ? "†" : ""}`;
  const entries = [
    ["ours", fixed(cell.ours) && `${fixed(cell.ours)}${spread}`],
    ["", cell.state],
    ["paper", fixed(cell.paper) && `${fixed(cell.paper)}${cell.mark}`],
    ["gap", cell.gap],
    ["from scratch, same recipe", fixed(cell.scratch)],
    ["gain over scratch", fixed(cell.gain, true)],
    ["printed gain", fixed(cell.printed_gain, true)],
    ["its teacher", fixed(first.teacher_top1) ?? (teacher?.best && fixed(teacher.best.top1))],
    ["the fused model", fixed(first.fused_top1)],
    ["best epoch minus last", fixed(cell.optimism, true)],
    ["data", spec.dataset && `${spec.dataset.name}, ${spec.dataset.test_images.toLocaleString("en")} test images`],
  ];
  const known = entries.filter((entry) => entry[1]);
  return make("ul", { class: "stats" }, ...known.map(([name, text]) => make("li", {}, make("b", {}, text), name)));
}

function chain(spec) {
  const steps = chainOf(spec);
  return steps.length > 1 ? make("ol", { class: "chain", "aria-label": "How it is trained" }, ...steps.map((step) => make("li", {}, step))) : null;
}

function chainOf(spec) {
  if (!spec.student) return [];
  const nameOf = (network) => data.titles[network.architecture] ?? network.architecture;
  const earlier = (network) => data.runs[String(network?.weights ?? "").replace(/^run:/, "")]?.spec;
  const teacher = spec.teacher && earlier(spec.teacher);
  const phase = earlier(spec.student);
  const before = phase ? chainOf(phase) : teacher?.teacher ? chainOf(teacher) : spec.teacher ? [nameOf(spec.teacher)] : [];
  const next = phase && spec.teacher ? [`next phase: ${nameOf(spec.teacher)}`] : [];
  const fused = spec.method.name === "fbt" && spec.method.parameters.stage4 !== "none" ? ["fused model"] : [];
  return [...before, ...next, ...fused, nameOf(spec.student)];
}

function seedDots(runs) {
  const values = runs.map((run) => run.best.top1);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const x = scale(low, high, 50, 310);
  const words = runs.map((run) => `seed ${run.seed} ${run.best.top1.toFixed(2)}`).join(", ");
  const svg = shape("svg", { class: "seeds", viewBox: "0 0 360 40", width: 360, height: 40, role: "img", "aria-label": `Best top-1 by seed: ${words}` });
  svg.append(shape("path", { class: "grid", d: "M50 16H310" }), label(50, 36, "middle", low.toFixed(2)));
  if (high > low) svg.append(label(310, 36, "middle", high.toFixed(2)));
  for (const run of runs) {
    const dot = shape("circle", { cx: x(run.best.top1), cy: 16, r: 5, fill: "var(--first)", "fill-opacity": 0.7 });
    dot.append(Object.assign(shape("title", {}), { textContent: `seed ${run.seed}: ${run.best.top1.toFixed(2)}` }));
    svg.append(dot);
  }
  return svg;
}

function copyButtons(cell) {
  const id = cell.runs[0];
  const command = `rm -r ${data.again.folder} && ${data.again.command}`.replaceAll("RUN", id);
  const texts = {
    link: `${location.href.split("#")[0]}#cell=${cell.id}`,
    LaTeX: cell.latex,
    command,
    weights: `${data.again.folder.replaceAll("RUN", id)}/weights.safetensors`,
  };
  const names = { link: "Copy link", LaTeX: "Copy LaTeX", command: "Copy command to train again", weights: "Copy path of weights" };
  return make("p", { class: "tools" }, ...Object.entries(texts).map(([key, text]) => make("button", { type: "button", "data-text": text, "data-what": key }, names[key])));
}

// Every setting with its value and source; what is an assumption of ours is marked and counted.
function settings(spec) {
  if (!spec.method) return null;
  const rows = [
    ...Object.entries(flatten(spec.method.parameters)).map(([key, value]) => [key, value, sourceOf(spec.method.name, key)]),
    ...Object.entries(flatten(spec.recipe)).map(([key, value]) => [key, value, sourceOf("recipe", key)]),
  ];
  const counts = Object.keys(data.kinds).map((kind) => [kind, rows.filter((row) => row[2][1] === kind).length]);
  const heading = `${rows.length} settings: ${counts.map(([kind, count]) => `${count} ${data.kinds[kind]}`).join(", ")}`;
  const body = rows.map(([key, value, [source, kind]]) => make("tr", {}, make("th", { scope: "row" }, key), make("td", {}, value), make("td", { class: `kind ${kind}-kind` }, data.kinds[kind]), make("td", {}, source)));
  const head = make("tr", {}, ...["setting", "value", "whose", "source"].map((name) => make("th", { scope: "col" }, name)));
  return fold(heading, make("table", { class: "settings" }, make("thead", {}, head), make("tbody", {}, ...body)));
}

function sourceOf(group, key) {
  const known = data.sources[group] ?? {};
  return known[key] ?? known["*"] ?? known[key.split(".")[0]] ?? ["not stated", "ours"];
}

// What the dialog has shown, the present last: a run that another one needs can be opened and left again.
let shown = [];

function show(view) {
  shown.push(view);
  const back = shown.length > 1 && make("button", { type: "button", "data-back": "" }, `Back to ${shown.at(-2).heading}`);
  title.textContent = view.heading;
  body.replaceChildren(
    ...(back ? [back] : []),
    ...(view.cell ? evidence(view.cell) : []),
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
const COLOURS = ["var(--first)", "var(--second)", "var(--third)", "#b5547f", "#7a5cc0", "#8a6d00"];

function drawCurves(ids) {
  const accuracy = ids.map((id) => ({ name: `seed ${data.runs[id].seed ?? "?"}`, x: data.runs[id].curves.epoch, y: data.runs[id].curves.top1 }));
  const charts = [chart("Top-1 accuracy (%) by epoch", accuracy)];
  for (const run of ids.map((id) => data.runs[id])) {
    const terms = Object.entries(run.curves.terms).map(([name, y]) => ({ name: name.replaceAll("_", " "), x: run.curves.epoch, y }));
    if (terms.length) charts.push(chart(`Loss terms by epoch (seed ${run.seed})`, terms));
  }
  return charts.filter(Boolean);
}

// Of many lines those that a reader looks for are in colour, the others grey and named where the pointer is.
const CROWD = 6;

function chart(heading, lines) {
  const points = lines.flatMap((line) => line.y.map((y, i) => [line.x[i], y])).filter((point) => point[1] !== null);
  if (!points.length) return null;
  const [xs, ys] = [points.map((p) => p[0]), points.map((p) => p[1])];
  const x = scale(Math.min(...xs), Math.max(...xs), 40, 350);
  const y = scale(Math.min(...ys), Math.max(...ys), 165, 12);
  const svg = shape("svg", { viewBox: "0 0 360 195", width: 360, height: 195, role: "img", "aria-label": `${heading}: ${spoken(lines)}` });
  for (const value of ticks(Math.min(...ys), Math.max(...ys), 4)) {
    svg.append(shape("line", { class: "grid", x1: 40, x2: 350, y1: y(value), y2: y(value) }));
    svg.append(label(36, y(value) + 4, "end", shorten(value)));
  }
  for (const value of ticks(Math.min(...xs), Math.max(...xs), 5).filter(Number.isInteger)) svg.append(label(x(value), 180, "middle", value));
  svg.append(shape("path", { class: "axis", d: "M40 12V165H350", fill: "none" }));
  const crowded = lines.length > CROWD;
  const known = crowded ? lines.filter((line) => line.first) : lines;
  const rest = lines.filter((line) => !known.includes(line));
  rest.forEach((line) => svg.append(curve(line, x, y, { stroke: "var(--grey)", "stroke-width": 1 })));
  known.forEach((line, index) => svg.append(curve(line, x, y, look(index))));
  const readout = make("p", { class: "readout", "aria-hidden": "true" });
  followPointer(svg, readout, lines, x, y);
  return make("figure", {}, make("h3", {}, heading), svg, readout, key(known, rest.length));
}

function curve(line, x, y, style) {
  const known = line.x.map((value, i) => [value, line.y[i]]).filter((point) => point[1] !== null);
  // A line of one point would show nothing.
  if (known.length === 1) return shape("circle", { cx: x(known[0][0]), cy: y(known[0][1]), r: 3, fill: style.stroke });
  const path = known.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
  return shape("path", { d: path, fill: "none", "stroke-width": 1.6, ...style });
}

function followPointer(svg, readout, lines, x, y) {
  const guide = shape("path", { class: "guide", fill: "none", stroke: "var(--quiet)", "stroke-width": 0.7 });
  const dot = shape("circle", { r: 3, fill: "var(--ink)", visibility: "hidden" });
  svg.append(guide, dot);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const [px, py] = [((event.clientX - box.left) / box.width) * 360, ((event.clientY - box.top) / box.height) * 195];
    const points = lines.flatMap((line) => line.x.map((epoch, i) => ({ line, epoch, value: line.y[i] }))).filter((point) => point.value !== null);
    const far = (point) => Math.hypot(2 * (x(point.epoch) - px), y(point.value) - py);
    const near = points.reduce((best, point) => (far(point) < far(best) ? point : best));
    guide.setAttribute("d", `M${x(near.epoch)} 12V165`);
    dot.setAttribute("cx", x(near.epoch));
    dot.setAttribute("cy", y(near.value));
    dot.setAttribute("visibility", "visible");
    readout.textContent = `${near.line.name}, epoch ${near.epoch}: ${shorten(near.value)}`;
  });
  svg.addEventListener("pointerleave", () => {
    guide.setAttribute("d", "M0 0");
    dot.setAttribute("visibility", "hidden");
    readout.textContent = "";
  });
}

// Accuracy by epoch of a whole table: a chart per pair, a line per method, the mean over its seeds.
function drawTable(holder) {
  const table = holder.dataset.curves;
  const cells = Object.values(data.cells).filter((cell) => cell.id.startsWith(`${table}/`) && cell.runs.length);
  const panels = new Map();
  const turned = document.querySelector(`#${table} .matrix`) !== null;
  for (const cell of cells) {
    const line = lineOf(cell);
    if (!line) continue;
    const [pair, name] = turned ? [cell.row, cell.column] : [cell.column, cell.row];
    if (!panels.has(pair)) panels.set(pair, []);
    panels.get(pair).push({ ...line, name });
  }
  holder.append(...[...panels].map(([pair, lines]) => chart(pair, lines)).filter(Boolean));
}

const LOOKED_FOR = ["fbt", "kd", "scratch"];

function lineOf(cell) {
  const runs = cell.runs.map((id) => data.runs[id]).filter((run) => run.curves.epoch.length);
  if (!runs.length) return null;
  const shortest = runs.reduce((least, run) => (run.curves.epoch.length < least.curves.epoch.length ? run : least));
  const mean = (i) => runs.reduce((sum, run) => sum + run.curves.top1[i], 0) / runs.length;
  const known = shortest.curves.epoch.map((_, i) => (runs.every((run) => run.curves.top1[i] !== null) ? mean(i) : null));
  const isTeacher = cell.id.split("/").includes("teacher");
  return { x: shortest.curves.epoch, y: known, first: isTeacher || LOOKED_FOR.includes(runs[0].spec.method?.name) };
}

function look(index) {
  const dash = DASHES[Math.floor(index / COLOURS.length + index) % DASHES.length];
  return { stroke: COLOURS[index % COLOURS.length], "stroke-dasharray": dash };
}

function key(lines, others) {
  const rest = others ? [make("li", {}, `${others} others in grey`)] : [];
  return make("ul", { class: "key" }, ...lines.map((line, index) => {
    const sample = shape("svg", { viewBox: "0 0 26 8", "aria-hidden": "true" });
    sample.append(shape("path", { d: "M0 4H26", "stroke-width": 2, ...look(index) }));
    return make("li", {}, sample, line.name);
  }), ...rest);
}

function spoken(lines) {
  // Epochs that were not evaluated have no value.
  const known = lines.map((line) => ({ name: line.name, y: line.y.filter((y) => y !== null) })).filter((line) => line.y.length);
  return known.map((line) => `${line.name} from ${shorten(line.y[0])} to ${shorten(line.y.at(-1))}`).join("; ");
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

// ---------------------------------------------------------------- searching

const marks = [...document.querySelectorAll("section[id] tbody th, section[id] thead .sort")].map((element) => ({
  element,
  text: `${element.textContent.trim()} (${element.closest("section").querySelector("h2").textContent.trim()})`,
}));
const MOST_HITS = 10;

function search(words) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  const hits = wanted.length ? marks.filter((mark) => wanted.every((word) => mark.text.toLowerCase().includes(word))) : [];
  const buttons = hits.slice(0, MOST_HITS).map((mark) => make("li", {}, make("button", { type: "button", "data-hit": marks.indexOf(mark) }, mark.text)));
  document.getElementById("hits").replaceChildren(...buttons);
  if (wanted.length) say(hits.length ? `${hits.length} found.` : "Nothing found.");
}

function goTo(button) {
  const { element } = marks[Number(button.dataset.hit)];
  const shownElement = element.closest("th");
  shownElement.scrollIntoView({ block: "center", inline: "center" });
  shownElement.classList.add("found");
  setTimeout(() => shownElement.classList.remove("found"), 2000);
  (element.matches("button") ? element : shownElement.parentElement.querySelector("button.cell"))?.focus({ preventScroll: true });
}

// ---------------------------------------------------------------- wiring

document.getElementById("search").addEventListener("input", (event) => search(event.target.value));

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.matches(".sort")) sortBy(button);
  else if (button.matches("[data-copy]")) copy(button);
  else if (button.matches("[data-text]")) give(button.dataset.text, button.dataset.what);
  else if (button.matches("[data-hit]")) goTo(button);
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
for (const holder of document.querySelectorAll("[data-curves]")) drawTable(holder);
if (matchMedia("(max-width: 60rem)").matches) document.querySelector("nav details").open = false;
