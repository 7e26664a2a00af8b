"""What goes in and out of a model besides audio and text: a voice, spoken output, a transcript."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpa import audio as sound
from gpa.codec.voice import Voice

__all__ = ["Chunk", "Failure", "Partial", "Segment", "Speech", "Transcript", "Voice", "VoiceLike", "Word"]


@dataclass(frozen=True)
class Failure:
    """A part of a text that was not spoken: its `text`, where in the sound it is missing, and why."""

    text: str
    seconds: float
    reason: str


@dataclass(frozen=True)
class Speech:
    """Generated speech: `wav` float32 (S,), `tokens` the semantic codes (T,) int64 it was decoded from.

    `finish_reason` is "stop", or "length" (the budget ran out) or "loop" (repetition was cut) if any part
    ended so; `mode` that the language model chose the tokens ("lm"), or a conversion kept them ("codec").
    `failures` are the parts of the text that could not be spoken and are missing in `wav`.
    """

    wav: np.ndarray
    sample_rate: int
    tokens: np.ndarray
    finish_reason: str
    mode: str = "lm"
    failures: tuple[Failure, ...] = ()

    @classmethod
    def of(cls, chunks: Iterable[Speech]) -> Speech:
        """What the chunks of a stream are together."""
        parts = list(chunks)
        wav, tokens = (np.concatenate([getattr(part, name) for part in parts]) for name in ("wav", "tokens"))
        failures = tuple(failure for part in parts for failure in part.failures)
        last = parts[-1]
        return Speech(wav, last.sample_rate, tokens, last.finish_reason, last.mode, failures)

    @property
    def seconds(self) -> float:
        """Duration."""
        return len(self.wav) / self.sample_rate

    def save(self, path: str | os.PathLike) -> None:
        """Write a 16-bit WAV, or FLAC or Ogg by suffix."""
        sound.save(path, self.wav, self.sample_rate)


@dataclass(frozen=True)
class Word:
    """A word and its seconds on the clock of the audio."""

    word: str
    start: float
    end: float


@dataclass(frozen=True)
class Chunk(Speech):
    """A stretch of speech on its way; all of them together are the speech (`Speech.of`).

    `finish_reason` is "" before the last one. `text` are the words that begin with this chunk, `done` is the
    share of the text whose sound has come, this chunk's included. `words` are those of the part that ends
    with this chunk, where `word_times` were asked for. `starts` are the seconds of the speech at which each
    of its `tokens` begins, whose sound may come with a later chunk; none where they are not known.
    """

    text: str = ""
    done: float = 0.0
    words: tuple[Word, ...] = ()
    starts: tuple[float, ...] = ()


@dataclass(frozen=True)
class Segment:
    """What is said between two pauses, and its seconds on the clock of the audio.

    `tokens` are its text ids, `temperature` is how they were drawn. `pieces` are what each of them spells,
    all together the text, `log_probs` how likely each was. `avg_logprob` is the mean logarithm of their
    probabilities and the end's, `compression_ratio` is that of its UTF-8 bytes to their zlib-compressed form,
    `no_speech_prob` how likely it is no speech at all, 0 where the checkpoint cannot tell. `seek` is where
    the sound that was read begins, in 10 ms.
    """

    id: int
    start: float
    end: float
    text: str
    tokens: tuple[int, ...]
    words: tuple[Word, ...]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    seek: int
    pieces: tuple[str, ...] = ()
    log_probs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Transcript:
    """Recognised text; `tokens` (N,) int64 are its text ids, `finish_reason` as for `Speech`.

    Where nobody speaks the text is empty, and `finish_reason` says "no speech". `segments` have the times,
    `duration` are the seconds of the audio, `skipped` those of them without speech. `language` is what the
    checkpoint states, "" if nothing.
    """

    text: str
    tokens: np.ndarray
    finish_reason: str
    segments: tuple[Segment, ...] = ()
    duration: float = 0.0
    skipped: float = 0.0
    language: str = ""

    def __str__(self) -> str:
        return self.text

    @property
    def words(self) -> list[Word]:
        """The words of all segments."""
        return [word for segment in self.segments for word in segment.words]


@dataclass(frozen=True)
class Partial:
    """More of a transcript, which stays as it is: all `text` put together is the transcript's.

    `segment` is the one that this text completes, if it does.
    """

    text: str
    segment: Segment | None = None


VoiceLike = (
    Voice | str | os.PathLike | Any
)  # a Voice, a shipped name, a JSON path, or any audio `gpa.audio.load` takes
