"""What degrades recorded speech, as pure functions: a waveform (S,) and settings in, a waveform (S,) out.

Every function returns a new float32 array of the same length, finite for finite input, and is the identity at
the settings that its docstring calls neutral. Those that draw take a generator, so equal seeds give equal
sounds. What is drawn how often is the business of `gpa.data.augment`.

    S samples   full scale is +-1   levels in dB are of mean power
"""

from __future__ import annotations

import numpy as np

from gpa import audio
from gpa.errors import UsageError

RATE = 16_000  # Hz, default of all functions below
SILENCE = 1e-12  # mean power; below it (-120 dB) a clip is silent, and ratios to it mean nothing
_PAD = 4096  # samples of zeros beyond the clip, into which zero-phase filters may ring


def power(wav: np.ndarray) -> float:
    """Mean square of (S,), in float64; 0 for no samples."""
    return float(np.mean(np.square(wav, dtype=np.float64))) if len(wav) else 0.0


def with_power(wav: np.ndarray, wanted: float) -> np.ndarray:
    """The same sound at a mean power; a silent clip stays as it is."""
    found = power(wav)
    return (wav * np.sqrt(wanted / found)).astype(np.float32) if found > SILENCE else _copy(wav)


def stretch(wav: np.ndarray, samples: int, at: float = 0.0) -> np.ndarray:
    """`samples` of a clip from the share `at` (0 to 1) of it on; it is repeated where it ends."""
    if len(wav) == 0:
        return np.zeros(samples, np.float32)
    begin = int(at * len(wav)) % len(wav) if len(wav) != samples else 0
    return np.resize(np.roll(wav, -begin) if begin else wav, samples).astype(np.float32)


def at_ratio(speech: np.ndarray, other: np.ndarray, ratio_db: float) -> np.ndarray:
    """`other` (S,) scaled so that `speech` (S,) is `ratio_db` above it in mean power: exactly this ratio.

    Zeros where a ratio means nothing: either is silent, or the ratio is infinite (neutral).
    """
    if len(speech) != len(other):
        raise UsageError(f"speech of {len(speech)} samples and a sound of {len(other)}: cut them alike")
    if np.isposinf(ratio_db) or power(speech) <= SILENCE or power(other) <= SILENCE:
        return np.zeros(len(speech), np.float32)
    return with_power(other, power(speech) / 10 ** (ratio_db / 10))


