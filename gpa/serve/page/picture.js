// Draws sound: its waveform, and below it the spectrogram, in the colours of the page.

const SIZE = 512; // samples of a spectrum
const WINDOW = Float32Array.from({ length: SIZE }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / SIZE));
const COLUMNS = 480;
const HIGHEST = 8000; // Hz: there is no more in the model's sound
const FLOOR = -75; // dB below the loudest, which is as good as silent

export function draw(canvas, samples, rate) {
  const scale = window.devicePixelRatio || 1;
  const width = (canvas.width = Math.round(canvas.clientWidth * scale));
  const height = (canvas.height = Math.round(canvas.clientHeight * scale));
  if (!width || !samples.length) return;
  const context = canvas.getContext("2d");
  const top = Math.round(height * 0.45);
  const [red, green, blue] = colour(canvas);
  waveform(context, samples, width, top, `rgb(${red} ${green} ${blue})`);
  context.drawImage(spectrogram(samples, rate, [red, green, blue]), 0, top, width, height - top);
}

function colour(canvas) {
  return getComputedStyle(canvas).color.match(/[\d.]+/g).slice(0, 3).map(Number);
}

function waveform(context, samples, width, height, fill) {
  context.fillStyle = fill;
  const middle = height / 2;
  const loudest = Math.max(0.1, samples.reduce((most, x) => Math.max(most, Math.abs(x)), 0));
  for (let x = 0; x < width; x++) {
    const from = Math.floor((x * samples.length) / width), to = Math.max(from + 1, Math.floor(((x + 1) * samples.length) / width));
    let low = 0, high = 0;
    for (let i = from; i < to; i++) { low = Math.min(low, samples[i]); high = Math.max(high, samples[i]); }
    const tall = Math.max(1, ((high - low) / loudest) * middle * 0.92);
    context.fillRect(x, middle - (high / loudest) * middle * 0.92, 1, tall);
  }
}

// A small canvas, which is smoothed when it is drawn larger.
function spectrogram(samples, rate, ink) {
  const spectra = Array.from({ length: COLUMNS }, (_, x) => spectrum(samples, Math.floor(((x + 0.5) * samples.length) / COLUMNS) - SIZE / 2));
  const loudest = spectra.reduce((most, power) => Math.max(most, ...power), 1e-6);
  const bins = Math.min(SIZE / 2, Math.round((HIGHEST / rate) * SIZE));
  const small = Object.assign(document.createElement("canvas"), { width: COLUMNS, height: bins });
  const context = small.getContext("2d");
  const image = context.createImageData(COLUMNS, bins);
  spectra.forEach((power, x) => {
    for (let bin = 0; bin < bins; bin++) {
      const strength = Math.max(0, 1 - (10 * Math.log10(power[bin] / loudest + 1e-12)) / FLOOR);
      image.data.set([...ink, 255 * strength ** 1.5], 4 * ((bins - 1 - bin) * COLUMNS + x));
    }
  });
  context.putImageData(image, 0, 0);
  return small;
}

function spectrum(samples, start) {
  const real = new Float32Array(SIZE), imaginary = new Float32Array(SIZE);
  for (let i = 0; i < SIZE; i++) real[i] = (samples[start + i] ?? 0) * WINDOW[i];
  fft(real, imaginary);
  return real.subarray(0, SIZE / 2).map((x, i) => x * x + imaginary[i] * imaginary[i]);
}

// Radix 2, in place.
function fft(real, imaginary) {
  const n = real.length;
  for (let i = 1, j = 0; i < n; i++) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) [real[i], real[j]] = [real[j], real[i]];
  }
  for (let size = 2; size <= n; size <<= 1) {
    const angle = (-2 * Math.PI) / size, half = size >> 1;
    for (let k = 0; k < half; k++) {
      const c = Math.cos(angle * k), s = Math.sin(angle * k);
      for (let at = k; at < n; at += size) {
        const x = real[at + half] * c - imaginary[at + half] * s, y = real[at + half] * s + imaginary[at + half] * c;
        real[at + half] = real[at] - x; imaginary[at + half] = imaginary[at] - y;
        real[at] += x; imaginary[at] += y;
      }
    }
  }
}
