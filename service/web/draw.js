// The image, the map over it, what was never seen, and what one cell sees. The same arithmetic as the service's
// overlays (models/images/geometry.py, models/visualization/overlay.py): cells tile the seen box evenly, values
// are bilinear between their centres, colour means evidence.

/** @import { Block, Box, Cell, Colours, Evidence, FieldAxis, PlacedMap, Size } from "./types.d.ts" */

const STRENGTH = 0.78;
const GREYED = 35;
const FINE = 480;
const HATCH = 12;

/**
 * @param {HTMLCanvasElement} canvas
 * @returns {CanvasRenderingContext2D}
 */
const contextOf = (canvas) => /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));

/** @type {(value: number, low: number, high: number) => number} */
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/**
 * Bilinear value of a grid at a place of the seen box, both coordinates in [0, 1].
 * @param {number[][]} values
 * @param {number} u
 * @param {number} v
 */
function valueAt(values, u, v) {
  const rows = values.length;
  const cols = values[0].length;
  const y = clamp(v * rows - 0.5, 0, rows - 1);
  const x = clamp(u * cols - 0.5, 0, cols - 1);
  const top = Math.min(Math.floor(y), Math.max(rows - 2, 0));
  const left = Math.min(Math.floor(x), Math.max(cols - 2, 0));
  const below = values[Math.min(top + 1, rows - 1)];
  const beside = Math.min(left + 1, cols - 1);
  const down = y - top;
  const right = x - left;
  return (
    values[top][left] * (1 - down) * (1 - right) +
    values[top][beside] * (1 - down) * right +
    below[left] * down * (1 - right) +
    below[beside] * down * right
  );
}

/**
 * What full colour stands for: the answer's scale, or of a contrast without one the strongest value of either side.
 * @param {PlacedMap} evidence
 */
export function fullScale({ full_scale: scale, against, grid }) {
  return scale ?? (against !== null ? Math.max(Math.abs(grid.min), Math.abs(grid.max)) : 0);
}

/**
 * The map of the seen box as a canvas of its own, transparent where there is no evidence.
 * @param {PlacedMap} evidence
 * @param {Colours} colours
 * @param {number} fade share of full colour below which nothing is drawn
 */
