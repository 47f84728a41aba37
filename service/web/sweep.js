// Block by block: the same question at the end of each stage.

import { post } from "./api.js";
import { byId, element } from "./dom.js";
import { draw } from "./draw.js";
import { clearResults, drawMap, explain } from "./explain.js";
import { imageShown, questionShown, state } from "./state.js";
import { relabel, run } from "./work.js";

/** @import { Box, ExplainAnswer, Question } from "./types.d.ts" */

const THUMBNAIL_SIDE = 360;

/** Sweep the blocks when the button is pressed. */
export function bindSweep() {
  byId("sweep").addEventListener("click", () => run("Sweeping the blocks", sweep));
}

/** @param {AbortSignal} signal */
async function sweep(signal) {
  const blocks = stageBlocks();
  const current = questionShown();
  const note = state.card.method_notes[current.method || state.card.default_method];
  byId("swept").replaceChildren();
  if (!note.reads_block) {
    const text =
      `${note.title} asks the picture's pixels and no block: its map is the same for all of them. ` +
      "Choose a method that reads a block to see them one by one.";
    byId("swept").append(element("p", {}, text));
    return;
  }
  for (const [n, block] of blocks.entries()) {
    relabel(`Sweeping the blocks, ${n + 1} of ${blocks.length}`);
    const question = { ...current, block };
    const answer = await (await post("/explain", imageShown(), question, signal)).json();
    byId("swept").append(stageButton(question, answer));
  }
}

/**
 * @param {Question} question
 * @param {ExplainAnswer} answer
 */
function stageButton(question, { evidence: [evidence], image }) {
  const canvas = element("canvas");
  const { bitmap } = imageShown();
  if (evidence && bitmap) {
    const shrink = Math.min(1, THUMBNAIL_SIDE / Math.max(image.width, image.height));
    const small = {
      width: Math.max(1, Math.round(image.width * shrink)),
      height: Math.max(1, Math.round(image.height * shrink)),
    };
    const seen = /** @type {Box} */ (evidence.seen_box.map((edge) => edge * shrink));
    draw(canvas, bitmap, small, { ...evidence, seen_box: seen }, drawMap(evidence));
  }
  const grid = evidence ? `${evidence.grid.rows} × ${evidence.grid.cols}` : "no map";
  const label = element("span", {}, `${question.block}, ${grid}`);
  return element("button", { type: "button", onclick: () => showStage(question) }, canvas, label);
}

/**
 * Show the map of one stage large; the strip stays, the results about another map go.
 * @param {Question} question
 */
function showStage(question) {
  byId("block").value = question.block;
  scrollTo({ top: 0, behavior: "smooth" });
  state.question = { ...question };
  state.view.cell = null;
  clearResults("trusted", "covered");
  explain();
}

/** The last block of each spatial size, up to the usual one. */
function stageBlocks() {
  const usual = state.card.cam_block;
  const all = state.network.blocks;
  const blocks = all.slice(0, all.findIndex(({ name }) => name === usual) + 1);
  const sizeOf = (/** @type {number} */ n) => blocks[n]?.shape.slice(0, 2).join();
  const ends = blocks.filter(({ name }, n) => name === usual || sizeOf(n) !== sizeOf(n + 1));
  // Of one size throughout, as a transformer is: every third.
  const stages = ends.length > 2 ? ends : blocks.filter((_, n) => (blocks.length - 1 - n) % 3 === 0);
  return stages.map(({ name }) => name);
}
