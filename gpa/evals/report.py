"""Measured items -> one summary per suite -> the Markdown table of RESULTS.md.

Knows no model and no judge: rows come in with transcripts, counts and numbers, and leave as rates and means
with intervals. A failed item counts as deletions of every word, as False in every share, and as the scale's
least in a mean (`WORST`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gpa.evals import wer
from gpa.evals.wer import Edits, Rate

WORST = {"similarity": 0.0, "similarity_2": 0.0, "to_recording": 0.0, "to_recording_2": 0.0}
WORST |= dict.fromkeys(("mos", "mos_signal", "mos_background", "mos_p808", "distill_mos"), 1.0)
COLUMNS = (
    "suite",
    "items (failed, empty)",
    "WER % [95 %]",
    "recordings",
    "rise, points",
    "WER % by the second judge (recordings)",
    "PER % (recordings)",
    "similarity (recordings)",
    "DNSMOS (recordings)",
    "DistillMOS (recordings)",
    "other",
    "RTF (CPU)",
)
SECOND = "(second judge)"  # ends the names of its shares
_SEATS = {"similarity": "voice", "mos": "quality", "distill_mos": "quality_2"}  # which judge a column needs


@dataclass
class Item:
    """One tested item. `heard` is None where nothing could be made; `floor` is what was heard originally.

    What ends in `_2` is by the second judge of words, and None where there is none.

    `seconds` is what the model took, the judges' time excluded; `cpu_seconds` the same on all cores together,
    which other work on the machine hardly changes. `audio_seconds` is the length of what it made (of what it
    read, for recognition). `shares` holds yes/no outcomes, `values` measured numbers, `original` the same
    numbers of the recording it was made from, `labels` what was asked for.
    """

    id: str
    reference: str
    heard: str | None = None
    floor: str | None = None
    seconds: float = 0.0
    audio_seconds: float = 0.0
    error: str = ""
    cpu_seconds: float = 0.0
    labels: dict[str, str] = field(default_factory=dict)
    shares: dict[str, bool] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    original: dict[str, float] = field(default_factory=dict)
    words: Edits = Edits(0, 0)
    chars: Edits = Edits(0, 0)
    floor_words: Edits | None = None
    phones: Edits | None = None  # None where phonemes were not measured
    floor_phones: Edits | None = None
    heard_2: str | None = None
    floor_2: str | None = None
    words_2: Edits | None = None
    floor_words_2: Edits | None = None


@dataclass(frozen=True)
class Summary:
    """A suite's numbers. `rise` is WER minus the floor on the same items; 0.15 is 15 points.

    Where nobody spoke there are no error rates (0 here): `invented` are the words a minute heard instead.

    `values` are means, `originals` those of the recordings; `counted` says over how many items each mean is.
    """

    suite: str
    items: int
    failed: int
    empty: int
    wer: Rate
    cer: Rate
    invented: Rate | None
    floor: Rate | None
    rise: Rate | None
    wer_2: Rate | None
    floor_2: Rate | None
    per: Rate | None
    floor_per: Rate | None
    shares: dict[str, Rate]
    values: dict[str, Rate]
    originals: dict[str, Rate]
    counted: dict[str, int]
    rtf: float
    cpu_rtf: float
    audio_seconds: float


def score(items: Sequence[Item], normalise: Callable[[str], str]) -> None:
    """Fill in the word and character edits of every item, in place."""
    for item in items:
        reference = normalise(item.reference)
        heard = normalise(item.heard or "")
        item.words, item.chars = wer.word_edits(reference, heard), wer.char_edits(reference, heard)
        if item.heard_2 is not None:
            item.words_2 = wer.word_edits(reference, normalise(item.heard_2))
        if item.floor is not None:
            item.floor_words = wer.word_edits(reference, normalise(item.floor))
        if item.floor_2 is not None:
            item.floor_words_2 = wer.word_edits(reference, normalise(item.floor_2))


def value_of(item: Item, name: str) -> float | None:
    """A measured number of an item, the scale's least if it failed; None where it was not measured."""
    return WORST.get(name) if item.heard is None else item.values.get(name)


