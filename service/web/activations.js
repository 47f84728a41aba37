// Activations: the strongest channels of a block.

import { post } from "./api.js";
import { byId, element, percent } from "./dom.js";
import { imageShown } from "./state.js";
import { run } from "./work.js";

/** @import { ActivationsAnswer } from "./types.d.ts" */

const CHANNELS = 8;

/** Look into a block when the form is sent. */
export function bindActivations() {
  byId("inside-form").addEventListener("submit", (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    run("Looking inside", async (signal) => {
      const fields = { blocks: byId("inside-block").value, channels: CHANNELS };
      const image = imageShown();
      const sheet = await (await post("/activations", image, { ...fields, picture: true }, signal)).blob();
      /** @type {ActivationsAnswer} */
      const { activations } = await (await post("/activations", image, fields, signal)).json();
      byId("inside").replaceChildren(
        element("p", {}, describe(activations[0])),
        sheetImage(sheet, activations[0].block),
      );
    });
  });
}

/** @param {ActivationsAnswer["activations"][0]} activation */
function describe({ block, shape: [channels, rows, cols], zero_share: zeros, max, strongest }) {
  const numbers = strongest.map(({ index }) => `#${index}`).join(", ");
  return (
    `${block}: ${channels} channels of ${rows} × ${cols}; ${percent(zeros)} of the values are 0, ` +
    `the rest reach ${max.toFixed(2)}. Strongest: ${numbers}.`
  );
}

/**
 * @param {Blob} sheet
 * @param {string} block
 */
function sheetImage(sheet, block) {
  const url = URL.createObjectURL(sheet);
  const alt = `Contact sheet of the strongest channels of ${block}`;
  return element("img", { src: url, onload: () => URL.revokeObjectURL(url), alt });
}
