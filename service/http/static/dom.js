// Elements made of data. Text only ever becomes text nodes: labels and names come from other people's files.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** `h("p", {class: "quiet"}, "text", child)`; properties that begin with "on" are listeners, `false` and `null` are left out. */
export function h(name, properties = {}, ...children) {
  return fill(document.createElement(name), properties, children);
}

/** The same for SVG. */
export function s(name, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, name), properties, children);
}

/** Change an element's text if it is another one: what has not changed is neither repainted nor read out again. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Show a sentence, or hide its element where there is none. */
export function show(element, sentence) {
  say(element, sentence ?? "");
  element.hidden = !sentence;
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value === "boolean") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}
