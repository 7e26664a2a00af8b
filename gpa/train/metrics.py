"""metrics.jsonl (one object per line, rewound on resume) and its plot."""

from __future__ import annotations

import json
from pathlib import Path


class MetricsLog:
    """Append-only JSONL; on resume, lines beyond the restored step are dropped so that the file tells one
    story.

    `seconds` is the training time of the lines kept, from which a resumed run counts on.
    """

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read(path) if row["step"] <= start] if path.exists() else []
        self.seconds = max((row["seconds"] for row in kept if "seconds" in row), default=0.0)
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        partial.replace(path)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One line; empty metrics write nothing."""
        if metrics:
            row = {"step": step, **{name: round(float(value), 6) for name, value in metrics.items()}}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def read(path: Path) -> list[dict[str, float]]:
    """All complete lines; a line cut by a kill is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def plot(run: Path) -> Path:
    """Every metric against the step, one panel each, training and held-out together -> run/loss.png."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read(run / "metrics.jsonl")
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
    target = run / "loss.png"
    figure.savefig(target, dpi=80)
    plt.close(figure)
    return target
