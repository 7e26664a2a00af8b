"""What the paper expects of a model that composes, each said to hold or not.

Every claim is "less than" over the clips that both rows have: the margin is the mean of right minus left,
clip by clip, with its interval from resampled clips (a paired bootstrap). Knows items only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from gpa.evals import wer
from gpa.evals.report import Item, value_of
from gpa.evals.restoration import systems
from gpa.evals.restoration.systems import ALONE, AVERAGE, FILTERED, GOLD, ITC, NOISY, SAME, SHARES

if TYPE_CHECKING:
    from gpa.evals.wer import Rate

REPEATS = 2000
LEAST = 10  # clips: below, resampling them says too little about others
Found = Mapping[str, Sequence[Item]]


@dataclass(frozen=True)
class Claim:
    """One ordering: both sides over the same clips, and how far right is above left.

    `holds` is None where a side was not measured. WER is in points.
    """

    text: str
    holds: bool | None = None
    left: float | None = None
    right: float | None = None
    margin: Rate | None = None
    clips: int = 0

    @property
    def outcome(self) -> str:
        """In words; an interval with 0 in it, or few clips, say that other clips may tell otherwise."""
        if self.holds is None:
            return "not measured"
        said = "holds" if self.holds else "does not hold"
        if self.margin is None or self.margin.low > 0 or self.margin.high < 0:
            return said if self.margin is None or self.clips >= LEAST else f"{said} (few clips)"
        return f"{said}, within chance"

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        margin = self.margin._asdict() if self.margin else None
        return {**asdict(self), "margin": margin, "outcome": self.outcome}


def claims(found: Found, seed: int = 0, usual_share: float | None = None) -> list[Claim]:
    """All orderings; those of the sweep where `usual_share`, TC-Avg's share in the table, is given."""
    said = [
        _words("WER(TC-CFG gold) < WER(TC-Avg)", found, GOLD, AVERAGE, seed),
        _words("WER(TC-Avg) < WER(alone)", found, AVERAGE, ALONE, seed),
        _values(
            "MCD(TC-CFG gold) <= 1.05 MCD(alone)", found, "mcd", GOLD, ALONE, seed, factor=1.05, ties=True
        ),
        _values("MCD(alone) < MCD(TC-Avg)", found, "mcd", ALONE, AVERAGE, seed),
        _words("WER(TC-CFG gold) <= WER(ITC)", found, GOLD, ITC, seed, ties=True),
        _words("WER(ITC) < WER(alone)", found, ITC, ALONE, seed),
        _values(
            "DNSMOS(noisy) + 0.4 <= DNSMOS(alone)", found, "mos", NOISY, ALONE, seed, plus=0.4, ties=True
        ),
        *_filtered(found, seed),
        _identical(found),
    ]
    return said if usual_share is None else said + _swept(found, seed, usual_share)


def _filtered(found: Found, seed: int) -> list[Claim]:
    """The like of filtered recordings, which must also have no more word errors than the noisy ones."""
    alone, gold, itc = (FILTERED[row] for row in (ALONE, GOLD, ITC))
    quality = "DNSMOS(noisy) + 0.4 <= DNSMOS(alone, filtered)"
    return [
        _words("WER(TC-CFG gold, filtered) <= WER(ITC, filtered)", found, gold, itc, seed, ties=True),
        _words("WER(ITC, filtered) < WER(alone, filtered)", found, itc, alone, seed),
        _words("WER(alone, filtered) <= WER(noisy)", found, alone, NOISY, seed, ties=True),
        _values(quality, found, "mos", NOISY, alone, seed, plus=0.4, ties=True),
    ]


def _swept(found: Found, seed: int, usual: float) -> list[Claim]:
    """Against every share of TC-Avg: no more errors, less distortion; and the shape over gamma."""
    said = []
    for share in SHARES:
        row = systems.share_row(share, usual)
        said.append(_words(f"WER(TC-CFG gold) <= WER(TC-Avg {share:g})", found, GOLD, row, seed, ties=True))
        said.append(_values(f"MCD(TC-CFG gold) < MCD(TC-Avg {share:g})", found, "mcd", GOLD, row, seed))
    one, three = systems.gamma_row(1.0), systems.gamma_row(3.0)
    said.append(_words("WER(gamma 1) < WER(gamma 0)", found, one, ALONE, seed))
    said.append(_values("MCD(gamma 1) < MCD(gamma 3)", found, "mcd", one, three, seed))
    return said


def _pairs(found: Found, left: str, right: str) -> list[tuple[Item, Item]]:
    theirs = {item.id: item for item in found.get(right, ())}
    return [(item, theirs[item.id]) for item in found.get(left, ()) if item.id in theirs]


def _words(text: str, found: Found, left: str, right: str, seed: int, ties: bool = False) -> Claim:
    """Word error rates, pooled; failed items count as deletions."""
    parts = [((a.words.errors, b.words.errors), a.words.length) for a, b in _pairs(found, left, right)]
    scaled = [((100.0 * a, 100.0 * b), float(length)) for (a, b), length in parts]
    return _claim(text, scaled, seed, ties)


def _values(
    text: str,
    found: Found,
    name: str,
    left: str,
    right: str,
    seed: int,
    *,
    factor: float = 1.0,
    plus: float = 0.0,
    ties: bool = False,
) -> Claim:
    """Means of a value, right times `factor`, left plus `plus`, over clips where both have it."""
    both = [(value_of(a, name), value_of(b, name)) for a, b in _pairs(found, left, right)]
    parts = [((a + plus, factor * b), 1.0) for a, b in both if a is not None and b is not None]
    return _claim(text, parts, seed, ties)


def _claim(text: str, parts: Sequence[tuple[tuple[float, float], float]], seed: int, ties: bool) -> Claim:
    total = sum(length for _, length in parts)
    if not total:
        return Claim(text)
    left, right = (sum(sides[i] for sides, _ in parts) / total for i in (0, 1))
    margin = wer.rate([(b - a, length) for (a, b), length in parts], seed, REPEATS)
    holds = margin.value >= 0 if ties else margin.value > 0
    return Claim(text, holds, left, right, margin, len(parts))


def _identical(found: Found) -> Claim:
    same = [item.values.get("identical") == 1.0 for item in found.get(SAME, ())]
    text = "gamma 0 is alone, bit for bit"
    return Claim(text, all(same), clips=len(same)) if same else Claim(text)


def table(found: Sequence[Claim]) -> str:
    """Claims as Markdown."""
    lines = ["| ordering | left | right | margin [95 %] | clips | |", "|---|---|---|---|---|---|"]
    for claim in found:
        sides = ["-" if side is None else f"{side:.2f}" for side in (claim.left, claim.right)]
        margin = "-" if claim.margin is None else _signed(claim.margin)
        lines.append(f"| {claim.text} | {' | '.join(sides)} | {margin} | {claim.clips} | {claim.outcome} |")
    return "\n".join(lines)


def _signed(margin: Rate) -> str:
    return f"{margin.value:+.2f} [{margin.low:+.2f}, {margin.high:+.2f}]"
