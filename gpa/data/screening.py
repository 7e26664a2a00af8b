"""The manifest doctor: reads a row's sound, runs every check on it, and compares rows with each other.

Knows manifests, waveforms and the prompt format's lengths; no network. The checks themselves and what their
codes mean are in checks.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gpa import audio
from gpa.data.checks import CHECKS, Case, Limits, Sound, letters, measure
from gpa.data.sequences import longest, stored_text
from gpa.errors import AudioError, PromptError
from gpa.text.edit_distance import edits
from gpa.text.normaliser import normalise_text

if TYPE_CHECKING:
    from gpa.codec.base import CodecSpec
    from gpa.data.manifest import Clip, ManifestRow
    from gpa.prompt.formats import Format

# Files ------------------------------------------------------------------------------------------------------

# What gpa.audio says of a file, by the words that are in no other message (tests/test_prepare.py has all).
_SAID = (
    ("does not exist", "missing_file"),
    ("a Git-LFS pointer", "lfs_pointer"),
    ("is no span of it", "bad_segment"),
    (" ms long:", "too_short"),
    ("is truncated:", "truncated"),
)


class Unusable(Exception):
    """A clip that cannot be read: the reason's code and what was found."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


def read(clip: Clip, sample_rate: int) -> np.ndarray:
    """Samples of a clip, float32 (S,); Unusable with the reason."""
    try:
        return clip.wav(sample_rate)
    except AudioError as error:
        said = str(error)
        code = next((code for words, code in _SAID if words in said), "")
        raise Unusable(code or ("truncated" if _begins(clip) else "unreadable"), said) from error


def _begins(clip: Clip) -> bool:
    """Whether the first moment of a file can be decoded: it was audio once, and its end is damaged."""
    try:
        audio.load(clip.fetch() if clip.fetch else clip.name, end=audio.MIN_SECONDS)
    except AudioError:
        return False
    return True


# One row -------------------------------------------------------------------------------------------------


Transcribe = Callable[[np.ndarray], str]  # float32 (S,) -> text


@dataclass(frozen=True)
class Reader:
    """What the doctor needs of a model: how it writes a row, and how long a row may get.

    `transcribe` is there for --check-text only.
    """

    format: Format
    codec: CodecSpec
    glm: CodecSpec | None
    context: int
    transcribe: Transcribe | None = None

    def most_ids(self, case: Case) -> int:
        """At least as many ids as the row's longest sequence has: codecs give no more frames than this."""
        frame, rate = [0] * self.codec.n_codebooks, self.codec.frame_rate
        own = frame * math.ceil(case.sound.seconds * rate)
        target = frame * math.ceil(case.parts[-1].seconds * rate) if case.row.target else []
        passes = 1 + int(case.sound.seconds / 30)  # GLM rounds up once in every 30 s
        glm = [0] * (math.ceil(case.sound.seconds * self.glm.frame_rate) + passes) if self.glm else []
        voice = [0] * self.codec.voice_size
        columns = {"text": case.text, "semantic": own, "glm": glm, "global": voice, "target": target}
        return longest(self.format, case.row.serves(self.format.tasks), columns)


class HeldOut(NamedTuple):
    """What training rows must not share: speakers, and sentences as `sentence` spells them."""

    speakers: frozenset[str]
    sentences: frozenset[str]


class Judgement(NamedTuple):
    """The judgement of a row: "" or a code, what was found, codes that --allow let pass, and its sounds."""

    reason: str
    detail: str
    allowed: tuple[str, ...] = ()
    parts: tuple[Sound, ...] = ()


