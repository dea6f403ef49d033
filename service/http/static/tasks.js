// The list of tasks: search, paging, and one open task with its versions.

import { coverageCurve } from "./coverage.js";
import { byId, h, say, show } from "./dom.js";
import { bytes, count, date, millisecondsBoth } from "./format.js";
import { adminKey, apiKey } from "./keys.js";
import { rollout } from "./rollout.js";
import { ask, Refusal } from "./server.js";
import { chosenTasks, toggle } from "./try.js";

const PAGE = matchMedia("(max-width: 700px)").matches ? 10 : 25; // a card of a phone is taller than a row
const WHERE = { device: "on device", host: "in memory", disk: "on disk" };
const LABELS_SHOWN = 3;

const state = { search: "", offset: 0, total: 0, asked: 0, open: null, versions: null, traffic: null, problem: "" };
const rows = new Map(); // task → {adapter, rows of the table}: kept while nothing changes, so that the focus stays
let changed = () => {};

/** `onChange` is called when something was activated. */
export function startTasks(onChange) {
  changed = onChange;
  byId("search").addEventListener("input", (event) => go(event.target.value.trim(), 0));
  byId("previous").addEventListener("click", () => go(state.search, Math.max(0, state.offset - PAGE)));
  byId("next").addEventListener("click", () => go(state.search, state.offset + PAGE));
}

function go(search, offset) {
  Object.assign(state, { search, offset, open: null });
  listTasks().catch(() => {}); // what went wrong has been shown
}

/** Ask for the page that is shown, and the open task's versions and traffic; returns the tasks on it. */
export async function listTasks() {
  const asked = ++state.asked;
  const query = new URLSearchParams({ search: state.search, offset: state.offset, limit: PAGE, details: true });
  try {
    const of = (path) => state.open && ask(path).catch(() => null); // deleted meanwhile
    const [list, open, traffic] = await Promise.all([ask(`adapters?${query}`), of(address(state.open)), of(`${address(state.open)}/traffic`)]);
    if (asked !== state.asked) return list.data; // a later question is under way
    state.total = Number(list.headers.get("X-Total-Count") ?? list.data.length);
    state.versions = open?.data ?? null;
    state.traffic = traffic?.data ?? null;
    show(byId("tasks-problem"), null);
    draw(list.data);
    return list.data;
  } catch (error) {
    if (error instanceof Refusal && asked === state.asked) show(byId("tasks-problem"), error.message);
    throw error;
  }
}

function draw(adapters) {
  const shown = adapters.flatMap((adapter) => {
    const content = JSON.stringify([adapter, isOpen(adapter) ? [state.versions, state.traffic, state.problem] : null]);
    const kept = rows.get(adapter.task);
    if (kept?.content !== content) rows.set(adapter.task, { content, elements: elements(adapter, kept?.elements) });
    return rows.get(adapter.task).elements;
  });
  for (const task of rows.keys()) if (!adapters.some((adapter) => adapter.task === task)) rows.delete(task);
  const body = byId("rows");
  if (shown.length !== body.children.length || shown.some((row, i) => row !== body.children[i])) {
    const focused = document.activeElement?.dataset?.focus;
    body.replaceChildren(...shown);
    if (focused) body.querySelector(`[data-focus="${CSS.escape(focused)}"]`)?.focus();
  }
  markChosen();
  const end = state.offset + adapters.length;
  say(byId("range"), range(adapters.length));
  byId("previous").disabled = state.offset === 0;
  byId("next").disabled = end >= state.total;
  byId("previous").parentElement.hidden = state.total <= PAGE;
}

function range(shown) {
  const { search, offset, total } = state;
  if (total === 0) return search ? `No task has “${search}” in its name.` : "No tasks yet.";
  if (shown === total) return `${total} task${total === 1 ? "" : "s"}`;
  return `${count(offset + 1)}–${count(offset + shown)} of ${count(total)}`;
}

const isOpen = (adapter) => state.open === adapter.task;

/** Tick the boxes of the tasks that are tried. */
export function markChosen() {
  for (const box of byId("rows").querySelectorAll("input[type=checkbox]")) box.checked = chosenTasks().has(box.dataset.task);
}

function elements(adapter) {
  const { task, latency } = adapter;
  const kind = [adapter.kind === "lora" && "LoRA", adapter.text_pair && "pairs", adapter.problem_type === "multi_label_classification" && "several at once", typeof adapter.canary === "number" && `canary ${adapter.canary} %`].filter(Boolean);
  const [score] = Object.entries(adapter.dev_scores);
  const box = h("input", { type: "checkbox", "aria-label": `Try ${task}`, "data-task": task, "data-focus": `box ${task}`, disabled: !adapter.version, onchange: () => toggle(adapter) });
  const name = h("button", {
    type: "button", class: "task", "aria-expanded": String(isOpen(adapter)), "data-focus": `name ${task}`, onclick: () => openTask(task),
  }, task);
  const row = h("tr", { role: "row", class: isOpen(adapter) ? "open" : false },
    h("td", { role: "cell", class: "c-try" }, box),
    h("th", { role: "rowheader", scope: "row" }, name),
    h("td", { role: "cell", class: "c-labels", title: adapter.labels.slice(0, 100).join(" · ") }, labels(adapter), kind.map((word) => h("span", { class: "tag" }, word))),
    h("td", { role: "cell", class: "c-version mono", "data-name": "Version" }, adapter.version ?? "none active"),
    h("td", { role: "cell", class: "n", "data-name": "Size" }, bytes(adapter.bytes)),
    h("td", { role: "cell", class: `tier ${adapter.tier}`, "data-name": "Where" }, WHERE[adapter.tier] ?? adapter.tier),
    h("td", { role: "cell", class: "n", "data-name": "Requests" }, count(adapter.requests)),
    h("td", { role: "cell", class: latency ? "n" : "n none", "data-name": "Latency" }, latency ? millisecondsBoth(1000 * latency.p50, 1000 * latency.p99) : "–"),
    h("td", { role: "cell", class: score ? "n" : "n none", "data-name": "Dev score", title: scores(adapter) || "the file names none" }, score ? [h("span", { class: "quiet" }, `${score[0]} `), score[1].toFixed(3)] : "–"),
  );
  if (!isOpen(adapter)) return [row];
  return [row, h("tr", { role: "row", class: "versions" }, h("td", { role: "cell", colspan: 9 }, versions(adapter)))];
}

