"""What comes out of a SpeechOp model: sound, what it was made from, and what it cost."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from gpa import audio


class Part(NamedTuple):
    """One window of long audio: seconds of the result, and the text that guided it ("" if none did)."""

    begin: float
    end: float
    text: str


@dataclass(frozen=True)
class Sound:
    """Generated sound: `wav` float32 (S,), within full scale.

    `transcript` is the text it follows, normalised, None if there is none. `evaluations` says what the
    network was asked for: branch -> how often, `tts(text)` being TTS with a text and `tts()` its null.
    """

    wav: np.ndarray
    sample_rate: int  # Hz
    task: str
    transcript: str | None = None
    evaluations: Mapping[str, int] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    seed: int = 0

    @property
    def seconds(self) -> float:
        """Duration."""
        return len(self.wav) / self.sample_rate

    @property
    def evaluated(self) -> int:
        """Evaluations of the network, all branches together."""
        return sum(self.evaluations.values())

    def save(self, path: str | os.PathLike) -> None:
        """Write a 16-bit WAV, or FLAC or Ogg by suffix."""
        audio.save(path, self.wav, self.sample_rate)


class Separated(NamedTuple):
    """A mixture's two sides."""

    speech: Sound
    background: Sound
