// The image on its canvas: drawn with the map, pointed at cell by cell, and boxes drawn on it.

import { byId, signed } from "./dom.js";
import { cellAt, cellBox, draw, fieldBox } from "./draw.js";
import { evidenceShown, state } from "./state.js";

/** @import { Box, Cell, Evidence, Size } from "./types.d.ts" */

/** @type {HTMLCanvasElement} */
const canvas = byId("canvas");
const HINT = byId("readout").textContent;
const SMALLEST_BOX = 2;

/** Take away what was said about a cell. */
export function clearReadout() {
  byId("readout").textContent = HINT;
}

/** Draw the image as the state has it. */
export function show() {
  const evidence = evidenceShown();
  const { image, view, network } = state;
  byId("drop").hidden = true;
  byId("shown").hidden = false;
  byId("more").hidden = state.answer === null;
  const base = image?.bitmap ?? image?.drawn;
  if (!image || !base || !state.size) return;
  const block = evidence && network.blocks.find(({ name }) => name === evidence.block);
  const { cell } = view;
  fit(state.size);
  draw(canvas, base, state.size, image.bitmap ? evidence : null, state.map, {
    ...view,
    cell: cell && evidence ? cellBox(evidence, cell) : null,
    field: cell && evidence && block ? fieldBox(evidence, block, cell, network.input) : null,
  });
}

/** What is above and below the image as far as the tabs, which are to be seen without scrolling. */
const ROUND_THE_IMAGE = 325;

/**
 * As large as there is room for; a very small image is enlarged pixel by pixel.
 * @param {Size} size
 */
function fit(size) {
  const height = Math.max(240, innerHeight - ROUND_THE_IMAGE);
  const wide = Math.round(Math.min((height * size.width) / size.height, size.width * 24));
  canvas.style.width = `min(100%, ${wide}px)`;
  canvas.classList.toggle("tiny", Math.max(size.width, size.height) < 100);
}

/**
 * Show a cell and what it sees, or none.
 * @param {Cell | null} cell
 */
function point(cell) {
  const { view } = state;
  if (cell?.row === view.cell?.row && cell?.col === view.cell?.col) return;
  view.cell = cell;
  show();
  const evidence = evidenceShown();
  if (!cell || !evidence) return;
  const value = evidence.grid.values[cell.row][cell.col];
  const [width, height] = evidence.cell_px.map(Math.round);
  byId("readout").textContent =
    `Row ${cell.row + 1}, column ${cell.col + 1}: ${signed(value, 4)} ${evidence.unit}, ` +
    `${value > 0 === evidence.negative ? "against" : "for"} ${evidence.label}. ` +
    `The cell is ${width} × ${height} pixels of your picture.${describeField(evidence)}`;
}

/** @param {Evidence} evidence */
function describeField(evidence) {
  const block = state.network.blocks.find(({ name }) => name === evidence.block);
  if (!block) return "";
  const [height, width] = state.network.input;
  const { rows, cols, sees_all: seesAll } = block.field;
  if (seesAll) return " It can see all that the model sees.";
  if (rows.size >= 2 * height) {
    return (
      ` It can see all that the model sees: its field of ${rows.size} pixels is wider than ` +
      `the network's input of ${height}.`
    );
  }
  return ` It sees ${rows.size} × ${cols.size} pixels of the network's ${height} × ${width} input (dashed).`;
}

/** @param {boolean} on */
function setCovering(on) {
  byId("cover").setAttribute("aria-pressed", String(on));
  canvas.classList.toggle("covering", on);
  if (!on) return;
  byId("readout").textContent =
    "Draw a box with the mouse or a finger; the part inside is covered, and the scores are asked again. " +
    "Without either, write the box under “What if covered?”.";
}

const isCovering = () => byId("cover").getAttribute("aria-pressed") === "true";

/**
 * The place of a pointer in pixels of the upright image.
 * @param {PointerEvent} event
 * @returns {[number, number]}
 */
function place(event) {
  const { width, height } = /** @type {Size} */ (state.size);
  const bounds = canvas.getBoundingClientRect();
  return [
    ((event.clientX - bounds.left) / bounds.width) * width,
    ((event.clientY - bounds.top) / bounds.height) * height,
  ];
}

/**
 * @param {[number, number]} start
 * @param {[number, number]} end
 * @returns {Box}
 */
function boxBetween([ax, ay], [bx, by]) {
  const { width, height } = /** @type {Size} */ (state.size);
  return [
    Math.max(Math.min(ax, bx), 0),
    Math.max(Math.min(ay, by), 0),
    Math.min(Math.max(ax, bx), width),
    Math.min(Math.max(ay, by), height),
  ];
}

/**
 * Let boxes be drawn with a pointer.
 * @param {(box: Box) => void} onBox called with each box, in pixels of the upright image
 */
function bindPointer(onBox) {
  /** @type {[number, number] | null} */
  let start = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (!isCovering()) return;
    canvas.setPointerCapture(event.pointerId);
    start = place(event);
    event.preventDefault();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!state.answer) return;
    const [x, y] = place(event);
    const evidence = evidenceShown();
    if (start) {
      state.view.box = boxBetween(start, [x, y]);
      show();
    } else point(evidence && cellAt(evidence, x, y));
  });
  canvas.addEventListener("pointerup", (event) => {
    if (!start) return;
    const box = boxBetween(start, place(event));
    start = null;
    setCovering(false);
    if (box[2] - box[0] < SMALLEST_BOX || box[3] - box[1] < SMALLEST_BOX) {
      state.view.box = null;
      show();
    } else onBox(box);
  });
  canvas.addEventListener("pointercancel", () => {
    if (!start) return;
    start = null;
    state.view.box = null;
    show();
  });
  canvas.addEventListener("pointerleave", () => {
    if (!start) point(null);
  });
}

/** @type {Record<string, [number, number]>} */
const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

/** @param {KeyboardEvent} event */
function moveCell(event) {
  const step = STEPS[event.key];
  const evidence = evidenceShown();
  if (!step || !evidence) {
    if (event.key === "Escape") point(null);
    return;
  }
  const { rows, cols } = evidence.grid;
  const now = state.view.cell ?? { row: Math.floor(rows / 2), col: Math.floor(cols / 2) };
  point({
    row: Math.min(Math.max(now.row + step[0], 0), rows - 1),
    col: Math.min(Math.max(now.col + step[1], 0), cols - 1),
  });
  event.preventDefault();
}

/**
 * Let the image be pointed at, and boxes be drawn on it.
 * @param {(box: Box) => void} onBox
 */
export function bindCanvas(onBox) {
  bindPointer(onBox);
  canvas.addEventListener("keydown", moveCell);
  addEventListener("resize", () => {
    if (state.size && state.image) fit(state.size);
  });
  byId("opacity").addEventListener("input", () => {
    state.view.opacity = byId("opacity").value / 100;
    show();
  });
  byId("toggle").addEventListener("click", () => {
    state.view.show = !state.view.show;
    byId("toggle").setAttribute("aria-pressed", String(state.view.show));
    show();
  });
  byId("cover").addEventListener("click", () => setCovering(!isCovering()));
}
