"""Samples: what numbers mean, what no sound has, how channels become one, and warnings of bad speech."""

import warnings
from typing import Any

import numpy as np

from gpa.errors import AudioError, AudioWarning

MAX_CHANNELS = 8  # a longer axis of a 2-D array is taken for time

_RATES = (1000, 768000)  # Hz; outside them a "rate" is a mistake, often a swapped argument
_SILENCE = 1e-3  # RMS of the loudest 20 ms, -60 dB: below any usable recording
# Peak-normalised speech has a handful of such samples, clipped speech many.
_CLIP_LEVEL, _CLIP_SHARE = 0.999, 1e-3
_LOUDEST = 64.0  # 36 dB above full scale: floats beyond are integers that nobody divided
_INVERTED = -0.9  # correlation with the loudest channel; averaging would cancel the sound
_AUDIBLE = 0.01  # of the loudest channel's power; crosstalk below cancels nothing


def from_array(source: Any, rate: int | None) -> tuple[np.ndarray, int, str]:
    """A given array, or (array, rate), as float64 (S, C), its rate, and a name for messages."""
    if isinstance(source, tuple):
        if len(source) != 2 or not hasattr(source[0], "__array__"):
            found = ", ".join(type(part).__name__ for part in source)
            remedy = "np.asarray makes an array of a list, and bytes have their own rate"
            raise AudioError(f"a tuple must be (array, rate), in this order, not ({found}): {remedy}")
        if rate is not None:
            raise AudioError("the rate was given twice: pass (array, rate), or the array and rate=")
        source, rate = source
    if rate is None:
        raise AudioError("an array has no sample rate of its own: pass rate= in Hz")
    rate = checked_rate(rate, "rate")
    try:
        array = np.asarray(source)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor on a GPU, with gradients, of bfloat16
        remedy = "give numbers that numpy knows, of a tensor  tensor.detach().float().cpu()"
        raise AudioError(f"{type(source).__name__} cannot become an array ({error}): {remedy}") from error
    name = f"the given array, {array.dtype} {array.shape},"
    return _full_scale(time_first(array, name), name), rate, name


def _full_scale(array: np.ndarray, name: str) -> np.ndarray:
    """Return float64 with integers scaled to +-1 by the range of their type, unsigned ones centred."""
    if array.dtype.kind == "f":
        return array.astype(np.float64)
    # No audio has 64-bit integers: they are int16 after a careless sum, and scaling would silence them.
    if array.dtype.kind not in "iu" or array.dtype.itemsize > 4:
        raise AudioError(f"{name} has no known full scale: convert it to float32 in +-1, or to int16")
    half = 2.0 ** (8 * array.dtype.itemsize - 1)
    offset = half if array.dtype.kind == "u" else 0.0
    return (array.astype(np.float64) - offset) / half


def usable(samples: np.ndarray, name: str) -> np.ndarray:
    """The same samples; AudioError for NaN, infinity, and integers in floating point."""
    peak = float(np.abs(samples).max(initial=0.0))
    if not np.isfinite(peak):
        raise AudioError(f"{name} contains NaN or infinite samples: export it again")
    if peak >= _LOUDEST:
        bits = next((bits for bits in (8, 16, 24, 32) if peak <= 2.0 ** (bits - 1)), 32)
        what = f"floating-point samples up to {peak:.0f}: they are {bits}-bit integers, and full scale is 1"
        remedy = f"divide them by {2 ** (bits - 1)}:  ffmpeg -i IN -af volume=1/{2 ** (bits - 1)} OUT.wav"
        raise AudioError(f"{name} has {what}: {remedy}")
    return samples


def is_rate(rate: Any) -> bool:
    """Whether this can be a sample rate: a whole number of Hz, neither tiny nor huge."""
    number = isinstance(rate, (int, float, np.number))
    return bool(number and _RATES[0] <= rate <= _RATES[1] and rate == int(rate))


def checked_rate(rate: Any, what: str) -> int:
    """A sample rate as int Hz; AudioError for what is none."""
    if not is_rate(rate):
        raise AudioError(f"{what}={rate!r} is no sample rate: give whole Hz, such as 16000")
    return int(rate)


def time_first(array: np.ndarray, name: str) -> np.ndarray:
    """Return (S, C), whichever axis holds the channels."""
    if array.ndim == 1:
        return array[:, None]
    if array.ndim == 2 and min(array.shape) <= MAX_CHANNELS:
        return array.T if array.shape[0] < array.shape[1] else array
    raise AudioError(f"{name} is not one clip: give (S,) or (S, C) with at most {MAX_CHANNELS} channels")


class Mixer:
    """Blocks (S_i, C) to mono (S_i,): the average, or the loudest channel where channels cancel out."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._channel: int | None = None
        self._decided = False

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """The mono block; the first block that is not silent decides for all. Warns of inverted channels."""
        if samples.shape[1] > 1 and not self._decided:
            self._decide(samples)
        return samples.mean(axis=1) if self._channel is None else samples[:, self._channel]

    def _decide(self, samples: np.ndarray) -> None:
        products = samples.T @ samples  # (C, C)
        power = np.diag(products)
        loudest = int(power.argmax())
        if power[loudest] <= _SILENCE**2 * len(samples):
            return
        self._decided = True
        heard = power > _AUDIBLE * power[loudest]
        alike = products[loudest, heard] / np.sqrt(power[heard] * power[loudest])
        if alike.min() < _INVERTED:
            self._channel = loudest
            message = f"{self._name} has channels of opposite phase, whose average is silence: channel "
            warnings.warn(f"{message}{loudest + 1} alone is used", AudioWarning, stacklevel=2)


def as_wave(wav: np.ndarray, what: str) -> np.ndarray:
    """Return `wav` as float64 (S,) or raise: the functions below take what `load` returns, nothing looser."""
    array = np.asarray(wav)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind != "f":
        raise AudioError(
            f"{what} needs a float waveform (S,), got {array.dtype} {array.shape}: use gpa.audio.load"
        )
    if not np.isfinite(array).all():
        raise AudioError(f"{what} got NaN or infinite samples")
    return array.astype(np.float64)


def is_silent(wav: np.ndarray, sample_rate: int) -> bool:
    """Whether the loudest 20 ms of float (S,) are below -60 dB of full scale."""
    x = as_wave(wav, "is_silent")
    frame = max(1, min(len(x), round(0.02 * sample_rate)))
    power = np.square(x[: len(x) // frame * frame]).reshape(-1, frame).mean(axis=1)  # (S,) -> (frames,)
    return bool(power.max() < _SILENCE**2)


def check_speech(wav: np.ndarray, sample_rate: int, *, name: str = "the audio", stacklevel: int = 2) -> None:
    """Warn (AudioWarning) when float32 (S,) is silent, or clipped in more than one sample of a thousand."""
    x = as_wave(wav, "check_speech")
    if is_silent(x, sample_rate):
        message = f"{name} is silent (loudest 20 ms below -60 dB): check the microphone or the channel"
        warnings.warn(message, AudioWarning, stacklevel=stacklevel)
    share = float(np.mean(np.abs(x) >= _CLIP_LEVEL))
    if share > _CLIP_SHARE:
        message = (
            f"{name} is clipped ({100 * share:.1f} % of its samples at full scale): lower the recording level"
        )
        warnings.warn(message, AudioWarning, stacklevel=stacklevel)