function labels({ labels, problem_type: type }) {
  if (type === "regression") return `a number: ${labels[0]}`;
  const more = labels.length - LABELS_SHOWN;
  return labels.slice(0, LABELS_SHOWN).join(" · ") + (more > 0 ? ` + ${count(more)}` : "");
}

const scores = ({ dev_scores }) => Object.entries(dev_scores).map(([name, value]) => `${name} ${value.toFixed(3)}`).join(", ");

function versions(adapter) {
  const detail = state.versions?.task === adapter.task ? state.versions : null;
  if (!detail) return h("p", { class: "quiet" }, "Asking for its versions…");
  const active = detail.versions.findIndex((version) => version.active);
  const { train_rows: learnt, dev_rows: judged } = detail.spec.training;
  const { temperatures: heat } = detail.spec;
  const curve = coverageCurve(detail.spec.risk_coverage);
  const facts = [
    shape(detail.spec), `pooling ${detail.spec.pooling}`, `up to ${count(detail.spec.max_length)} tokens`,
    `${count(detail.parameters)} parameters`,
    Number.isInteger(learnt) && `trained on ${count(learnt)} rows`, scores(adapter), Number.isInteger(judged) && `on ${count(judged)} dev rows`,
    heat?.length === 1 && `temperature ${Number(heat[0].toPrecision(3))}`, heat?.length > 1 && "a temperature for each label",
  ];
  const item = (version, i) => h("li", {},
    h("span", { class: "mono" }, version.version),
    h("span", {}, date(version.created)),
    h("span", { class: "n" }, bytes(version.bytes)),
    h("a", { href: file(adapter.task, version.version), "aria-label": `Download ${version.version}`, onclick: (event) => download(event, adapter.task, version.version) }, "Download"),
    version.active
      ? h("b", { class: "active" }, "Active")
      : h("button", { type: "button", "data-focus": `activate ${version.version}`, onclick: () => activate(adapter.task, version.version), "aria-label": `${i < active ? "Roll back to" : "Activate"} ${version.version}` }, i < active ? "Roll back" : "Activate"),
  );
  return h("div", {},
    state.traffic && rollout(state.traffic, {
      promote: () => activate(adapter.task, state.traffic.canary.version),
      end: () => endSplit(adapter.task),
    }),
    h("ol", { reversed: true, "aria-label": `Versions of ${adapter.task}, newest first` }, detail.versions.map(item).reverse()),
    h("p", { class: "quiet" }, facts.filter(Boolean).join(" · ")),
    curve && h("p", { class: "quiet abstains" }, curve, "right answers (up) by answered rows (across), where it may abstain"),
    h("p", { class: "bad", role: "alert", hidden: !state.problem }, state.problem),
  );
}

/** What the adapter adds to the model, and how large it is. */
function shape({ kind, bottleneck, ranks, scale }) {
  if (kind !== "lora") return `bottleneck ${bottleneck}`;
  const alike = new Set(Object.values(ranks)).size === 1;
  const parts = Object.entries(ranks).map(([site, rank], i) => (alike && i ? site : `${rank} at ${site}`));
  return `LoRA of rank ${parts.join(", ")}; scale ${Number(scale.toPrecision(6))}`;
}

const address = (task) => `adapters/${encodeURIComponent(task)}`;
const file = (task, version) => `${address(task)}/versions/${encodeURIComponent(version)}/file`;

/** A link sends no key: where there is one, the file is asked for with it. */
async function download(event, task, version) {
  if (!apiKey()) return;
  event.preventDefault();
  state.problem = "";
  try {
    const { blob } = await ask(file(task, version), { as: "blob" });
    const address = URL.createObjectURL(blob);
    h("a", { href: address, download: `${task}-${version}.safetensors` }).click();
    URL.revokeObjectURL(address);
  } catch (error) {
    state.problem = error.message;
    await listTasks().catch(() => {});
  }
}

async function openTask(task) {
  Object.assign(state, { open: state.open === task ? null : task, versions: null, traffic: null, problem: "" });
  await listTasks().catch(() => {});
}

const activate = (task, version) => write(`${address(task)}/activate`, { json: { version } });
const endSplit = (task) => write(`${address(task)}/traffic`, { method: "DELETE" });

async function write(path, options) {
  state.problem = "";
  try {
    await ask(path, { ...options, key: adminKey() });
    changed();
  } catch (error) {
    state.problem = error.message;
  }
  await listTasks().catch(() => {});
}
