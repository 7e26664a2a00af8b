// Sound in, sound out: conversion to another voice, and enhancement.

import { ask, samples } from "./api.js";
import { Intake } from "./intake.js";
import { announce } from "./notice.js";
import { Sound } from "./sound.js";
import { task } from "./task.js";

const RATE = 24000;

// Give a panel its form; where a voice is not chosen, there is no choice of one.
export function fillRestore(panel, withVoice) {
  panel.append(document.getElementById("restore-template").content.cloneNode(true));
  panel.querySelector(".intake").dataset.label = panel.dataset.label;
  panel.querySelector("[type=submit]").textContent = panel.dataset.verb;
  const choice = panel.querySelector(".field");
  if (withVoice) choice.hidden = false;
  else choice.remove();
}

export function startRestore(panel, path, title) {
  const intake = new Intake(panel.querySelector(".intake"));
  let heard = null;
  task(panel, async ({ form, data, signal, outcome }) => {
    const file = await intake.sound();
    data.set("file", file, file.name);
    data.set("response_format", "pcm");
    heard?.remove();
    const sound = (heard = new Sound(title(form), RATE, `gpa-${panel.id}`));
    const asked = performance.now();
    try {
      const response = await ask(path, { method: "POST", body: data, signal });
      for await (const block of samples(response)) {
        sound.push(block);
        const elapsed = (performance.now() - asked) / 1000;
        sound.numbers({ Took: `${elapsed.toFixed(1)} s`, "Real-time factor": (elapsed / sound.player.duration).toFixed(2), Length: `${sound.player.duration.toFixed(1)} s` });
        if (!sound.element.isConnected) {
          outcome.replaceChildren(sound.element);
          sound.player.play();
        }
      }
      announce(`Done: ${sound.player.duration.toFixed(1)} seconds.`);
    } finally {
      if (signal.aborted) sound.player.pause();
      sound.finish();
    }
  });
}
