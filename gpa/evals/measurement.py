"""One item from beginning to end: what suites share, what they ask for, and what the judges say about it.

A suite is a list of cases and a function that makes one: sound or text. Everything else, the clock, the
judges, the recording beside it, failure, is the same for all suites, ours and the baselines. A typed error
while making is a failed item, any other is a bug and stops.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from gpa import audio
from gpa.errors import GPAError, UsageError
from gpa.evals import items, wer
from gpa.evals.judges.all_judges import SIMILARITIES, Heard, Judges
from gpa.evals.judges.base import SAMPLE_RATE
from gpa.evals.report import SECOND, Item, score

if TYPE_CHECKING:
    from gpa.codec.base import TokenCodec
    from gpa.evals.restoration.noisy_clips import NoisyClips
    from gpa.evals.wer import Edits

T = TypeVar("T")
LEAST_SECONDS = 0.1  # of sound that a judge can hear at all
NEARER = dict(zip(SIMILARITIES, ("nearer target", f"nearer target {SECOND}"), strict=True))


@dataclass(frozen=True)
class Case:
    """What one item asks for.

    `source` is the recording it starts from, `voice` what a model is given as the voice, `speaker` whose of
    the manifest that is ("" if nobody's), `avoid` clips by which the judge may not know the speakers.
    """

    id: str
    text: str
    source: items.Row | None = None
    voice: Any = None
    speaker: str = ""
    avoid: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)


class Made(NamedTuple):
    """What came out: sound (S,) at `rate`, or a text; `stopped` is whether the model itself ended it."""

    wav: np.ndarray | None = None
    rate: int = SAMPLE_RATE
    text: str = ""
    stopped: bool | None = None
    values: Mapping[str, float] | None = None
    shares: Mapping[str, bool] | None = None


@dataclass
class Bench:
    """What suites share. `model` is a GPA or None; `codec` is any TokenCodec (by default the model's).

    `voices` are names of shipped voices for `tts`, `speakers` whose they are in the manifest where names do
    not tell; `seen` are further texts the model was trained on. `n` is how many items `suites.run` takes.
    """

    data: Path
    model: Any = None
    codec: TokenCodec | None = None
    judges: Judges | None = None
    voices: Sequence[str] = ()
    speakers: dict[str, str] = field(default_factory=dict)
    seen: Sequence[str] = ()
    n: int = 50
    seed: int = 0
    split: str = "dev"
    degrade: NoisyClips | None = None  # makes the recordings that suites start from noisy copies
    noise: Path | None = None  # sounds without speech; the folder noise of the data where None
    wavs: Path | None = None  # where to keep what was made
    kept: dict[str, Any] = field(default_factory=dict)  # what baselines load once

    @cached_property
    def manifest(self) -> list[items.Row]:
        """Rows of the data's manifest; none where only `noise` was given."""
        return [] if self.data == self.noise else items.read_manifest(self.data)

    @cached_property
    def _heard(self) -> dict[str, Heard]:
        return {}

    @cached_property
    def _known(self) -> dict[tuple[str, ...], np.ndarray]:
        return {}

    @property
    def required_judges(self) -> Judges:
        """The judges, or UsageError."""
        if self.judges is None:
            raise UsageError("nobody judges: give the bench judges (gpa.evals.judges.all_judges.open_judges)")
        return self.judges

    def clip(self, row: items.Row) -> np.ndarray:
        """A clip of the manifest, float32 (S,) at 16 kHz."""
        return audio.load(self.path(row), SAMPLE_RATE)

    def path(self, row: items.Row) -> Path:
        """Where a clip is."""
        return self.data / "speech" / row["path"]

    def source(self, row: items.Row) -> np.ndarray:
        """The clip that a suite starts from (S,): as recorded, or its noisy copy."""
        wav = self.clip(row)
        return wav if self.degrade is None else self.degrade(wav, row["id"])

    def recording(self, row: items.Row) -> Heard:
        """What the judges find in a clip before anything is made of it; every one is judged once in a run."""
        if row["id"] not in self._heard:
            self._heard[row["id"]] = self.required_judges.listen(self.source(row))
        return self._heard[row["id"]]

    def known(self, which: str, speaker: str, without: Sequence[str]) -> np.ndarray | None:
        """What a speaker judge takes for a speaker's voice (D,), from clips of the manifest but those.

        None where the speaker has no other clip.
        """
        rows = items.enrolment(self.manifest, speaker, without)
        if not rows:
            return None
        key = (which, *(row["id"] for row in rows))
        if key not in self._known:
            embed = self.required_judges.embedders[which]
            self._known[key] = enrol(embed, [self.clip(row) for row in rows])
        return self._known[key]

    def keep(self, name: str, load: Callable[[], T]) -> T:
        """What `load` returned the first time."""
        if name not in self.kept:
            self.kept[name] = load()
        return self.kept[name]

    def need_model(self) -> Any:
        """The model, or UsageError."""
        if self.model is None:
            raise UsageError("this suite needs a model: gpa eval MODEL")
        return self.model

    def need_codec(self) -> TokenCodec:
        """The codec of the suite `codec`, or UsageError."""
        if self.codec is not None:
            return self.codec
        return self.need_model().codec


Make = Callable[[Bench, Case, np.ndarray], Made]


@dataclass(frozen=True)
class Suite:
    """`cases(bench, n)` are the items; `make(bench, case, wav)` does one.

    `wav` is the source, float32 (S,) at 16 kHz, S = 0 where there is none. `needs` is "model", "codec" or "".
    `stops` where a model decides when it has said everything, `converts` where the voice should change.
    `missing` says what is not installed, "" if nothing; `version` is a program's own words about itself.
    """

    about: str
    cases: Callable[[Bench, int], list[Case]]
    make: Make
    needs: str = ""
    stops: bool = False
    converts: bool = False
    reads: bool = False  # text comes out, not sound
    missing: Callable[[], str] = lambda: ""
    version: Callable[[], str] = lambda: ""


def measure(name: str, suite: Suite, bench: Bench, case: Case) -> Item:
    """Make one item, let the judges hear it and, where it comes from one, the recording."""
    item = Item(case.id, case.text, labels=dict(case.labels))
    item.shares = {"stopped": False} if suite.stops else {}  # answers of an item that fails
    if suite.converts:
        known = _likened(bench, case)
        item.shares |= {NEARER[which]: False for which in bench.required_judges.embedders if known}
    wav = bench.source(case.source) if case.source else np.zeros(0, np.float32)
    made = timed(item, suite.make, bench, case, wav)
    if made is not None and made.wav is not None and (fault := _unfit(made.wav, made.rate)):
        item.error, made = f"GenerationError: {fault}", None
    if made is not None and made.stopped is not None:
        item.shares["stopped"] = made.stopped
    item.values |= (made.values or {}) if made is not None else {}
    item.shares |= (made.shares or {}) if made is not None else {}
    if suite.reads:
        item.heard = made.text if made is not None else None
        item.audio_seconds = len(wav) / SAMPLE_RATE
    else:
        _judge(name, bench, case, item, made)
    score([item], bench.required_judges.normalise)
    return item


def _unfit(wav: np.ndarray, rate: int) -> str:
    """Why no judge can hear (S,), "" if all can."""
    if len(wav) < LEAST_SECONDS * rate:
        return f"under {LEAST_SECONDS} s of sound"
    return "" if np.isfinite(wav).all() else "sound that is not finite"


def timed(item: Item, make: Callable[..., T], *args: Any, **kwargs: Any) -> T | None:
    """What `make` returns, its time noted; None and the reason noted where the model refuses or fails."""
    begin, worked = time.perf_counter(), cpu_seconds()
    try:
        return make(*args, **kwargs)
    except GPAError as e:
        item.error = f"{type(e).__name__}: {e}"
        return None
    finally:
        item.seconds = round(time.perf_counter() - begin, 4)
        item.cpu_seconds = round(cpu_seconds() - worked, 4)


def cpu_seconds() -> float:
    """What this process and the programs it ran took on all cores together, in seconds."""
    return sum(os.times()[:4])


def _judge(name: str, bench: Bench, case: Case, item: Item, made: Made | None) -> None:
    """Fill in what the judges find in the sound that was made and in the recording it was made from."""
    itself = name == "floor"  # the recordings are what is judged
    spelled = bench.required_judges.phonemes.spell(case.text) if bench.required_judges.phonemes else None
    before = bench.recording(case.source) if case.source and not itself else None
    if before is not None and case.source is not None:
        item.floor, item.floor_2, item.original = before.text, before.text_2, dict(before.values)
        item.original |= _likeness(bench, before, case.source["speaker"], case.avoid)
        item.floor_phones = _edits(spelled, before.phones)
    if made is None or made.wav is None:
        item.phones = _edits(spelled, [])
        item.heard_2 = "" if bench.required_judges.words_2 else None
        return
    item.audio_seconds = len(made.wav) / made.rate
    item.seconds, item.cpu_seconds = (0.0, 0.0) if itself else (item.seconds, item.cpu_seconds)
    _keep_wav(name, bench, item, made.wav, made.rate)
    heard = bench.recording(case.source) if itself and case.source else _listen(bench, made.wav, made.rate)
    item.heard, item.heard_2 = heard.text, heard.text_2
    item.phones = _edits(spelled, heard.phones)
    item.values |= heard.values
    if case.speaker:
        item.values |= _likeness(bench, heard, case.speaker, case.avoid)
    if before is not None and case.source is not None:
        _compare_voices(bench, case, item, heard, before)


def _listen(bench: Bench, wav: np.ndarray, rate: int) -> Heard:
    return bench.required_judges.listen(wav if rate == SAMPLE_RATE else audio.load((wav, rate), SAMPLE_RATE))


def _likeness(bench: Bench, heard: Heard, speaker: str, avoid: Sequence[str]) -> dict[str, float]:
    known = {name: bench.known(name, speaker, avoid) for name in heard.voices}
    return {n: round(cosine(heard.voices[n], voice), 4) for n, voice in known.items() if voice is not None}


def _likened(bench: Bench, case: Case) -> bool:
    """Whether both speakers of a conversion have other clips to know them by."""
    speakers = (case.speaker, case.source["speaker"] if case.source else "")
    return all(items.enrolment(bench.manifest, speaker, case.avoid) for speaker in speakers)


def _compare_voices(bench: Bench, case: Case, item: Item, heard: Heard, before: Heard) -> None:
    """Beside a recording: how near the voice stays to it or, where it should change, whether it left it."""
    source = case.source["speaker"] if case.source else ""
    if source == case.speaker:
        for name, voice in heard.voices.items():
            key = name.replace("similarity", "to_recording")
            item.values[key] = round(cosine(voice, before.voices[name]), 4)
        return
    away = _likeness(bench, heard, source, case.avoid)
    for name, to_source in away.items():
        item.values[name.replace("similarity", "to_source")] = to_source
        said = bool(heard.text.strip())  # in what says nothing, nothing was converted
        if name in item.values:
            item.shares[NEARER[name]] = said and item.values[name] > to_source


def _edits(spelled: list[str] | None, heard: list[str] | None) -> Edits | None:
    if spelled is None or heard is None:
        return None
    return wer.word_edits(" ".join(spelled), " ".join(heard))


def _keep_wav(suite: str, bench: Bench, item: Item, wav: np.ndarray, rate: int) -> None:
    if bench.wavs is not None:
        audio.save(wav_path(bench.wavs, suite, item.id), wav, rate)


def wav_path(folder: Path, suite: str, name: str) -> Path:
    """Where the sound of an item is kept."""
    return folder / suite / f"{name.replace('>', '-to-').replace('/', '-')}.wav"


def enrol(embed: Callable[[np.ndarray], np.ndarray], wavs: Sequence[np.ndarray]) -> np.ndarray:
    """One voice from several clips: the unit mean (D,) of their embeddings."""
    mean = np.mean([embed(wav) for wav in wavs], axis=0)
    return mean / max(float(np.linalg.norm(mean)), 1e-8)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two vectors (D,), 0 where one is all zeros."""
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale else 0.0
