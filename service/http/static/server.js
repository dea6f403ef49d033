// Talking to the server: its sentences become errors as they are, and everybody who asked hears when it goes and comes back.

import { apiKey } from "./keys.js";

const PATIENCE = 15_000;
const listeners = new Set();
let away = false;

/** The server answered, and said no: `message` is its own sentence. */
export class Refusal extends Error {}

/** The server did not answer. */
export class Away extends Error {
  constructor() {
    super("The server does not answer.");
  }
}

/** Call `listener(true)` when the server goes away and `listener(false)` when it is back. */
export function onAway(listener) {
  listeners.add(listener);
}

/**
 * Ask for a path, relative to the page's. `json` and `form` make it a POST, unless `method` says another; `key` is sent as a bearer token; `as: "blob"` answers a
 * file. Throws Refusal or Away.
 */
export async function ask(path, { json, form, method = json === undefined && form === undefined ? "GET" : "POST", key = apiKey(), as = "text", patience = PATIENCE } = {}) {
  const headers = {};
  if (json !== undefined) headers["Content-Type"] = "application/json";
  if (key) headers["Authorization"] = `Bearer ${key}`;
  const body = json === undefined ? form : JSON.stringify(json);
  const started = performance.now();
  let response, text, blob;
  try {
    const signal = AbortSignal.timeout(patience);
    response = await fetch(path, { method, headers, body, signal, cache: "no-store" });
    if (response.ok && as === "blob") blob = await response.blob();
    else text = await response.text();
  } catch {
    tell(true);
    throw new Away();
  }
  tell(false);
  if (!response.ok) throw new Refusal(sentence(text) ?? `The server answered ${response.status} without a reason.`);
  return { text, blob, data: parsed(text), headers: response.headers, ms: performance.now() - started };
}

function tell(now) {
  if (now === away) return;
  away = now;
  for (const listener of listeners) listener(away);
}

function sentence(text) {
  const error = parsed(text)?.error;
  return typeof error === "string" ? error : undefined;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined; // the metrics are not JSON
  }
}
