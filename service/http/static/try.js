// One text on several tasks at once: bars for scores, and where the time went.

import { byId, h, show } from "./dom.js";
import { milliseconds } from "./format.js";
import { ask } from "./server.js";

const BARS = 5;
const AT_ONCE = 32;
const chosen = new Map(); // task → its entry of the list
let changed = () => {};

export const chosenTasks = () => chosen;

/** `onChange` is called when tasks were added or taken off. */
export function startTry(onChange) {
  changed = onChange;
  byId("try-form").addEventListener("submit", (event) => {
    event.preventDefault();
    predict();
  });
  byId("try-form").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) predict();
  });
  draw();
}

/** Add a task, or take it off; one more than can be tried at once is told so. */
export function toggle(adapter) {
  const added = !chosen.delete(adapter.task), full = added && chosen.size === AT_ONCE;
  if (added && !full) chosen.set(adapter.task, adapter);
  show(byId("full"), full && `${adapter.task} is not ticked: a text is tried on at most ${AT_ONCE} tasks at once. Leave another one out first.`);
  draw();
  changed();
}

function draw() {
  byId("pair").hidden = ![...chosen.values()].some((adapter) => adapter.text_pair);
  const chips = [...chosen.values()].map((adapter) =>
    h("button", { type: "button", class: "chip", "aria-label": `Leave ${adapter.task} out`, onclick: () => toggle(adapter) },
      adapter.task, h("span", { "aria-hidden": "true" }, " ×")));
  byId("chosen").replaceChildren(...(chips.length ? chips : [h("span", { class: "quiet" }, "Tick tasks in the list to try them.")]));
}

async function predict() {
  const all = [...chosen.values()];
  const answers = byId("answers");
  if (!all.length) {
    answers.replaceChildren(h("p", { class: "bad" }, "No task is ticked in the list."));
    return;
  }
  const text = byId("text").value, pair = byId("text-pair").value;
  answers.setAttribute("aria-busy", "true");
  // A task takes one text or two, so at most two requests; the server runs the tasks of each in one batch.
  const parts = [
    request(all.filter((adapter) => !adapter.text_pair), text),
    request(all.filter((adapter) => adapter.text_pair), { text, text_pair: pair }),
  ];
  const outcomes = await Promise.all(parts);
  answers.removeAttribute("aria-busy");
  answers.replaceChildren(
    ...outcomes.map((outcome) => outcome.problem && h("p", { class: "bad", role: "alert" }, outcome.problem)).filter(Boolean),
    h("div", { class: "grid" }, all.map((adapter) => outcomes.map(({ answers }) => answers?.[adapter.task] && result(adapter, answers[adapter.task])))
      .flat().filter(Boolean)),
    ...outcomes.map((outcome) => outcome.timing && h("p", { class: "quiet timing" }, outcome.timing)).filter(Boolean),
  );
}

async function request(adapters, inputs) {
  if (!adapters.length) return {};
  const query = adapters.map((adapter) => `task=${encodeURIComponent(adapter.task)}`).join("&");
  try {
    const { data, headers, ms } = await ask(`predict?${query}`, { json: { inputs } });
    const answers = adapters.length === 1 ? { [adapters[0].task]: data } : data;
    return { answers, timing: timing(adapters, headers.get("Server-Timing") ?? "", ms) };
  } catch (error) {
    return { problem: error.message };
  }
}

function result(adapter, scores) {
  const title = h("h3", {}, adapter.task);
  if (adapter.problem_type === "regression") {
    return h("div", { class: "answer" }, title, h("p", { class: "value" }, scores[0].score.toFixed(3).replace("-", "−"), h("span", { class: "quiet" }, ` ${scores[0].label}`)));
  }
  const lines = scores.slice(0, BARS).map(({ label, score }) => {
    const bar = h("span", { class: "fill" });
    bar.style.width = `${100 * score}%`;
    return h("li", {}, h("span", { class: "label", title: label }, label), h("span", { class: "track", "aria-hidden": "true" }, bar), h("span", { class: "n" }, score.toFixed(3)));
  });
  const more = scores.length - lines.length;
  return h("div", { class: "answer" }, title, h("ul", {}, lines), more > 0 && h("p", { class: "quiet" }, `and ${more} more below ${scores[BARS - 1].score.toFixed(3)}`));
}

function timing(adapters, header, ms) {
  const stages = [...header.matchAll(/(\w+);dur=([\d.]+)/g)].map(([, name, value]) => `${name} ${milliseconds(Number(value))}`);
  const names = adapters.slice(0, 4).map((adapter) => adapter.task).join(", ") + (adapters.length > 4 ? ` + ${adapters.length - 4}` : "");
  return `${names}: ${[...stages, `there and back ${milliseconds(ms)}`].join(" · ")}`;
}
