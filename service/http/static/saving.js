// The saving, to scale: in both pictures the same area is the same number of bytes.
//
// A full copy is a bar of `width` × `height` pixels. Copies stand in rows like words in a text; what this server holds is written in
// the same hand: one copy (the backbone), then the adapters, each as wide as its bytes.

import { byId, s, say } from "./dom.js";
import { bytes, count, share, times } from "./format.js";

const MOST_BARS = 12_000; // more bars than that are specks: then one stands for ten copies, or a hundred

let latest = null; // what was drawn last: the storage, and the LoRA tasks

export function watchSize() {
  new ResizeObserver(() => latest && draw(...latest)).observe(byId("lanes"));
}

/** `storage` is the answer of /storage; `loras` are the tasks whose adapters are LoRA, as far as each is drawn. */
export function showSaving(storage, loras) {
  const { tasks, total_bytes: total, full_copies_bytes: copies, saved_bytes: saved, backbone_bytes: backbone } = storage;
  const adapter = tasks ? storage.adapters_bytes / tasks : 0;
  say(byId("backbone"), `${storage.backbone} · ${storage.dtype} · ${bytes(backbone)}`);
  say(byId("ratio"), tasks ? times(storage.ratio) : "0");
  if (tasks === 0) {
    say(byId("saving-title"), "No task yet");
    say(byId("saving-sentence"), `The model alone takes ${bytes(backbone)}. Upload an adapter file, and it answers the next request.`);
  } else if (saved <= 0) {
    say(byId("saving-title"), `${tasks === 1 ? "One task saves" : `${count(tasks)} tasks save`} nothing yet`);
    say(byId("saving-sentence"), `The next one will cost about ${bytes(adapter)} here, and ${bytes(backbone)} as a full copy of the model.`);
  } else {
    say(byId("saving-title"), `${count(tasks)} tasks in ${bytes(total)} instead of ${bytes(copies)}`);
    say(byId("saving-sentence"), `One frozen model and ${count(tasks)} adapters save ${bytes(saved)} against a fine-tuned copy per task.`);
  }
  const drawn = (of) => JSON.stringify(of && [of[0], [...of[1]]]);
  if (drawn([storage, loras]) !== drawn(latest)) draw(storage, loras);
  latest = [storage, loras];
}

function draw(storage, loras) {
  const lanes = byId("lanes");
  const room = Math.floor(lanes.clientWidth);
  if (!room) return;
  const { tasks, backbone_bytes: backbone, adapters_bytes: adapters } = storage;
  const each = 10 ** Math.max(0, Math.ceil(Math.log10(tasks / MOST_BARS))); // copies that one bar stands for
  const bars = Math.max(1, Math.ceil(tasks / each));
  const grid = layout(bars, room);
  const slivers = storage.adapters.length === tasks ? storage.adapters.map((a) => a.bytes) : [adapters];
  const kinds = storage.adapters.length === tasks ? storage.adapters.map((a) => (loras.has(a.task) ? " lora" : "")) : [""];
  const unit = each > 1 ? ` Each bar is ${count(each)} copies.` : "";

  const here = [s("g", { class: "backbone" }, pieces(0, 1 / each, grid))];
  let at = 1 / each;
  slivers.forEach((size, i) => {
    const end = at + size / backbone / each;
    here.push(s("g", { class: `sliver${i % 2 ? " odd" : ""}${kinds[i]}` }, pieces(at, end, grid)));
    at = end;
  });
  if (each === 1 && slivers.length === tasks && at < grid.columns) here.push(...magnified(slivers, kinds, at, backbone, grid, room));
  const rows = Math.floor(bars / grid.columns);
  const copies = [
    s("defs", {}, s("pattern", { id: "bars", width: grid.width, height: grid.height, patternUnits: "userSpaceOnUse" },
      s("rect", { width: grid.width - grid.gap, height: grid.height - grid.rowGap, class: "copy" }))),
    s("rect", { width: grid.columns * grid.width, height: rows * grid.height, fill: "url(#bars)" }),
    s("rect", { y: rows * grid.height, width: (bars % grid.columns) * grid.width, height: grid.height, fill: "url(#bars)" }),
  ];
  const ours = `This server: one model of ${bytes(backbone)} and ${count(tasks)} adapter${tasks === 1 ? "" : "s"} of ${bytes(adapters)}${tasks === 1 ? "" : " in all"}`;
  const theirs = `A full copy per task: ${count(tasks)} × ${bytes(backbone)}`;
  lanes.replaceChildren(
    lane(ours, bytes(storage.total_bytes), picture(here, Math.ceil(at / grid.columns), grid, room, ours)),
    lane(theirs, bytes(storage.full_copies_bytes), tasks ? picture(copies, Math.ceil(bars / grid.columns), grid, room, theirs) : null),
  );
  const mean = tasks ? ` An adapter is ${share(adapters / tasks / backbone)} of a copy.` : "";
  const both = loras.size ? " Orange adapters are bottlenecks, violet ones are LoRA." : "";
  say(byId("saving-note"), `To scale: equal areas are equal bytes.${both}${mean}${unit} A copy is counted without its head, so the saving is understated.`);
}

