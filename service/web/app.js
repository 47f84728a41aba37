// The page: one picture, one question about it at a time, and everything that can be asked further.

import { cellAt, cellBox, draw, fieldBox, fullScale, legend, mapCanvas } from "/web/draw.js";
import { curl, fetchBlob, post, read, Refused } from "/web/ask.js";

const $ = (id) => document.getElementById(id);
const made = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
};
const percent = (share) => `${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %`;
const signed = (value, digits = 3) => `${value >= 0 ? "+" : "−"}${Math.abs(value).toFixed(digits)}`;

let card, anatomy, colours;
let picture = null;        // { blob, name, bitmap } of what is shown; bitmap null where the browser cannot decode it
let answer = null, map = null, size = null;
let answered = null;       // the fields that the answer shown was asked by
let latest = 0;            // number of the picture that was chosen last
let asked = { target: "", against: "", method: "", block: "", flip: false };
let underWay = null;       // what the Stop button ends
let view = { opacity: 1, show: true, cell: null, box: null };
const HINT = $("readout").textContent;

// ------------------------------------------------------------------ start

theme(localStorage.getItem("theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
$("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark", true));

function theme(name, keep = false) {
  document.documentElement.dataset.theme = name;
  $("theme").textContent = name === "dark" ? "Light" : "Dark";
  if (keep) localStorage.setItem("theme", name);
}

start().catch(fail);

async function start() {
  [colours] = await Promise.all([read("/colours"), meet()]);
  const { samples } = await read("/samples");
  for (const name of samples) {
    const url = `/samples/${encodeURIComponent(name)}`;
    $("samples").append(made("button", { type: "button", "aria-label": `Try the sample ${name}`, title: name, onclick: () => sample(url, name) }, made("img", { src: url, alt: "", loading: "lazy" })));
  }
}

/** Learn what is served now, and offer what it can be asked; what was chosen stays where there is still such a thing. */
async function meet() {
  [card, anatomy] = await Promise.all([read("/model"), read("/anatomy")]);
  const version = card.version ? ` version ${card.version}` : "";
  $("served").textContent = `${card.model}${version}, ${card.backbone}, ${card.classes.length} classes, bundle ${card.digest.slice(0, 12)}`;
  document.title = `${card.model} – Camera Lucida`;
  for (const [field, choices] of Object.entries({ method: card.methods, block: card.blocks, target: card.classes, against: card.classes })) {
    if (!choices.includes(asked[field])) asked[field] = "";
  }
  const method = asked.method || card.default_method, block = asked.block || card.cam_block;
  $("method").replaceChildren(
    ...card.methods.map((name) => made("option", { value: name, selected: name === method }, card.method_notes[name].title)),
    ...Object.keys(card.barred_methods).map((name) => made("option", { value: name, disabled: true }, `${card.method_notes[name].title} (barred for this model)`)));
  $("block").replaceChildren(...card.blocks.map((name) => made("option", { value: name, selected: name === block }, name === card.cam_block ? `${name} (usual)` : name)));
  $("inside-block").replaceChildren(...card.blocks.map((name) => made("option", { value: name, selected: name === card.cam_block }, name)));
  noteMethod();
}

// ------------------------------------------------------------------ a picture comes in

$("file").addEventListener("change", ({ target }) => { if (target.files[0]) take(target.files[0], target.files[0].name); target.value = ""; });
addEventListener("paste", ({ clipboardData }) => { const file = [...clipboardData.files][0]; if (file) take(file, file.name || "pasted.png"); });
for (const kind of ["dragover", "dragleave", "drop"]) addEventListener(kind, (event) => {
  event.preventDefault();
  $("drop").classList.toggle("over", kind === "dragover");
  const file = kind === "drop" ? event.dataTransfer.files[0] : null;
  if (file) take(file, file.name);
});
$("other").addEventListener("click", () => $("file").click());

async function sample(url, name) {
  const turn = ++latest;
  try {
    const blob = await fetchBlob(url);
    if (turn === latest) take(blob, name);
  } catch (error) { fail(error); }
}

async function take(blob, name) {
  const turn = ++latest;
  const limit = card?.limits.max_body_bytes ?? Infinity;
  if (blob.size > limit) return fail(new Refused(`The picture has ${blob.size.toLocaleString("en")} bytes; this service reads ${limit.toLocaleString("en")} at most.`));
  let bitmap = null;
  try { bitmap = await createImageBitmap(blob, { imageOrientation: "from-image" }); } catch { /* TIFF and others: the service's own drawing is shown */ }
  // Another one may have been chosen while this one was decoded.
  if (turn !== latest) { bitmap?.close(); return; }
  underWay?.abort();
  picture?.bitmap?.close();
  picture = { blob, name, bitmap };
  answer = null; map = null;
  forget();
  asked = { ...asked, target: "", against: "" };
  view = { ...view, cell: null, box: null };
  $("box").value = "";
  if (!bitmap) $("canvas").getContext("2d").clearRect(0, 0, $("canvas").width, $("canvas").height);
  if (bitmap) { size = { width: bitmap.width, height: bitmap.height }; show(); }
  await explain();
}

/** Take away what was said about another picture. */
function forget() {
  for (const id of ["scores", "warnings", "origin", "inside"]) $(id).replaceChildren();
  for (const id of ["low", "high", "by"]) $(id).textContent = "";
  for (const id of ["save-picture", "save-json", "copy", "cover"]) $(id).disabled = true;
  $("more").hidden = true;
  $("question").textContent = "Being asked …";
  $("canvas").setAttribute("aria-label", `${picture.name}, without a map yet`);
  $("warned").hidden = true; $("against-row").hidden = true; $("find").hidden = true;
  doubtAnew();
}

/** Take away what was found out about another question. */
function doubtAnew(...ids) {
  for (const id of ids.length ? ids : ["trusted", "swept", "covered"]) $(id).replaceChildren();
  $("readout").textContent = HINT;
}

/** The question that the map shown answers: what was asked since may be under way, or was refused. */
function shownQuestion() {
  const { target, against, method, block, flip } = answered;
  return { target: answer.evidence[0]?.label ?? target, against, method, block, flip };
}

/** Have the controls say what is shown again: what was asked since is not wanted any more. */
function settle() {
  if (answer === null) return;
  const { target, against, method, block, flip } = answered;
  asked = { target, against, method, block, flip };
  $("method").value = method || card.default_method; $("block").value = block || card.cam_block;
  $("against").value = against; $("flip").checked = flip;
  noteMethod();
}

// ------------------------------------------------------------------ the question and its answer

async function explain() {
  if (!picture) return;
  await busy("Explaining", async (signal) => {
    const shown = picture, fields = { ...asked, overlay: shown.bitmap === null };
    let found;
    try { found = await (await post("/explain", shown, fields, signal)).json(); } catch (error) {
      // What was offered may be gone with the model that had it.
      if (error.kind === "unknown_choice" && !signal.aborted) await meet();
      throw error;
    }
    const evidence = found.evidence[0] ?? null;
    if (!shown.bitmap && evidence?.overlay) {
      const drawn = made("img", { src: evidence.overlay, alt: "" });
      await drawn.decode();
      signal.throwIfAborted();
      shown.drawn = drawn;
    }
    // Another model has taken over since the page was opened.
    if (found.provenance.digest !== card.digest) { await meet(); signal.throwIfAborted(); doubtAnew(); }
    answer = found; answered = fields;
    map = evidence?.status === "ok" || evidence?.against ? mapCanvas(evidence, colours) : null;
    size = found.image;
    show(); tell();
  });
}

function show() {
  const evidence = answer?.evidence[0] ?? null;
  $("drop").hidden = true; $("shown").hidden = false; $("more").hidden = answer === null;
  const { cell } = view, block = evidence && anatomy.blocks.find(({ name }) => name === evidence.block);
  const base = picture.bitmap ?? picture.drawn;
  if (!base) return;
  fit($("canvas"));
  draw($("canvas"), base, size, picture.bitmap ? evidence : null, map, {
    ...view,
    cell: cell && evidence ? cellBox(evidence, cell) : null,
    field: cell && evidence ? fieldBox(evidence, block, cell, anatomy.input) : null,
  });
}

/** As large as there is room for; a very small picture is enlarged pixel by pixel. */
function fit(canvas) {
  const height = Math.max(240, innerHeight * 0.66), shape = size.width / size.height;
  canvas.style.width = `min(100%, ${Math.round(Math.min(height * shape, size.width * 24))}px)`;
  canvas.classList.toggle("tiny", Math.max(size.width, size.height) < 100);
}
addEventListener("resize", () => { if (size && picture) fit($("canvas")); });

function tell() {
  const evidence = answer.evidence[0] ?? null;
  for (const id of ["save-picture", "save-json", "copy", "cover"]) $(id).disabled = false;
  $("question").replaceChildren(...question(evidence));
  scores();
  if (evidence) {
    const top = fullScale(evidence), contrast = evidence.against !== null;
    legend($("legend"), colours, contrast);
    const place = evidence.block === "input" ? "" : ` at ${evidence.block}`;
    $("by").textContent = `${card.method_notes[evidence.method].title}${place}, ${evidence.grid.rows} × ${evidence.grid.cols}${answered.flip ? ", averaged with the mirror image" : ""}`;
    $("low").textContent = contrast ? evidence.against : "no evidence";
    $("high").textContent = contrast ? evidence.label : top > 0 ? `${top.toPrecision(2)} ${evidence.unit} a cell` : "";
    $("canvas").setAttribute("aria-label", `${picture.name}: evidence for ${evidence.label}${contrast ? ` rather than ${evidence.against}` : ""} by ${card.method_notes[evidence.method].title} at ${evidence.block}, ${strongest(evidence)}`);
    $("say").textContent = `${answer.predictions[0].label}, ${percent(answer.predictions[0].score)}. The map is for ${evidence.label}.`;
  }
  const said = [...answer.cut, ...answer.warnings];
  if (evidence?.sanity) said.push(evidence.sanity);
  if (evidence?.border?.suspicious) said.push(`${percent(evidence.border.mass)} of the evidence lies in the outermost cells.`);
  $("warnings").replaceChildren(...said.map((text) => made("li", {}, text)));
  $("warned").hidden = said.length === 0;
  origin();
}

function question(evidence) {
  if (!evidence) return ["There was no time for a map."];
  if (evidence.status !== "ok" && !evidence.against) {
    const why = { no_positive_evidence: "nothing here speaks for it", no_gradient: "the score does not depend on this block", not_finite: "the values are no numbers" };
    return ["Why ", made("b", {}, evidence.label), `? ${why[evidence.status] ?? evidence.status}: the map is empty.`];
  }
  return evidence.against ? ["Why ", made("b", {}, evidence.label), ", not ", made("b", {}, evidence.against), "?"] : ["Why ", made("b", {}, evidence.label), "?"];
}

function strongest(evidence) {
  const flat = evidence.grid.values.flat(), at = flat.indexOf(Math.max(...flat));
  return `strongest in row ${Math.floor(at / evidence.grid.cols) + 1} of ${evidence.grid.rows}, column ${at % evidence.grid.cols + 1} of ${evidence.grid.cols}`;
}

function scores() {
  const evidence = answer.evidence[0], wanted = $("find").value.toLowerCase(), several = answer.predictions.length > 1;
  $("find").hidden = answer.predictions.length <= 12;
  const rows = answer.predictions.filter(({ label }) => label.toLowerCase().includes(wanted)).slice(0, 100);
  const focused = document.activeElement?.dataset?.label;
  $("scores").replaceChildren(...rows.map((item) => {
    const bar = made("i"); bar.style.width = `${item.score * 100}%`;
    const row = made("button", { type: "button", "data-label": item.label, "aria-pressed": String(evidence?.label === item.label), title: `Why ${item.label}?`, onclick: () => ask({ target: item.label, against: asked.against === item.label ? "" : asked.against }) },
      made("span", {}, item.label), made("span", {}, percent(item.score)), bar);
    return made("li", {}, row);
  }));
  if (focused) [...$("scores").querySelectorAll("button")].find(({ dataset }) => dataset.label === focused)?.focus();
  $("against-row").hidden = !several;
  $("against").replaceChildren(made("option", { value: "" }, "– any –"), ...answer.predictions.filter(({ label }) => label !== evidence?.label).slice(0, 200).map(({ label }) => made("option", { value: label, selected: label === asked.against }, label)));
}

function ask(changes) { asked = { ...asked, ...changes }; view = { ...view, cell: null }; doubtAnew(); return explain(); }

$("find").addEventListener("input", scores);
$("against").addEventListener("change", ({ target }) => ask({ against: target.value, target: target.value ? answer.evidence[0]?.label ?? "" : asked.target }));
$("method").addEventListener("change", ({ target }) => { noteMethod(); ask({ method: target.value }); });
$("block").addEventListener("change", ({ target }) => ask({ block: target.value }));
$("flip").addEventListener("change", ({ target }) => ask({ flip: target.checked }));

function noteMethod() {
  const note = card.method_notes[$("method").value];
  $("method-note").textContent = note ? `${note.good_for} But: ${note.misleads}` : "";
  $("block").disabled = note !== undefined && !note.reads_block;
}

// ------------------------------------------------------------------ the picture under the hand

$("opacity").addEventListener("input", ({ target }) => { view.opacity = target.value / 100; show(); });
$("toggle").addEventListener("click", () => { view.show = !view.show; $("toggle").setAttribute("aria-pressed", String(view.show)); show(); });
$("cover").addEventListener("click", () => covering($("cover").getAttribute("aria-pressed") !== "true"));

function covering(on) {
  $("cover").setAttribute("aria-pressed", String(on));
  $("canvas").classList.toggle("covering", on);
  if (on) $("readout").textContent = "Draw a box with the mouse or a finger; the part inside is covered, and the scores are asked again. Without either, write the box under “What if covered?”.";
}

function place(event) {
  const box = $("canvas").getBoundingClientRect();
  return [(event.clientX - box.left) / box.width * size.width, (event.clientY - box.top) / box.height * size.height];
}

let from = null;
$("canvas").addEventListener("pointerdown", (event) => {
  if ($("cover").getAttribute("aria-pressed") !== "true") return;
  $("canvas").setPointerCapture(event.pointerId);
  from = place(event);
  event.preventDefault();
});
$("canvas").addEventListener("pointermove", (event) => {
  if (!answer) return;
  const [x, y] = place(event);
  if (from) { view.box = boxed(from, [x, y]); show(); return; }
  point(answer.evidence[0] && cellAt(answer.evidence[0], x, y));
});
$("canvas").addEventListener("pointerup", (event) => {
  if (!from) return;
  const box = boxed(from, place(event));
  from = null;
  covering(false);
  if (box[2] - box[0] < 2 || box[3] - box[1] < 2) { view.box = null; show(); return; }
  $("box").value = box.map(Math.round).join(",");
  tab("tab-cover"); whatIf();
});
$("canvas").addEventListener("pointercancel", () => { if (from) { from = null; view.box = null; show(); } });
$("canvas").addEventListener("pointerleave", () => { if (!from) point(null); });
$("canvas").addEventListener("keydown", (event) => {
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key], evidence = answer?.evidence[0];
  if (!step || !evidence) { if (event.key === "Escape") point(null); return; }
  const { rows, cols } = evidence.grid, now = view.cell ?? { row: Math.floor(rows / 2), col: Math.floor(cols / 2) };
  point({ row: Math.min(Math.max(now.row + step[0], 0), rows - 1), col: Math.min(Math.max(now.col + step[1], 0), cols - 1) });
  event.preventDefault();
});

