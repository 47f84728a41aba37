// The controls of the question: which method, block and class; they follow the model and the answer.

import { read } from "./api.js";
import { byId, element } from "./dom.js";
import { state } from "./state.js";

/** @import { Question } from "./types.d.ts" */

/** Learn what is served now, and offer its choices; what was chosen stays where it still exists. */
export async function loadModel() {
  [state.card, state.network] = await Promise.all([read("/model"), read("/anatomy")]);
  const { card } = state;
  const version = card.version ? ` version ${card.version}` : "";
  const classes = `${card.classes.length} classes`;
  byId("served").textContent =
    `${card.model}${version}, ${card.backbone}, ${classes}, bundle ${card.digest.slice(0, 12)}`;
  document.title = `${card.model} – Camera Lucida`;
  byId("tab-concepts").hidden = card.concepts === null;
  /** @type {[keyof Question, string[]][]} */
  const choices = [
    ["method", card.methods],
    ["block", card.blocks],
    ["target", card.classes],
    ["against", card.classes],
  ];
  for (const [field, names] of choices) {
    if (!names.includes(String(state.question[field]))) Object.assign(state.question, { [field]: "" });
  }
  offerMethods();
  offerBlocks();
  describeMethod();
}

function offerMethods() {
  const { card, question } = state;
  const chosen = question.method || card.default_method;
  const usable = card.methods.map((name) => {
    const title = card.method_notes[name].title;
    const text = name in card.class_blind_methods ? `${title} (whatever the class)` : title;
    return element("option", { value: name, selected: name === chosen }, text);
  });
  const disabled = Object.keys(card.barred_methods).map((name) =>
    element(
      "option",
      { value: name, disabled: true },
      `${card.method_notes[name].title} (barred for this model)`,
    ),
  );
  byId("method").replaceChildren(...usable, ...disabled);
}

function offerBlocks() {
  const { card, question } = state;
  const chosen = question.block || usualBlock();
  const options = card.blocks.map((name) => {
    const text = name === card.cam_block ? `${name} (usual)` : name;
    return element("option", { value: name, selected: name === chosen }, text);
  });
  byId("block").replaceChildren(...options);
  const inside = card.blocks.map((name) =>
    element("option", { value: name, selected: name === card.cam_block }, name),
  );
  byId("inside-block").replaceChildren(...inside);
}

/** Say what the chosen method is good for; a method of pixels has no block to choose. */
export function describeMethod() {
  const { card } = state;
  const note = card.method_notes[byId("method").value];
  const blind = card.class_blind_methods[byId("method").value];
  const words = note ? [note.good_for, `But: ${note.misleads}`] : [];
  if (blind) words.push(`With this model: ${blind[0].toLowerCase()}${blind.slice(1)}`);
  for (const { question, why } of card.best_methods.filter(({ method }) => method === byId("method").value)) {
    words.push(`Best with this model for “${question}” ${why}`);
  }
  byId("method-note").textContent = words.join(" ");
  if (!state.question.block) byId("block").value = usualBlock();
  byId("block").disabled = note !== undefined && !note.reads_block;
}

/** The block that the chosen method reads where none is chosen. */
const usualBlock = () => state.card.method_notes[byId("method").value]?.default_block ?? state.card.cam_block;

/** Have the controls say what is shown again: what was asked since is not wanted any more. */
export function restoreQuestion() {
  if (state.answer === null || state.answered === null) return;
  const { method, block, against, flip } = state.answered;
  state.question = { ...state.answered };
  byId("method").value = method || state.card.default_method;
  byId("block").value = block || usualBlock();
  byId("against").value = against;
  byId("flip").checked = flip;
  describeMethod();
}
