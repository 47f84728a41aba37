// Can I trust it? The checks of one explanation, by a job where the service has jobs.

import { address, post, RequestError, read } from "./api.js";
import { byId, element } from "./dom.js";
import { imageShown, questionShown, state } from "./state.js";
import { run } from "./work.js";

/** @import { Curve, JobStatus, Question, TrustAnswer } from "./types.d.ts" */

const POLL_MS = 500;
/** The signal of the latest check: an earlier one must not hide its progress. */
const latest = { signal: /** @type {AbortSignal | null} */ (null) };

/** Check the explanation that is shown when the button is pressed. */
export function bindTrust() {
  byId("trust").addEventListener("click", () =>
    run("Checking", async (signal) => {
      const question = questionShown();
      const checks = state.card.limits.max_jobs
        ? await askByJob(question, signal)
        : await (await post("/trust", imageShown(), question, signal)).json();
      byId("trusted").replaceChildren(
        element("div", { class: "verdicts" }, ...verdicts(checks, question.flip)),
      );
    }),
  );
}

/**
 * @param {TrustAnswer} checks
 * @param {boolean} flip
 */
function verdicts({ evidence: [evidence], agreement, shifts, sweep, cut }, flip) {
  /** @type {HTMLElement[]} */
  const rows = [];
  const add = (/** @type {string} */ title, /** @type {string} */ text, /** @type {Node[]} */ ...more) =>
    rows.push(element("div", {}, element("h3", {}, title), element("p", {}, text), ...more));
  const { faithfulness } = evidence;
  if (faithfulness) {
    const curves = [
      drawCurve("Covered, strongest first", faithfulness.deletion),
      drawCurve("Shown, strongest first", faithfulness.insertion),
    ];
    const title = "Does the model react to what the map marks?";
    add(title, faithfulness.verdict, element("div", { class: "curves" }, ...curves));
  }
  if (agreement) add("Do other methods agree?", agreement.verdict);
  if (shifts) add("Does it hold when the picture moves?", shifts.verdict);
  if (sweep) {
    const stages = sweep.flatMap((stage) =>
      stage.faithfulness
        ? [`${stage.evidence.block}: beats ${stage.faithfulness.percentile.toFixed(0)} % of control maps`]
        : [],
    );
    add("Which stage says it best?", `${stages.join("; ")}.`);
  }
  if (flip && (shifts || sweep)) {
    add("Not averaged", "The moved pictures and the other stages were judged without the mirror image.");
  }
  for (const part of cut) add("Left out", `${part}. There was no time.`);
  return rows;
}

/**
 * Submit a job, watch it, fetch its result; stopping here cancels it there.
 * @param {Question} question
 * @param {AbortSignal} signal
 * @returns {Promise<TrustAnswer>}
 */
async function askByJob(question, signal) {
  // Not ended half way: a job whose name we never hear could not be cancelled.
  const job = await (await post("/jobs/trust", imageShown(), { ...question, effort: "full" })).json();
  const cancel = () => fetch(address(`/jobs/${job.id}`), { method: "DELETE" });
  if (signal.aborted) {
    cancel();
    signal.throwIfAborted();
  }
  signal.addEventListener("abort", cancel);
  latest.signal = signal;
  byId("trusting").hidden = false;
  try {
    await waitForJob(job.id, signal);
    const { answers } = await read(`/jobs/${job.id}/result`, signal);
    signal.removeEventListener("abort", cancel);
    cancel();
    signal.throwIfAborted();
    if (answers[0].error) throw new RequestError(answers[0].error, answers[0]);
    return answers[0];
  } finally {
    if (latest.signal === signal) byId("trusting").hidden = true;
  }
}

/**
 * @param {string} id
 * @param {AbortSignal} signal
 */
async function waitForJob(id, signal) {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    signal.throwIfAborted();
    /** @type {JobStatus} */
    const status = await read(`/jobs/${id}`, signal);
    byId("progress").value = status.progress;
    byId("eta").textContent = describeEta(status);
    if (status.state === "done") return;
    if (status.state === "queued" || status.state === "running") continue;
    throw new RequestError(status.error ?? "The check was cancelled.", { kind: status.state });
  }
}

/** @param {JobStatus} status */
function describeEta({ state: progress, eta_seconds: seconds }) {
  if (progress === "queued") return "waiting for its turn";
  return seconds === null ? "begun" : `about ${Math.ceil(seconds)} s left`;
}

/**
 * @param {string} title
 * @param {Curve} curve
 */
function drawCurve(title, { shares, scores, area }) {
  const namespace = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(namespace, "svg");
  svg.setAttribute("viewBox", "0 0 260 120");
  svg.setAttribute("role", "img");
  const last = scores[scores.length - 1];
  const label = `${title}: score from ${scores[0].toFixed(2)} to ${last.toFixed(2)}, area ${area.toFixed(2)}`;
  svg.setAttribute("aria-label", label);
  const add = (
    /** @type {string} */ tag,
    /** @type {Record<string, string | number>} */ attributes,
    /** @type {string} */ text = "",
  ) => {
    const part = document.createElementNS(namespace, tag);
    for (const [name, value] of Object.entries(attributes)) part.setAttribute(name, String(value));
    part.textContent = text;
    svg.append(part);
  };
  const points = shares.map((share, n) => `${n ? "L" : "M"}${30 + share * 222} ${96 - scores[n] * 88}`);
  add("path", { class: "axis", d: "M30 8 V96 H252" });
  add("path", { class: "line", d: points.join(" ") });
  add("text", { x: 4, y: 14 }, "1");
  add("text", { x: 4, y: 99 }, "0");
  add("text", { x: 30, y: 114 }, `${title}: area ${area.toFixed(2)}`);
  return svg;
}