const boxed = ([ax, ay], [bx, by]) => [Math.max(Math.min(ax, bx), 0), Math.max(Math.min(ay, by), 0), Math.min(Math.max(ax, bx), size.width), Math.min(Math.max(ay, by), size.height)];

function point(cell) {
  if (cell?.row === view.cell?.row && cell?.col === view.cell?.col) return;
  view.cell = cell; show();
  if (!cell) return;
  const evidence = answer.evidence[0], value = evidence.grid.values[cell.row][cell.col];
  const block = anatomy.blocks.find(({ name }) => name === evidence.block);
  const [width, height] = evidence.cell_px.map(Math.round);
  let sees = "";
  const wide = block && (block.field.sees_all || block.field.rows.size >= 2 * anatomy.input[0]);
  if (block) sees = wide ? ` It can see the whole crop${block.field.sees_all ? "" : `: its field of ${block.field.rows.size} pixels is wider than the network's input of ${anatomy.input[0]}`}.` : ` It sees ${block.field.rows.size} × ${block.field.cols.size} pixels of the network's ${anatomy.input[0]} × ${anatomy.input[1]} input (dashed).`;
  $("readout").textContent = `Row ${cell.row + 1}, column ${cell.col + 1}: ${signed(value, 4)} ${evidence.unit}, ${value > 0 ? "for" : "against"} ${evidence.label}. The cell is ${width} × ${height} pixels of your picture.${sees}`;
}

// ------------------------------------------------------------------ can I trust it?

$("trust").addEventListener("click", () => busy("Checking", async (signal) => {
  const fields = shownQuestion();
  const found = card.limits.max_jobs ? await byJob("trust", fields, signal) : await (await post("/trust", picture, fields, signal)).json();
  const rows = [], judged = found.evidence[0].faithfulness;
  const row = (title, text, ...more) => rows.push(made("div", {}, made("h3", {}, title), made("p", {}, text), ...more));
  if (judged) row("Does the model react to what the map marks?", judged.verdict, made("div", { class: "curves" }, curve("Covered, strongest first", judged.deletion), curve("Shown, strongest first", judged.insertion)));
  if (found.agreement) row("Do other methods agree?", found.agreement.verdict);
  if (found.shifts) row("Does it hold when the picture moves?", found.shifts.verdict);
  if (found.sweep) row("Which stage says it best?", found.sweep.filter(({ faithfulness }) => faithfulness).map(({ evidence, faithfulness }) => `${evidence.block}: beats ${faithfulness.percentile.toFixed(0)} % of random maps`).join("; ") + ".");
  if (fields.flip && (found.shifts || found.sweep)) row("Not averaged", "The moved pictures and the other stages were judged without the mirror image.");
  for (const cut of found.cut) row("Left out", `${cut}. There was no time.`);
  $("trusted").replaceChildren(made("div", { class: "verdicts" }, ...rows));
}));

/** Work that takes longer than a request may: submit, watch, fetch; stopping here cancels it there. */
async function byJob(verb, fields, signal) {
  // Not ended half way: a job whose name we never hear could not be cancelled.
  const job = await (await post(`/jobs/${verb}`, picture, fields)).json();
  const away = () => fetch(`/jobs/${job.id}`, { method: "DELETE" });
  if (signal.aborted) { away(); signal.throwIfAborted(); }
  signal.addEventListener("abort", away);
  byJob.latest = signal;
  $("trusting").hidden = false;
  try {
    for (;;) {
      await new Promise((resolve) => setTimeout(resolve, 500));
      signal.throwIfAborted();
      const status = await read(`/jobs/${job.id}`, signal);
      $("progress").value = status.progress;
      $("eta").textContent = status.state === "queued" ? "waiting for its turn" : status.eta_seconds === null ? "begun" : `about ${Math.ceil(status.eta_seconds)} s left`;
      if (status.state === "queued" || status.state === "running") continue;
      if (status.state !== "done") throw new Refused(status.error ?? "The check was cancelled.", { kind: status.state });
      const { answers: [found] } = await read(`/jobs/${job.id}/result`, signal);
      signal.removeEventListener("abort", away);
      away();
      signal.throwIfAborted();
      if (found.error) throw new Refused(found.error, found);
      return found;
    }
  } finally { if (byJob.latest === signal) $("trusting").hidden = true; }
}

function curve(title, { shares, scores, area }) {
  const ns = "http://www.w3.org/2000/svg", svg = document.createElementNS(ns, "svg");
  svg.setAttribute("viewBox", "0 0 260 120"); svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${title}: score from ${scores[0].toFixed(2)} to ${scores.at(-1).toFixed(2)}, area ${area.toFixed(2)}`);
  const add = (tag, attributes, text = "") => { const element = document.createElementNS(ns, tag); for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value); element.textContent = text; svg.append(element); };
  add("path", { class: "axis", d: "M30 8 V96 H252" });
  add("path", { class: "line", d: shares.map((share, n) => `${n ? "L" : "M"}${30 + share * 222} ${96 - scores[n] * 88}`).join(" ") });
  add("text", { x: 4, y: 14 }, "1"); add("text", { x: 4, y: 99 }, "0"); add("text", { x: 30, y: 114 }, `${title}: area ${area.toFixed(2)}`);
  return svg;
}

