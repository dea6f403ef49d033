// How many rows a task answers if its answers must be right so often: the risk-coverage table of its file.

import { s } from "./dom.js";

const WIDTH = 120, HEIGHT = 40, LEAST = 0.5; // a curve's box; the accuracy at its lower edge

/** A small curve of the answered rows (across) and the accuracy (up); null where a file has no table. */
export function coverageCurve(points) {
  if (!points?.length) return null;
  const place = ({ accuracy, coverage }) => `${(WIDTH * coverage).toFixed(1)},${(HEIGHT * (1 - accuracy) / (1 - LEAST)).toFixed(1)}`;
  return s("svg", { class: "coverage", viewBox: `-2 -2 ${WIDTH + 4} ${HEIGHT + 4}`, role: "img", "aria-label": words(points) },
    s("title", {}, words(points)),
    s("path", { d: `M0 0V${HEIGHT}H${WIDTH}`, class: "axes" }),
    s("polyline", { points: points.map(place).join(" ") }),
    points.map((point) => { const [x, y] = place(point).split(","); return s("circle", { cx: x, cy: y, r: 2 }); }),
  );
}

/** The same in words, such as "95 % right: 80 % of the rows". */
export function words(points) {
  const percent = (share) => `${Number((100 * share).toFixed(1))} %`;
  return points.map(({ accuracy, coverage }) => `${percent(accuracy)} right: ${percent(coverage)} of the rows`).join("; ");
}
