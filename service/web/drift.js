// How the pictures of the last day compare with those that the model was validated on.

import { read } from "./api.js";
import { byId, element } from "./dom.js";
import { state } from "./state.js";

/** @import { DriftRow, DriftWindow } from "./types.d.ts" */

const AGAIN_MS = 60_000;

/** Show it now and every minute, where the model has a reference. */
export function bindDrift() {
  const section = byId("drift");
  section.hidden = !state.card.reference_images;
  if (section.hidden) return;
  const show = () => {
    if (!document.hidden) showDay().catch(() => byId("drift-text").replaceChildren("Cannot be told now."));
  };
  show();
  setInterval(show, AGAIN_MS);
}

async function showDay() {
  const { windows, reference_images } = await read("/drift");
  /** @type {DriftWindow} */
  const day = windows.day;
  byId("drift-text").textContent = describe(day, reference_images);
  byId("drift-text").classList.toggle("bad", day.alarm);
  byId("drift-rows").replaceChildren(...day.figures.filter((row) => row.enough).map(drawRow));
  byId("drift-table").hidden = !day.figures.some((row) => row.enough);
}

/**
 * @param {DriftWindow} day
 * @param {number} validated
 */
function describe(day, validated) {
  const count = `${day.images} ${day.images === 1 ? "picture" : "pictures"} in the last day`;
  if (day.alarm) {
    const names = day.figures.filter((row) => row.alarm).map((row) => row.figure.replaceAll("_", " "));
    return `${count}, unlike the ${validated} validation pictures in: ${names.join(", ")}.`;
  }
  if (!day.figures.some((row) => row.enough)) return `${count}: too few to tell.`;
  return `${count}, like the ${validated} validation pictures.`;
}

/** @param {DriftRow} row */
function drawRow({ figure, psi, p_value, alarm }) {
  return element(
    "tr",
    alarm ? { class: "bad" } : {},
    element("th", { scope: "row" }, figure.replaceAll("_", " ")),
    element("td", {}, psi.toFixed(2)),
    element("td", {}, p_value < 0.001 ? "< 0.001" : p_value.toFixed(3)),
  );
}
