// Speech to text: it comes while it is recognised; words have their times, and a click plays from there.

import { ask, events } from "./api.js";
import { Intake } from "./intake.js";
import { announce } from "./notice.js";
import { task } from "./task.js";

export function startTranscribe(panel) {
  const intake = new Intake(panel.querySelector(".intake"));
  task(panel, async ({ signal, outcome }) => {
    if (!intake.file) throw new Error("Choose a file or record something first");
    const file = intake.file;
    const form = (given) => {
      const data = new FormData();
      Object.entries(given).forEach(([name, value]) => data.append(name, value));
      data.append("file", file, file.name);
      return { method: "POST", body: data, signal };
    };
    const view = new Transcript(file);
    outcome.replaceChildren(view.element);
    const response = await ask("v1/audio/transcriptions", form({ response_format: "json", stream: "true" }));
    for await (const event of events(response)) {
      if (event.type === "transcript.text.delta") view.add(event.delta);
      if (event.type === "transcript.text.done") view.end(event);
    }
    announce(view.text || "Nobody speaks in this recording.");
  });
}

class Transcript {
  constructor(file) {
    this.file = file;
    this.text = "";
    this.element = Object.assign(document.createElement("section"), { className: "card transcript" });
    this.body = Object.assign(document.createElement("p"), { className: "text" });
    this.element.append(this.body);
  }

  add(delta) {
    this.text += delta;
    this.body.textContent = this.text;
  }

  end({ text }) {
    this.text = text;
    this.body.textContent = text || "Nobody speaks in this recording.";
  }
}
