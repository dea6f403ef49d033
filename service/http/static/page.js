// The page: what is asked when, and what is said when the server is away.

import { byId, show } from "./dom.js";
import { keepKeys } from "./keys.js";
import { showSaving, watchSize } from "./saving.js";
import { ask, onAway } from "./server.js";
import { listTasks, markChosen, startTasks } from "./tasks.js";
import { lookAtTraffic, STEP } from "./traffic.js";
import { chosenTasks, startTry, toggle } from "./try.js";
import { startUpload } from "./upload.js";

const EACH_SHOWN = 64; // up to so many tasks every adapter is drawn with its own size
const SLOW = 5; // of how many looks at the traffic one also asks for the list and the saving

async function refresh() {
  await Promise.all([storage(), listTasks()]);
}

async function storage() {
  const sum = (await ask("storage?adapters=false")).data;
  if (sum.tasks === 0 || sum.tasks > EACH_SHOWN) return showSaving(sum, new Set());
  const [each, listed] = await Promise.all([ask("storage"), ask(`adapters?offset=0&limit=${EACH_SHOWN}`)]);
  showSaving(each.data, new Set(listed.data.filter((adapter) => adapter.kind === "lora").map((adapter) => adapter.task)));
}

onAway((away) => {
  document.body.classList.toggle("is-away", away);
  if (away) sayAway();
  else {
    show(byId("away"), null);
    refresh().catch(() => {});
  }
});

function sayAway() {
  const since = new Date().toLocaleTimeString("en-GB");
  show(byId("away"), `The server at ${location.host} has not answered since ${since}. What is shown is older. This page asks again every ${STEP} seconds.`);
}

async function beat(n) {
  if (!document.hidden) {
    try {
      await lookAtTraffic();
      if (n % SLOW === 0) await refresh();
    } catch {
      // said where it happened
    }
  }
  setTimeout(beat, 1000 * STEP, n + 1);
}

/** The first look, at the start or with the key that it needed: some tasks are ticked already. */
async function firstLook() {
  const [, adapters] = await Promise.all([storage(), listTasks()]);
  if (!chosenTasks().size) adapters.filter((adapter) => adapter.version).slice(0, 4).forEach(toggle);
}

async function start() {
  keepKeys();
  watchSize();
  startTasks(() => storage().catch(() => {}));
  startTry(markChosen);
  startUpload(() => refresh().catch(() => {}));
  const look = () => firstLook().catch(() => {}); // said where it happened
  byId("api-key").addEventListener("change", look);
  await look();
  beat(1);
}

start();
