// Numbers as people read them; sizes are decimal, as disks and clouds count them.

export const count = (n) => n.toLocaleString("en");

export function bytes(n) {
  const sign = n < 0 ? "−" : "";
  let size = Math.abs(n);
  for (const unit of ["B", "kB", "MB", "GB", "TB"]) {
    if (size < 999.5 || unit === "TB") {
      return `${sign}${size < 99.95 && unit !== "B" ? size.toFixed(1) : Math.round(size)}\u00a0${unit}`;
    }
    size /= 1000;
  }
}

export function times(ratio) {
  return `${ratio < 10 ? ratio.toFixed(2) : ratio < 100 ? ratio.toFixed(1) : count(Math.round(ratio))}×`;
}

export function milliseconds(ms) {
  if (ms < 0.95) return `${ms.toFixed(2)}\u00a0ms`;
  if (ms < 9.95) return `${ms.toFixed(1)}\u00a0ms`;
  return ms < 9999 ? `${Math.round(ms)}\u00a0ms` : `${(ms / 1000).toFixed(1)}\u00a0s`;
}

/** Two of them, with one unit if it is the same: "9.1 · 34 ms". */
export function millisecondsBoth(one, other) {
  const [a, b] = [milliseconds(one), milliseconds(other)];
  const [value, unit] = a.split("\u00a0");
  return `${b.endsWith(`\u00a0${unit}`) ? value : a} · ${b}`;
}

export function rate(perSecond) {
  return perSecond < 10 && perSecond > 0 ? perSecond.toFixed(1) : count(Math.round(perSecond));
}

export function share(fraction) {
  const percent = 100 * fraction;
  return `${percent < 1 ? percent.toPrecision(2) : percent.toFixed(1)}\u00a0%`;
}

export function date(iso) {
  return new Date(iso).toLocaleString("en-GB", { day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit" });
}
