"""Measured numbers to medians, quantiles, ratios, tables and pictures. Knows no model and loads no torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from gpa.errors import GenerationError

OURS, PEER = "#2a6f97", "#b08968"
SAY_EVERY = 5.0  # seconds
Told = Callable[[int, int], None]  # how many are done, of how many


@dataclass(frozen=True)
class Ratio:
    """Over a peer: of all rounds together, and the least and the most of a single one."""

    ratio: float
    low: float
    high: float

    @classmethod
    def of(cls, mine: Sequence[float], theirs: Sequence[float]) -> Ratio:
        """Medians over each other, and the range of rounds compared with the peer's of the same round."""
        each = [a / b for a, b in zip(mine, theirs, strict=True)]
        return cls(median(mine) / median(theirs), min(each), max(each))


def shown(found: Mapping[str, float] | None) -> str:
    """A ratio as `asdict` has it, with its range."""
    return "-" if found is None else f"{found['ratio']:.2f} ({found['low']:.2f}-{found['high']:.2f})"


def quantile(values: Sequence[float], q: float) -> float:
    """The value that a share `q` of all do not exceed: one of them, nothing interpolated (nearest rank)."""
    return sorted(values)[max(0, math.ceil(q * len(values) - 1e-9) - 1)]


def quantiles(values: Sequence[float]) -> dict[str, float] | None:
    """p50, p95 and p99; None of nothing."""
    return {f"p{round(100 * q)}": quantile(values, q) for q in (0.5, 0.95, 0.99)} if values else None


@dataclass(frozen=True)
class Spoken:
    """One text as a listener gets it: seconds to the first sound and to the last one, of sound, of waiting.

    `underrun` is how long a player that begins with the first sound has to wait later on.
    """

    first: float
    total: float
    audio: float
    underrun: float


def played(began: float, chunks: Sequence[tuple[float, float]]) -> Spoken:
    """What a listener gets of chunks, each with the time when it came and its seconds; a request at `began`.

    GenerationError where there is no sound.
    """
    sounding = [(at, seconds) for at, seconds in chunks if seconds]
    if not sounding:
        raise GenerationError("no sound was made")
    silent, until = 0.0, sounding[0][0]
    for at, seconds in sounding:
        silent += max(0.0, at - until)
        until = max(until, at) + seconds
    total = sum(seconds for _, seconds in sounding)
    return Spoken(sounding[0][0] - began, chunks[-1][0] - began, total, silent)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table: the first column on the left, numbers on the right."""
    columns = list(zip(heads, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    for row in (heads, *rows):
        first, *others = (
            f"{cell:<{width}}" if n == 0 else f"{cell:>{width}}"
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join([first, *others]).rstrip()


@dataclass(frozen=True)
class Chart:
    """One chart: a bar for each (name, value, least, most); `ours` are names that begin so."""

    title: str
    bars: Sequence[tuple[str, float, float, float]]
    ours: str = "gpa"


def draw(path: Path, title: str, charts: Sequence[Chart]) -> None:
    """Write a PNG of horizontal bars with the range of the rounds, one chart below the other."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from gpa import disk

    heights = [0.9 + 0.3 * len(chart.bars) for chart in charts]
    figure, axes = plt.subplots(
        len(charts), 1, figsize=(8, sum(heights)), height_ratios=heights, squeeze=False
    )
    for axis, chart in zip(axes[:, 0], charts, strict=True):
        _bars(axis, chart)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    with disk.file_whole(path) as made:
        figure.savefig(made, dpi=110, bbox_inches="tight")
    plt.close(figure)


def _bars(axis: Any, chart: Chart) -> None:
    shown_bars = list(reversed(chart.bars))
    for place, (name, value, low, high) in enumerate(shown_bars):
        colour = OURS if name.startswith(chart.ours) else PEER
        axis.barh(place, value, 0.62, color=colour, xerr=[[value - low], [high - value]], capsize=3)
        axis.text(high, place, f" {value:.3g}", va="center", fontsize=8)
    axis.set_yticks(range(len(shown_bars)), [name for name, *_ in shown_bars], fontsize=8)
    axis.set_xlim(0, 1.18 * max((high for *_, high in shown_bars), default=1) or 1)
    axis.set_title(chart.title, fontsize=9)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def progress(head: str, say: Callable[[str], None], what: str = "step") -> Told:
    """A function that says every few seconds how many steps, or of `what` else, are done."""
    said = time.monotonic()

    def told(done: int, of: int) -> None:
        nonlocal said
        if time.monotonic() - said >= SAY_EVERY:
            said = time.monotonic()
            say(f"{head}: {what} {done} of {of}")

    return told
