"""Measured items -> one summary per suite -> JSON, JSONL and the Markdown table of RESULTS.md.

Knows no model and no judge: rows come in with transcripts and counts, and leave as numbers with intervals.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpa.evals import wer
from gpa.evals.wer import Edits, Rate

HEADER = (
    "| suite | items (failed, empty) | WER % [95 %] | CER % | floor WER % | rise, points | other | RTF |",
    "|---|---|---|---|---|---|---|---|",
)


@dataclass
class Item:
    """One tested item. `heard` is None where nothing could be made; `floor` is what was heard originally.

    `seconds` is what the model took, the judge's time excluded; `audio_seconds` is the length of what it made
    (of what it read, for recognition). `shares` holds yes/no outcomes, `values` other numbers worth keeping.
    """

    id: str
    reference: str
    heard: str | None = None
    floor: str | None = None
    seconds: float = 0.0
    audio_seconds: float = 0.0
    error: str = ""
    shares: dict[str, bool] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    words: Edits = Edits(0, 0)
    chars: Edits = Edits(0, 0)
    floor_words: Edits | None = None


@dataclass(frozen=True)
class Summary:
    """A suite's numbers. `rise` is WER minus the floor on the same items; 0.15 is 15 points."""

    suite: str
    items: int
    failed: int
    empty: int
    wer: Rate
    cer: Rate
    floor: Rate | None
    rise: Rate | None
    shares: dict[str, Rate]
    rtf: float
    audio_seconds: float


def score(items: Sequence[Item], normalise: Callable[[str], str]) -> None:
    """Fill in the edit counts of every item, in place."""
    for item in items:
        reference = normalise(item.reference)
        heard = normalise(item.heard or "")
        item.words, item.chars = wer.word_edits(reference, heard), wer.char_edits(reference, heard)
        if item.floor is not None:
            item.floor_words = wer.word_edits(reference, normalise(item.floor))


def summarise(suite: str, items: Sequence[Item], seed: int = 0) -> Summary:
    """Pool scored items; failed ones count as deletions of every word and as False in every share."""
    floors = [(item.words, item.floor_words) for item in items if item.floor_words is not None]
    with_floor = bool(floors) and len(floors) == len(items)
    names = sorted({name for item in items for name in item.shares})
    audio_seconds = sum(item.audio_seconds for item in items)
    return Summary(
        suite=suite,
        items=len(items),
        failed=sum(item.heard is None for item in items),
        empty=sum(item.heard is not None and not item.heard.strip() for item in items),
        wer=wer.rate([item.words for item in items], seed),
        cer=wer.rate([item.chars for item in items], seed),
        floor=wer.rate([floor for _, floor in floors], seed) if with_floor else None,
        rise=wer.rate([(a.errors - b.errors, a.length) for a, b in floors], seed) if with_floor else None,
        shares={n: wer.rate([(item.shares.get(n, False), 1) for item in items], seed) for n in names},
        rtf=sum(item.seconds for item in items) / audio_seconds if audio_seconds else 0.0,
        audio_seconds=audio_seconds,
    )


def markdown(summaries: Sequence[Summary]) -> str:
    """The table of RESULTS.md, one line per suite."""
    lines = list(HEADER)
    for s in summaries:
        cells = [
            s.suite,
            f"{s.items} ({s.failed}, {s.empty})",
            s.wer.percent(),
            f"{100 * s.cer.value:.1f}",
            s.floor.percent() if s.floor else "-",
            s.rise.percent() if s.rise else "-",
            "; ".join(f"{name} {share.percent()} %" for name, share in s.shares.items()) or "-",
            f"{s.rtf:.2f}" if s.rtf else "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(
    out: Path, items: dict[str, list[Item]], summaries: Sequence[Summary], about: dict[str, Any]
) -> None:
    """`<suite>.jsonl` of items, summary.json with `about` (versions, seed, hashes), and table.md."""
    out.mkdir(parents=True, exist_ok=True)
    for suite, rows in items.items():
        text = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
        (out / f"{suite}.jsonl").write_text(text, encoding="utf-8")
    content = {**about, "suites": {s.suite: _plain(s) for s in summaries}}
    (out / "summary.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (out / "table.md").write_text(markdown(summaries) + "\n", encoding="utf-8")


def _plain(summary: Summary) -> dict[str, Any]:
    # asdict keeps named tuples, which JSON would write as lists without names
    rates = {k: v._asdict() for k, v in vars(summary).items() if isinstance(v, Rate)}
    return {**asdict(summary), **rates, "shares": {k: v._asdict() for k, v in summary.shares.items()}}
