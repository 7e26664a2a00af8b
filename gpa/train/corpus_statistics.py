"""What a corpus of ids is, in numbers: for the limits, voices and card of a model that learnt it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpa.models.gpa.outputs_gpa import Voice

if TYPE_CHECKING:
    from gpa.codec.base import TokenCodec

Clip = Mapping[str, Any]
VOICES = 16  # speakers with most speech become voices
VOICE_SECONDS = 6.0  # of the clip whose codes a voice has, as nearly as there is one


@dataclass
class CorpusStatistics:
    """What rows are, in numbers: seconds by split and by speaker, clips by licence, what is longest."""

    rows: int = 0
    splits: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    speakers: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # of training rows
    licences: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    seconds: float = 0.0  # of the longest training row
    characters: int = 0  # of the longest training text
    converted: bool = False  # whether rows have another recording as their target
    best: dict[str, tuple[float, Clip]] = field(default_factory=dict)  # the clip of each speaker's voice

    @classmethod
    def of(cls, clips: Iterable[Clip], code_rate: float) -> CorpusStatistics:
        """Look at every row once."""
        found = cls()
        for clip in clips:
            found._add(clip, len(clip["semantic"]) / code_rate)
        return found

    def _add(self, clip: Clip, seconds: float) -> None:
        self.rows += 1
        self.splits[clip["split"]] += seconds
        self.licences[clip.get("licence") or "not stated"] += 1
        self.converted |= len(clip.get("target", ())) > 0
        if not clip["split"].startswith("train"):
            return
        name = voice_name(clip["speaker"])
        self.speakers[name] += seconds
        self.seconds = max(self.seconds, seconds)
        self.characters = max(self.characters, len(clip["text"]))
        off = abs(seconds - VOICE_SECONDS)
        if name not in self.best or off < self.best[name][0]:
            self.best[name] = off, clip

    def voices(self, codec: TokenCodec) -> Iterator[Voice]:
        """A voice for each of the speakers with most speech."""
        mark = codec.voice_fingerprint()
        for name in sorted(self.speakers, key=lambda name: -self.speakers[name])[:VOICES]:
            clip = self.best[name][1]
            about = {"from": f"training clip {clip['id']}", "licence": clip.get("licence") or "not stated"}
            yield Voice(tuple(map(int, clip["global"])), mark, name, about)


def voice_name(speaker: str) -> str:
    """A speaker's name as that of a file."""
    return re.sub(r"[^\w.-]+", "_", speaker).strip("._") or "speaker"
