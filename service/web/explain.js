// The question and its answer: choose an image, ask, show.

import { clearAnswer, describeAnswer, listScores } from "./answer.js";
import { fetchBlob, post, RequestError } from "./api.js";
import { clearReadout, show } from "./canvas.js";
import { byId, element } from "./dom.js";
import { mapCanvas } from "./draw.js";
import { describeMethod, loadModel } from "./question.js";
import { evidenceShown, imageShown, state } from "./state.js";
import { abort, EXPLAINING, fail, run } from "./work.js";

/** @import { Evidence, ExplainAnswer, Question } from "./types.d.ts" */

/** As the label of its control says. */
const FADE = 0.3;
const RESULTS = ["trusted", "swept", "covered", "concepts"];
/** What a change of the question leaves as it is: a sweep has all blocks, a box stays covered whatever is asked. */
const HOLDS = { block: ["swept", "concepts"], method: ["concepts"] };
/** Counts the images that were chosen: one that is decoded late must not replace a later one. */
const choices = { latest: 0 };

/**
 * Show a sample of the service.
 * @param {string} url
 * @param {string} name
 */
export async function chooseSample(url, name) {
  const turn = ++choices.latest;
  try {
    const blob = await fetchBlob(url);
    if (turn === choices.latest) chooseImage(blob, name);
  } catch (error) {
    fail(error);
  }
}

/**
 * Show an image and explain it.
 * @param {Blob} blob
 * @param {string} name
 */
export async function chooseImage(blob, name) {
  const turn = ++choices.latest;
  const limit = state.card?.limits.max_body_bytes ?? Infinity;
  if (blob.size > limit) {
    const [size, most] = [blob.size, limit].map((count) => count.toLocaleString("en"));
    fail(new RequestError(`The picture has ${size} bytes; this service reads ${most} at most.`));
    return;
  }
  const bitmap = await decode(blob);
  if (turn !== choices.latest) {
    bitmap?.close();
    return;
  }
  abort();
  state.image?.bitmap?.close();
  Object.assign(state, { image: { blob, name, bitmap }, answer: null, instead: null, map: null });
  Object.assign(state.question, { target: "", against: "", negative: false });
  Object.assign(state.view, { cell: null, box: null });
  clearAnswer();
  clearResults();
  byId("box").value = "";
  if (bitmap) {
    state.size = { width: bitmap.width, height: bitmap.height };
    show();
  } else {
    const canvas = byId("canvas");
    canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  }
  await explain();
}

/** @param {Blob} blob */
async function decode(blob) {
  try {
    return await createImageBitmap(blob, { imageOrientation: "from-image" });
  } catch {
    // TIFF and others: the service's own drawing is shown.
    return null;
  }
}

/**
 * Take away the results about another question, or those of these tabs.
 * @param {...string} ids
 */
export function clearResults(...ids) {
  for (const id of ids.length ? ids : RESULTS) byId(id).replaceChildren();
  clearReadout();
}

/**
 * Change the question and ask it; results that still hold stay.
 * @param {Partial<Question>} changes
 */
export function ask(changes) {
  Object.assign(state.question, changes);
  state.view.cell = null;
  const changed = Object.keys(changes);
  const holding = Object.entries(HOLDS).flatMap(([field, ids]) =>
    changed.every((name) => name === field) ? ids : [],
  );
  if (state.view.box) holding.push("covered");
  clearResults(...RESULTS.filter((id) => !holding.includes(id)));
  return explain();
}

/** Ask the question of the state. */
export async function explain() {
  if (!state.image) return;
  await run(EXPLAINING, async (signal) => {
    const image = imageShown();
    const asked = { ...state.question, overlay: image.bitmap === null };
    const { answer, fields, instead } = await orInstead(await request(asked, signal), asked, signal);
    const evidence = answer.evidence[0] ?? null;
    if (!image.bitmap && evidence?.overlay) {
      const drawing = element("img", { src: evidence.overlay, alt: "" });
      await drawing.decode();
      signal.throwIfAborted();
      image.drawn = drawing;
    }
    if (answer.provenance.digest !== state.card.digest) {
      // Another model has taken over since the page was opened.
      await loadModel();
      signal.throwIfAborted();
      clearResults();
    }
    const { overlay: _, ...answered } = fields;
    Object.assign(state, { answer, answered, instead, size: answer.image, map: drawMap(evidence) });
    show();
    describeAnswer();
  });
}

/**
 * The answer, or in place of an empty map the one to the first question that the service suggests.
 * @param {ExplainAnswer} answer
 * @param {Question & { overlay: boolean }} fields
 * @param {AbortSignal} signal
 */
async function orInstead(answer, fields, signal) {
  const [suggestion] = answer.suggestions;
  if (!suggestion) return { answer, fields, instead: null };
  const { label, status } = answer.evidence[0];
  const suggested = { ...fields, ...suggestion.options, negative: suggestion.options.negative === "true" };
  const other = await request(suggested, signal);
  return { answer: other, fields: suggested, instead: { label, status, reason: suggestion.reason } };
}

/**
 * @param {Question & { overlay: boolean }} fields
 * @param {AbortSignal} signal
 * @returns {Promise<ExplainAnswer>}
 */
async function request(fields, signal) {
  try {
    return await (await post("/explain", imageShown(), fields, signal)).json();
  } catch (error) {
    // What was offered may be gone with the model that had it.
    const gone = error instanceof RequestError && error.kind === "unknown_choice";
    if (gone && !signal.aborted) await loadModel();
    throw error;
  }
}

/**
 * The map of the seen box as a canvas; null where there is nothing to see.
 * @param {Evidence | null} evidence
 */
export function drawMap(evidence) {
  return evidence && (evidence.status === "ok" || evidence.against)
    ? mapCanvas(evidence, state.colours, state.view.fade)
    : null;
}

/** Ask again whenever a control of the question changes. */
export function bindQuestion() {
  byId("fade").addEventListener("change", () => {
    state.view.fade = byId("fade").checked ? FADE : 0;
    state.map = drawMap(evidenceShown());
    show();
  });
  byId("find").addEventListener("input", listScores);
  byId("versus").addEventListener("click", () => {
    const [first, second] = /** @type {ExplainAnswer} */ (state.answer).predictions;
    ask({ target: first.label, against: second.label, negative: false });
  });
  byId("scores").addEventListener("click", (/** @type {MouseEvent} */ event) => {
    const button = /** @type {HTMLElement} */ (event.target).closest("button");
    const target = button?.dataset.label;
    if (target === undefined) return;
    const { against } = state.question;
    ask({ target, against: against === target ? "" : against, negative: false });
  });
  byId("against").addEventListener("change", () => {
    const against = byId("against").value;
    const target = against ? (evidenceShown()?.label ?? "") : state.question.target;
    ask({ against, target, negative: false });
  });
  byId("method").addEventListener("change", () => {
    describeMethod();
    ask({ method: byId("method").value });
  });
  byId("block").addEventListener("change", () => ask({ block: byId("block").value }));
  byId("flip").addEventListener("change", () => ask({ flip: byId("flip").checked }));
}
