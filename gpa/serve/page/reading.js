// Read-along: the text as it was written, with the word that is heard. The server says when a phrase begins, and
// at its end when each word did; until then, times are estimated from the letters.

const LETTERS = 14; // that are spoken in a second, while the end of a phrase is not known

const plain = (word) => word.toLowerCase().replace(/[^\p{L}\p{N}]/gu, "");

export class Reading {
  #written; // words of the text that have not been spoken yet
  #phrases = []; // {start, end, letters, words: [{from, element}]}, `from` in letters
  #now = null;

  constructor(element, text, play) {
    this.element = element;
    this.#written = text.split(/\s+/).filter(Boolean);
    this.play = play;
  }

  // Words that begin to be heard at a time, as the model reads them.
  add(spoken, start) {
    if (this.#phrases.length) this.#phrases.at(-1).end = start;
    const phrase = { start, end: null, letters: 0, words: [] };
    const button = Object.assign(document.createElement("button"), { type: "button", className: "phrase" });
    for (const word of this.#asWritten(spoken.split(/\s+/).filter(Boolean))) {
      const element = Object.assign(document.createElement("span"), { className: "word", textContent: word });
      const timed = { from: phrase.letters, element };
      element.addEventListener("click", (event) => { event.stopPropagation(); this.play(this.#time(phrase, timed)); });
      phrase.words.push(timed);
      phrase.letters += word.length + 1;
      button.append(element, " ");
    }
    button.addEventListener("click", () => this.play(start));
    this.element.append(button, " ");
    this.element.hidden = false;
    this.#phrases.push(phrase);
  }

  // When each word of the last phrase begins; marks alone are no words.
  time(words) {
    const timed = this.#phrases.at(-1)?.words.filter(({ element }) => plain(element.textContent)) ?? [];
    if (timed.length === words.length) timed.forEach((each, i) => { each.start = words[i].start; });
  }

  end(seconds) {
    if (this.#phrases.length) this.#phrases.at(-1).end = seconds;
  }

  // Mark what is heard at a time; null for nothing.
  mark(seconds) {
    const phrase = seconds === null ? null : this.#phrases.findLast(({ start }) => start <= seconds);
    const word = phrase?.words.findLast((each) => this.#time(phrase, each) <= seconds);
    if (word?.element === this.#now) return;
    this.#now?.classList.remove("now");
    this.#now = word?.element ?? null;
    this.#now?.classList.add("now");
  }

  #time({ start, end, letters }, { from, start: exact }) {
    return exact ?? start + (from / letters) * ((end ?? start + letters / LETTERS) - start);
  }

  // The words of the text that are spoken so; what is spoken, if it was written otherwise (3: three).
  #asWritten(spoken) {
    const fits = (at) => spoken.every((word, i) => plain(word) === plain(this.#written[at + i] ?? ""));
    const at = this.#written.findIndex((_, i) => fits(i));
    if (at < 0) return spoken;
    const found = this.#written.slice(at, at + spoken.length);
    this.#written.splice(0, at + spoken.length);
    return found;
  }
}
