"""What a run folder says about itself: recipe.yaml, environment.json, metrics.jsonl.

The recipe must be there; an old run without the other two has "not recorded" in their place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpa import config
from gpa.errors import UsageError
from gpa.lab.card.tables import ABSENT, cell, fence, hours, read_text, sha256, table

START_KEYS = ("init", "codec", "data.tokens", "data.cache")  # of a recipe: what a run goes on from


@dataclass(frozen=True)
class Run:
    """A training run. `recipe` is resolved, `text` the file as it is; `starts` has one entry a start."""

    path: str  # as it was given
    recipe: Mapping[str, Any]
    text: str
    recipe_sha256: str
    starts: Sequence[Mapping[str, Any]]
    metrics: Sequence[Mapping[str, float]]

    @property
    def name(self) -> str:
        """Name of the folder."""
        return Path(self.path).name

    @property
    def steps(self) -> int | None:
        """The last step that was logged."""
        return max((int(row["step"]) for row in self.metrics), default=None)

    @property
    def seconds(self) -> float | None:
        """Time of training, all starts together."""
        return max((row["seconds"] for row in self.metrics if "seconds" in row), default=None)

    @property
    def held_out(self) -> dict[str, float]:
        """The last value of every held-out metric."""
        return {
            k.removeprefix("eval/"): v
            for row in self.metrics
            for k, v in row.items()
            if k.startswith("eval/")
        }

    def key(self, dotted: str) -> Any:
        """A value of the recipe, "" where it is not there."""
        node: Any = self.recipe
        for name in dotted.split("."):
            node = node.get(name, "") if isinstance(node, Mapping) else ""
        return node

    def last(self, name: str) -> Any:
        """What the last start recorded under a name; None where nothing was."""
        return self.starts[-1].get(name) or None if self.starts else None


def read_run(path: Path) -> Run:
    """Read a run folder; UsageError where it has no recipe, or a file of it is damaged."""
    recipe = path / "recipe.yaml"
    if not recipe.is_file():
        raise UsageError(f"{recipe}: no such file; give the folder of a training run")
    text = read_text(recipe, "a recipe")
    starts = _lines(path / "environment.json", whole=True)
    metrics = _lines(path / "metrics.jsonl", whole=False)
    return Run(path.as_posix(), config.load_yaml(recipe), text, sha256(recipe), starts, metrics)


def _lines(path: Path, whole: bool) -> list[dict[str, Any]]:
    """Objects of a JSON list (`whole`) or of JSON lines, the last of which may be cut; none if no file."""
    if not path.is_file():
        return []
    text = read_text(path, "a file of a run")
    lines = [] if whole else [line for line in text.splitlines() if line.endswith("}")]
    try:
        found = json.loads(text) if whole else [json.loads(line) for line in lines]
    except ValueError as error:
        raise UsageError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise UsageError(f"{path}: a list of objects was expected")
    return found


# Markdown ---------------------------------------------------------------------------------------------------


def overview(runs: Sequence[Run], watts: float | None) -> str:
    """What was trained from what, for how long, and the estimate of energy."""
    head = (
        "run",
        "trains",
        "goes on from",
        "steps",
        "seed",
        "precision",
        "threads",
        "device",
        "hours",
        "energy",
    )
    listed = {run.path for run in runs}
    rows = [[*_what(run, listed), _hours(run.seconds), _energy(run.seconds, watts)] for run in runs]
    known = [run.seconds for run in runs if run.seconds is not None]
    total = sum(known)
    lines = [table(head, rows), "", f"Together {hours(total)} hours"]
    lines[-1] += " of steps that were kept"
    lines[-1] += "" if len(known) == len(runs) else f", in the {len(known)} runs that recorded them"
    if watts is None:
        lines[-1] += "; energy: not measured."
    else:
        lines[-1] += (
            f". Energy is no measurement: a stated mean draw of {watts:g} W times the time of training."
        )
    return "\n".join(lines)


def _what(run: Run, listed: set[str]) -> list[object]:
    device = run.last("device") or ABSENT
    world = run.last("world")
    return [
        f"`{run.name}`",
        run.recipe.get("kind", ABSENT),
        _parents(run, listed),
        _steps(run),
        _or_absent(run.key("train.seed")),
        _or_absent(run.key("train.precision")),
        run.key("train.threads") or "all",
        f"{device}, {world} processes" if isinstance(world, int) and world > 1 else device,
    ]


def _or_absent(value: Any) -> Any:
    return ABSENT if value in ("", None) else value


def _parents(run: Run, listed: set[str]) -> str:
    """Inputs that the recipe names; an export whose run was not given says so."""
    found = []
    for key in START_KEYS:
        if value := str(run.key(key) or ""):
            owner = Path(value).parent.as_posix()
            given = not value.endswith("/export") or any(f"/{path}".endswith(f"/{owner}") for path in listed)
            found.append(f"`{value}`" + ("" if given else " (its run is not listed)"))
    return ", ".join(found) or "nothing"


def _steps(run: Run) -> str:
    planned = run.key("train.steps")
    if run.steps is None:
        return f"{ABSENT}, {planned} planned"
    return str(run.steps) if run.steps == planned else f"{run.steps} of {planned}"


def _hours(seconds: float | None) -> str:
    return ABSENT if seconds is None else hours(seconds)


def _energy(seconds: float | None, watts: float | None) -> str:
    if seconds is None or watts is None:
        return "not measured"
    return f"about {watts * seconds / 3600:.0f} Wh"


def details(runs: Sequence[Run]) -> str:
    """By which command, code and machine, and what the held-out metrics were at the end."""
    rows = []
    for run in runs:
        versions = ", ".join(f"{name} {value}" for name, value in (run.last("versions") or {}).items())
        machine = [run.last("platform"), run.last("python") and f"Python {run.last('python')}"]
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in run.held_out.items())
        rows.append([
            f"`gpa train {run.path}/recipe.yaml --run {run.path}`",
            run.last("commit") or ABSENT,
            versions or ABSENT,
            ", ".join(str(part) for part in machine if part) or ABSENT,
            len(run.starts) or ABSENT,
            metrics or ABSENT,
        ])  # fmt: skip
    return table(("command", "commit", "versions", "machine", "starts", "held out, at the end"), rows)


def inputs(runs: Sequence[Run]) -> str:
    """What every run read, with the hashes that it recorded."""
    rows = []
    for run in runs:
        section = run.recipe.get("data")
        named = section if isinstance(section, Mapping) else {}
        hashes = run.last("data") or {}
        texts = {key: value for key, value in named.items() if isinstance(value, str) and value}
        splits = {key: value for key, value in named.items() if isinstance(value, list)}
        rows.append([
            f"`{run.name}`",
            ", ".join(f"{key} `{value}`" for key, value in texts.items()) or "-",
            "; ".join(f"{key}: {', '.join(str(v) for v in value)}" for key, value in splits.items()) or "-",
            ", ".join(f"{key} `{value}`" for key, value in hashes.items()) or ABSENT,
        ])  # fmt: skip
    return table(("run", "reads", "splits", "SHA-256, large files by their ends"), rows)


def recipes(runs: Sequence[Run]) -> str:
    """Every recipe as it was run, folded away."""
    shown = []
    for run in runs:
        title = f"{cell(run.name)}: recipe.yaml, SHA-256 {run.recipe_sha256}"
        shown.append(f"<details><summary>{title}</summary>\n\n{fence(run.text, 'yaml')}\n\n</details>")
    return "\n\n".join(shown)
