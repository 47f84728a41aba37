// One piece of work at a time: its clock, its Stop button, and its failure.

import { RequestError } from "./api.js";
import { announce, byId, element } from "./dom.js";
import { restoreQuestion } from "./question.js";
import { state } from "./state.js";

const SHOWN_AFTER_MS = 400;
export const EXPLAINING = "Explaining";

/** What is under way: what the Stop button ends. */
const current = {
  /** @type {AbortController | null} */
  controller: null,
  label: "",
  elapsed: "",
};

/**
 * Do a piece of work that can be stopped; its failure is told, and may be tried again.
 * @param {string} label
 * @param {(signal: AbortSignal) => Promise<void>} work
 */
export async function run(label, work) {
  // A change of the question goes on from the one before it; anything else is about the map that is shown.
  if (label === EXPLAINING) abort();
  else stop();
  const controller = new AbortController();
  const began = Date.now();
  Object.assign(current, { controller, label, elapsed: "" });
  byId("alert").hidden = true;
  const clock = setInterval(() => {
    const passed = Date.now() - began;
    if (current.controller !== controller || passed <= SHOWN_AFTER_MS) return;
    byId("waiting").hidden = false;
    current.elapsed = ` … ${(passed / 1000).toFixed(0)} s`;
    showLabel();
  }, 200);
  showLabel();
  byId("canvas").setAttribute("aria-busy", "true");
  try {
    await work(controller.signal);
  } catch (error) {
    const stopped =
      controller.signal.aborted || (error instanceof DOMException && error.name === "AbortError");
    if (!stopped) fail(error, () => run(label, work));
  } finally {
    clearInterval(clock);
    if (current.controller === controller) {
      current.controller = null;
      byId("waiting").hidden = true;
      byId("canvas").removeAttribute("aria-busy");
    }
  }
}

/**
 * Say how far the work is.
 * @param {string} label
 */
export function relabel(label) {
  current.elapsed = "";
  byId("waited").textContent = label;
  current.label = label;
}

function showLabel() {
  byId("waited").textContent = `${current.label}${current.elapsed}`;
}

/** End what is under way. */
export function abort() {
  current.controller?.abort();
}

function stop() {
  if (current.controller && current.label === EXPLAINING) restoreQuestion();
  abort();
}

/**
 * Show a failure, with a button where it can be tried again.
 * @param {unknown} error
 * @param {(() => void) | null} [again]
 */
export function fail(error, again = null) {
  const known = error instanceof RequestError;
  if (!known) console.error(error);
  const text = known ? error.message : "This page failed; the details are in the browser's console.";
  if (state.image && state.answer === null) byId("question").textContent = "There is no answer.";
  const pause = known && error.retryAfter ? ` (${error.retryAfter} s)` : "";
  const button = again ? [element("button", { type: "button", onclick: again }, `Try again${pause}`)] : [];
  byId("alert").replaceChildren(element("span", {}, text), ...button);
  byId("alert").hidden = false;
}

byId("stop").addEventListener("click", () => {
  stop();
  announce("Stopped.");
});
