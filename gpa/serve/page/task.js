// A form that starts something that takes a while: one run at a time, cancelled by a button or Escape.

import { announce, clearProblem, showProblem } from "./notice.js";

// `run({form, data, signal, outcome})` does the work; what it throws is shown.
export function task(panel, run) {
  const form = panel.querySelector("form"), start = form.querySelector("[type=submit]"), cancel = form.querySelector(".cancel");
  const outcome = panel.querySelector(".outcome");
  let running = null, timer = null;

  const busy = (on) => {
    panel.setAttribute("aria-busy", on);
    start.hidden = on;
    cancel.hidden = !on;
    clearInterval(timer);
    cancel.textContent = "Cancel";
    const begun = performance.now();
    if (on) timer = setInterval(() => { cancel.textContent = `Cancel · ${Math.floor((performance.now() - begun) / 1000)} s`; }, 1000);
  };

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running) return;
    running = new AbortController();
    clearProblem(panel);
    const focused = document.activeElement === start;
    busy(true);
    if (focused) cancel.focus();
    try {
      await run({ form, data: new FormData(form), signal: running.signal, outcome });
    } catch (error) {
      if (error.name === "AbortError") announce("Cancelled.");
      else showProblem(panel, error);
    } finally {
      const back = document.activeElement === cancel;
      running = null;
      busy(false);
      if (back) start.focus();
    }
  });
  cancel.addEventListener("click", () => running?.abort());
  panel.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
}
