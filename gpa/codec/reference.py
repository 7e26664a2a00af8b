"""What a codec's speaker path reads of a recording: its first seconds, at one loudness."""

from __future__ import annotations

import warnings

import numpy as np

from gpa import audio
from gpa.errors import AudioError, AudioWarning

REFERENCE_SECONDS = 3.0  # shorter references are tiled and carry little of a voice


def normalise_loudness(wav: np.ndarray) -> np.ndarray:
    """Return float32 (S,) at the loudness from which global (speaker) tokens are taken.

    The level is the mean of the 90th to 99th percentile of the samples above 0.01; it is moved to 0.2 by a
    gain within 0.1..10, and the peak kept within 1. Quiet clips are first raised to a peak of 0.1. Computed
    in float64, since another rounding moves tokens. Source: the published BiCodec's loader.
    """
    x = audio.as_wave(wav, "normalise_loudness")
    levels = np.sort(np.abs(x))
    if levels[-1] < 0.1:
        x = x / max(levels[-1], 1e-3) * 0.1
    levels = levels[levels > 0.01]  # of the clip as it came: the trained models saw quiet clips so
    n = len(levels)
    if n <= 10:
        return x.astype(np.float32)
    level = levels[int(0.9 * n) : int(0.99 * n)].mean()
    x = x * np.clip(0.2 / level, 0.1, 10.0)
    return (x / max(1.0, np.abs(x).max())).astype(np.float32)


def reference_clip(wav: np.ndarray, n_samples: int) -> np.ndarray:
    """Return the first `n_samples` of float (S,), first tiled where shorter."""
    if n_samples <= 0 or wav.ndim != 1 or len(wav) == 0:
        raise AudioError(
            f"reference_clip needs a waveform (S,) and a length, got {wav.shape} and {n_samples}"
        )
    return np.tile(wav, -(-n_samples // len(wav)))[:n_samples]


def check_reference(wav: np.ndarray, sample_rate: int, *, name: str = "the reference") -> None:
    """AudioError for a silent voice reference, float32 (S,); AudioWarning for one clipped, or under 3 s."""
    if audio.is_silent(wav, sample_rate):
        raise AudioError(
            f"{name} is silent (loudest 20 ms below -60 dB): a voice is taken of speech, 3 to 6 s"
        )
    audio.check_speech(wav, sample_rate, name=name, stacklevel=3)
    seconds = len(wav) / sample_rate
    if seconds < REFERENCE_SECONDS:
        message = (
            f"{name} is only {seconds:.1f} s long: a voice needs {REFERENCE_SECONDS:.0f} to 6 s of speech"
        )
        warnings.warn(message, AudioWarning, stacklevel=2)
