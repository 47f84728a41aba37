// The picture, the map over it, what was never seen, and what one cell sees. The same arithmetic as the
// service's overlays (models/images/geometry.py, models/visualization/overlay.py): cells tile the seen box evenly, values are
// bilinear between their centres, colour means evidence.

const STRENGTH = 0.78, GREYED = 35, FINE = 480, HATCH = 12;

/** Bilinear value of a grid (rows of numbers) at a place of the seen box, both in [0, 1]. */
function valueAt(values, u, v) {
  const rows = values.length, cols = values[0].length;
  const y = Math.min(Math.max(v * rows - 0.5, 0), rows - 1), x = Math.min(Math.max(u * cols - 0.5, 0), cols - 1);
  const top = Math.min(Math.floor(y), Math.max(rows - 2, 0)), left = Math.min(Math.floor(x), Math.max(cols - 2, 0));
  const down = y - top, right = x - left, below = Math.min(top + 1, rows - 1), beside = Math.min(left + 1, cols - 1);
  return values[top][left] * (1 - down) * (1 - right) + values[top][beside] * (1 - down) * right +
    values[below][left] * down * (1 - right) + values[below][beside] * down * right;
}

/** What full colour stands for: the answer's scale, or of a contrast without one the strongest value of either side. */
export function fullScale(evidence) {
  const own = evidence.against !== null ? Math.max(Math.abs(evidence.grid.min), Math.abs(evidence.grid.max)) : 0;
  return evidence.full_scale ?? own;
}

/** The map of the seen box as a canvas of its own, transparent where there is no evidence. */
export function mapCanvas(evidence, colours) {
  const [x0, y0, x1, y1] = evidence.seen_box, aspect = (x1 - x0) / (y1 - y0);
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(aspect >= 1 ? FINE : FINE * aspect));
  canvas.height = Math.max(1, Math.round(aspect >= 1 ? FINE / aspect : FINE));
  const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
  const scale = fullScale(evidence), contrast = evidence.against !== null;
  for (let row = 0, at = 0; row < canvas.height; row++) {
    for (let col = 0; col < canvas.width; col++, at += 4) {
      const value = valueAt(evidence.grid.values, (col + 0.5) / canvas.width, (row + 0.5) / canvas.height);
      let share = scale > 0 ? value / scale : 0;
      share = contrast ? Math.min(Math.max(share, -1), 1) : Math.min(Math.max(share, 0), 1);
      const colour = contrast ? colours.contrast[Math.round((share + 1) * 255)] : colours.evidence[Math.round(share * 255)];
      image.data[at] = colour[0]; image.data[at + 1] = colour[1]; image.data[at + 2] = colour[2];
      image.data[at + 3] = Math.round(255 * STRENGTH * Math.abs(share) ** 0.9);
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** Everything on one canvas, in pixels of the upright picture. */
export function draw(canvas, picture, size, evidence, map, { opacity = 1, show = true, cell = null, field = null, box = null } = {}) {
  canvas.width = size.width; canvas.height = size.height;
  const context = canvas.getContext("2d"), visible = show && evidence !== null;
  if (visible) context.filter = `grayscale(${GREYED * opacity}%)`;
  // Transparent parts are white to the model, too.
  context.fillStyle = "#fff"; context.fillRect(0, 0, size.width, size.height);
  context.drawImage(picture, 0, 0, size.width, size.height);
  context.filter = "none";
  if (visible) {
    const [x0, y0, x1, y1] = evidence.seen_box;
    if (map) { context.globalAlpha = opacity; context.drawImage(map, x0, y0, x1 - x0, y1 - y0); context.globalAlpha = 1; }
    hatch(context, size, evidence.seen_box);
  }
  const unit = Math.max(size.width, size.height) / 500;
  if (field) outline(context, field, "#ffffff", 1.6 * unit, [5 * unit, 4 * unit]);
  if (cell) outline(context, cell, "#ffffff", 2.4 * unit, []);
  if (box) outline(context, box, "#ffffff", 2.4 * unit, [8 * unit, 4 * unit]);
}

/** Dim and hatch what lies outside of the seen box. */
function hatch(context, { width, height }, [x0, y0, x1, y1]) {
  if (x0 <= 0.5 && y0 <= 0.5 && x1 >= width - 0.5 && y1 >= height - 0.5) return;
  context.save();
  context.beginPath();
  context.rect(0, 0, width, height); context.rect(x0, y0, x1 - x0, y1 - y0);
  context.clip("evenodd");
  context.fillStyle = "rgba(30, 28, 36, 0.45)"; context.fillRect(0, 0, width, height);
  const period = HATCH * Math.max(1, Math.max(width, height) / 600);
  context.strokeStyle = "rgba(255, 255, 255, 0.45)"; context.lineWidth = Math.max(1, period / 12);
  context.beginPath();
  for (let at = 0; at < width + height; at += period) { context.moveTo(at, 0); context.lineTo(at - height, height); }
  context.stroke();
  context.restore();
}

function outline(context, [x0, y0, x1, y1], colour, width, dash) {
  context.setLineDash(dash);
  for (const [style, thick] of [["rgba(0, 0, 0, 0.75)", width * 2], [colour, width]]) {
    context.strokeStyle = style; context.lineWidth = thick;
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  }
  context.setLineDash([]);
}

/** The colour scale, from one end to the other. */
export function legend(canvas, colours, contrast) {
  const table = contrast ? colours.contrast : colours.evidence, context = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x++) {
    const [r, g, b] = table[Math.round(x / (canvas.width - 1) * (table.length - 1))];
    context.fillStyle = `rgb(${r} ${g} ${b})`; context.fillRect(x, 0, 1, 1);
  }
}

/** The cell of a map at a place of the picture; null outside of what was seen. */
export function cellAt(evidence, x, y) {
  const [x0, y0, x1, y1] = evidence.seen_box, { rows, cols } = evidence.grid;
  const row = Math.floor((y - y0) / (y1 - y0) * rows), col = Math.floor((x - x0) / (x1 - x0) * cols);
  return row >= 0 && row < rows && col >= 0 && col < cols ? { row, col } : null;
}

/** A cell's own box in pixels of the picture. */
export function cellBox(evidence, { row, col }) {
  const [x0, y0] = evidence.seen_box, [width, height] = evidence.cell_px;
  return [x0 + col * width, y0 + row * height, x0 + (col + 1) * width, y0 + (row + 1) * height];
}

/** What a cell sees, in pixels of the picture, kept within what the model saw; null where it is not known. */
export function fieldBox(evidence, block, { row, col }, input) {
  if (!block) return null;
  const [x0, y0, x1, y1] = evidence.seen_box, [height, width] = input, { rows, cols } = block.field;
  if (block.field.sees_all) return [x0, y0, x1, y1];
  const along = (axis, place, pixels) => [Math.max(axis.start + place * axis.jump, 0), Math.min(axis.start + place * axis.jump + axis.size, pixels)];
  const [left, right] = along(cols, col, width), [top, bottom] = along(rows, row, height);
  return [x0 + left / width * (x1 - x0), y0 + top / height * (y1 - y0), x0 + right / width * (x1 - x0), y0 + bottom / height * (y1 - y0)];
}
