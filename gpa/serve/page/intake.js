// Sound that goes in: a file that is chosen or dropped, or a recording. The form has it under its name.

import { announce, showProblem } from "./notice.js";
import { Recorder } from "./recorder.js";
import { wavFile } from "./wav.js";

// Event: `sound` when there is another one, with `file` in its detail.
export class Intake extends EventTarget {
  #recorder = null;
  #timer = null;
  file = null;
  audio = null; // the element that plays it

  constructor(element) {
    super();
    this.element = element;
    element.append(document.getElementById("intake-template").content.cloneNode(true));
    this.#find(".intake-label").textContent = element.dataset.label;
    const input = this.#find("input");
    input.setAttribute("aria-label", `Choose a file: ${element.dataset.label}`);
    input.addEventListener("change", () => { if (input.files[0]) this.take(input.files[0]); });
    this.#find(".record").hidden = !navigator.mediaDevices; // no microphone where the page is not secure
    this.#find(".record").addEventListener("click", () => this.#record());
    const drop = this.#find(".drop");
    for (const kind of ["dragover", "dragleave", "drop"]) {
      drop.addEventListener(kind, (event) => {
        event.preventDefault();
        drop.classList.toggle("over", kind === "dragover");
        if (kind === "drop" && event.dataTransfer.files[0]) this.take(event.dataTransfer.files[0]);
      });
    }
  }

  take(file) {
    this.file = file;
    if (this.audio) URL.revokeObjectURL(this.audio.src);
    this.audio = Object.assign(document.createElement("audio"), { controls: true, src: URL.createObjectURL(file) });
    const name = Object.assign(document.createElement("span"), { textContent: file.name, className: "name" });
    this.#find(".chosen").replaceChildren(name, this.audio);
    this.#find(".chosen").hidden = false;
    announce(`${file.name} is ready.`);
    this.dispatchEvent(new CustomEvent("sound", { detail: { file } }));
  }

  // The file, once a recording that is still on has ended; without one `what` is to be done first.
  async sound(what = "Choose a file or record something first") {
    if (this.#recorder) await this.#record();
    if (!this.file) throw new Error(what);
    return this.file;
  }

  clear() {
    this.file = null;
    this.#find("input").value = "";
    this.#find(".chosen").hidden = true;
  }

  async #record() {
    const button = this.#find(".record"), what = button.querySelector(".what");
    if (this.#recorder) {
      clearInterval(this.#timer);
      const { samples, rate } = await this.#recorder.stop();
      this.#recorder = null;
      button.classList.remove("on");
      what.textContent = "Record";
      this.take(new File([wavFile(samples, rate)], "recording.wav", { type: "audio/wav" }));
      return;
    }
    try {
      this.#recorder = await Recorder.start();
    } catch (error) {
      const why = error.name === "NotAllowedError" ? "the browser does not allow it" : error.message;
      showProblem(this.element.closest("[role=tabpanel]"), new Error(`The microphone cannot be used: ${why}`));
      return;
    }
    button.classList.add("on");
    announce("Recording.");
    what.textContent = "Stop 0 s";
    this.#timer = setInterval(() => { what.textContent = `Stop ${Math.floor(this.#recorder.seconds)} s`; }, 250);
  }

  #find(selector) { return this.element.querySelector(selector); }
}