export function mapCanvas(evidence, colours, fade) {
  const [x0, y0, x1, y1] = evidence.seen_box;
  const aspect = (x1 - x0) / (y1 - y0);
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(aspect >= 1 ? FINE : FINE * aspect));
  canvas.height = Math.max(1, Math.round(aspect >= 1 ? FINE / aspect : FINE));
  const context = contextOf(canvas);
  const pixels = context.createImageData(canvas.width, canvas.height);
  const scale = fullScale(evidence);
  const contrast = evidence.against !== null;
  for (let row = 0, at = 0; row < canvas.height; row++) {
    for (let col = 0; col < canvas.width; col++, at += 4) {
      const u = (col + 0.5) / canvas.width;
      const v = (row + 0.5) / canvas.height;
      const value = scale > 0 ? valueAt(evidence.grid.values, u, v) / scale : 0;
      const full = clamp(value, contrast ? -1 : 0, 1);
      const share = (Math.sign(full) * Math.max(Math.abs(full) - fade, 0)) / (1 - fade);
      const colour = contrast
        ? colours.contrast[Math.round((share + 1) * 255)]
        : colours.evidence[Math.round(share * 255)];
      pixels.data.set([...colour, Math.round(255 * STRENGTH * Math.abs(share) ** 0.9)], at);
    }
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/**
 * @typedef {object} Marks
 * @property {number} [opacity]
 * @property {boolean} [show]
 * @property {Box | null} [cell]
 * @property {Box | null} [field]
 * @property {Box | null} [box]
 */

/**
 * Draw everything on one canvas, in pixels of the upright image.
 * @param {HTMLCanvasElement} canvas
 * @param {CanvasImageSource} image
 * @param {Size} size
 * @param {PlacedMap | null} evidence
 * @param {HTMLCanvasElement | null} map
 * @param {Marks} [marks]
 */
export function draw(canvas, image, size, evidence, map, marks = {}) {
  const { opacity = 1, show = true, cell = null, field = null, box = null } = marks;
  canvas.width = size.width;
  canvas.height = size.height;
  const context = contextOf(canvas);
  if (show && evidence) context.filter = `grayscale(${GREYED * opacity}%)`;
  // Transparent parts are white to the model, too.
  context.fillStyle = "#fff";
  context.fillRect(0, 0, size.width, size.height);
  context.drawImage(image, 0, 0, size.width, size.height);
  context.filter = "none";
  if (show && evidence) {
    const [x0, y0, x1, y1] = evidence.seen_box;
    if (map) {
      context.globalAlpha = opacity;
      context.drawImage(map, x0, y0, x1 - x0, y1 - y0);
      context.globalAlpha = 1;
    }
    hatch(context, size, evidence.seen_box);
  }
  const unit = Math.max(size.width, size.height) / 500;
  if (field) outline(context, field, 1.6 * unit, [5 * unit, 4 * unit]);
  if (cell) outline(context, cell, 2.4 * unit, []);
  if (box) outline(context, box, 2.4 * unit, [8 * unit, 4 * unit]);
}

/**
 * Dim and hatch what lies outside of the seen box.
 * @param {CanvasRenderingContext2D} context
 * @param {Size} size
 * @param {Box} seen
 */
function hatch(context, { width, height }, [x0, y0, x1, y1]) {
  if (x0 <= 0.5 && y0 <= 0.5 && x1 >= width - 0.5 && y1 >= height - 0.5) return;
  context.save();
  context.beginPath();
  context.rect(0, 0, width, height);
  context.rect(x0, y0, x1 - x0, y1 - y0);
  context.clip("evenodd");
  context.fillStyle = "rgba(30, 28, 36, 0.45)";
  context.fillRect(0, 0, width, height);
  const period = HATCH * Math.max(1, Math.max(width, height) / 600);
  context.strokeStyle = "rgba(255, 255, 255, 0.45)";
  context.lineWidth = Math.max(1, period / 12);
  context.beginPath();
  for (let at = 0; at < width + height; at += period) {
    context.moveTo(at, 0);
    context.lineTo(at - height, height);
  }
  context.stroke();
  context.restore();
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Box} box
 * @param {number} width
 * @param {number[]} dash
 */
function outline(context, [x0, y0, x1, y1], width, dash) {
  context.setLineDash(dash);
  /** @type {[string, number][]} */
  const strokes = [
    ["rgba(0, 0, 0, 0.75)", width * 2],
    ["#ffffff", width],
  ];
  for (const [style, thickness] of strokes) {
    context.strokeStyle = style;
    context.lineWidth = thickness;
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  }
  context.setLineDash([]);
}

/**
 * Draw the colour scale, from one end to the other.
 * @param {HTMLCanvasElement} canvas
 * @param {Colours} colours
 * @param {boolean} contrast
 */
export function legend(canvas, colours, contrast) {
  const table = contrast ? colours.contrast : colours.evidence;
  const context = contextOf(canvas);
  for (let x = 0; x < canvas.width; x++) {
    const [r, g, b] = table[Math.round((x / (canvas.width - 1)) * (table.length - 1))];
    context.fillStyle = `rgb(${r} ${g} ${b})`;
    context.fillRect(x, 0, 1, 1);
  }
}

/**
 * The cell of a map at a place of the image; null outside of what was seen.
 * @param {Evidence} evidence
 * @param {number} x
 * @param {number} y
 * @returns {Cell | null}
 */
export function cellAt({ seen_box: [x0, y0, x1, y1], grid: { rows, cols } }, x, y) {
  const row = Math.floor(((y - y0) / (y1 - y0)) * rows);
  const col = Math.floor(((x - x0) / (x1 - x0)) * cols);
  return row >= 0 && row < rows && col >= 0 && col < cols ? { row, col } : null;
}

/**
 * A cell's own box in pixels of the image.
 * @param {Evidence} evidence
 * @param {Cell} cell
 * @returns {Box}
 */
export function cellBox({ seen_box: [x0, y0], cell_px: [width, height] }, { row, col }) {
  return [x0 + col * width, y0 + row * height, x0 + (col + 1) * width, y0 + (row + 1) * height];
}

/**
 * What a cell sees, in pixels of the image, kept within what the model saw.
 * @param {Evidence} evidence
 * @param {Block} block
 * @param {Cell} cell
 * @param {[number, number, number]} input height, width and channels of the network's input
 * @returns {Box}
 */
export function fieldBox({ seen_box: seen }, { field }, { row, col }, [height, width]) {
  if (field.sees_all) return seen;
  const [x0, y0, x1, y1] = seen;
  const [left, right] = span(field.cols, col, width);
  const [top, bottom] = span(field.rows, row, height);
  return [
    x0 + (left / width) * (x1 - x0),
    y0 + (top / height) * (y1 - y0),
    x0 + (right / width) * (x1 - x0),
    y0 + (bottom / height) * (y1 - y0),
  ];
}

/**
 * @param {FieldAxis} axis
 * @param {number} position
 * @param {number} pixels
 */
function span({ start, jump, size }, position, pixels) {
  const first = start + position * jump;
  return [Math.max(first, 0), Math.min(first + size, pixels)];
}
