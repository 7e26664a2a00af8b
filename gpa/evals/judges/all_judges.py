"""The judges of a run: which are there, which are not and why, and all of them asked about one sound."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import util
from typing import TYPE_CHECKING, Any

import numpy as np

from gpa.errors import MissingExtraError, UsageError
from gpa.evals import wer

if TYPE_CHECKING:
    from gpa.evals.judges.base import Judge, Speller

SIMILARITIES = ("similarity", "similarity_2")  # by the first speaker judge, and by the second
REQUIRED = ("faster_whisper", "whisper_normalizer", "jiwer")  # and the weights of Whisper base
OPTIONAL = ("words_2", "voice", "voice_2", "quality", "quality_2", "phonemes")


@dataclass(frozen=True)
class Heard:
    """All findings about one sound; None or left out where that judge is absent."""

    text: str
    text_2: str | None = None  # by the second recogniser
    phones: list[str] | None = None
    voices: dict[str, np.ndarray] = field(default_factory=dict)  # by SIMILARITIES, each (D,)
    values: dict[str, float] = field(default_factory=dict)  # of quality


@dataclass(frozen=True)
class Judges:
    """The judges of a run. Only `words` is a must; `absent` says of each other why it does not measure.

    With `threads` above 1 they listen at the same time; each judge hears one sound after the other.
    """

    words: Judge[str]
    normalise: Callable[[str], str]
    words_2: Judge[str] | None = None
    voice: Judge[np.ndarray] | None = None
    voice_2: Judge[np.ndarray] | None = None
    quality: Judge[dict[str, float]] | None = None
    quality_2: Judge[dict[str, float]] | None = None
    phonemes: Speller | None = None
    threads: int = 1
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def embedders(self) -> dict[str, Judge[np.ndarray]]:
        """The speaker judges by the name of the similarity they give."""
        both = zip(SIMILARITIES, (self.voice, self.voice_2), strict=True)
        return {name: judge for name, judge in both if judge is not None}

    def listen(self, wav: np.ndarray) -> Heard:
        """Let every judge hear float32 (S,) at 16 kHz."""
        others = ("words_2", "quality", "quality_2", "phonemes")
        asked: dict[str, Judge[Any]] = {"words": self.words, **self.embedders}
        asked |= {seat: judge for seat in others if (judge := getattr(self, seat)) is not None}
        wav = np.clip(wav, -1.0, 1.0).astype(np.float32)
        if self.threads > 1:
            waiting = {name: self._pool.submit(judge, wav) for name, judge in asked.items()}
            found = {name: answer.result() for name, answer in waiting.items()}
        else:
            found = {name: judge(wav) for name, judge in asked.items()}
        voices = {name: found[name] for name in SIMILARITIES if name in found}
        values = found.get("quality", {}) | found.get("quality_2", {})
        return Heard(found["words"], found.get("words_2"), found.get("phonemes"), voices, values)

    def about(self) -> dict[str, dict[str, Any]]:
        """{seat: what is known about the judge in it}, ready for JSON."""
        seats = {"words": self.words, **{name: getattr(self, name) for name in OPTIONAL}}
        return {seat: asdict(judge.about) for seat, judge in seats.items() if judge is not None}

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads)


def require() -> None:
    """MissingExtraError unless what no evaluation can do without is installed; loads none of it."""
    from gpa.evals.judges.whisper import BASE

    for module in (*REQUIRED, *BASE):
        if util.find_spec(module) is None:
            raise MissingExtraError(module.replace("_", "-"), "eval")


def _openers() -> dict[str, Callable[[], Any]]:
    from gpa.evals.judges import phonemes, quality, similarity, whisper

    return {
        "words_2": lambda: whisper.Recogniser("tiny.en"),
        "voice": similarity.SpeakerJudge,
        "voice_2": similarity.DVectorJudge,
        "quality": quality.QualityJudge,
        "quality_2": quality.SecondQualityJudge,
        "phonemes": phonemes.PhonemeJudge,
    }


def open_judges(threads: int = 1, without: Sequence[str] = ()) -> Judges:
    """All judges that are installed, those of `without` left out; UsageError for an unknown one of these."""
    if strange := set(without) - set(OPTIONAL):
        raise UsageError(f"no judge {min(strange)!r} to leave out: choose of {', '.join(OPTIONAL)}")
    found: dict[str, Any] = {}
    absent: dict[str, str] = {}
    for seat, opener in _openers().items():
        if seat in without:
            absent[seat] = "left out by --without"
            continue
        try:
            found[seat] = opener()
        except MissingExtraError as error:
            absent[seat] = str(error)
    from gpa.evals.judges.whisper import Recogniser

    return Judges(Recogniser(), wer.normaliser(), threads=threads, absent=absent, **found)
