"""Pictures of an evaluation: error rates with intervals, items beside their recordings, distributions.

Knows items and summaries only. Every number drawn is in the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpa.evals.report import Item, Summary, value_of

NAMES = ("wer.png", "items.png", "voices.png")
_OURS, _PEER, _GROUND, _INK = "#2a6f97", "#b08968", "#8a8a8a", "#333333"


def draw(
    folder: Path,
    summaries: Sequence[Summary],
    found: Mapping[str, Sequence[Item]],
    peers: Sequence[str] = (),
) -> list[Path]:
    """Write wer.png, items.png and voices.png, each if there is something to show; `peers` are baselines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from gpa import disk

    made = []
    for name, paint in zip(NAMES, (_wer, _items, _voices), strict=True):
        figure = paint(plt, summaries, found, peers)
        if figure is not None:
            with disk.file_whole(folder / name) as partial:
                figure.savefig(partial, dpi=110, bbox_inches="tight")
            plt.close(figure)
            made.append(folder / name)
    return made


def _bare(axis: Any) -> None:
    """No box, quiet ticks: the data is what is seen."""
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.tick_params(colors=_INK, labelsize=9)


def _colour(suite: str, peers: Sequence[str]) -> str:
    return _GROUND if suite == "floor" else _PEER if suite in peers else _OURS


def _wer(plt: Any, summaries: Sequence[Summary], found: Any, peers: Sequence[str]) -> Any:
    """A bar a suite with its interval, and a tick where the recordings of the same items are."""
    summaries = [s for s in summaries if s.invented is None]
    if not summaries:
        return None
    figure, axis = plt.subplots(figsize=(7.5, 0.9 + 0.42 * len(summaries)))
    furthest = max(100 * s.wer.high for s in summaries)
    for place, s in enumerate(reversed(summaries)):
        value, low, high = (100 * x for x in s.wer)
        errors = [[max(value - low, 0)], [max(high - value, 0)]]
        colour = _colour(s.suite, peers)
        axis.barh(place, value, 0.62, color=colour, xerr=errors, ecolor=_INK, capsize=3)
        if s.floor:
            axis.plot([100 * s.floor.value] * 2, [place - 0.38, place + 0.38], color="black", linewidth=2)
        axis.text(high + 0.015 * furthest, place, f"{value:.1f}", va="center", fontsize=9, color=_INK)
    axis.set_yticks(range(len(summaries)), [f"{s.suite} ({s.items})" for s in reversed(summaries)])
    axis.set_xlim(0, 1.1 * furthest or 1)
    axis.set_xlabel("word error rate, % (95 % interval; black: the recordings of the same items)", fontsize=9)
    _bare(axis)
    return figure


def _items(plt: Any, summaries: Any, found: Mapping[str, Sequence[Item]], peers: Sequence[str]) -> Any:
    """A point an item: its WER as recorded, and as made from it."""
    shown = {suite: rows for suite, rows in found.items() if any(row.floor_words for row in rows)}
    if not shown:
        return None
    figure, axes = plt.subplots(
        1, len(shown), figsize=(3.1 * len(shown), 3.4), squeeze=False, sharex=True, sharey=True
    )
    for axis, (suite, rows) in zip(axes[0], shown.items(), strict=True):
        known = [row for row in rows if row.floor_words is not None and row.words.length]
        x = [100 * row.floor_words.errors / row.floor_words.length for row in known if row.floor_words]
        y = [100 * row.words.errors / row.words.length for row in known]
        most = max([5.0, *x, *y]) * 1.05
        axis.axline((0, 0), slope=1, color=_GROUND, linewidth=1)
        axis.scatter(x, y, s=26, color=_colour(suite, peers), alpha=0.6, linewidths=0, clip_on=False)
        axis.set_xlim(0, max(axis.get_xlim()[1], most))
        axis.set_ylim(0, max(axis.get_ylim()[1], most))
        axis.set_title(suite, fontsize=10, color=_INK)
        _bare(axis)
    axes[0][0].set_ylabel("WER of what was made, %", fontsize=9)
    figure.supxlabel("WER of the recording, % (an item on the line lost nothing)", fontsize=9, y=-0.03)
    return figure


def _voices(plt: Any, summaries: Any, found: Mapping[str, Sequence[Item]], peers: Sequence[str]) -> Any:
    """Distributions of the similarity to the wanted speaker and of DNSMOS, a row a suite."""
    panels = (("similarity", "similarity to the speaker (cosine)"), ("mos", "DNSMOS, overall"))
    shown = [(name, title, _values(found, name)) for name, title in panels]
    shown = [chart for chart in shown if chart[2]]
    if not shown:
        return None
    height = 0.9 + 0.42 * max(len(values) for _, _, values in shown)
    figure, axes = plt.subplots(1, len(shown), figsize=(5.2 * len(shown), height), squeeze=False)
    for axis, (_, title, values) in zip(axes[0], shown, strict=True):
        suites = list(reversed(values))
        drawn = axis.boxplot(
            [values[suite] for suite in suites], vert=False, widths=0.55, patch_artist=True, showfliers=False
        )
        for place, (suite, box) in enumerate(zip(suites, drawn["boxes"], strict=True), 1):
            box.set(facecolor=_colour(suite, peers), alpha=0.35, edgecolor=_INK)
            points = values[suite]
            spread = [place + 0.18 * ((i * 0.618) % 1 - 0.5) for i in range(len(points))]
            axis.scatter(points, spread, s=9, color=_colour(suite, peers), linewidths=0, zorder=3)
        for line in drawn["medians"]:
            line.set(color=_INK)
        axis.set_yticks(range(1, len(suites) + 1), [f"{suite} ({len(values[suite])})" for suite in suites])
        axis.set_xlabel(title, fontsize=9)
        _bare(axis)
    figure.tight_layout()
    return figure


def _values(found: Mapping[str, Sequence[Item]], name: str) -> dict[str, list[float]]:
    """{suite: every item's number}, failed ones at the scale's least; suites without it left out."""
    every = {
        suite: [value for row in rows if (value := value_of(row, name)) is not None]
        for suite, rows in found.items()
        if any(name in row.values for row in rows)
    }
    return {suite: values for suite, values in every.items() if values}
