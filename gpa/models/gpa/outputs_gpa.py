"""What goes in and out of a model besides audio and text: a voice, spoken output, a transcript."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpa import audio as sound
from gpa.codec.voice import Voice

__all__ = ["Speech", "Transcript", "Voice", "VoiceLike"]


@dataclass(frozen=True)
class Speech:
    """Generated speech: `wav` float32 (S,), `tokens` the semantic codes (T,) int64 it was decoded from.

    `finish_reason` is "stop", or "length" (the budget ran out) or "loop" (repetition was cut) if any part
    ended so; `mode` that the language model chose the tokens ("lm"), or a conversion kept them ("codec").
    """

    wav: np.ndarray
    sample_rate: int
    tokens: np.ndarray
    finish_reason: str
    mode: str = "lm"

    @property
    def seconds(self) -> float:
        """Duration."""
        return len(self.wav) / self.sample_rate

    def save(self, path: str | os.PathLike) -> None:
        """Write a 16-bit WAV, or FLAC or Ogg by suffix."""
        sound.save(path, self.wav, self.sample_rate)


@dataclass(frozen=True)
class Transcript:
    """Recognised text; `tokens` (N,) int64 are its text ids, `finish_reason` as for `Speech`."""

    text: str
    tokens: np.ndarray
    finish_reason: str

    def __str__(self) -> str:
        return self.text


VoiceLike = (
    Voice | str | os.PathLike | Any
)  # a Voice, a shipped name, a JSON path, or any audio `gpa.audio.load` takes
