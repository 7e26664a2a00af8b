"""Sound in and out: the one front end every path, byte string, stream, array and upload goes through.

Knows files, rates, channels and loudness; knows nothing about tokens or models, and needs no torch.
Shapes: S samples, C channels. Waveforms are float32 (S,), mono, full scale +-1, unless stated otherwise.
"""

import os
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import soxr

from gpa.audio.arrays import MAX_CHANNELS, Mixer, as_wave, check_speech, checked_rate
from gpa.audio.decoding import END_SLACK, MIN_SECONDS, decoding, raw_blocks
from gpa.audio.saving import FORMATS, WavStream, pcm16, save, to_bytes, writing

__all__ = ["AudioLike", "END_SLACK", "FORMATS", "MAX_CHANNELS", "MIN_SECONDS", "SAMPLE_RATE", "WavStream"]
__all__ += ["as_wave", "blocks", "check_speech", "load", "pcm16", "save", "seconds", "to_bytes", "writing"]

AudioLike = str | os.PathLike[str] | bytes | BinaryIO | tuple[np.ndarray, int] | np.ndarray

SAMPLE_RATE = 16000  # Hz, of every published tokenizer


def load(
    source: AudioLike,
    sample_rate: int = SAMPLE_RATE,
    *,
    rate: int | None = None,
    begin: float = 0.0,
    end: float | None = None,
) -> np.ndarray:
    """Return any kind of audio as float32 (S,) at `sample_rate`: channels averaged, resampled by soxr VHQ.

    `source` is a path, encoded bytes, a binary stream (read from where it stands), `(array, rate)`, or an
    array with `rate=`. Arrays are (S,), (S, C) or (C, S) with C <= 8; integers are scaled by their range.
    `begin` and `end` are seconds of the source. The same sound gives the same samples whichever way it comes.
    Of channels that cancel each other one is taken, with an AudioWarning.
    Raises AudioError naming the source and the remedy, also beyond the hours of GPA_AUDIO_HOURS.
    """
    return np.concatenate(list(blocks(source, sample_rate, rate=rate, begin=begin, end=end)))


def blocks(
    source: AudioLike,
    sample_rate: int = SAMPLE_RATE,
    *,
    rate: int | None = None,
    begin: float = 0.0,
    end: float | None = None,
) -> Iterator[np.ndarray]:
    """Yield the samples of `load` bit by bit, float32 (S_i,), so that hours of a file take little memory.

    AudioError as for `load`; for a file that turns out shorter than it says, after the last block.
    """
    target = checked_rate(sample_rate, "sample_rate")
    mixed, resampler = None, None
    for samples, true_rate, name in raw_blocks(source, rate, begin, end):
        if mixed is None:
            mixed = Mixer(name)
            if true_rate != target:
                resampler = soxr.ResampleStream(true_rate, target, 1, dtype="float64", quality="VHQ")
        mono = mixed(samples)  # (S, C) -> (S,)
        yield (resampler.resample_chunk(mono) if resampler else mono).astype(np.float32)
    if resampler:
        yield resampler.resample_chunk(np.zeros(0), last=True).astype(np.float32)


def seconds(path: str | os.PathLike[str]) -> float:
    """Duration of a file, by its header where that states it; AudioError if it cannot be read."""
    with decoding(path) as sound:
        if sound.frames is not None:
            return sound.frames / sound.rate
    return sum(len(block) / rate for block, rate, _ in raw_blocks(path))
