"""What a model may know about a codec: its rates, its codebooks or channels, encode and decode.

Knows no particular codec, no ids and no prompts; a new codec implements `TokenCodec` (language models) or
`LatentCodec` (diffusion) and touches no model file. K codebooks, C latent channels, T frames, G global
speaker tokens, S samples (docs/style.md section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from gpa.audio import AudioLike
from gpa.codec.timbre import Timbre

if TYPE_CHECKING:
    from torch import Tensor


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
    """One clip as codes: `codes` (K, T) int64 and, where the codec has them, `global_` (G,) int64 and the
    timbre of its voice.
    """

    codes: np.ndarray
    global_: np.ndarray | None = None
    timbre: Timbre | None = None


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


@dataclass(frozen=True)
class LatentSpec:
    """The numbers of a latent codec; `hop_length` is samples per latent frame."""

    name: str
    sample_rate: int  # Hz
    hop_length: int
    channels: int

    @property
    def frame_rate(self) -> float:
        """Latent frames per second."""
        return self.sample_rate / self.hop_length


@runtime_checkable
class LatentCodec(Protocol):
    """Sound to continuous latents and back, in batches of equal length, for models that diffuse them."""

    @property
    def spec(self) -> LatentSpec:
        """The codec's rates and sizes."""
        ...

    def encode(self, wav: Tensor) -> Tensor:
        """Latents (B, C, ceil(S / hop)) of float wav (B, S): channels of mean 0 and spread 1 on speech."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Wav (B, T * hop) of any latents (B, C, T), generated ones too."""
        ...
