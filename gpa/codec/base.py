"""What a model may know about a codec: its rates, its codebooks or channels, encode and decode.

Knows no particular codec, no ids and no prompts; a new codec subclasses `TokenCodec` (language models) or
implements `LatentCodec` (diffusion) and touches no model file (docs/add-a-codec.md). K codebooks, C latent
channels, T frames, G global speaker tokens, S samples, L stream length (docs/style.md section 3).
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from gpa.codec.patterns import Flatten
from gpa.codec.voice import Voice
from gpa.errors import CheckpointError, UsageError, VocabError

if TYPE_CHECKING:
    from torch import Tensor, dtype

    from gpa.audio import AudioLike
    from gpa.codec.timbre import Timbre

BLOCKS = (4, 8, 16, 25, 50)  # frames computed at once: few first, to sound early; the last size repeats
PROMPT_SECONDS = 3.0  # of a reference that a codec without global tokens takes as a voice (VALL-E, section 6)


@dataclass(frozen=True)
class CodecSpec:
    """The numbers of a codec, all read from its own config.

    `hop_length` is samples per token frame; `n_global` fixed-length tokens of `global_size` values describe
    the speaker, 0 where the codec has none. `context` is what decoding a frame hears, in frames (left,
    right): a left None reaches back to the start of the clip, None altogether takes the whole clip.
    """

    name: str
    sample_rate: int  # Hz
    hop_length: int
    n_codebooks: int
    codebook_size: int
    n_global: int = 0
    global_size: int = 0
    context: tuple[int | None, int] | None = None

    @property
    def frame_rate(self) -> float:
        """Token frames per second."""
        return self.sample_rate / self.hop_length

    @property
    def code_rate(self) -> float:
        """Codes per second, those of all codebooks."""
        return self.frame_rate * self.n_codebooks

    @property
    def pattern(self) -> Flatten:
        """How the codebooks are laid into one stream; `pattern.n_ids` values stand in it."""
        return Flatten(self.n_codebooks, self.codebook_size)

    @property
    def voice_size(self) -> int:
        """The most codes that a voice has in a prompt."""
        return self.n_global or self.n_codebooks * math.ceil(PROMPT_SECONDS * self.frame_rate)


@dataclass(frozen=True)
class AudioTokens:
    """One clip as codes: `codes` (K, T) int64 and, where the codec has them, `global_` (G,) int64 and the
    timbre of its voice.
    """

    codes: np.ndarray
    global_: np.ndarray | None = None
    timbre: Timbre | None = None


class TokenCodec(ABC):
    """Audio to tokens and back: all that models, preparation, training and evaluation know of a codec.

    The first group is what a codec implements. The rest is derived, for a codec that has no global tokens:
    its voices are acoustic prompts, codes of a reference clip.
    """

    @property
    @abstractmethod
    def spec(self) -> CodecSpec:
        """The codec's rates and sizes."""

    @abstractmethod
    def encode(self, audio: AudioLike, *, rate: int | None = None) -> AudioTokens:
        """Tokens of one clip: a path, bytes, stream or (array, rate), `rate` being that of a bare array.

        AudioError if it cannot be used.
        """

    @abstractmethod
    def decode(self, tokens: AudioTokens, voice: Voice | None = None) -> np.ndarray:
        """Waveform (T * hop,) float32 at `spec.sample_rate`, in a voice where the codec has global tokens.

        VocabError for what are no codes of this codec.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of all that gives the codes their meaning and their sound."""

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of every part of its folder that a result depends on, by name."""
        return {"codec": self.fingerprint()}

    @abstractmethod
    def save_pretrained(self, path: str | os.PathLike, dtype: dtype | None = None) -> None:
        """Write a directory that `load_codec` reads; `dtype` of the weights, None for that they have."""

    # Streams of codes -------------------------------------------------------------------------------------

    def codes_batch(self, audios: Sequence[AudioLike]) -> list[np.ndarray]:
        """Codes (L,) of clips, their codebooks laid into one stream; equal to those of each clip alone."""
        return [self.spec.pattern.build(self.encode(audio).codes) for audio in audios]

    def codes(self, audio: AudioLike) -> np.ndarray:
        """Codes (L,) int64 of one clip in one stream: what a language model reads and writes."""
        return self.codes_batch([audio])[0]

    def tokens(self, codes: Sequence[int] | np.ndarray) -> AudioTokens:
        """What `decode` takes, of a stream (L,); VocabError unless it holds whole frames of this codec."""
        return AudioTokens(self.spec.pattern.parse(codes))

    def stream(self, voice: Voice | None = None, lookahead: int | None = None) -> Stream:
        """A decoder for codes that come bit by bit.

        `lookahead` is after how many more frames the future is cut, None for all that a frame hears.
        """
        return Stream(self.spec, DecodeAgain(self, voice), lookahead)

    def codes_and_letters(self, audio: AudioLike) -> tuple[np.ndarray, np.ndarray | None]:
        """`codes`, and log-probabilities (L, V) of letters by CTC where the codec hears them."""
        return self.codes(audio), None

    # Voices -----------------------------------------------------------------------------------------------

    def voice_codes(self, audio: AudioLike) -> np.ndarray:
        """Codes of a recording's voice as they stand in a prompt: the stream of its first seconds."""
        codes = self.codes(audio)
        return codes[: self.spec.voice_size]

    def voice(self, audio: AudioLike, name: str = "", about: Mapping[str, str] | None = None) -> Voice:
        """The voice of a recording."""
        codes = tuple(int(code) for code in self.voice_codes(audio))
        return Voice(codes, self.voice_fingerprint(), name, dict(about or {}))

    def voice_fingerprint(self) -> str:
        """SHA-256 of what gives a voice's codes their meaning."""
        return self.fingerprint()

    def speaker_vector(self, wav: np.ndarray) -> np.ndarray:
        """Where the codec's own speaker encoder puts a waveform (S,) among voices, (D,); UsageError without
        one.
        """
        raise UsageError(
            f"{self.spec.name} has no speaker encoder to compare voices by: install the extra eval"
        )

    def checked(self, voice: Voice) -> Voice:
        """The voice, or what of it this codec can use; CheckpointError if it is another codec's."""
        what = f"voice {voice.name!r}" if voice.name else "the voice"
        self._check_codes(voice, what)
        if voice.codec and voice.codec != self.voice_fingerprint():
            raise CheckpointError(
                f"{what} was made with another codec: make it again from the recording, with  gpa voice"
            )
        return voice

    def _check_codes(self, voice: Voice, what: str) -> None:
        try:
            self.spec.pattern.parse(voice.codes)
        except VocabError as error:
            raise CheckpointError(f"{what} is another codec's: {error}") from error

    def check_exchange(self) -> None:
        """UsageError where the codes hold the voice as well, so that it cannot be exchanged."""
        if not self.spec.n_global:
            raise UsageError(
                f"mode codec: the codes of {self.spec.name} hold the voice, so it cannot be exchanged; "
                "use mode lm"
            )

    # Training and verification ----------------------------------------------------------------------------

    def code_vectors(self) -> Tensor | None:
        """Vectors (n_ids, D) of all codes, at which a language model's embeddings start; None for random."""
        return None

    def parameters(self) -> dict[str, int]:
        """Numbers of weights by part, for people."""
        return {}

    def frames(self, tokens: AudioTokens, voice: Voice | None = None) -> np.ndarray:
        """What the network draws of a clip, (C, N), before `render` turns it into sound: here, sound."""
        return self.decode(tokens, voice)[None]

    def render(self, frames: np.ndarray) -> np.ndarray:
        """The waveform (S,) of a whole clip's frames (C, N)."""
        return frames[0]

    def code_excess(self, audio: AudioLike, codes: np.ndarray) -> float:
        """By how much recorded codes (L,) of a clip lose to ours, where kernels round: the share that do."""
        return differing(self.codes(audio), codes)

    def voice_excess(self, audio: AudioLike, codes: np.ndarray) -> float:
        """The same of the codes of its voice."""
        return differing(self.voice_codes(audio), codes)


