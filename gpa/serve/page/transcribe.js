// Speech to text: it comes while it is recognised; words have their times, and a click plays from there.

import { ask, events } from "./api.js";
import { Intake } from "./intake.js";
import { announce } from "./notice.js";
import { showNumbers } from "./numbers.js";
import { task } from "./task.js";

const clock = (seconds) => `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(1).padStart(4, "0")}`;

export function startTranscribe(panel) {
  const intake = new Intake(panel.querySelector(".intake"));
  task(panel, async ({ data, signal, outcome }) => {
    const file = await intake.sound();
    data.set("file", file, file.name);
    data.set("stream", "true");
    const asked = performance.now();
    const response = await ask("v1/audio/transcriptions", { method: "POST", body: data, signal });
    const view = new Transcript(intake);
    outcome.replaceChildren(view.element);
    for await (const event of events(response)) {
      if (event.type === "transcript.text.delta") view.add(event);
      if (event.type === "transcript.text.done") view.end(event, (performance.now() - asked) / 1000);
    }
    announce(view.text || "Nobody speaks in this recording.");
  });
}

class Transcript {
  #words = []; // with times, and their elements
  text = "";

  constructor(intake) {
    this.audio = intake.audio;
    this.element = document.getElementById("transcript-template").content.firstElementChild.cloneNode(true);
    this.timed = this.#find(".timed"); // what has its times
    this.fresh = this.#find(".fresh"); // what has none yet
    this.audio.addEventListener("timeupdate", () => this.#follow());
    this.#find(".copy").addEventListener("click", async () => {
      await navigator.clipboard.writeText(this.text);
      announce("Copied.");
    });
  }

  add({ delta, words }) {
    this.text += delta;
    this.fresh.textContent += delta;
    if (!words) return;
    this.fresh.textContent = "";
    this.timed.append(...words.flatMap((word) => [this.#word(word), " "]));
  }

  end({ text, duration, skipped }, elapsed) {
    this.text = text;
    if (!text) this.fresh.textContent = "Nobody speaks in this recording.";
    const numbers = { Length: `${duration.toFixed(1)} s`, Took: `${elapsed.toFixed(1)} s`, "Without speech": `${skipped.toFixed(1)} s`, Words: this.#words.length };
    showNumbers(this.#find(".numbers"), numbers);
    this.#find(".after").hidden = !text;
    const link = this.#find(".download");
    link.href = URL.createObjectURL(new Blob([`${text}\n`], { type: "text/plain" }));
  }

  #word({ word, start, end }) {
    const element = Object.assign(document.createElement("button"), { type: "button", className: "word", textContent: word, title: clock(start) });
    element.addEventListener("click", () => { this.audio.currentTime = start; this.audio.play(); });
    this.#words.push({ start, end, element });
    return element;
  }

  #follow() {
    const now = this.audio.currentTime;
    for (const { start, end, element } of this.#words) element.classList.toggle("now", !this.audio.paused && start <= now && now < end);
  }

  #find(selector) { return this.element.querySelector(selector); }
}
