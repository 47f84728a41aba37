// The page's one state: what is served, which image is shown, what was asked and what was answered.

/** @import { ChosenImage, Colours, ExplainAnswer, Instead, ModelCard, NetworkSummary, Question, Size, View } from "./types.d.ts" */

/**
 * @typedef {object} State
 * @property {ModelCard} card the model that is served
 * @property {NetworkSummary} network its blocks
 * @property {Colours} colours tables of both colour maps
 * @property {ChosenImage | null} image what is shown
 * @property {Size | null} size of the upright image
 * @property {ExplainAnswer | null} answer what is shown with it
 * @property {Question | null} answered the fields that the answer was asked by
 * @property {Instead | null} instead the empty map in whose place the answer stands
 * @property {HTMLCanvasElement | null} map the answer's map, drawn
 * @property {Question} question what is asked, or would be asked next
 * @property {View} view how the image is drawn
 */

/** @type {State} */
export const state = {
  card: /** @type {any} */ (null),
  network: /** @type {any} */ (null),
  colours: /** @type {any} */ (null),
  image: null,
  size: null,
  answer: null,
  answered: null,
  instead: null,
  map: null,
  question: { target: "", against: "", negative: false, method: "", block: "", flip: false },
  view: { opacity: 1, show: true, fade: 0, cell: null, box: null },
};

/** The first map of the answer; null where there is none. */
export const evidenceShown = () => state.answer?.evidence[0] ?? null;

/**
 * The question that the map shown answers: what was asked since may be under way, or was refused.
 * @returns {Question}
 */
export function questionShown() {
  const answered = /** @type {Question} */ (state.answered);
  return { ...answered, target: evidenceShown()?.label ?? answered.target };
}

/** The image that is shown; there is one wherever a control asks something about it. */
export const imageShown = () => /** @type {ChosenImage} */ (state.image);