/** How large a bar is: wide for few tasks, and small enough that all of them are one picture for many. */
function layout(bars, room) {
  if (bars <= 6) {
    const columns = Math.max(2, bars);
    return { columns, width: room / columns, height: 44, gap: 2, rowGap: 4 };
  }
  const tall = 44 * bars ** 0.2;
  const slender = bars < 200 ? 6 : 2.5;
  let columns = Math.ceil(Math.sqrt((room * bars) / (slender * tall)));
  const width = Math.max(2, Math.floor(room / columns));
  columns = Math.floor(room / width);
  const height = Math.max(3, Math.round(tall / Math.ceil(bars / columns)));
  return { columns, width, height, gap: 1, rowGap: height > 8 ? 3 : 1 };
}

/** Slivers of a pixel once more beside the bar, wide enough to be counted; drawn as outlines, and the factor said. */
function magnified(slivers, kinds, at, backbone, grid, room) {
  const start = at * grid.width + 26, caption = 104;
  const wide = slivers.reduce((sum, size) => sum + size, 0) * (grid.width / backbone);
  const left = Math.min(room - start - caption, slivers.length * 40);
  const factor = [500, 200, 100, 50, 20, 10, 5].find((factor) => wide * factor <= left);
  if (!factor || wide / slivers.length > 4) return [];
  const height = grid.height - grid.rowGap;
  let x = start;
  const shapes = slivers.map((size, i) => {
    const width = size * (grid.width / backbone) * factor;
    x += width;
    return s("rect", { x: x - width + 0.5, y: 0.5, width: Math.max(0.5, width - 2), height: height - 1, class: `magnified${kinds[i]}` });
  });
  return [
    s("path", { d: `M${at * grid.width + 4} ${height / 2}H${start - 6}`, class: "leader" }), ...shapes,
    s("text", { x: x + 8, y: height / 2 + 4 }, `${factor}× magnified`),
  ];
}

/** The stretch from `start` to `end`, in bars, as rectangles: one for each row that it runs through. */
function pieces(start, end, grid) {
  const found = [];
  for (let row = Math.floor(start / grid.columns); row * grid.columns < end; row++) {
    const from = Math.max(start, row * grid.columns), to = Math.min(end, (row + 1) * grid.columns);
    found.push(s("rect", {
      x: (from - row * grid.columns) * grid.width, y: row * grid.height,
      width: Math.max(0, (to - from) * grid.width), height: grid.height - grid.rowGap,
    }));
  }
  return found;
}

function picture(shapes, rows, grid, room, label) {
  const height = Math.max(1, rows) * grid.height;
  return s("svg", { width: room, height, viewBox: `0 0 ${room} ${height}`, role: "img", "aria-label": label }, shapes);
}

function lane(label, size, svg) {
  const heading = document.createElement("p");
  const strong = document.createElement("b");
  strong.textContent = size;
  heading.append(label, strong);
  const element = document.createElement("div");
  element.className = "lane";
  element.append(heading, ...(svg ? [svg] : []));
  return element;
}
