// The two keys: in their fields and in sessionStorage, so that they end with the tab.

import { byId } from "./dom.js";

export const adminKey = () => byId("admin-key").value.trim();
export const apiKey = () => byId("api-key").value.trim();

export function keepKeys() {
  for (const id of ["admin-key", "api-key"]) {
    const field = byId(id);
    field.value = attempt(() => sessionStorage.getItem(id)) ?? "";
    field.addEventListener("input", () => attempt(() => sessionStorage.setItem(id, field.value.trim())));
  }
}

/** Browsers may forbid storage; then the key lasts as long as its field. */
function attempt(action) {
  try {
    return action();
  } catch {
    return undefined;
  }
}