// ------------------------------------------------------------------ block by block

$("sweep").addEventListener("click", () => busy("Sweeping the blocks", async (signal) => {
  const names = stages(), { target, against, method, flip } = shownQuestion(), note = card.method_notes[method || card.default_method];
  $("swept").replaceChildren();
  if (!note.reads_block) {
    $("swept").append(made("p", {}, `${note.title} asks the picture's pixels and no block: its map is the same for all of them. Choose a method that reads a block to see them one by one.`));
    return;
  }
  for (const [n, block] of names.entries()) {
    waited(`Sweeping the blocks, ${n + 1} of ${names.length}`);
    const found = await (await post("/explain", picture, { target, against, method, flip, block }, signal)).json();
    const evidence = found.evidence[0], canvas = made("canvas");
    if (evidence && picture.bitmap) {
      const shrink = Math.min(1, 360 / Math.max(found.image.width, found.image.height)), small = { width: Math.max(1, Math.round(found.image.width * shrink)), height: Math.max(1, Math.round(found.image.height * shrink)) };
      draw(canvas, picture.bitmap, small, { ...evidence, seen_box: evidence.seen_box.map((edge) => edge * shrink) }, evidence.status === "ok" || evidence.against ? mapCanvas(evidence, colours) : null);
    }
    $("swept").append(made("button", { type: "button", onclick: () => stage({ target, against, method, flip, block }) }, canvas, made("span", {}, `${block}, ${evidence ? `${evidence.grid.rows} × ${evidence.grid.cols}` : "no map"}`)));
  }
}));

