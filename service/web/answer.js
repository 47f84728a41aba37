// An answer in words: scores, legend, warnings and provenance.

import { announce, byId, element, percent } from "./dom.js";
import { fullScale, legend } from "./draw.js";
import { evidenceShown, imageShown, state } from "./state.js";

/** @import { Evidence, ExplainAnswer } from "./types.d.ts" */

const KEEP_BUTTONS = ["save-picture", "save-json", "copy", "cover"];
const MOST_ROWS = 100;
const MOST_CHOICES = 200;
const FEW_CLASSES = 12;

/** @type {Record<string, string>} */
const EMPTY_BECAUSE = {
  no_positive_evidence: "nothing here speaks for it",
  no_gradient: "the score does not depend on this block",
  not_finite: "the values are no numbers",
};

/** Show the answer of the state in words. */
export function describeAnswer() {
  const answer = /** @type {ExplainAnswer} */ (state.answer);
  const evidence = evidenceShown();
  for (const id of KEEP_BUTTONS) byId(id).disabled = false;
  byId("question").replaceChildren(...questionOf(evidence));
  byId("hatch-key").hidden = answer.image.seen_share > 0.995;
  listScores();
  if (evidence) describeMap(answer, evidence);
  const notes = [...answer.cut, ...answer.warnings];
  if (evidence?.sanity) notes.push(evidence.sanity);
  if (evidence?.border?.suspicious) {
    notes.push(`${percent(evidence.border.mass)} of the evidence lies in the outermost cells.`);
  }
  byId("warnings").replaceChildren(...notes.map((text) => element("li", {}, text)));
  byId("warned").hidden = notes.length === 0;
  describeOrigin(answer, evidence);
}

/** Take away the words about another image. */
export function clearAnswer() {
  for (const id of ["scores", "warnings", "origin", "inside"]) byId(id).replaceChildren();
  for (const id of ["low", "high", "by"]) byId(id).textContent = "";
  for (const id of KEEP_BUTTONS) byId(id).disabled = true;
  for (const id of ["more", "warned", "against-row", "find"]) byId(id).hidden = true;
  byId("question").textContent = "Being asked …";
  byId("canvas").setAttribute("aria-label", `${imageShown().name}, without a map yet`);
}

/**
 * @param {ExplainAnswer} answer
 * @param {Evidence} evidence
 */
function describeMap(answer, evidence) {
  const { grid, against, label, block } = evidence;
  const title = state.card.method_notes[evidence.method].title;
  const top = fullScale(evidence);
  legend(byId("legend"), state.colours, against !== null);
  const place = block === "input" ? "" : ` at ${block}`;
  const mirrored = state.answered?.flip ? ", averaged with the mirror image" : "";
  byId("by").textContent = `${title}${place}, ${grid.rows} × ${grid.cols}${mirrored}`;
  byId("low").textContent = against ?? "no evidence";
  const side = evidence.negative ? ` against ${label}` : "";
  const highest = top > 0 ? `${top.toPrecision(2)} ${evidence.unit} a cell${side}` : "";
  byId("high").textContent = against === null ? highest : label;
  const rather = against === null ? "" : ` rather than ${against}`;
  const toward = evidence.negative ? "against" : "for";
  byId("canvas").setAttribute(
    "aria-label",
    `${imageShown().name}: evidence ${toward} ${label}${rather} by ${title} at ${block}, ${strongestCell(evidence)}`,
  );
  const [first] = answer.predictions;
  announce(`${first.label}, ${percent(first.score)}. The map is ${toward} ${label}.`);
}

/**
 * @param {Evidence | null} evidence
 * @returns {(Node | string)[]}
 */
function questionOf(evidence) {
  if (!evidence) return ["There was no time for a map."];
  if (state.instead) {
    const { label, status, reason } = state.instead;
    const why = EMPTY_BECAUSE[status] ?? status;
    const sentence = `${why[0].toUpperCase()}${why.slice(1)}`;
    return ["Why ", element("b", {}, label), `? ${sentence}. Shown instead: ${reason}`];
  }
  const label = element("b", {}, evidence.label);
  if (evidence.negative) return ["What speaks against ", label, "?"];
  if (evidence.against) return ["Why ", label, ", not ", element("b", {}, evidence.against), "?"];
  if (evidence.status === "ok") return ["Why ", label, "?"];
  return ["Why ", label, `? ${EMPTY_BECAUSE[evidence.status] ?? evidence.status}: the map is empty.`];
}

