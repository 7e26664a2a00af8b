// How good a recording of a voice is, as far as a browser can tell: length, level, clipping, noise.

const FRAME = 0.02; // seconds

// Returns list items, each with whether it is well.
export async function report(file) {
  const sound = await decoded(file);
  if (!sound) return [item("The browser cannot read this format; the server may.", true)];
  const { samples, rate } = sound;
  const seconds = samples.length / rate;
  const peak = samples.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
  const clipped = samples.reduce((count, x) => count + (Math.abs(x) > 0.999), 0) / samples.length;
  const levels = frames(samples, Math.round(FRAME * rate)).sort((a, b) => a - b);
  const noise = levels[Math.floor(0.1 * levels.length)] ?? -100, speech = levels[Math.floor(0.9 * levels.length)] ?? -100;
  return [
    item(`${seconds.toFixed(1)} s long${seconds < 3 ? ": three or more are better" : seconds > 20 ? ": three to six are enough" : ""}`, seconds >= 3 && seconds <= 20),
    item(peak < 0.05 ? "Very quiet: go nearer to the microphone" : clipped > 1e-4 ? "Too loud: the peaks are cut" : "Good level", peak >= 0.05 && clipped <= 1e-4),
    item(`Speech is ${Math.round(speech - noise)} dB above the noise${speech - noise < 20 ? ": look for a quieter place" : ""}`, speech - noise >= 20),
  ];
}

async function decoded(file) {
  try {
    const buffer = await new OfflineAudioContext(1, 1, 16000).decodeAudioData(await file.arrayBuffer());
    return { samples: buffer.getChannelData(0), rate: buffer.sampleRate };
  } catch {
    return null;
  }
}

function frames(samples, size) {
  return Array.from({ length: Math.floor(samples.length / size) }, (_, i) => {
    const power = samples.subarray(i * size, (i + 1) * size).reduce((sum, x) => sum + x * x, 0) / size;
    return 10 * Math.log10(power + 1e-10);
  });
}

function item(text, good) {
  return Object.assign(document.createElement("li"), { textContent: text, className: good ? "good" : "poor" });
}
