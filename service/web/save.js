// What to keep: the drawn image, the answer, the request as a curl command.

import { curl } from "./api.js";
import { show } from "./canvas.js";
import { announce, byId, element } from "./dom.js";
import { evidenceShown, imageShown, state } from "./state.js";

/**
 * @param {Blob} blob
 * @param {string} name
 */
function save(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const stem = () => imageShown().name.replace(/\.[^.]*$/, "") || "picture";

function saveImage() {
  const { view } = state;
  const name = `${stem()}-${evidenceShown()?.label ?? "scores"}.png`;
  state.view = { ...view, cell: null, box: null };
  show();
  byId("canvas").toBlob((/** @type {Blob} */ blob) => save(blob, name), "image/png");
  state.view = view;
  show();
}

async function copyCommand() {
  const text = curl("/explain", imageShown().name, { ...state.answered, overlay: false });
  try {
    await navigator.clipboard.writeText(text);
    byId("copy").textContent = "Copied";
  } catch {
    prompt("The command:", text);
  }
  announce("The command was copied.");
  setTimeout(() => {
    byId("copy").textContent = "Copy as curl";
  }, 2000);
}

/** Save and copy when the buttons are pressed. */
export function bindSave() {
  byId("save-picture").addEventListener("click", saveImage);
  byId("save-json").addEventListener("click", () => {
    const text = JSON.stringify(state.answer, null, 2);
    save(new Blob([text], { type: "application/json" }), `${stem()}.json`);
  });
  byId("copy").addEventListener("click", copyCommand);
}