/** The map of one stage, large; the strip stays, what was found out about another map goes. */
function stage(question) {
  $("block").value = question.block;
  scrollTo({ top: 0, behavior: "smooth" });
  asked = question;
  view = { ...view, cell: null };
  doubtAnew("trusted", "covered");
  explain();
}

/** The last block of each spatial size, up to the usual one. */
function stages() {
  const known = anatomy.blocks.slice(0, anatomy.blocks.findIndex(({ name }) => name === card.cam_block) + 1);
  const last = known.filter(({ shape, name }, n) => name === card.cam_block || shape.slice(0, 2).join() !== known[n + 1]?.shape.slice(0, 2).join());
  return (last.length > 2 ? last : known.filter((_, n) => (known.length - 1 - n) % 3 === 0)).map(({ name }) => name);
}

// ------------------------------------------------------------------ what if covered, activations

$("cover-form").addEventListener("submit", (event) => { event.preventDefault(); whatIf(); });

function whatIf() {
  const box = $("box").value.replaceAll(/\s/g, "");
  view.box = box ? box.split(",").map(Number) : null; show();
  return busy("Covering", async (signal) => {
    const found = await (await post("/whatif", picture, { ...shownQuestion(), box, cover: $("cover-by").value, overlay: true }, signal)).json();
    const rows = found.changes.slice(0, 12).map((item) => made("tr", {}, made("td", {}, item.label), made("td", {}, percent(item.before)), made("td", {}, percent(item.after)), made("td", {}, `${signed(item.change * 100, 1)} points`)));
    const table = made("table", {}, made("thead", {}, made("tr", {}, ...["class", "before", "after", "change"].map((text) => made("th", { scope: "col" }, text)))), made("tbody", {}, ...rows));
    const most = found.changes.reduce((one, other) => Math.abs(other.change) > Math.abs(one.change) ? other : one);
    const text = `${percent(found.share)} of what the model sees was covered; ${most.label} went from ${percent(most.before)} to ${percent(most.after)}.`;
    $("covered").replaceChildren(made("div", { class: "side" }, made("img", { src: found.covered, alt: "The picture with that part covered" }), made("div", {}, made("p", {}, text), table)));
    $("say").textContent = text;
  });
}

