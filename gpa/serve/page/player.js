// Plays sound while it still comes: blocks of samples are scheduled one after the other, without a gap.

const LEAD = 0.04; // seconds between scheduling and sounding

const contexts = new Map();

function contextAt(rate) {
  if (!contexts.has(rate)) contexts.set(rate, new AudioContext({ sampleRate: rate, latencyHint: "interactive" }));
  return contexts.get(rate);
}

// Events: `change` when it starts or stops, or has more sound.
export class Player extends EventTarget {
  #store = new Float32Array(1 << 16);
  #length = 0;
  #sources = new Set();
  #scheduled = 0; // samples that have been handed to the context
  #origin = null; // time of the context at which sample 0 sounds, or would have
  #at = 0; // seconds, while it rests
  playing = false;
  complete = false; // whether no more sound comes

  constructor(rate) {
    super();
    this.rate = rate;
    this.context = contextAt(rate);
    this.context.resume(); // within the click that asked for sound
  }

  get samples() { return this.#store.subarray(0, this.#length); }
  get duration() { return this.#length / this.rate; }

  get position() {
    if (!this.playing || this.#origin === null) return this.#at;
    return Math.max(this.#at, Math.min(this.context.currentTime - this.#origin, this.#scheduled / this.rate));
  }

  push(block) {
    if (this.#length + block.length > this.#store.length) {
      const store = new Float32Array(2 * (this.#length + block.length));
      store.set(this.samples);
      this.#store = store;
    }
    this.#store.set(block, this.#length);
    this.#length += block.length;
    if (this.playing) this.#schedule();
    this.#changed();
  }

  finish() {
    this.complete = true;
    if (this.playing && !this.#sources.size) this.pause();
    this.#changed();
  }

  play(from = this.position) {
    this.pause();
    this.context.resume();
    this.#at = this.complete && from >= this.duration - 0.02 ? 0 : Math.min(from, this.duration);
    this.#scheduled = Math.round(this.#at * this.rate);
    this.#origin = null;
    this.playing = true;
    this.#schedule();
    this.#changed();
  }

  pause() {
    this.#at = this.position;
    this.playing = false;
    this.#sources.forEach((source) => { source.onended = null; source.stop(); });
    this.#sources.clear();
    this.#changed();
  }

  seek(seconds) {
    if (this.playing) this.play(seconds);
    else { this.#at = Math.max(0, Math.min(seconds, this.duration)); this.#changed(); }
  }

  #schedule() {
    const block = this.#store.subarray(this.#scheduled, this.#length);
    if (!block.length) return;
    const soonest = this.context.currentTime + LEAD;
    const due = this.#origin === null ? soonest : this.#origin + this.#scheduled / this.rate;
    const start = due < this.context.currentTime ? soonest : due; // late: the rest moves on
    this.#origin = start - this.#scheduled / this.rate;
    const buffer = this.context.createBuffer(1, block.length, this.rate);
    buffer.copyToChannel(block, 0);
    const source = new AudioBufferSourceNode(this.context, { buffer });
    source.connect(this.context.destination);
    source.onended = () => {
      this.#sources.delete(source);
      if (this.complete && !this.#sources.size) { this.#at = this.duration; this.playing = false; this.#changed(); }
    };
    source.start(start);
    this.#sources.add(source);
    this.#scheduled = this.#length;
  }

  #changed() { this.dispatchEvent(new Event("change")); }
}