def coloured_noise(rng: np.random.Generator, samples: int, slope_db: float = 0.0) -> np.ndarray:
    """Gaussian noise (S,) of power 1 whose spectrum changes by `slope_db` an octave: 0 white, -3 pink."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    octave = np.log2(np.maximum(np.arange(len(spectrum)), 1))  # of the first bin above 0 Hz
    shaped = np.fft.irfft(spectrum * 10 ** (slope_db * octave / 20), samples)
    return with_power(shaped.astype(np.float32), 1.0)


# Rooms ------------------------------------------------------------------------------------------------------


def room(rng: np.random.Generator, t60: float, direct_db: float, rate: int = RATE) -> np.ndarray:
    """A simulated room's impulse response, float32: the direct sound, sparse reflections, a diffuse tail.

    The tail decays by 60 dB in `t60` seconds and holds `direct_db` less energy than the direct sound, which
    is the first sample (Polack's model). t60 = 0 is neutral: a single impulse.
    """
    n = max(1, round(t60 * rate))
    t = np.arange(n) / rate
    first = rng.uniform(0.001, 0.008)  # seconds until the first wall answers: a path of 0.3 to 3 m more
    dense = rng.random(n) < np.minimum(1.0, 0.02 + (t / 0.04) ** 2)  # reflections come ever closer
    tail = rng.standard_normal(n) * dense * (t >= first)
    if t60 > 0:
        tail *= 10 ** (-3 * t / t60)
    response = np.zeros(n)
    energy = float(np.square(tail).sum())
    if energy > 0:
        response = tail * np.sqrt(10 ** (-direct_db / 10) / energy)
    response[0] = 1.0
    return response.astype(np.float32)


def reverberate(wav: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Speech in a room, aligned with and as loud as without it; a single impulse is neutral.

    What precedes the strongest sample of `response`, the direct sound, is left out; the tail ends with the
    clip.
    """
    if power(response) <= 0:
        raise UsageError("an impulse response of zeros is no room")
    response = response[int(np.argmax(np.abs(response))) :]
    if not response[1:].any() or power(wav) <= SILENCE:
        return _copy(wav)
    n = _fast(len(wav) + len(response))
    wet = np.fft.irfft(np.fft.rfft(wav, n) * np.fft.rfft(response, n), n)[: len(wav)]
    return with_power(wet.astype(np.float32), power(wav))


# Spectrum ---------------------------------------------------------------------------------------------------


def through_rate(wav: np.ndarray, low: int, rate: int = RATE) -> np.ndarray:
    """Resampled to `low` Hz and back: nothing above low / 2 is left. `low >= rate` is neutral.

    AudioError for clips under 40 ms.
    """
    if low >= rate:
        return _copy(wav)
    narrow = audio.load((np.asarray(wav, np.float32), rate), low)
    return stretch(_padded(audio.load((narrow, low), rate), len(wav)), len(wav))


def band_limit(wav: np.ndarray, low: float, high: float, rate: int = RATE) -> np.ndarray:
    """Only what lies between `low` and `high` Hz, slopes a fifth of either wide, phases kept.

    low <= 0 and high >= rate / 2 are neutral.
    """
    if low <= 0 and high >= rate / 2:
        return _copy(wav)

    def gain(f: np.ndarray) -> np.ndarray:
        lower = np.clip((f - 0.8 * low) / (0.2 * low), 0, 1) if low > 0 else np.ones_like(f)
        upper = np.clip((1.2 * high - f) / (0.2 * high), 0, 1) if high < rate / 2 else np.ones_like(f)
        return np.sin(np.pi / 2 * lower) * np.sin(np.pi / 2 * upper)

    spectrum, f, n = _spectrum(wav, rate)
    return np.fft.irfft(spectrum * gain(f), n)[: len(wav)].astype(np.float32)


def equalise(wav: np.ndarray, gains_db: np.ndarray, rate: int = RATE) -> np.ndarray:
    """Gains at octaves down from rate / 2, lowest first, straight lines between; zeros are neutral."""
    gains = np.asarray(gains_db, np.float64)
    if not gains.any():
        return _copy(wav)
    centres = np.log2(rate / 2) - np.arange(len(gains))[::-1]
    spectrum, f, n = _spectrum(wav, rate)
    curve = np.interp(np.log2(np.maximum(f, 1.0)), centres, gains)
    return np.fft.irfft(spectrum * 10 ** (curve / 20), n)[: len(wav)].astype(np.float32)


# Level ------------------------------------------------------------------------------------------------------


def compress(wav: np.ndarray, ratio: float, threshold_db: float = 0.0, rate: int = RATE) -> np.ndarray:
    """Dynamic compression: levels beyond `threshold_db` above the clip's mean power grow 1 / ratio as much.

    Levels are of 5 ms, followed at once upwards and with 50 ms downwards; the clip's mean power is kept.
    ratio = 1 is neutral.
    """
    if ratio < 1:
        raise UsageError(f"compress: ratio {ratio} is below 1")
    if ratio == 1 or power(wav) <= SILENCE:
        return _copy(wav)
    step = max(1, round(0.005 * rate))
    squares = np.square(_padded(wav, -(-len(wav) // step) * step), dtype=np.float64).reshape(-1, step)
    level = 10 * np.log10(squares.mean(1) / power(wav) + 1e-8)
    held, fall, followed = -80.0, np.exp(-0.005 / 0.05), np.empty(len(level))
    for i, now in enumerate(level):
        held = now if now > held else now + fall * (held - now)
        followed[i] = held
    gain_db = (1 / ratio - 1) * np.maximum(0.0, followed - threshold_db)
    places = (np.arange(len(level)) + 0.5) * step
    gain = 10 ** (np.interp(np.arange(len(wav)), places, gain_db) / 20)
    return with_power((wav * gain).astype(np.float32), power(wav))


def clip(wav: np.ndarray, below_peak_db: float) -> np.ndarray:
    """Cut off at so many dB below the clip's own peak; 0 is neutral."""
    limit = float(np.abs(wav).max(initial=0.0)) * 10 ** (-max(0.0, below_peak_db) / 20)
    return np.clip(wav, -limit, limit).astype(np.float32)


def quantise(wav: np.ndarray, bits: int) -> np.ndarray:
    """Rounded to 2^bits values spaced as G.711's mu-law spaces them; 16 bits or more are neutral."""
    if bits >= 16:
        return _copy(wav)
    scale = max(1.0, float(np.abs(wav).max(initial=0.0)))
    steps = 2 ** (bits - 1) - 1
    companded = np.log1p(255 * np.abs(wav) / scale) / np.log(256.0)
    rounded = np.round(companded * steps) / steps
    return (np.sign(wav) * np.expm1(rounded * np.log(256.0)) / 255 * scale).astype(np.float32)


def drop_packets(
    wav: np.ndarray, rng: np.random.Generator, share: float, burst: float = 2.0, packet: int = RATE // 50
) -> np.ndarray:
    """Packets of `packet` samples become zeros, `share` of them on average, `burst` in a row on average.

    A chain of two states (Gilbert's); a share of 0 is neutral.
    """
    if not 0 <= share < 1 or burst < 1:
        raise UsageError(f"drop_packets: share {share} (0 to 1) or burst {burst} (1 or more) is impossible")
    out = _copy(wav)
    enter = min(1.0, share / (burst * (1 - share)))
    lost = rng.random() < share
    for begin, draw in zip(range(0, len(wav), packet), rng.random(-(-len(wav) // packet)), strict=True):
        if lost:
            out[begin : begin + packet] = 0
        lost = draw >= 1 / burst if lost else draw < enter
    return out


def _copy(wav: np.ndarray) -> np.ndarray:
    return np.array(wav, np.float32)


def _padded(wav: np.ndarray, samples: int) -> np.ndarray:
    """The clip with zeros up to `samples`, or cut there."""
    return np.pad(wav[:samples], (0, max(0, samples - len(wav))))


def _fast(n: int) -> int:
    """The next power of two, which FFTs like."""
    return 1 << max(0, n - 1).bit_length()


def _spectrum(wav: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Spectrum with room for ringing, its frequencies in Hz, and the length of the transform."""
    n = _fast(len(wav) + _PAD)
    return np.fft.rfft(wav, n), np.fft.rfftfreq(n, 1 / rate), n