$("inside-form").addEventListener("submit", (event) => {
  event.preventDefault();
  busy("Looking inside", async (signal) => {
    const blocks = $("inside-block").value, sheet = await (await post("/activations", picture, { blocks, channels: 8, picture: true }, signal)).blob();
    const { activations: [block] } = await (await post("/activations", picture, { blocks, channels: 8 }, signal)).json();
    const text = `${block.block}: ${block.shape[0]} channels of ${block.shape[1]} × ${block.shape[2]}; ${percent(block.zero_share)} of the values are 0, the rest reach ${block.max.toFixed(2)}. Strongest: ${block.strongest.map(({ index }) => `#${index}`).join(", ")}.`;
    $("inside").replaceChildren(made("p", {}, text), made("img", { src: URL.createObjectURL(sheet), onload: ({ target }) => URL.revokeObjectURL(target.src), alt: `Contact sheet of the strongest channels of ${block.block}` }));
  });
});

// ------------------------------------------------------------------ provenance, and what to keep

function origin() {
  const { provenance, timing_ms: timing } = answer, evidence = answer.evidence[0];
  const facts = {
    model: `${provenance.model}${provenance.version ? `, version ${provenance.version}` : ", not from a registry"}`, run: provenance.run_id ?? "not known", bundle: `sha256 ${provenance.digest}`,
    picture: `sha256 ${provenance.image_sha256}, ${answer.image.width} × ${answer.image.height}`, "computed by": `${provenance.backbone}, ${provenance.engine}, ${provenance.precision}`,
    ...(evidence ? { "the map": `${evidence.method} at ${evidence.block}, ${evidence.grid.rows} × ${evidence.grid.cols}, from ${evidence.grid.min.toPrecision(3)} to ${evidence.grid.max.toPrecision(3)} ${evidence.unit}`, settings: Object.entries(evidence.settings).map(([name, value]) => `${name} ${value}`).join(", ") } : {}),
    took: `${timing.total} ms`, "trained on": card.dataset.name ?? card.dataset.digest ?? "not known", measured: Object.entries(card.metrics).filter(([name]) => name.includes("accuracy") || name.includes("ece")).map(([name, value]) => `${name} ${value.toFixed(3)}`).join(", ") || "nothing",
  };
  $("origin").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => [made("dt", {}, name), made("dd", {}, value)]));
}

