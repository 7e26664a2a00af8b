"""What a language model may know about a codec: its rates, its codebooks, encode and decode.

Knows no particular codec, no ids and no prompts; a new codec implements `TokenCodec` and touches no model
file. K codebooks, T frames, G global speaker tokens, S samples (docs/style.md section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from gpa.audio import AudioLike


@dataclass(frozen=True)
class CodecSpec:
    """The numbers of a codec, all read from its own config.

    `hop_length` is samples per token frame; `context` is the receptive field of decode in frames (left,
    right), None where it is unbounded or unknown; `n_global` fixed-length tokens of `global_size` values
    describe the speaker, 0 where the codec has none.
    """

    name: str
    sample_rate: int  # Hz
    hop_length: int
    n_codebooks: int
    codebook_size: int
    n_global: int = 0
    global_size: int = 0
    context: tuple[int, int] | None = None

    @property
    def frame_rate(self) -> float:
        """Token frames per second."""
        return self.sample_rate / self.hop_length


@dataclass(frozen=True)
class AudioTokens:
    """One clip as codes: `codes` (K, T) int64 and, where the codec has them, `global_` (G,) int64."""

    codes: np.ndarray
    global_: np.ndarray | None = None


@runtime_checkable
class TokenCodec(Protocol):
    """Audio to tokens and back; any object with these three members is a codec."""

    @property
    def spec(self) -> CodecSpec:
        """The codec's rates and sizes."""
        ...

    def encode(self, audio: AudioLike) -> AudioTokens:
        """Tokens of one clip: a path, bytes, stream or (array, rate); AudioError if it cannot be used."""
        ...

    def decode(self, tokens: AudioTokens) -> np.ndarray:
        """Waveform (S,) float32 at `spec.sample_rate`."""
        ...