@dataclass(frozen=True)
class Doctor:
    """Judges one row at a time."""

    reader: Reader
    limits: Limits
    held_out: HeldOut

    def judge(self, row: ManifestRow) -> Judgement:
        """The first reason against a row, most basic first; codes in `limits.allow` are noted and passed.

        Hours of dropped rows are counted too, so sound is measured even where the manifest alone would do.
        """
        clips = [clip for clip in (row.audio, row.reference, row.target) if clip]
        if row.bad_name:
            return Judgement("bad_name", row.bad_name)
        try:
            wavs = {clip: read(clip, self.reader.codec.sample_rate) for clip in dict.fromkeys(clips)}
        except Unusable as found:
            return Judgement(found.code, str(found))
        sounds = {clip: measure(wav, self.reader.codec.sample_rate) for clip, wav in wavs.items()}
        parts = tuple(sounds[clip] for clip in clips)
        case = Case(row, stored_text(self.reader.format, row.text), parts[0], parts)
        allowed: list[str] = []
        for code, detail in self._findings(case, wavs[row.audio]):
            if code not in self.limits.allow:
                return Judgement(code, detail, tuple(allowed), parts)
            allowed.append(code)
        return Judgement("", "", tuple(allowed), parts)

    def _findings(self, case: Case, wav: np.ndarray) -> Iterator[tuple[str, str]]:
        for code, check in CHECKS.items():
            if detail := check(case, self.limits):
                yield code, detail
        yield from leaks(case.row, self.held_out, self.limits)
        yield from self._length(case)
        if self.limits.check_text and case.row.needs_text and letters(case.text):
            yield from self._heard(case, wav)

    def _length(self, case: Case) -> Iterator[tuple[str, str]]:
        try:
            ids = self.reader.most_ids(case)
        except PromptError as error:
            yield "bad_text", str(error)
            return
        limit = int(self.limits.max_ids) or self.reader.context
        if ids > limit:
            yield "too_long", f"up to {ids} ids, {limit} fit"

    def _heard(self, case: Case, wav: np.ndarray) -> Iterator[tuple[str, str]]:
        if self.reader.transcribe is None:
            return
        heard = self.reader.transcribe(wav)
        errors = character_errors(sentence(case.text), sentence(heard))
        if errors > self.limits.max_cer:
            yield "text_mismatch", f"{100 * errors:.0f} % character errors, heard {heard!r:.60}"


# Several rows -----------------------------------------------------------------------------------------------


def sentence(text: str) -> str:
    """A text without anything that spelling, case and punctuation change."""
    return "".join(c for c in normalise_text(text) if c.isalnum())


def held_out(rows: Iterable[ManifestRow], limits: Limits) -> HeldOut:
    """Speakers and sentences of every row that is not for training, but for declared seen speakers."""
    speakers, sentences = set(), set()
    for row in rows:
        if not row.trains:
            sentences.add(sentence(row.text))
            if row.speaker and row.split not in limits.seen_speakers:
                speakers.add(row.speaker)
    long = {said for said in sentences if len(said) >= limits.leak_letters}
    return HeldOut(frozenset(speakers), frozenset(long))


def leaks(row: ManifestRow, held: HeldOut, limits: Limits) -> Iterator[tuple[str, str]]:
    """What a training row shares with held-out rows; those stay, since scores depend on them."""
    if not row.trains:
        return
    if row.speaker in held.speakers:
        yield "speaker_leak", f"speaker {row.speaker!r} is held out"
    if held.sentences and sentence(row.text) in held.sentences:
        yield "text_leak", f"{row.text!r:.60} is held out"


class Seen(NamedTuple):
    """A usable row for `duplicates`: its place, whether it trains, what it is called, and its digest."""

    n: int
    trains: bool
    where: str
    digest: str


def duplicates(rows: Iterable[Seen]) -> dict[int, str]:
    """{row: the row it repeats}. Of equal rows a held-out one stays, else the first."""
    kept: dict[str, Seen] = {}
    copies: dict[int, str] = {}
    for row in rows:
        first = kept.setdefault(row.digest, row)
        if first.n == row.n:
            continue
        if first.trains and not row.trains:
            kept[row.digest], first, row = row, row, first
        copies[row.n] = first.where
    return copies


def character_errors(said: str, heard: str) -> float:
    """Edits that turn `heard` into `said`, per character of `said`."""
    if not said:
        return float(bool(heard))
    return edits(said, heard) / len(said)