function save(blob, name) {
  const link = made("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const stem = () => picture.name.replace(/\.[^.]*$/, "") || "picture";
$("save-picture").addEventListener("click", () => { const kept = view; view = { ...view, cell: null, box: null }; show(); $("canvas").toBlob((blob) => save(blob, `${stem()}-${answer.evidence[0]?.label ?? "scores"}.png`), "image/png"); view = kept; show(); });
$("save-json").addEventListener("click", () => save(new Blob([JSON.stringify(answer, null, 2)], { type: "application/json" }), `${stem()}.json`));
$("copy").addEventListener("click", async () => {
  const text = curl("/explain", picture.name, { ...answered, overlay: false });
  try { await navigator.clipboard.writeText(text); $("copy").textContent = "Copied"; } catch { prompt("The command:", text); }
  $("say").textContent = "The command was copied.";
  setTimeout(() => { $("copy").textContent = "Copy as curl"; }, 2000);
});

// ------------------------------------------------------------------ waiting, failures, tabs

async function busy(what, work) {
  // A change of the question goes on from the one before it; anything else is about the map that is shown.
  if (what === "Explaining") underWay?.abort(); else stop();
  const mine = underWay = new AbortController(), began = Date.now();
  mine.what = what;
  $("alert").hidden = true;
  const clock = setInterval(() => { if (underWay === mine && Date.now() - began > 400) { $("waiting").hidden = false; waited.tail = ` … ${((Date.now() - began) / 1000).toFixed(0)} s`; waited(); } }, 200);
  waited(what);
  $("canvas").setAttribute("aria-busy", "true");
  try { await work(mine.signal); } catch (error) { if (!mine.signal.aborted && error.name !== "AbortError") fail(error, () => busy(what, work)); } finally {
    clearInterval(clock);
    if (underWay === mine) { underWay = null; $("waiting").hidden = true; $("canvas").removeAttribute("aria-busy"); }
  }
}

function waited(what) { if (what) { waited.what = what; waited.tail = ""; } $("waited").textContent = `${waited.what}${waited.tail}`; }

function stop() {
  if (underWay?.what === "Explaining") settle();
  underWay?.abort();
}

$("stop").addEventListener("click", () => { stop(); $("say").textContent = "Stopped."; });

function fail(error, again = null) {
  if (!(error instanceof Refused)) console.error(error);
  const text = error instanceof Refused ? error.message : "This page failed; the details are in the browser's console.";
  if (picture && answer === null) $("question").textContent = "There is no answer.";
  const wait = error.retryAfter ? ` (${error.retryAfter} s)` : "";
  $("alert").replaceChildren(made("span", {}, text), ...(again ? [made("button", { type: "button", onclick: again }, `Try again${wait}`)] : []));
  $("alert").hidden = false;
}

const tabs = [...document.querySelectorAll("[role=tab]")];
for (const [n, each] of tabs.entries()) {
  each.addEventListener("click", () => tab(each.id));
  each.addEventListener("keydown", ({ key }) => {
    const to = { ArrowRight: n + 1, ArrowLeft: n - 1, Home: 0, End: tabs.length - 1 }[key];
    if (to !== undefined) { const next = tabs[(to + tabs.length) % tabs.length]; tab(next.id); next.focus(); }
  });
}

function tab(id) {
  for (const each of tabs) {
    const chosen = each.id === id;
    each.setAttribute("aria-selected", String(chosen)); each.tabIndex = chosen ? 0 : -1;
    $(each.getAttribute("aria-controls")).hidden = !chosen;
  }
}
