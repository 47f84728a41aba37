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

const RESULTS = ["trusted", "swept", "covered"];
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
  Object.assign(state, { image: { blob, name, bitmap }, answer: null, map: null });
  Object.assign(state.question, { target: "", against: "" });
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
 * Change the question and ask it.
 * @param {Partial<Question>} changes
 */
export function ask(changes) {
  Object.assign(state.question, changes);
  state.view.cell = null;
  clearResults();
  return explain();
}

/** Ask the question of the state. */
export async function explain() {
  if (!state.image) return;
  await run(EXPLAINING, async (signal) => {
    const image = imageShown();
    const fields = { ...state.question, overlay: image.bitmap === null };
    const answer = await request(fields, signal);
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
    Object.assign(state, { answer, answered: fields, size: answer.image, map: drawMap(evidence) });
    show();
    describeAnswer();
  });
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
    ? mapCanvas(evidence, state.colours)
    : null;
}

/** Ask again whenever a control of the question changes. */
export function bindQuestion() {
  byId("find").addEventListener("input", listScores);
  byId("scores").addEventListener("click", (/** @type {MouseEvent} */ event) => {
    const button = /** @type {HTMLElement} */ (event.target).closest("button");
    const target = button?.dataset.label;
    if (target === undefined) return;
    const { against } = state.question;
    ask({ target, against: against === target ? "" : against });
  });
  byId("against").addEventListener("change", () => {
    const against = byId("against").value;
    ask({ against, target: against ? (evidenceShown()?.label ?? "") : state.question.target });
  });
  byId("method").addEventListener("change", () => {
    describeMethod();
    ask({ method: byId("method").value });
  });
  byId("block").addEventListener("change", () => ask({ block: byId("block").value }));
  byId("flip").addEventListener("change", () => ask({ flip: byId("flip").checked }));
}
