"""Why a row of training data is not used: the reasons, the limits, and a small function for each check.

A check takes the row, what was measured of its sound, and the limits; it returns what is wrong, or "". Knows
one row at a time; files and several rows are in screen.py.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from gpa.data.manifest import ManifestRow


class Reason(NamedTuple):
    """What a code in rejected.jsonl means, what to do, and whether `--allow` may keep such rows."""

    meaning: str
    fix: str
    optional: bool = False


REASONS = {
    "missing_file": Reason("There is no such file.", "correct the path, or fetch the file"),
    "lfs_pointer": Reason("The file is a Git-LFS pointer, not the audio.", "run  git lfs pull"),
    "bad_name": Reason("A name of the file or row is no Unicode.", "rename it (convmv -f latin1 -t utf8)"),
    "unreadable": Reason("The file is empty, or no audio we read.", "fetch it again, or convert it"),
    "truncated": Reason("The file ends early, or is shorter than stated.", "copy or download it again"),
    "bad_segment": Reason("begin_time..end_time is no span of the file.", "correct the times"),
    "too_short": Reason("There is less sound than --min-seconds.", "join segments, or lower the limit"),
    "silent": Reason("The loudest moment is below --silence-db.", "check the channel and the level", True),
    "clipped": Reason("Too many samples are at full scale.", "record at a lower level", True),
    "no_licence": Reason("Nobody said what may be done with the row.", "fill in licence, or --licence", True),
    "no_text": Reason("The task needs text and nothing speakable is there.", "transcribe it, or use task vc"),
    "bad_text": Reason("The text is damaged or cannot be encoded.", "mend its character encoding"),
    "speech_rate": Reason("Letters per second are out of range.", "check text and segment times", True),
    "text_mismatch": Reason("Sound and text cannot belong together.", "correct text or segment times", True),
    "too_long": Reason("A sequence would exceed the model's context.", "cut the recording at a pause"),
    "speaker_leak": Reason("A held-out speaker is in training.", "move it, or --seen-speakers SPLIT", True),
    "text_leak": Reason("A held-out sentence is in training.", "move the sentence to one split", True),
    "duplicate": Reason("The same sound serves the same task twice.", "remove one of the rows", True),
}


def _limit(default: float, about: str) -> Any:
    return field(default=default, metadata={"help": about})


@dataclass(frozen=True)
class Limits:
    """What a row may be like; every number is an option of `gpa prepare`."""

    # One short word. The shortest of 4,339 corpus clips has 0.76 s.
    min_seconds: float = _limit(0.3, "shortest sound")
    # As the commands warn from; corpus clips have their loudest 20 ms at -27 to -7 dB.
    silence_db: float = _limit(-60.0, "dB of the loudest 20 ms below which a clip is silent")
    # As the commands warn from: normalised speech touches full scale a handful of times.
    max_clipped: float = _limit(1e-3, "largest share of samples at full scale")
    # Corpus clips have 5.5 to 19.0; one ideograph or digit counts as three letters.
    min_rate: float = _limit(2.0, "fewest letters per second")
    max_rate: float = _limit(25.0, "most letters per second")
    # Corpus clips have 6.3 to 21 where there is sound; more text than that was not said there.
    max_dense_rate: float = _limit(30.0, "most letters per second of sound that is not silence")
    # Manifests round; containers pad.
    duration_slack: float = _limit(0.25, "seconds that a file may be shorter than its row says")
    # "yes" and "thank you" may be in every split.
    leak_letters: float = _limit(24, "a sentence shared by two splits is a leak from this many letters on")
    max_ids: float = _limit(0, "longest sequence; 0 is the model's context")
    # A good recogniser errs in a tenth of the characters, a wrong transcript in most.
    max_cer: float = _limit(0.5, "most character errors of --check-text")
    check_text: bool = False
    seen_speakers: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()


# Command-line option -> (default, what it says), for every number above.
OPTIONS = {
    "--" + f.name.replace("_", "-"): (f.default, f.metadata["help"]) for f in fields(Limits) if f.metadata
}


class Sound(NamedTuple):
    """What the checks know of a waveform: seconds, loudest 20 ms in dB, clipped share, seconds above the
    floor, and a digest of the samples.
    """

    seconds: float
    loudest: float
    clipped: float
    active: float
    digest: str


_FRAME, _FLOOR_DB, _CLIP_LEVEL = 0.02, 40.0, 0.999
_SPACES = str.maketrans("\t\n\r", "   ")


def measure(wav: np.ndarray, sample_rate: int) -> Sound:
    """`Sound` of float32 (S,); the digest, of 16-bit samples, is the same whatever the container."""
    size = max(1, min(len(wav), round(_FRAME * sample_rate)))
    power = np.square(wav[: len(wav) // size * size], dtype=np.float64).reshape(-1, size).mean(1)
    levels = 10 * np.log10(power + 1e-12)  # (frames,)
    loudest = float(levels.max())
    active = float((levels > max(loudest - _FLOOR_DB, -60.0)).sum() * _FRAME)
    exact = np.rint(np.clip(wav, -1, 1) * 32767).astype("<i2").tobytes()
    digest = hashlib.blake2b(exact, digest_size=16).hexdigest()
    clipped = float(np.mean(np.abs(wav) >= _CLIP_LEVEL))
    return Sound(len(wav) / sample_rate, loudest, clipped, active, digest)


class Case(NamedTuple):
    """What a check looks at; `text` is as the model reads it."""

    row: ManifestRow
    text: str
    sound: Sound
    parts: tuple[Sound, ...]  # every clip of the row: audio, reference, target


def letters(text: str) -> int:
    """Letters to be spoken: an ideograph or a digit takes as long as three."""
    return sum(3 if c.isdigit() or ord(c) > 0x2E7F else 1 for c in text if c.isalnum() or c == "'")


def too_short(case: Case, limits: Limits) -> str:
    """Less sound than the limit, in any clip of the row."""
    least = min(part.seconds for part in case.parts)
    return f"{least:.2f} s" if least < limits.min_seconds else ""


def truncated(case: Case, limits: Limits) -> str:
    """Shorter than the manifest says; containers cut between two pages look whole."""
    stated, whole = case.row.seconds, case.row.audio.begin == 0 and case.row.audio.end is None
    short = stated is not None and whole and case.sound.seconds < stated - limits.duration_slack
    return f"{case.sound.seconds:.2f} s, {stated} s stated" if short else ""


def silent(case: Case, limits: Limits) -> str:
    """Nothing to be heard, in any clip of the row."""
    quietest = min(part.loudest for part in case.parts)
    return f"loudest 20 ms {quietest:.0f} dB" if quietest < limits.silence_db else ""


def clipped(case: Case, limits: Limits) -> str:
    """Distorted by overload, in any clip of the row."""
    share = max(part.clipped for part in case.parts)
    return f"{100 * share:.2f} % of the samples" if share > limits.max_clipped else ""


def no_licence(case: Case, limits: Limits) -> str:
    """Empty licence."""
    return "" if case.row.licence else "licence is empty"


def no_text(case: Case, limits: Limits) -> str:
    """A task of text without a letter to speak."""
    return f"text {case.row.text!r:.40}" if case.row.needs_text and not letters(case.text) else ""


def bad_text(case: Case, limits: Limits) -> str:
    """Replacement, control or private characters: a transcript that went through a wrong decoding."""
    text = case.row.text.translate(_SPACES)
    marks = (c for c in text if c == "\ufffd" or unicodedata.category(c) in ("Cc", "Cs", "Co"))
    return next((f"character {c!r}" for c in marks), "")


def speech_rate(case: Case, limits: Limits) -> str:
    """Letters per second of the clip."""
    if not letters(case.text) or not case.row.needs_text:
        return ""
    rate = letters(case.text) / case.sound.seconds
    return "" if limits.min_rate <= rate <= limits.max_rate else f"{rate:.1f} letters per second"


def text_mismatch(case: Case, limits: Limits) -> str:
    """More text than the sound in the clip can hold, pauses left out."""
    if not letters(case.text) or not case.row.needs_text:
        return ""
    rate = letters(case.text) / max(case.sound.active, _FRAME)
    return f"{rate:.1f} letters per second of sound" if rate > limits.max_dense_rate else ""


Check = Callable[[Case, Limits], str]
CHECKS: dict[str, Check] = {
    "too_short": too_short,
    "truncated": truncated,
    "silent": silent,
    "clipped": clipped,
    "no_licence": no_licence,
    "no_text": no_text,
    "bad_text": bad_text,
    "speech_rate": speech_rate,
    "text_mismatch": text_mismatch,
}
