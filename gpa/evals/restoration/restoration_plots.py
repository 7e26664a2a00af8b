"""Pictures of the sweep: words against acoustics over gamma, and what more steps of the sampler buy.

Knows items only. Every number drawn is in the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpa.evals import report
from gpa.evals.restoration import systems
from gpa.evals.wer import Rate

if TYPE_CHECKING:
    from gpa.evals.report import Summary
    from gpa.evals.restoration.orderings import Found

NAMES = ("gamma.png", "steps.png")
_OURS, _PEER, _GROUND, _INK = "#2a6f97", "#b08968", "#8a8a8a", "#333333"


def draw(folder: Path, found: Found, swept: Sequence[str], usual: tuple[int, float], seed: int) -> list[Path]:
    """Write gamma.png and steps.png of the clips `swept`; `usual` are the table's steps and TC-Avg share."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from gpa import disk

    own = {name: [item for item in items if item.id in swept] for name, items in found.items()}
    sums = {name: report.summarise(name, items, seed) for name, items in own.items() if items}
    made = []
    for name, paint in zip(NAMES, (_gamma, _steps), strict=True):
        figure = paint(plt, sums, usual)
        figure.tight_layout()
        with disk.file_whole(folder / name) as partial:
            figure.savefig(partial, dpi=110, bbox_inches="tight")
        plt.close(figure)
        made.append(folder / name)
    return made


def _gamma(plt: Any, sums: dict[str, Summary], usual: tuple[int, float]) -> Any:
    """WER and MCD over gamma, and one against the other beside TC-Avg."""
    figure, axes = plt.subplots(1, 3, figsize=(12.5, 3.6))
    points = [(g, sums[systems.gamma_row(g)]) for g in systems.GAMMAS if systems.gamma_row(g) in sums]
    shares = [
        (a, sums[systems.share_row(a, usual[1])])
        for a in systems.SHARES
        if systems.share_row(a, usual[1]) in sums
    ]
    for axis, name in zip(axes, ("WER, %", "MCD, dB"), strict=False):
        _line(axis, [(g, _rate(s, name)) for g, s in points], name, "gamma (0 is without text)")
        for row, style in ((systems.NOISY, ":"), (systems.BASE, "--")):
            if row in sums and (level := _rate(sums[row], name)):
                title = "noisy" if row == systems.NOISY else "base of the composition"
                axis.axhline(level.value, color=_GROUND, linestyle=style, linewidth=1, label=title)
        axis.legend(fontsize=8, frameon=False)
    for label, colour, some in (("TC-CFG", _OURS, points), ("TC-Avg", _PEER, shares)):
        both = [(x, _rate(s, "MCD, dB"), _rate(s, "WER, %")) for x, s in some]
        known = [(x, mcd.value, wer.value) for x, mcd, wer in both if mcd and wer]
        axes[2].plot([k[1] for k in known], [k[2] for k in known], "o-", color=colour, label=label)
        for x, mcd, wer in known:
            axes[2].annotate(f"{x:g}", (mcd, wer), (4, 4), textcoords="offset points", fontsize=8)
    axes[2].legend(fontsize=8, frameon=False)
    _bare(axes[2], "MCD, dB", "WER, %")
    return figure


def _steps(plt: Any, sums: dict[str, Summary], usual: tuple[int, float]) -> Any:
    """WER, MCD and RTF over the steps of the sampler, TC-CFG by the true transcript."""
    figure, axes = plt.subplots(1, 3, figsize=(12.5, 3.6))
    every = sorted({*systems.STEPS, usual[0]})
    points = [
        (k, sums[systems.steps_row(k, usual[0])]) for k in every if systems.steps_row(k, usual[0]) in sums
    ]
    for axis, name in zip(axes, ("WER, %", "MCD, dB", "RTF"), strict=True):
        _line(axis, [(k, _rate(s, name)) for k, s in points], name, "steps")
        axis.set_xscale("log", base=2)
        axis.set_xticks([k for k, _ in points], [str(k) for k, _ in points])
    return figure


def _rate(s: Summary, name: str) -> Rate | None:
    """One number of a row with its interval, None where it was not measured."""
    if name == "RTF":
        return Rate(s.cpu_rtf, s.cpu_rtf, s.cpu_rtf)
    if name.startswith("MCD"):
        return s.values.get("mcd")
    return Rate(*(100 * x for x in s.wer))


def _line(axis: Any, points: Sequence[tuple[float, Rate | None]], name: str, below: str) -> None:
    """Points with their intervals."""
    known = [(x, rate) for x, rate in points if rate is not None]
    x, y = [x for x, _ in known], [rate.value for _, rate in known]
    down, up = ([max(0.0, abs(rate.value - end)) for _, rate in known for end in [rate[i]]] for i in (1, 2))
    axis.errorbar(x, y, yerr=[down, up], fmt="o-", color=_OURS, ecolor=_GROUND, capsize=3, linewidth=1.5)
    _bare(axis, below, f"{name} (CPU)" if name == "RTF" else name)


def _bare(axis: Any, below: str, beside: str) -> None:
    """No box, quiet ticks: the data is what is seen."""
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.tick_params(colors=_INK, labelsize=9)
    axis.set_xlabel(below, fontsize=9)
    axis.set_ylabel(beside, fontsize=9)
