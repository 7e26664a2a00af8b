// The voices of the server: the choices of other forms, and the library where they come and go.

import { setting } from "./address.js";
import { ask } from "./api.js";
import { Intake } from "./intake.js";
import { announce, clearProblem, showProblem } from "./notice.js";
import { report } from "./quality.js";

const PATH = "v1/audio/voices", CONSENTS = "v1/audio/voice_consents";

export async function fetchVoices() {
  return (await (await ask(PATH)).json()).data;
}

// Fill every choice of a voice, keeping what is chosen.
export function offer(voices) {
  for (const select of document.querySelectorAll("[data-voices]")) {
    const chosen = select.value || setting(select.dataset.setting);
    select.replaceChildren(...voices.map(({ id, name }) => new Option(name, id)));
    if (voices.some(({ id }) => id === chosen)) select.value = chosen;
  }
}

// The name of the voice that a form has chosen; its value is an id.
export const chosenVoice = (form) => form.querySelector("[data-voices]").selectedOptions[0]?.text ?? "";

export function startVoices(panel, voices) {
  const form = panel.querySelector("form"), list = panel.querySelector(".library");
  const [intake, agreement] = [...panel.querySelectorAll(".intake")].map((element) => new Intake(element));
  const quality = panel.querySelector(".report"), start = form.querySelector("[type=submit]");

  const refresh = async () => {
    const found = await fetchVoices();
    offer(found);
    show(found);
  };
  const show = (found) => list.replaceChildren(...found.map(entry));

  // What is undone if it cannot be: a consent that no voice rests on, or that is gone already.
  const withdraw = (consent) => ask(`${CONSENTS}/${encodeURIComponent(consent)}`, { method: "DELETE" }).catch(() => {});

  const agree = async (name, recording) => {
    const data = new FormData();
    data.set("name", name);
    data.set("language", document.documentElement.lang);
    data.set("recording", recording, recording.name);
    return (await (await ask(CONSENTS, { method: "POST", body: data })).json()).id;
  };

  const entry = ({ id, name, consent, created_at: created }) => {
    const item = document.createElement("li");
    const about = document.createElement("div");
    about.append(Object.assign(document.createElement("strong"), { textContent: name }));
    const agreed = consent?.startsWith("cons_") ? "with recorded consent" : consent;
    const more = created ? [new Date(1000 * created).toLocaleDateString(), agreed].filter(Boolean).join(" · ") : "shipped";
    about.append(Object.assign(document.createElement("span"), { className: "hint", textContent: more }));
    item.append(about);
    if (created) {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Delete" });
      button.setAttribute("aria-label", `Delete the voice ${name}`);
      button.addEventListener("click", () => remove(button, id, name, consent));
      item.append(button);
    }
    return item;
  };

  const remove = async (button, id, name, consent) => {
    if (!button.classList.contains("sure")) { // the second click means it
      button.classList.add("sure");
      button.textContent = "Really delete?";
      button.addEventListener("blur", () => { button.classList.remove("sure"); button.textContent = "Delete"; }, { once: true });
      return;
    }
    button.disabled = true;
    try {
      await ask(`${PATH}/${encodeURIComponent(id)}`, { method: "DELETE" });
      if (consent?.startsWith("cons_")) await withdraw(consent);
      await refresh();
      announce(`The voice ${name} is deleted.`);
      panel.querySelector(".library").previousElementSibling.focus();
    } catch (error) {
      button.disabled = false;
      showProblem(panel, error);
    }
  };

  intake.addEventListener("sound", async ({ detail }) => quality.replaceChildren(...(await report(detail.file))));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (form.ariaBusy === "true") return; // once is enough
    form.ariaBusy = "true";
    start.textContent = "Adding …";
    clearProblem(panel);
    const data = new FormData(form);
    try {
      const sample = await intake.sound();
      if (!data.get("name").trim()) throw Object.assign(new Error("Give the voice a name"), { param: "name" });
      if (!data.has("agreed")) throw Object.assign(new Error("Say that the speaker agrees"), { param: "agreed" });
      const recording = await agreement.sound("Record how the speaker agrees, or choose a file of it");
      data.delete("agreed");
      data.set("audio_sample", sample, sample.name);
      data.set("consent", await agree(data.get("name"), recording));
      try {
        await ask(PATH, { method: "POST", body: data });
      } catch (error) {
        await withdraw(data.get("consent"));
        throw error;
      }
      await refresh();
      announce(`The voice ${data.get("name")} is there.`);
      form.reset();
      intake.clear();
      agreement.clear();
      quality.replaceChildren();
    } catch (error) {
      showProblem(panel, error);
    } finally {
      form.ariaBusy = "false";
      start.textContent = "Add voice";
    }
  });
  show(voices);
}
