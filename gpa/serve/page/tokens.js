// Token strip: a cell for each id of the sound, coloured by it. For the keyboard and for readers it is one slider.

const GOLDEN = 137.508; // degrees between the hues of two neighbouring ids: they differ as much as may be

export class Tokens {
  #cells = []; // {id, start, element}
  #now = null; // which is heard
  #at = null; // which is pointed at

  constructor(element, play) {
    this.element = element;
    this.strip = element.querySelector(".tokens");
    this.strip.addEventListener("pointerover", ({ target }) => this.#point(this.#of(target)));
    this.strip.addEventListener("pointerleave", () => this.#point(null));
    this.strip.addEventListener("focus", () => this.#point(this.#at ?? this.#now ?? this.#cells[0]));
    this.strip.addEventListener("blur", () => this.#point(null));
    this.strip.addEventListener("click", ({ target }) => { if (this.#of(target)) play(this.#of(target).start); });
    this.strip.addEventListener("keydown", (event) => {
      const index = this.#cells.indexOf(this.#at), last = this.#cells.length - 1;
      const next = { ArrowLeft: index - 1, ArrowDown: index - 1, ArrowRight: index + 1, ArrowUp: index + 1, Home: 0, End: last }[event.key];
      if (next !== undefined) this.#point(this.#cells[Math.max(0, Math.min(next, last))]);
      else if (event.key === "Enter" && this.#at) play(this.#at.start);
      else return;
      event.preventDefault();
    });
  }

  // More ids, and the second at which each begins.
  add(ids, starts) {
    const more = ids.map((id, i) => ({ id, start: starts[i], element: document.createElement("span") }));
    more.forEach(({ id, element }) => element.style.setProperty("--hue", ((id * GOLDEN) % 360).toFixed(1)));
    this.#cells.push(...more);
    this.strip.append(...more.map(({ element }) => element));
    this.element.hidden = !this.#cells.length;
    this.element.querySelector(".count").textContent = `${this.#cells.length} tokens`;
    this.strip.setAttribute("aria-label", `Tokens of the sound, ${this.#cells.length}, of ${new Set(this.#cells.map((each) => each.id)).size} kinds`);
    this.strip.setAttribute("aria-valuemax", this.#cells.length);
    this.#show();
  }

  // Mark what is heard at a time; null for nothing.
  mark(seconds) {
    const cell = seconds === null ? null : this.#cells.findLast(({ start }) => start <= seconds) ?? null;
    if (cell === this.#now) return;
    this.#now?.element.classList.remove("now");
    this.#now = cell;
    cell?.element.classList.add("now");
    if (cell) this.#reveal(cell);
    this.#show();
  }

  #of(element) { return this.#cells.find((each) => each.element === element) ?? null; }

  #point(cell) {
    this.#at?.element.classList.remove("at");
    this.#at = cell ?? null;
    this.#at?.element.classList.add("at");
    if (cell && document.activeElement === this.strip) this.#reveal(cell);
    this.#show();
  }

  // Scrolls the strip, never the page.
  #reveal({ element }) {
    const { scrollTop, clientHeight } = this.strip, { offsetTop: top, offsetHeight: height } = element;
    if (top < scrollTop || top + height > scrollTop + clientHeight) this.strip.scrollTop = top;
  }

  #show() {
    const cell = this.#at ?? this.#now, shown = cell ? `id ${cell.id} at ${cell.start.toFixed(2)} s` : "";
    this.element.querySelector(".token").textContent = shown;
    this.strip.setAttribute("aria-valuenow", this.#cells.indexOf(this.#at ?? this.#cells[0]) + 1);
    this.strip.setAttribute("aria-valuetext", this.#at ? shown : `${this.#cells.length} tokens`);
  }
}
