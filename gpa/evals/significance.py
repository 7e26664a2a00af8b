"""Is B better than A? Paired bootstrap over the items that both have.

Items are paired by id and text; each resampling draws items, and with an item both its results, so what is
hard about a sentence cancels out. A difference is called significant where its 95 % interval leaves out 0
(under 10 items never): of twenty measures without any difference about one is called so by chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from gpa.errors import UsageError
from gpa.evals import wer
from gpa.evals.report import WORST

if TYPE_CHECKING:
    from gpa.evals.wer import Rate

REPEATS = 2000
LEAST = 10  # items: below, resampling them says too little about others
LOWER = ("WER", "WER by the second judge", "CER", "PER", "to_source", "to_source_2")  # where less is better
HEADLINE = (
    *("WER", "WER by the second judge", "PER", "similarity", "mos", "distill_mos"),
    *("stopped", "nearer target"),
)
NEUTRAL = ("bits_per_second",)
_EDITS = {"WER": "words", "WER by the second judge": "words_2", "CER": "chars", "PER": "phones"}
FOLDS = 5  # of speakers: a choice that holds in one fifth only is not taken
Row = Mapping[str, Any]  # an item as a report holds it
_Pair = tuple[tuple[float, float], tuple[float, float], str]  # A's and B's parts of an item, and who speaks


@dataclass(frozen=True)
class Difference:
    """One measure over common items: A's value, B's, B minus A with its interval, and the outcome."""

    suite: str
    measure: str
    items: int
    a: float
    b: float
    difference: Rate
    outcome: str
    speakers: Rate | None = None  # the difference with its interval over speakers
    folds: tuple[int, int] | None = None  # in how many of how many fifths of the speakers B is better

    @property
    def headline(self) -> bool:
        """Whether it stands in tables; the rest is in the JSON."""
        return self.measure in HEADLINE


def reports(a: Mapping[str, Any], b: Mapping[str, Any], seed: int = 0) -> list[Difference]:
    """All measures of all suites that two reports share; UsageError where nothing can be compared."""
    refuse_other_judges(a, b)
    found: list[Difference] = []
    for suite in a["items"]:
        if suite in b["items"]:
            found += items(suite, a["items"][suite], b["items"][suite], seed)
    if not found:
        raise UsageError("the reports have no common items: same data, split, seed and suites are needed")
    return found


def refuse_other_judges(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    """UsageError where one seat was held by different judges: their numbers mean different things."""
    for seat, about in a["settings"]["judges"].items():
        other = b["settings"]["judges"].get(seat)
        keys = ("name", "weights")
        if other is not None and any(about[key] != other[key] for key in keys):
            raise UsageError(
                f"{about['measures']} was judged by {about['name']} {about['weights']} in one report and by "
                f"{other['name']} {other['weights']} in the other: measure both with the same"
            )


def items(suite: str, a: Sequence[Row], b: Sequence[Row], seed: int = 0) -> list[Difference]:
    """All measures that two lists of items share, over their common items; none without common items."""
    theirs = {(row["id"], row["text"]): row for row in b}
    pairs = [(row, theirs[row["id"], row["text"]]) for row in a if (row["id"], row["text"]) in theirs]
    found = []
    for measure in _measures(pairs):
        parts = [
            (_part(x, measure), _part(y, measure), x.get("labels", {}).get("speaker", "")) for x, y in pairs
        ]
        known = [(x, y, who) for x, y, who in parts if x is not None and y is not None]
        if known:
            found.append(_difference(suite, measure, known, seed))
    return found


def _measures(pairs: Sequence[tuple[Row, Row]]) -> list[str]:
    names = {
        name: key
        for name, key in _EDITS.items()
        if any(x.get(key) and y.get(key) and x[key][1] for x, y in pairs)
    }
    shares = {name for x, y in pairs for name in x["shares"].keys() & y["shares"].keys()}
    values = {name for x, y in pairs for name in x["values"].keys() & y["values"].keys()} - set(NEUTRAL)
    unclear = {name for name in values if ": " in name}  # less may be what was asked for
    return [*names, *sorted(shares), *sorted(values - unclear)]


def _part(row: Row, measure: str) -> tuple[float, float] | None:
    """Numerator and denominator of an item; None where it was not measured."""
    if measure in _EDITS:
        edits = row.get(_EDITS[measure])
        return (edits[0], edits[1]) if edits else None
    if measure in row["shares"]:
        return (float(row["shares"][measure]), 1.0)
    value = WORST.get(measure) if row["failed"] else row["values"].get(measure)
    return None if value is None else (value, 1.0)


def _difference(suite: str, measure: str, parts: Sequence[_Pair], seed: int) -> Difference:
    lengths = sum(a[1] for a, _, _ in parts)
    if lengths == 0:
        raise UsageError(f"{suite}: the common items have no words to count errors in")
    # Both read one reference, so a difference of rates is a rate of differences over one length.
    gaps = [(b[0] - a[0], a[1]) for a, b, _ in parts]
    gap = wer.rate(gaps, seed, REPEATS)
    before, after = sum(a[0] for a, _, _ in parts) / lengths, sum(b[0] for _, b, _ in parts) / lengths
    speakers = [who for _, _, who in parts]
    over = folds = None
    if all(speakers) and len(set(speakers)) >= FOLDS:
        over = wer.rate(gaps, seed, REPEATS, speakers)
        folds = _folds(measure, gaps, speakers)
    outcome = _outcome(measure, gap, len(parts))
    return Difference(suite, measure, len(parts), before, after, gap, outcome, over, folds)


def _folds(measure: str, gaps: Sequence[tuple[float, float]], speakers: Sequence[str]) -> tuple[int, int]:
    """In how many of `FOLDS` disjoint groups of speakers B is better; speakers are dealt in order of name."""
    fold = {speaker: place % FOLDS for place, speaker in enumerate(sorted(set(speakers)))}
    sums = [0.0] * FOLDS
    for (gap, _), speaker in zip(gaps, speakers, strict=True):
        sums[fold[speaker]] += gap
    return sum(total < 0 if measure in LOWER else total > 0 for total in sums), FOLDS


def _outcome(measure: str, gap: Rate, count: int) -> str:
    if count < LEAST:
        return "too few items"
    if gap.low <= 0 <= gap.high:
        return "not significant"
    return "B better" if (gap.value < 0) == (measure in LOWER) else "A better"


# Markdown ---------------------------------------------------------------------------------------------------


def table(found: Sequence[Difference], a: str = "A", b: str = "B") -> str:
    """Differences as Markdown; rates and shares in percent, differences of them in points."""
    lines = [f"| suite | measure | items | {a} | {b} | B - A [95 %] | [speakers] | folds | |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for d in found:
        percent = d.measure in _EDITS or d.measure.startswith(("stopped", "nearer", "chosen"))
        name = f"{d.measure}, %" if percent else d.measure
        scale, digits = (100, 1) if percent else (1, 3)
        shown = [f"{scale * value:.{digits}f}" for value in (d.a, d.b)]
        gap, over = (
            [f"{scale * value:+.{digits}f}" for value in rate or ()] for rate in (d.difference, d.speakers)
        )
        lines.append(
            f"| {d.suite} | {name} | {d.items} | {shown[0]} | {shown[1]} | "
            f"{gap[0]} [{gap[1]}, {gap[2]}] | {f'[{over[1]}, {over[2]}]' if over else '-'} | "
            f"{f'{d.folds[0]}/{d.folds[1]}' if d.folds else '-'} | {d.outcome} |"
        )
    return "\n".join(lines)


def plain(found: Sequence[Difference]) -> list[dict[str, Any]]:
    """Differences for JSON."""
    return [
        {**asdict(d), "difference": d.difference._asdict(), "speakers": d.speakers and d.speakers._asdict()}
        for d in found
    ]
