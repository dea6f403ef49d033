// The divided traffic of the open task: for each version two small bars, its labels' shares and how often it differs from the active one.

import { h, s } from "./dom.js";
import { count, date, millisecondsBoth, share } from "./format.js";

const NAMES = { active: "Active", canary: "Canary", shadow: "Shadow" };
const SHADES = [1, 0.62, 0.38, 0.22, 0.12]; // of a bar's parts; further ones look like the last
const WIDTH = 200, HEIGHT = 9;

/** `traffic` as /adapters/{task}/traffic answers it; `promote` and `end` are called by the buttons. Nothing where it is not divided. */
export function rollout(traffic, { promote, end }) {
  const { canary, shadow, left, rollback, seen } = traffic;
  if (!canary && !shadow && !left) return null;
  const parts = { active: { version: traffic.active, percent: 100 - (canary?.percent ?? 0) }, canary, shadow };
  const of = (name) => seen.active?.labels[name] ?? 0;
  const names = [...new Set(Object.values(seen).flatMap((counts) => Object.keys(counts.labels)))].sort((a, b) => of(b) - of(a));
  const rows = Object.entries(seen).map(([role, counts]) => version(role, parts[role], counts, names, rollback));
  return h("div", { class: "rollout" },
    h("p", { class: "quiet heads" }, h("span", {}, "Traffic"), h("span", {}, "What it answers"), h("span", {}, "Differs from the active version")),
    h("ul", { "aria-label": "How the traffic is divided" }, rows),
    left && h("p", { class: "bad" }, `Canary ${left.version} was rolled back on ${date(left.at)}: ${left.reason}.`),
    rollback && h("p", { class: "quiet" }, rule(rollback)),
    h("p", { class: "buttons" },
      canary && h("button", { type: "button", "data-focus": "promote", onclick: promote }, `Promote ${canary.version}`), canary && " ",
      h("button", { type: "button", "data-focus": "end split", onclick: end }, canary ? "End the canary" : shadow ? "End the shadow" : "Dismiss"),
    ),
  );
}

function version(role, part, seen, names, rollback) {
  const limit = role === "canary" ? rollback?.disagreement : null;
  return h("li", { class: `role-${role}` },
    h("span", { class: "who" }, h("b", {}, NAMES[role]), " ", h("span", { class: "n" }, whole(part.percent)), h("br"), h("span", { class: "mono" }, part.version)),
    h("span", {}, labels(seen, names), h("span", { class: "quiet" }, facts(seen, names[0]))),
    role === "active" ? h("span", {}) : h("span", {}, difference(seen, limit), h("span", { class: "quiet" }, compared(seen))),
  );
}

const whole = (percent) => `${Number(percent.toPrecision(3))}\u00a0%`;

/** One bar of all rows; a part for each label, in the same order and shade for every version. */
function labels({ labels: shares, rows }, names) {
  const total = names.reduce((sum, name) => sum + (shares[name] ?? 0), 0) || 1; // over 1 where a row may have several
  let x = 0;
  const parts = names.map((name, i) => {
    if (!shares[name]) return null;
    const width = (WIDTH * shares[name]) / total;
    const rect = s("rect", { x, width: Math.max(width - 1, 0), height: HEIGHT, class: "part", "fill-opacity": SHADES[Math.min(i, SHADES.length - 1)] });
    x += width;
    return rect;
  });
  const said = names.filter((name) => shares[name]).map((name) => `${name} ${share(shares[name])}`).join(", ");
  return bar(rows && said ? `Labels: ${said}` : "No labels yet", parts);
}

function difference({ disagreement }, limit) {
  const label = disagreement === null ? "Not compared yet" : `Differs in ${share(disagreement)} of the rows`;
  return bar(limit ? `${label}; rolled back over ${share(limit)}` : label, [
    s("rect", { width: WIDTH * (disagreement ?? 0), height: HEIGHT, class: "differs" }),
    limit && s("rect", { x: WIDTH * limit, width: 1.5, height: HEIGHT, class: "limit" }),
  ]);
}

function bar(label, parts) {
  return s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    s("title", {}, label), s("rect", { width: WIDTH, height: HEIGHT, class: "ground" }), parts);
}

function facts({ requests, rows, labels: shares, errors, mean_score: score, latency }, first) {
  return [
    rows > 0 && first && `${first} ${share(shares[first] ?? 0)}`,
    `${count(requests)} request${requests === 1 ? "" : "s"}`,
    score !== null && `score ${score.toFixed(3)}`,
    errors > 0 && `${count(errors)} error${errors === 1 ? "" : "s"}`,
    latency && `${millisecondsBoth(1000 * latency.p50, 1000 * latency.p99)} a row`,
  ].filter(Boolean).join(" · ");
}

function compared({ compared: n, disagreement, dropped }) {
  return [n ? `${share(disagreement)} of ${count(n)} rows` : "not compared yet", dropped > 0 && `${count(dropped)} left out`].filter(Boolean).join(" · ");
}

function rule({ disagreement, errors, after }) {
  const limits = [disagreement !== null && `${share(disagreement)} of its rows differ`, errors !== null && `${share(errors)} of its requests fail`];
  return `The canary is rolled back when more than ${limits.filter(Boolean).join(", or more than ")}; counted from ${count(after)} on.`;
}