def differing(found: np.ndarray, codes: np.ndarray) -> float:
    """Share of codes that differ; infinite for another number of them."""
    return float(np.mean(found != codes)) if found.shape == codes.shape else math.inf


class Feed(Protocol):
    """What turns blocks of codes into sound, one after another."""

    def __call__(self, codes: np.ndarray, until: int | None, last: bool) -> np.ndarray:
        """Sound (S,) that codes (K, n) add, `last` for those at the end.

        With `until`, all up to this frame, drawn as if these were the last codes; else what is final.
        """
        ...


class Stream:
    """Codes in, sound out, in blocks of frames that the index of a frame decides and nothing else.

    All that is pushed and finished, put together, is a function of the codes, however they are cut. Without
    `lookahead` it equals `decode` of the whole clip: a frame waits until its block is there and what it hears
    of the frames behind it, `spec.context`. With `lookahead` n the network draws a block as if the clip ended
    n frames behind it; the little that its renderer hears is never cut, so that blocks join without a seam.
    """

    def __init__(self, spec: CodecSpec, feed: Feed, lookahead: int | None = None) -> None:
        if lookahead is not None and (type(lookahead) is not int or lookahead < 0):
            raise UsageError(f"lookahead {lookahead!r}: a number of frames from 0 on, or None for all")
        if lookahead is not None and spec.context and lookahead >= spec.context[1]:
            lookahead = None  # nothing is cut
        self._spec, self._feed, self._lookahead = spec, feed, lookahead
        self._codes = np.zeros((spec.n_codebooks, 0), np.int64)  # that wait for their block
        self._fed = self._block = 0  # frames, blocks that are through
        self._open = True

    def push(self, tokens: AudioTokens) -> np.ndarray:
        """Sound (S,) that is final once these frames are known; empty if none is. VocabError for no codes."""
        if not self._open:
            raise UsageError("nothing may be pushed into a stream that is finished: open another")
        self._codes = np.concatenate([self._codes, checked_codes(tokens.codes, self._spec)], 1)
        wavs, ahead = [np.zeros(0, np.float32)], self._lookahead or 0
        while (end := block_end(self._block)) + ahead <= self._fed + self._codes.shape[1]:
            until = None if self._lookahead is None else end
            wavs.append(self._next(end + ahead - self._fed, until, False))
            self._block += 1
        return np.concatenate(wavs)

    def finish(self) -> np.ndarray:
        """The rest of the sound, once; nothing may be pushed afterwards."""
        again, self._open = not self._open, False
        if again or not self._fed + self._codes.shape[1]:
            return np.zeros(0, np.float32)
        return self._next(self._codes.shape[1], None, True)

    def run(self, tokens: AudioTokens) -> np.ndarray:
        """The sound (S,) of a clip that is there already."""
        return np.concatenate([self.push(tokens), self.finish()])

    def _next(self, n: int, until: int | None, last: bool) -> np.ndarray:
        codes, self._codes = self._codes[:, :n], self._codes[:, n:]
        self._fed += n
        return self._feed(np.ascontiguousarray(codes), until, last)


