// The tabs below the answer, by mouse and by keyboard.

import { byId } from "./dom.js";

const tabs = /** @type {HTMLElement[]} */ ([...document.querySelectorAll("[role=tab]")]);

/**
 * Open the tab of that id.
 * @param {string} id
 */
export function openTab(id) {
  for (const tab of tabs) {
    const chosen = tab.id === id;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    byId(/** @type {string} */ (tab.getAttribute("aria-controls"))).hidden = !chosen;
  }
}

/** Open tabs by click and by arrow keys. */
export function bindTabs() {
  for (const tab of tabs) {
    tab.addEventListener("click", () => openTab(tab.id));
    tab.addEventListener("keydown", ({ key }) => {
      const offered = tabs.filter(({ hidden }) => !hidden);
      const n = offered.indexOf(tab);
      /** @type {Record<string, number>} */
      const targets = { ArrowRight: n + 1, ArrowLeft: n - 1, Home: 0, End: offered.length - 1 };
      if (!(key in targets)) return;
      const next = offered[(targets[key] + offered.length) % offered.length];
      openTab(next.id);
      next.focus();
    });
  }
}
