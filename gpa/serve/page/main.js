// Starts the page: asks the server what it has, and shows the tasks that it can do.

import { keepFields } from "./address.js";
import { ask, useKey } from "./api.js";
import { showProblem } from "./notice.js";
import { fillRestore, startRestore } from "./restore.js";
import { startSpeak } from "./speak.js";
import { startTabs } from "./tabs.js";
import { startTranscribe } from "./transcribe.js";
import { chosenVoice, fetchVoices, offer, startVoices } from "./voices.js";

const panel = (name) => document.getElementById(name);

const WAIT = 1000; // milliseconds between two looks whether the model is loaded

async function modelNames() {
  try {
    return (await (await ask("v1/models")).json()).data.map(({ id }) => id);
  } catch (error) {
    if (error.status !== 503) throw error;
    panel("model").textContent = "loading the model …";
    await new Promise((done) => { setTimeout(done, WAIT); });
    return modelNames();
  }
}

async function start() {
  const models = await modelNames();
  const voices = await fetchVoices();
  panel("model").textContent = models.join(" · ");
  fillRestore(panel("convert"), true);
  fillRestore(panel("enhance"), false);
  offer(voices);
  keepFields();
  startSpeak(panel("speak"));
  startTranscribe(panel("transcribe"));
  startRestore(panel("convert"), "v1/audio/conversions", (form) => `As ${chosenVoice(form)}`);
  startRestore(panel("enhance"), "v1/audio/enhancements", () => "Enhanced");
  startVoices(panel("voices"), voices);
  startTabs(["speak", "transcribe", "convert", ...(models.length > 1 ? ["enhance"] : []), "voices"]);
  document.body.dataset.ready = "";
}

panel("access").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(new FormData(event.target).get("key"));
  location.reload();
});

start().catch((error) => {
  panel("model").textContent = "not connected";
  showProblem(panel("speak"), error);
});