def summarise(suite: str, items: Sequence[Item], seed: int = 0) -> Summary:
    """Pool scored items."""
    said = any(item.words.length for item in items) or not items
    nothing = wer.Rate(0.0, 0.0, 0.0)
    floors = [(item.words, item.floor_words) for item in items if item.floor_words is not None]
    with_floor = bool(floors) and len(floors) == len(items)
    shares = sorted({name for item in items for name in item.shares})
    names = sorted({name for item in items for name in item.values})
    values = {name: [v for item in items if (v := value_of(item, name)) is not None] for name in names}
    heard = sorted({name for item in items for name in item.original})
    originals = {name: [item.original[name] for item in items if name in item.original] for name in heard}
    audio_seconds = sum(item.audio_seconds for item in items)
    return Summary(
        suite=suite,
        items=len(items),
        failed=sum(item.heard is None for item in items),
        empty=sum(item.heard is not None and not item.heard.strip() for item in items),
        wer=wer.rate([item.words for item in items], seed) if said else nothing,
        cer=wer.rate([item.chars for item in items], seed) if said else nothing,
        invented=None if said else _invented(items, seed),
        floor=wer.rate([floor for _, floor in floors], seed) if with_floor else None,
        rise=wer.rate([(a.errors - b.errors, a.length) for a, b in floors], seed) if with_floor else None,
        wer_2=_pooled([item.words_2 for item in items], seed) if said else None,
        floor_2=_pooled([item.floor_words_2 for item in items], seed) if said else None,
        per=_pooled([item.phones for item in items], seed),
        floor_per=_pooled([item.floor_phones for item in items], seed),
        shares={n: mean([item.shares[n] for item in items if n in item.shares], seed) for n in shares},
        values={name: mean(found, seed) for name, found in values.items()},
        originals={name: mean(found, seed) for name, found in originals.items()},
        counted={name: len(found) for name, found in values.items()},
        rtf=sum(item.seconds for item in items) / audio_seconds if audio_seconds else 0.0,
        cpu_rtf=sum(item.cpu_seconds for item in items) / audio_seconds if audio_seconds else 0.0,
        audio_seconds=audio_seconds,
    )


def mean(values: Sequence[float], seed: int = 0) -> Rate:
    """The mean of some numbers with its bootstrap interval."""
    return wer.rate([(value, 1) for value in values], seed)


def _invented(items: Sequence[Item], seed: int) -> Rate | None:
    """Words a minute of sounds in which nobody speaks; None where no item could be made."""
    made = [(item.words.errors, item.audio_seconds / 60) for item in items if not item.reference]
    return wer.rate(made, seed) if any(minutes for _, minutes in made) else None


def _pooled(edits: Sequence[Edits | None], seed: int) -> Rate | None:
    known = [found for found in edits if found is not None]
    return wer.rate(known, seed) if known and len(known) == len(edits) else None


def plain(summary: Summary) -> dict[str, Any]:
    """A summary for JSON: every rate as {value, low, high}, and None for those that do not apply."""
    found = asdict(summary)  # which keeps named tuples, and JSON would write them as lists without names
    for name, value in vars(summary).items():
        if isinstance(value, Rate):
            found[name] = value._asdict()
        elif name in ("shares", "values", "originals"):
            found[name] = {key: rate._asdict() for key, rate in value.items()}
    return found


# Markdown ---------------------------------------------------------------------------------------------------


def markdown(
    summaries: Sequence[Summary],
    absent: Mapping[str, str] | None = None,
    skipped: Mapping[str, str] | None = None,
) -> str:
    """The table of RESULTS.md, one line per suite; `absent` are judges, `skipped` suites that did not run."""
    lines = [_row(COLUMNS), "|" + "---|" * len(COLUMNS)]
    lines += [_row(_cells(summary, absent or {})) for summary in summaries]
    for suite, reason in (skipped or {}).items():
        lines.append(_row([suite, f"not measured: {reason}", *["-"] * (len(COLUMNS) - 2)]))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(s: Summary, absent: Mapping[str, str]) -> list[str]:
    made = not s.suite.startswith(("asr", "instructions"))  # of a sound there is more to judge than words
    other = [f"{n} {share.percent()} %" for n, share in s.shares.items() if not n.endswith(SECOND)]
    other += [
        f"second judge {100 * share.value:.1f} %" for n, share in s.shares.items() if n.endswith(SECOND)
    ]
    if s.invented:
        other.append(f"{s.invented.plain()} invented words a minute")
    other += [f"{name} {rate.plain()}" for name, rate in s.values.items() if ": " in name]
    if bits := s.values.get("bits_per_second"):
        other.append(f"{bits.value:.0f} bit/s")
    return [
        s.suite,
        f"{s.items} ({s.failed}, {s.empty})",
        "-" if s.invented else s.wer.percent(),
        s.floor.percent() if s.floor else "-",
        s.rise.percent() if s.rise else "-",
        _both(s.wer_2, s.floor_2, made and "words_2" in absent),
        _both(s.per, s.floor_per, made and "phonemes" in absent),
        *(_mean(s, name, made and seat in absent) for name, seat in _SEATS.items()),
        "; ".join(other) or "-",
        f"{s.rtf:.2f} ({s.cpu_rtf:.2f})" if s.rtf >= 0.0005 else "-",
    ]


def _both(made: Rate | None, recorded: Rate | None, unmeasured: bool) -> str:
    """An error rate, that of the recordings in brackets."""
    if made is None:
        return "not measured" if unmeasured else "-"
    return made.percent() + (f" ({100 * recorded.value:.1f})" if recorded else "")


def _mean(s: Summary, name: str, unmeasured: bool) -> str:
    if name not in s.values:
        return "not measured" if unmeasured else "-"
    of = "" if s.counted[name] == s.items else f", {s.counted[name]} items"
    return s.values[name].plain() + of + (f" ({s.originals[name].value:.2f})" if name in s.originals else "")
