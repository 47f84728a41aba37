// Concepts: which of the model's concepts a prediction rests on, and what it says without each.

import { post, read } from "./api.js";
import { announce, byId, element, percent, signed } from "./dom.js";
import { draw, mapCanvas } from "./draw.js";
import { imageShown, questionShown, state } from "./state.js";
import { run } from "./work.js";

/** @import { Box, Concept, ConceptShare, ConceptShares } from "./types.d.ts" */

const MOST_SHOWN = 6;
const PATCHES = 3;
const THUMBNAIL_SIDE = 360;
/** Levels that a concept usually reaches where there is most of it: full colour. */
const FULL = 10 / 3;

/** Share the prediction out when the button is pressed. */
export function bindConcepts() {
  byId("share-out").addEventListener("click", () =>
    run("Sharing the prediction out", async (signal) => {
      const { target, against } = questionShown();
      /** @type {ConceptShares} */
      const answer = await (await post("/concepts", imageShown(), { target, against }, signal)).json();
      /** @type {{ concepts: Concept[] }} */
      const { concepts } = await read("/concepts", signal);
      const shown = answer.concepts.filter(({ present }) => present).slice(0, MOST_SHOWN);
      byId("concepts").replaceChildren(
        element("p", {}, sumOf(answer)),
        element(
          "div",
          { class: "strip" },
          ...shown.map((share) => conceptCard(share, concepts[share.number], answer)),
        ),
      );
      announce(sumOf(answer));
    }),
  );
}

/** @param {ConceptShares} answer */
function sumOf({ label, against, logit, base, rest, residual, concepts }) {
  const total = concepts.reduce((sum, { share }) => sum + share, 0);
  const question = against ? `${label}, not ${against}` : label;
  return (
    `${question}: a logit of ${logit.toFixed(2)} is ${base.toFixed(2)} for mean features, ` +
    `${signed(total, 2)} by the ${concepts.length} concepts and ${signed(rest + residual, 2)} by what none of them describes.`
  );
}

/**
 * @param {ConceptShare} share
 * @param {Concept | undefined} concept
 * @param {ConceptShares} answer
 */
function conceptCard(share, concept, { label, predicted, score, image, seen_box: seen }) {
  const canvas = element("canvas", {
    role: "img",
    "aria-label": `Where ${share.name} is in the picture`,
  });
  const { bitmap } = imageShown();
  if (bitmap) {
    const shrink = Math.min(1, THUMBNAIL_SIDE / Math.max(image.width, image.height));
    const small = {
      width: Math.max(1, Math.round(image.width * shrink)),
      height: Math.max(1, Math.round(image.height * shrink)),
    };
    const map = {
      grid: share.grid,
      full_scale: share.grid.max * Math.max(1, FULL / share.strength),
      against: null,
      seen_box: /** @type {Box} */ (seen.map((edge) => edge * shrink)),
    };
    draw(canvas, bitmap, small, map, mapCanvas(map, state.colours, 0));
  }
  // Another model may have taken over between the two answers.
  const patches = (concept?.patches ?? [])
    .slice(0, PATCHES)
    .map((patch) => element("img", { src: patch, alt: `Patch of a training picture with ${share.name}` }));
  const after = `Without it ${label} has ${percent(share.score_without)} instead of ${percent(score)}`;
  const other = share.label_without === predicted ? "" : `, and the answer is ${share.label_without}`;
  return element(
    "div",
    { class: "concept" },
    canvas,
    element("div", { class: "patches" }, ...patches),
    element("h3", {}, share.name),
    element("p", { class: "small" }, `${signed(share.share, 2)} of the logit. ${after}${other}.`),
  );
}
