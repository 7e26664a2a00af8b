"""Transcripts as other tools take them: text, JSON, OpenAI's verbose JSON, SubRip, WebVTT; all strings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpa.models.gpa.outputs_gpa import Segment, Transcript, Word

LINE, LINES = 42, 2  # characters and lines that are read at a glance (BBC and Netflix subtitle guidelines)
LONGEST = 6.0  # seconds of one subtitle
BREAK = 1.0  # seconds of a pause that begins another
SHORTEST = 0.2  # seconds, where the next one leaves room


@dataclass(frozen=True)
class Cue:
    """A subtitle: its seconds, and its lines."""

    start: float
    end: float
    lines: list[str]


def cues(transcript: Transcript) -> list[Cue]:
    """Subtitles of at most two lines of 42 characters, cut between words; none overlaps the next.

    A word that is longer than a line has one to itself.
    """
    groups = [group for segment in transcript.segments for group in _groups(segment)]
    found: list[Cue] = []
    for group, after in zip_longest(groups, groups[1:]):
        following = after[0].start if after else float("inf")
        start = max(group[0].start, found[-1].end if found else 0.0)
        end = min(max(group[-1].end, start + SHORTEST), max(following, start))
        found.append(Cue(start, end, _wrapped([word.word for word in group])))
    return found


def _groups(segment: Segment) -> Iterator[list[Word]]:
    """The words of each subtitle of a segment."""
    group: list[Word] = []
    for word in segment.words:
        longer = [*group, word]
        late = group and (word.end - group[0].start > LONGEST or word.start - group[-1].end > BREAK)
        if group and (late or len(_filled([each.word for each in longer])) > LINES):
            yield group
            longer = [word]
        group = longer
    if group:
        yield group


def _filled(words: list[str], width: int = LINE) -> list[str]:
    """Words in lines, each as full as may be."""
    lines = [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if len(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _wrapped(words: list[str]) -> list[str]:
    """Words in as few lines as they need, and those as even as may be."""
    count = len(_filled(words))
    widths = range(len(" ".join(words)) // count, LINE + 1)
    return next((lines for width in widths if len(lines := _filled(words, width)) <= count), _filled(words))


def srt(transcript: Transcript) -> str:
    """SubRip."""
    return "".join(
        f"{n}\n{clock(cue.start, ',')} --> {clock(cue.end, ',')}\n" + "\n".join(cue.lines) + "\n\n"
        for n, cue in enumerate(cues(transcript), 1)
    )


def vtt(transcript: Transcript) -> str:
    """WebVTT."""
    escaped = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
    return "WEBVTT\n\n" + "".join(
        f"{clock(cue.start)} --> {clock(cue.end)}\n" + "\n".join(cue.lines).translate(escaped) + "\n\n"
        for cue in cues(transcript)
    )


def clock(seconds: float, point: str = ".") -> str:
    """HH:MM:SS.mmm."""
    total, thousandths = divmod(round(1000 * seconds), 1000)
    return f"{total // 3600:02}:{total // 60 % 60:02}:{total % 60:02}{point}{thousandths:03}"


UNASKED = ("words", "pieces", "log_probs")  # of a segment, which OpenAI's has not


def verbose(transcript: Transcript, words: bool = True) -> dict[str, Any]:
    """OpenAI's verbose_json: ten fields a segment, `words` beside the segments."""
    segments = [
        {name: value for name, value in asdict(each).items() if name not in UNASKED}
        for each in transcript.segments
    ]
    found = {
        "task": "transcribe",
        "language": transcript.language,
        "duration": round(transcript.duration, 3),
        "text": transcript.text,
        "segments": segments,
    }
    return {**found, "words": [asdict(word) for word in transcript.words]} if words else found


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


FORMATS: dict[str, Callable[[Transcript], str]] = {
    "text": lambda transcript: " ".join(transcript.text.split()) + "\n",
    "json": lambda transcript: _json({"text": transcript.text}),
    "verbose_json": lambda transcript: _json(verbose(transcript)),
    "srt": srt,
    "vtt": vtt,
}
SUFFIXES = {"text": ".txt", "json": ".json", "verbose_json": ".json", "srt": ".srt", "vtt": ".vtt"}
