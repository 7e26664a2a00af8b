"""metrics.jsonl (one object per line, rewound on resume) and its plot."""

from __future__ import annotations

import json
from pathlib import Path


class MetricsLog:
    """Append-only JSONL; on resume, lines beyond the restored step are dropped so that the file tells one story."""

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read(path) if row["step"] <= start] if path.exists() else []
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One line; empty metrics write nothing."""
        if metrics:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **{k: round(float(v), 6) for k, v in metrics.items()}}) + "\n")


def read(path: Path) -> list[dict[str, float]]:
    """All complete lines; a line cut by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines():
        if line.endswith("}"):
            rows.append(json.loads(line))
    return rows


def plot(run: Path) -> Path:
    """Every metric against the step, one panel each, training and held-out together -> run/loss.png."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read(run / "metrics.jsonl")
    names = sorted({k.removeprefix("eval/") for row in rows for k in row} - {"step", "seconds"})
    columns = 4
    lines = max(1, -(-len(names) // columns))
    figure, axes = plt.subplots(lines, columns, figsize=(4 * columns, 2.6 * lines), squeeze=False, layout="constrained")
    for axis, name in zip(axes.flat, names, strict=False):
        for key, style in ((name, "-"), (f"eval/{name}", "o-")):
            points = [(row["step"], row[key]) for row in rows if key in row]
            if points:
                axis.plot(*zip(*points, strict=True), style, markersize=3, linewidth=1, label="held out" if "eval" in key else "train")
        axis.set_title(name, fontsize=9)
        axis.legend(fontsize=7)
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    target = run / "loss.png"
    figure.savefig(target, dpi=80)
    plt.close(figure)
    return target
