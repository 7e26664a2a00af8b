"""The same findings by corpus, with intervals over speakers: what a new speaker or microphone may bring.

Intervals over items say how well the mean of these speakers is known; those over speakers, whose items are
resampled together, how far other speakers may lie from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpa.evals import wer
from gpa.evals.report import Item, value_of
from gpa.evals.wer import Rate

ALL = "all"
COLUMNS = (
    *("suite", "corpus", "items", "speakers", "WER % [items] [speakers]", "recordings"),
    *("rise, points [speakers]", "similarity", "DNSMOS", "DistillMOS"),
)
_MEANS = ("similarity", "mos", "distill_mos")


@dataclass(frozen=True)
class Line:
    """One suite on one corpus; `*_speakers` have intervals over speakers, the others over items."""

    suite: str
    corpus: str
    items: int
    speakers: int
    wer: Rate
    wer_speakers: Rate
    floor: Rate | None
    rise_speakers: Rate | None
    means: dict[str, Rate]

    def cells(self) -> list[str]:
        """As in the table."""
        low, high = (100 * end for end in self.wer_speakers[1:])
        return [
            self.suite,
            self.corpus,
            f"{self.items}",
            f"{self.speakers}",
            f"{self.wer.percent()} [{low:.1f}, {high:.1f}]",
            f"{100 * self.floor.value:.1f}" if self.floor else "-",
            self.rise_speakers.percent() if self.rise_speakers else "-",
            *(f"{self.means[name].value:.2f}" if name in self.means else "-" for name in _MEANS),
        ]


def lines(found: Mapping[str, Sequence[Item]], seed: int = 0) -> list[Line]:
    """Every suite on every corpus and on all of them; none for suites whose items are of no speakers."""
    made = []
    for suite, items in found.items():
        known = [item for item in items if item.labels.get("speaker") and item.words.length]
        corpora = sorted({item.labels.get("corpus", "") for item in known})
        parts = [(corpus, [i for i in known if i.labels.get("corpus", "") == corpus]) for corpus in corpora]
        made += [_line(suite, corpus, own, seed) for corpus, own in [*parts, (ALL, known)] if own]
    return made


def _line(suite: str, corpus: str, items: Sequence[Item], seed: int) -> Line:
    speakers = [item.labels["speaker"] for item in items]
    words = [item.words for item in items]
    floors = [item.floor_words for item in items if item.floor_words is not None]
    paired = len(floors) == len(items)
    rises = [(a.errors - b.errors, a.length) for a, b in zip(words, floors, strict=False)]
    values = {name: [v for item in items if (v := value_of(item, name)) is not None] for name in _MEANS}
    return Line(
        suite=suite,
        corpus=corpus,
        items=len(items),
        speakers=len(set(speakers)),
        wer=wer.rate(words, seed),
        wer_speakers=wer.rate(words, seed, groups=speakers),
        floor=wer.rate(floors, seed) if paired else None,
        rise_speakers=wer.rate(rises, seed, groups=speakers) if paired else None,
        means={name: wer.rate([(v, 1) for v in own], seed) for name, own in values.items() if own},
    )


def table(found: Sequence[Line]) -> str:
    """Lines as Markdown."""
    rows = [list(COLUMNS), *(line.cells() for line in found)]
    shown = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([shown[0], "|" + "---|" * len(COLUMNS), *shown[1:]])


def plain(found: Sequence[Line]) -> list[dict[str, Any]]:
    """Lines for JSON, every rate as {value, low, high}."""
    return [_plain(vars(line)) for line in found]


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    nested = {key: _plain(value) if isinstance(value, dict) else value for key, value in fields.items()}
    return {key: value._asdict() if isinstance(value, Rate) else value for key, value in nested.items()}
