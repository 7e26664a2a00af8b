// Text to speech: it is heard from the first chunk on, and read along.

import { ask, events, fromBase64, fromPcm } from "./api.js";
import { announce } from "./notice.js";
import { Sound } from "./sound.js";
import { task } from "./task.js";
import { chosenVoice } from "./voices.js";

const RATE = 24000;

let heard = null;

async function speak({ form, data, signal, outcome }) {
  const given = Object.fromEntries(["seed", "speed", "temperature", "pause"].flatMap((name) => (data.get(name) === "" ? [] : [[name, Number(data.get(name))]])));
  const json = { input: data.get("input"), voice: data.get("voice"), ...given, response_format: "pcm", stream_format: "sse", timestamps: "word", return_token_ids: true, sample_rate: RATE };
  heard?.remove();
  const voice = chosenVoice(form);
  const sound = (heard = new Sound(voice, RATE, `gpa-${voice}`, json.input));
  const asked = performance.now();
  let first = null;
  try {
    const response = await ask("v1/audio/speech", { method: "POST", json, signal });
    for await (const event of events(response)) {
      if (event.type === "speech.audio.delta") {
        if (event.text) sound.phrase(event.text);
        if (event.words) sound.words(event.words);
        if (event.token_ids) sound.tokens.add(event.token_ids, event.token_starts);
        if (event.audio) sound.push(fromPcm(fromBase64(event.audio)));
        if (first === null && event.audio) {
          first = performance.now() - asked;
          outcome.replaceChildren(sound.element);
          sound.player.play();
        }
      }
      sound.numbers(numbers(first, performance.now() - asked, sound.player.duration, event));
    }
    announce(`Spoken: ${sound.player.duration.toFixed(1)} seconds.`);
  } finally {
    if (signal.aborted) sound.player.pause();
    sound.finish();
  }
}

function numbers(first, elapsed, duration, { usage, finish_reason: reason, failures }) {
  return {
    ...(first !== null && { "First sound": `${Math.round(first)} ms` }),
    ...(duration && { "Real-time factor": (elapsed / 1000 / duration).toFixed(2), Length: `${duration.toFixed(1)} s` }),
    ...(usage && { Tokens: usage.output_tokens }),
    ...(reason && reason !== "stop" && { Ended: reason }),
    ...(failures && { "Not spoken": failures.map(({ text }) => text).join(" ") }),
  };
}

export function startSpeak(panel) {
  task(panel, speak);
}