/** @param {Evidence} evidence */
function strongestCell({ grid: { values, rows, cols } }) {
  const flat = values.flat();
  const at = flat.indexOf(Math.max(...flat));
  return `strongest in row ${Math.floor(at / cols) + 1} of ${rows}, column ${(at % cols) + 1} of ${cols}`;
}

/** List the classes that match the search, and offer them to hold against. */
export function listScores() {
  const { predictions } = /** @type {ExplainAnswer} */ (state.answer);
  const label = evidenceShown()?.label;
  const search = byId("find").value.toLowerCase();
  byId("find").hidden = predictions.length <= FEW_CLASSES;
  const focused = /** @type {HTMLElement | null} */ (document.activeElement)?.dataset?.label;
  const rows = predictions.filter((item) => item.label.toLowerCase().includes(search)).slice(0, MOST_ROWS);
  byId("scores").replaceChildren(
    ...rows.map((item) => {
      const bar = element("i");
      bar.style.width = `${item.score * 100}%`;
      const pressed = String(label === item.label);
      const attributes = { type: "button", "data-label": item.label, "aria-pressed": pressed };
      const cells = [element("span", {}, item.label), element("span", {}, percent(item.score)), bar];
      return element("li", {}, element("button", { ...attributes, title: `Why ${item.label}?` }, ...cells));
    }),
  );
  const buttons = [...byId("scores").querySelectorAll("button")];
  if (focused) buttons.find(({ dataset }) => dataset.label === focused)?.focus();
  byId("against-row").hidden = predictions.length < 2;
  const [first, second] = predictions;
  byId("versus").textContent = second ? `Why ${first.label}, not ${second.label}?` : "";
  const others = predictions.filter((item) => item.label !== label).slice(0, MOST_CHOICES);
  byId("against").replaceChildren(
    element("option", { value: "" }, "– any –"),
    ...others.map((item) =>
      element("option", { value: item.label, selected: item.label === state.question.against }, item.label),
    ),
  );
}

/**
 * @param {ExplainAnswer} answer
 * @param {Evidence | null} evidence
 */
function describeOrigin({ provenance, timing_ms: timing, image }, evidence) {
  const { card } = state;
  const measured = Object.entries(card.metrics).filter(([name]) => /accuracy|ece/.test(name));
  const version = provenance.version ? `, version ${provenance.version}` : ", not from a registry";
  /** @type {Record<string, string>} */
  const facts = {
    model: `${provenance.model}${version}`,
    run: provenance.run_id ?? "not known",
    bundle: `sha256 ${provenance.digest}`,
    picture: `sha256 ${provenance.image_sha256}, ${image.width} × ${image.height}`,
    "computed by": `${provenance.backbone}, ${provenance.engine}, ${provenance.precision}`,
    ...(evidence ? mapFacts(evidence) : {}),
    took: `${timing.total} ms`,
    "trained on": card.dataset.name ?? card.dataset.digest ?? "not known",
    measured: measured.map(([name, value]) => `${name} ${value.toFixed(3)}`).join(", ") || "nothing",
  };
  const rows = Object.entries(facts).flatMap(([name, value]) => [
    element("dt", {}, name),
    element("dd", {}, value),
  ]);
  byId("origin").replaceChildren(...rows);
}

/** @param {Evidence} evidence */
function mapFacts({ method, block, grid, unit, settings }) {
  const range = `from ${grid.min.toPrecision(3)} to ${grid.max.toPrecision(3)} ${unit}`;
  return {
    "the map": `${method} at ${block}, ${grid.rows} × ${grid.cols}, ${range}`,
    settings: Object.entries(settings)
      .map(([name, value]) => `${name} ${value}`)
      .join(", "),
  };
}
