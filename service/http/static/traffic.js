// The last minute, from the differences of counters that /metrics shows anyway.

import { byId, h, s } from "./dom.js";
import { count, milliseconds, rate } from "./format.js";
import { ask } from "./server.js";

export const STEP = 2; // seconds between two looks
const STEPS = 30;
const ROWS = "adamix_batch_rows_sum", BATCHES = "adamix_batch_rows_count";
const BUCKET = "adamix_request_duration_seconds_bucket", REQUESTS = "adamix_request_duration_seconds_count";
const PATH = `metrics?${[ROWS, BATCHES, BUCKET, REQUESTS].map((name) => `name[]=${name}`).join("&")}`;

const looks = []; // {at, values: Map}, oldest first; one more than there are steps

/** Look at the counters once and draw. */
export async function lookAtTraffic() {
  const { text } = await ask(PATH);
  const look = { at: performance.now() / 1000, values: parse(text) };
  const last = looks.at(-1);
  if (last && (look.at - last.at > 5 * STEP || look.values.get(ROWS) < last.values.get(ROWS))) looks.length = 0; // asleep, or restarted
  looks.push(look);
  while (looks.length > STEPS + 1) looks.shift();
  draw();
}

function draw() {
  const steps = looks.slice(1).map((look, i) => difference(looks[i], look, ROWS) / (look.at - looks[i].at));
  const [first, last] = [looks[0], looks.at(-1)];
  const most = Math.max(...steps, 0);
  const width = 300, height = 56, step = width / STEPS;
  const scale = most ? height / most : 0;
  const bars = steps.map((value, i) => s("rect", {
    x: (STEPS - steps.length + i) * step, y: height - value * scale, width: step - 1, height: value * scale, class: "step",
  }));
  const now = steps.length ? steps.at(-1) : 0;
  const label = `Texts a second over the last minute: now ${rate(now)}, at most ${rate(most)}`;
  byId("chart").replaceChildren(
    s("svg", { viewBox: `0 0 ${width} ${height + 1}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
      s("rect", { y: height, width, height: 1, class: "ground" }), bars),
    h("p", { class: "axis" }, h("span", {}, "a minute ago"), h("span", {}, most ? `highest ${rate(most)} a second` : "nothing asked yet"), h("span", {}, "now")),
  );
  const requests = difference(first, last, REQUESTS), batches = difference(first, last, BATCHES);
  const figures = [
    ["Texts a second", rate(now)],
    ["Requests", count(requests)],
    ["Texts per batch", batches ? rate(difference(first, last, ROWS) / batches) : "–"],
    ["Latency p50", requests ? quantile(0.5, first, last) : "–"],
    ["Latency p99", requests ? quantile(0.99, first, last) : "–"],
  ];
  byId("figures").replaceChildren(...figures.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

/** As Prometheus' histogram_quantile: linear within the bucket that holds it. */
function quantile(q, first, last) {
  const buckets = [...last.values.keys()].filter((name) => name.startsWith(BUCKET))
    .map((name) => ({ top: Number(name.match(/le="([^"]*)"/)[1].replace("+Inf", "Infinity")), n: difference(first, last, name) }))
    .sort((a, b) => a.top - b.top);
  const wanted = q * buckets.at(-1).n;
  const i = buckets.findIndex((bucket) => bucket.n >= wanted);
  const below = buckets[i - 1] ?? { top: 0, n: 0 };
  if (buckets[i].top === Infinity) return `over ${milliseconds(1000 * below.top)}`;
  return milliseconds(1000 * (below.top + ((buckets[i].top - below.top) * (wanted - below.n)) / (buckets[i].n - below.n)));
}

const difference = (first, last, name) => last.values.get(name) - (first.values.get(name) ?? 0);

function parse(text) {
  const lines = text.split("\n").filter((line) => line && !line.startsWith("#"));
  return new Map(lines.map((line) => [line.slice(0, line.lastIndexOf(" ")), Number(line.slice(line.lastIndexOf(" ") + 1))]));
}
