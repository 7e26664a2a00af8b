// Starts the page: asks the server what it has, and shows the tasks that it can do.

import { keepFields } from "./address.js";
import { ask, useKey } from "./api.js";
import { showProblem } from "./notice.js";
import { startRestore } from "./restore.js";
import { startSpeak } from "./speak.js";
import { startTabs } from "./tabs.js";
import { startTranscribe } from "./transcribe.js";
import { fetchVoices, offer, startVoices } from "./voices.js";

const panel = (name) => document.getElementById(name);

async function start() {
  const models = (await (await ask("v1/models")).json()).data.map(({ id }) => id);
  const voices = await fetchVoices();
  panel("model").textContent = models.join(" · ");
  offer(voices);
  keepFields();
  startSpeak(panel("speak"));
  startTranscribe(panel("transcribe"));
  startRestore(panel("convert"), "v1/audio/conversions", (data) => `As ${data.get("voice")}`);
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
