"""metrics.jsonl (one object per line, rewound on resume) and its picture."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

from gpa import disk
from gpa.errors import CheckpointError, UsageError
from gpa.train.trackers import Tracker

LOG = "metrics.jsonl"
KEPT = 300  # lines of training at most, about, that a kept log has


class MetricsLog:
    """Append-only JSONL; on resume, lines beyond the restored step are dropped so that the file tells one
    story.

    `seconds` is the training time of the lines kept, from which a resumed run counts on; `least` the lowest
    value of every metric. A `tracker` is told every line. Without `active` (ranks but the first) nothing
    is read or written.
    """

    def __init__(
        self, path: Path, start: int, *, active: bool = True, tracker: Tracker | None = None
    ) -> None:
        self.path, self.active, self.seconds = path, active, 0.0
        self.least: dict[str, float] = {}
        self.tracker = tracker or Tracker()
        if not active:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if start and not path.exists():
            raise CheckpointError(
                f"{path}: the metrics of the steps before are gone: bring it back, or choose a new --run"
            )
        kept = [row for row in read(path) if row["step"] <= start] if path.exists() else []
        self.seconds = max((row["seconds"] for row in kept if "seconds" in row), default=0.0)
        for row in kept:  # a tracker is told what it has missed
            self._note(row)
            self._tell(row)
        disk.write_text(path, "".join(json.dumps(row) + "\n" for row in kept))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One line; empty metrics write nothing."""
        if not metrics or not self.active:
            return
        row = {"step": step, **{name: round(float(value), 6) for name, value in metrics.items()}}
        disk.append(self.path, json.dumps(row) + "\n")
        self._note(row)
        self._tell(row)

    def _tell(self, row: dict[str, float]) -> None:
        values = {name: value for name, value in row.items() if name != "step"}
        self.tracker.scalars(int(row["step"]), values)

    def _note(self, row: dict[str, float]) -> None:
        for name, value in row.items():
            self.least[name] = min(value, self.least.get(name, math.inf))


def mean(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    """Mean of every metric over the rows that have it."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            values.setdefault(name, []).append(value)
    return {name: sum(found) / len(found) for name, found in values.items()}


def read(path: Path) -> list[dict[str, float]]:
    """All lines but a last one cut by a kill; CheckpointError for one that no run has written."""
    *lines, _ = path.read_bytes().split(b"\n")
    rows: list[dict[str, float]] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            before = rows[-1]["step"] if rows else 0
            sound = isinstance(row["step"], int) and row["step"] >= before
            sound = sound and all(isinstance(value, (int, float)) for value in row.values())
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            sound = False
        if not sound:
            raise CheckpointError(
                f"{path}: line {number} is damaged: delete the line to go on without it, or bring the file "
                "back from a copy"
            )
        rows.append(row)
    return rows


def keep(run: Path, stem: Path) -> None:
    """A run's log as STEM.jsonl, small enough to commit and publish, and its picture as STEM.png.

    Of held-out lines all, of training's a few hundred. UsageError if the folder holds no metrics.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    plot(run, stem.with_name(f"{stem.name}.png"))
    rows = read(run / LOG)
    training = [number for number, row in enumerate(rows) if "lr" in row]
    left_out = set(training) - set(training[:: -(-len(training) // KEPT) or 1]) - set(training[-1:])
    text = "".join(json.dumps(row) + "\n" for number, row in enumerate(rows) if number not in left_out)
    disk.write_text(stem.with_name(f"{stem.name}.jsonl"), text)


def plot(run: Path, target: Path | None = None) -> Path:
    """Every metric against the step, one plot each, training and held-out together -> run/loss.png.

    UsageError if the folder holds no metrics.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    path = run / LOG
    rows = read(path) if path.is_file() else []
    if not rows:
        raise UsageError(f"{run}: no metrics.jsonl with a line in it; give the folder of a training run")
    names = sorted({k.removeprefix("eval/") for row in rows for k in row} - {"step", "seconds"})
    columns = 4
    lines = max(1, -(-len(names) // columns))
    size = (4 * columns, 2.6 * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False)
    # By hand: matplotlib's own layouts draw everything twice, seconds on a busy machine.
    figure.subplots_adjust(0.04, 0.3 / size[1], 0.99, 1 - 0.3 / size[1], wspace=0.25, hspace=0.35)
    for axis, name in zip(axes.flat, names, strict=False):
        for key, style, label in ((name, "-", "train"), (f"eval/{name}", "o-", "held out")):
            points = [(row["step"], row[key]) for row in rows if key in row]
            if points:
                axis.plot(*zip(*points, strict=True), style, markersize=3, linewidth=1, label=label)
        axis.set_title(name, fontsize=9)
        axis.legend(fontsize=7)
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    target = target or run / "loss.png"
    with disk.file_whole(target) as partial:
        figure.savefig(partial, dpi=80)
    plt.close(figure)
    return target