class DecodeAgain:
    """The feed of any codec that states its context: each block decodes again from its left context, which is
    the start of the clip where that is unbounded. Without a context everything waits for the end.
    """

    def __init__(self, codec: TokenCodec, voice: Voice | None = None) -> None:
        self._codec, self._voice = codec, voice
        self._codes = np.zeros((codec.spec.n_codebooks, 0), np.int64)
        self._first = self._done = 0  # frame that `_codes` begins with, frames whose sound is out

    def __call__(self, codes: np.ndarray, until: int | None, last: bool) -> np.ndarray:
        self._codes = np.concatenate([self._codes, codes], 1)
        known, spec = self._first + self._codes.shape[1], self._codec.spec
        left, right = spec.context or (None, known)
        end = known if last else known - right if until is None else until
        if end <= self._done:
            return np.zeros(0, np.float32)
        wav = self._codec.decode(AudioTokens(self._codes), self._voice)
        wav = wav[(self._done - self._first) * spec.hop_length : (end - self._first) * spec.hop_length]
        self._done = end
        if left is not None and (past := end - left - self._first) > 0:
            self._codes, self._first = self._codes[:, past:], self._first + past
        return wav


def block_end(index: int) -> int:
    """Frame where a block of a clip ends, all blocks before it counted."""
    return sum(BLOCKS[: index + 1]) + BLOCKS[-1] * max(0, index + 1 - len(BLOCKS))


def checked_codes(codes: np.ndarray, spec: CodecSpec) -> np.ndarray:
    """Codes (K, T) int64, T >= 0; VocabError for what are no codes of this codec."""
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.shape[0] != spec.n_codebooks:
        raise VocabError(f"{spec.name}: codes of shape ({spec.n_codebooks}, T) are needed, got {codes.shape}")
    if not codes.size:
        return np.zeros((spec.n_codebooks, 0), np.int64)
    if not np.issubdtype(codes.dtype, np.integer) or codes.min() < 0 or codes.max() >= spec.codebook_size:
        raise VocabError(f"{spec.name}: codes must be integers in 0..{spec.codebook_size - 1}")
    return codes.astype(np.int64)


class LinguisticTokenizer(Protocol):
    """A second, encoder-only tokenizer beside the codec: linguistic codes of the source (GLM-4-Voice)."""

    @property
    def spec(self) -> CodecSpec:
        """Rates and sizes."""
        ...

    def tokens(self, audio: AudioLike) -> np.ndarray:
        """Codes (N,) int64 of one clip."""
        ...

    def fingerprint(self) -> str:
        """SHA-256 over sizes and weights."""
        ...

    def save_pretrained(self, path: str | os.PathLike) -> None:
        """Write a directory that `load_codec` reads."""
        ...

    def parameters(self) -> dict[str, int]:
        """Numbers of weights by part, for people."""
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
