// What if covered: the scores with a box, or the hottest part, covered.

import { post } from "./api.js";
import { show } from "./canvas.js";
import { announce, byId, element, percent, signed } from "./dom.js";
import { imageShown, questionShown, state } from "./state.js";
import { run } from "./work.js";

/** @import { Box, WhatIfAnswer } from "./types.d.ts" */

const MOST_ROWS = 12;
const COLUMNS = ["class", "before", "after", "change"];

/** Cover when the form is sent. */
export function bindCover() {
  byId("cover-form").addEventListener("submit", (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    cover();
  });
}

/**
 * Cover a box that was drawn on the image.
 * @param {Box} box
 */
export function coverBox(box) {
  byId("box").value = box.map(Math.round).join(",");
  cover();
}

function cover() {
  const box = byId("box").value.replaceAll(/\s/g, "");
  state.view.box = box ? box.split(",").map(Number) : null;
  show();
  return run("Covering", async (signal) => {
    const fields = { ...questionShown(), box, cover: byId("cover-by").value, overlay: true };
    /** @type {WhatIfAnswer} */
    const answer = await (await post("/whatif", imageShown(), fields, signal)).json();
    const most = answer.changes.reduce((one, other) =>
      Math.abs(other.change) > Math.abs(one.change) ? other : one,
    );
    const text =
      `${percent(answer.share)} of what the model sees was covered; ` +
      `${most.label} went from ${percent(most.before)} to ${percent(most.after)}.`;
    const covered = element("img", { src: answer.covered, alt: "The picture with that part covered" });
    const words = element("div", {}, element("p", {}, text), changesTable(answer));
    byId("covered").replaceChildren(element("div", { class: "side" }, covered, words));
    announce(text);
  });
}

/** @param {WhatIfAnswer} answer */
function changesTable({ changes }) {
  const rows = changes.slice(0, MOST_ROWS).map(({ label, before, after, change }) => {
    const texts = [label, percent(before), percent(after), `${signed(change * 100, 1)} points`];
    return element("tr", {}, ...texts.map((text) => element("td", {}, text)));
  });
  const head = element("tr", {}, ...COLUMNS.map((text) => element("th", { scope: "col" }, text)));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
}
