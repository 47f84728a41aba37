// The page: one image, one question about it at a time, and everything that can be asked further.

import { bindActivations } from "./activations.js";
import { address, read } from "./api.js";
import { bindCanvas } from "./canvas.js";
import { bindConcepts } from "./concepts.js";
import { bindCover, coverBox } from "./cover.js";
import { byId, element } from "./dom.js";
import { bindDrift } from "./drift.js";
import { bindQuestion, chooseImage, chooseSample } from "./explain.js";
import { loadModel } from "./question.js";
import { bindSave } from "./save.js";
import { state } from "./state.js";
import { bindSweep } from "./sweep.js";
import { bindTabs, openTab } from "./tabs.js";
import { bindTrust } from "./trust.js";
import { fail } from "./work.js";

/** @param {string} name */
function setTheme(name) {
  document.documentElement.dataset.theme = name;
  byId("theme").textContent = name === "dark" ? "Light" : "Dark";
}

function bindTheme() {
  const preferred = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  setTheme(localStorage.getItem("theme") ?? preferred);
  byId("theme").addEventListener("click", () => {
    const name = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    setTheme(name);
    localStorage.setItem("theme", name);
  });
}

/** Take images from the file dialogue, the clipboard, and what is dropped on the page. */
function bindImages() {
  const input = byId("file");
  input.addEventListener("change", () => {
    if (input.files[0]) chooseImage(input.files[0], input.files[0].name);
    input.value = "";
  });
  byId("other").addEventListener("click", () => input.click());
  addEventListener("paste", ({ clipboardData }) => {
    const file = clipboardData?.files[0];
    if (file) chooseImage(file, file.name || "pasted.png");
  });
  for (const kind of /** @type {const} */ (["dragover", "dragleave", "drop"])) {
    addEventListener(kind, (event) => {
      event.preventDefault();
      byId("drop").classList.toggle("over", kind === "dragover");
      const file = kind === "drop" ? event.dataTransfer?.files[0] : null;
      if (file) chooseImage(file, file.name);
    });
  }
}

async function start() {
  [state.colours] = await Promise.all([read("/colours"), loadModel()]);
  bindDrift();
  byId("model-card").hidden = !state.card.has_card;
  const { samples, labels } = await read("/samples");
  for (const name of samples) {
    const url = address(`/samples/${encodeURIComponent(name)}`);
    const title = labels[name] ?? name;
    const names = { "aria-label": `Try the sample ${title}`, title };
    const thumbnail = element("img", { src: url, alt: "", loading: "lazy" });
    const caption = labels[name] ? [element("span", {}, title)] : [];
    const onclick = () => chooseSample(url, title);
    byId("samples").append(element("button", { type: "button", ...names, onclick }, thumbnail, ...caption));
  }
}

bindTheme();
bindTabs();
bindImages();
bindCanvas((box) => {
  openTab("tab-cover");
  coverBox(box);
});
bindQuestion();
bindTrust();
bindSweep();
bindCover();
bindActivations();
bindConcepts();
bindSave();
start().catch(fail);
