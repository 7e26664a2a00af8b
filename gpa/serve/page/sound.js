// A sound on the page: its picture, playing, read-along text, numbers, download.

import { showNumbers } from "./numbers.js";
import { draw } from "./picture.js";
import { Player } from "./player.js";
import { Reading } from "./reading.js";
import { Tokens } from "./tokens.js";
import { wavFile } from "./wav.js";

const PLAY = "▶", PAUSE = "❚❚";
const REDRAW = 200; // milliseconds between two pictures of a sound that still comes

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

export class Sound {
  #drawn = 0;
  #url = null;
  #frame = 0;
  #gone = new AbortController();

  constructor(title, rate, name, text = "") {
    this.element = document.getElementById("sound-template").content.firstElementChild.cloneNode(true);
    this.element.setAttribute("aria-label", title);
    this.#find("h3").textContent = title;
    this.name = name;
    this.player = new Player(rate);
    this.player.addEventListener("change", () => this.#update());
    this.#find(".play").addEventListener("click", () => (this.player.playing ? this.player.pause() : this.player.play()));
    this.#find(".seek").addEventListener("input", ({ target }) => this.player.seek(Number(target.value)));
    this.#find("canvas").addEventListener("click", (event) => {
      this.player.seek((event.offsetX / event.target.clientWidth) * this.player.duration);
    });
    new ResizeObserver(() => this.#draw()).observe(this.#find("canvas"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw(), { signal: this.#gone.signal });
    this.reading = new Reading(this.#find(".reading"), text, (seconds) => this.player.play(seconds));
    this.tokens = new Tokens(this.#find(".strip"), (seconds) => this.player.play(seconds));
    this.#update();
  }

  push(block) {
    this.player.push(block);
    if (performance.now() - this.#drawn > REDRAW) this.#draw();
  }

  // Words that begin with the sound that comes next.
  phrase(spoken) {
    this.reading.add(spoken, this.player.duration);
  }

  // When the words of the last phrase begin.
  words(words) {
    this.reading.time(words);
  }

  finish() {
    this.player.finish();
    this.reading.end(this.player.duration);
    this.#draw();
    if (!this.player.duration) return;
    const link = this.#find(".download");
    this.#url = URL.createObjectURL(wavFile(this.player.samples, this.player.rate));
    Object.assign(link, { href: this.#url, download: `${this.name}.wav`, textContent: "Download WAV", hidden: false });
  }

  numbers(pairs) {
    showNumbers(this.#find(".numbers"), pairs);
  }

  remove() {
    this.player.pause();
    this.#gone.abort();
    if (this.#url) URL.revokeObjectURL(this.#url);
    this.element.remove();
  }

  #find(selector) { return this.element.querySelector(selector); }

  #draw() {
    this.#drawn = performance.now();
    draw(this.#find("canvas"), this.player.samples, this.player.rate);
  }

  #update() {
    const { playing, duration } = this.player;
    const button = this.#find(".play"), seek = this.#find(".seek");
    button.textContent = playing ? PAUSE : PLAY;
    button.setAttribute("aria-label", playing ? "Pause" : "Play");
    button.disabled = seek.disabled = !duration;
    seek.max = Math.max(duration, 0.01);
    cancelAnimationFrame(this.#frame);
    if (playing) this.#frame = requestAnimationFrame(() => this.#update());
    this.#move();
  }

  #move() {
    const { position, duration } = this.player;
    const seek = this.#find(".seek"), head = this.#find(".playhead");
    seek.value = position;
    seek.style.setProperty("--share", duration ? position / duration : 0);
    seek.setAttribute("aria-valuetext", `${position.toFixed(1)} of ${duration.toFixed(1)} seconds`);
    this.#find(".clock").textContent = `${clock(position)} / ${clock(duration)}`;
    head.hidden = !duration;
    head.style.left = `${duration ? (100 * position) / duration : 0}%`;
    this.reading.mark(this.player.playing ? position : null);
    this.tokens.mark(this.player.playing ? position : null);
  }
}
