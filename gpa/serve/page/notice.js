// What people are told: news for screen readers, and problems with what can be done about them.

const REMEDIES = {
  401: "Give the API key of this server at the bottom of the page.",
  403: "This key may not do that.",
  408: "It took too long. Try something shorter.",
  413: "Choose something smaller.",
  429: "The server is busy. Try again in a moment.",
  503: "The server is starting or stopping. Try again in a moment.",
};

export function announce(text) {
  document.getElementById("announce").textContent = text;
}

export function clearProblem(panel) {
  panel.querySelector(".problem").replaceChildren();
  panel.querySelectorAll("[aria-invalid]").forEach((field) => field.removeAttribute("aria-invalid"));
}

export function showProblem(panel, error) {
  const { status = 0, code, param, request, retry } = error;
  const what = Object.assign(document.createElement("p"), { className: "what", textContent: sentence(error.message) });
  const lines = [what];
  const remedy = status === 429 && retry ? `The server is busy. Try again in ${retry} s.` : REMEDIES[status];
  if (remedy) lines.push(Object.assign(document.createElement("p"), { textContent: remedy }));
  const facts = [status || null, code, request && `request ${request}`].filter(Boolean).join(" · ");
  if (facts) lines.push(Object.assign(document.createElement("p"), { className: "hint", textContent: facts }));
  panel.querySelector(".problem").replaceChildren(...lines);
  if (status === 401) document.getElementById("access").hidden = false;
  const field = param && panel.querySelector(`form [name="${CSS.escape(param)}"]`);
  if (!field) return;
  field.closest("details")?.setAttribute("open", "");
  field.setAttribute("aria-invalid", "true");
  field.focus();
}

function sentence(text) {
  const message = String(text || "Something went wrong.").trim();
  return message[0].toUpperCase() + message.slice(1) + (/[.?!]$/.test(message) ? "" : ".");
}
