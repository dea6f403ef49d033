// Adapter files, dropped anywhere on the page or chosen.

import { byId, h } from "./dom.js";
import { bytes } from "./format.js";
import { adminKey } from "./keys.js";
import { ask } from "./server.js";

const UPLOAD_PATIENCE = 300_000;

/** `onChange` is called after each file that was taken. */
export function startUpload(onChange) {
  const drop = byId("drop");
  byId("upload-form").addEventListener("submit", (event) => event.preventDefault());
  byId("file").addEventListener("change", async (event) => {
    const files = [...event.target.files];
    event.target.value = ""; // so that the same file can be chosen again
    await upload(files, onChange);
  });
  let inside = 0; // dragenter comes for every element that is crossed
  const over = (change) => {
    inside = Math.max(0, inside + change);
    drop.classList.toggle("over", inside > 0);
  };
  window.addEventListener("dragenter", () => over(1));
  window.addEventListener("dragleave", () => over(-1));
  window.addEventListener("dragover", (event) => {
    if (event.dataTransfer.types.includes("Files")) event.preventDefault(); // else the browser would open the file
  });
  window.addEventListener("drop", (event) => {
    over(-Infinity);
    if (!event.dataTransfer.files.length) return; // text dragged into a field
    event.preventDefault();
    upload([...event.dataTransfer.files], onChange);
  });
}

async function upload(files, onChange) {
  for (const file of files) {
    const line = h("li", {}, h("b", {}, file.name), ` · ${bytes(file.size)} · being checked…`);
    byId("uploads").prepend(line);
    const form = new FormData();
    form.append("file", file);
    form.append("activate", String(byId("activate").checked));
    try {
      const { data, headers } = await ask("adapters", { form, key: adminKey(), patience: UPLOAD_PATIENCE });
      const version = headers.get("Location").match(/versions\/([0-9a-f]+)/)[1];
      const served = data.version === version ? "is served now" : "is stored, not served yet";
      line.replaceChildren(h("b", {}, file.name), ` · ${data.task}@${version} ${served}`);
      onChange();
    } catch (error) {
      line.className = "bad";
      line.setAttribute("role", "alert");
      line.replaceChildren(h("b", {}, file.name), ` · ${error.message}`);
    }
  }
}
