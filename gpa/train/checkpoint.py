"""Run folder: its recipe, and checkpoints written to a temporary name and renamed.

The two newest are kept, the highest step is restored. One process writes a file `step-N.pt`; under ZeRO every
process writes its shard into a folder `step-N`, which `gpa.train.zero` fills and reads.
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import yaml
from torch import nn

from gpa import config, hub
from gpa.errors import CheckpointError

if TYPE_CHECKING:
    from gpa.train.optim import Optimizer

KEEP = 2
FOLDER, BEST = "checkpoints", "best.pt"
# What a resumed run may change. More steps keep the past, though the learning rate then had another future.
# `world` and `accumulate` may change against each other: the checkpoint holds their product.
_FREE = "steps max_seconds save_every eval_every log_every threads workers world accumulate timeout"
FREE = {f"train.{name}" for name in (*_FREE.split(), "tensorboard", "best")} | {"validate.rows"}


class Stateful(Protocol):
    """What is stored beside weights and optimisers: averaged weights, a loss scale."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


def claim(run: Path, recipe: Any) -> None:
    """Write the resolved recipe (a dataclass) to run/recipe.yaml.

    CheckpointError naming the keys if the folder holds checkpoints of another recipe; `FREE` ones may differ.
    """
    path = run / "recipe.yaml"
    text = config.dump(recipe)
    if path.is_file() and (found(run) or found(run, shards=True)):
        saved, ours = _flat(yaml.safe_load(path.read_text(encoding="utf-8"))), _flat(yaml.safe_load(text))
        # A key that the saved recipe lacks is newer than it, and was then what its default is now.
        changed = sorted(k for k in saved.keys() | ours.keys() if k in saved and saved[k] != ours.get(k))
        changed = [key for key in changed if key not in FREE]
        if changed:
            was = ", ".join(f"{key} (was {saved[key]!r}, is {ours.get(key)!r})" for key in changed)
            raise CheckpointError(
                f"{run}: holds checkpoints of another recipe: {was}; give the old values or a new --run"
            )
    run.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by dotted key."""
    if not isinstance(tree, dict) or not tree:
        return {prefix.rstrip("."): tree}
    return {key: leaf for name, part in tree.items() for key, leaf in _flat(part, f"{prefix}{name}.").items()}


def found(run: Path, *, shards: bool = False) -> list[Path]:
    """Complete checkpoints, oldest first: files, or folders of shards."""
    paths = (run / "checkpoints").glob("step-*" if shards else "step-*.pt")
    named = (p for p in paths if p.name.removesuffix(".pt")[5:].isdigit())
    return sorted(p for p in named if p.is_dir() == shards)


def save(
    run: Path,
    step: int,
    module: nn.Module,
    optimizers: Mapping[str, Optimizer],
    parts: Mapping[str, Stateful] | None = None,
    batches: int = 1,
) -> Path:
    """Write one checkpoint atomically: a kill while writing leaves the previous one in place.

    `parts` are stored under their names, `batches` is the number of micro-batches in a step. Only the `KEEP`
    newest checkpoints stay.
    """
    path = run / "checkpoints" / f"step-{step:08d}.pt"
    optim = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
    state = {"step": step, "module": module.state_dict(), "optim": optim, "batches": batches}
    write(path, state | {name: part.state_dict() for name, part in (parts or {}).items()})
    for old in found(run)[:-KEEP]:
        old.unlink()
    return path


def save_best(run: Path, step: int, module: nn.Module, metric: str, value: float) -> Path:
    """Write checkpoints/best.pt: the weights alone, the step, and the metric they were best at."""
    path = run / FOLDER / BEST
    write(path, {"step": step, "module": module.state_dict(), "metric": {metric: value}})
    return path


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError):  # torch has a RuntimeError for a full disk
        partial.unlink(missing_ok=True)  # or it would keep the disk full
        raise
    os.replace(partial, path)


def publish(partial: Path, path: Path, run: Path) -> None:
    """Give a folder of shards, complete now, its name; older ones beyond `KEEP` go."""
    for file in sorted(p for p in partial.rglob("*") if p.is_file()):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    if path.exists():
        shutil.rmtree(path)
    os.replace(partial, path)
    for old in found(run, shards=True)[:-KEEP]:
        shutil.rmtree(old)


def restore(
    run: Path,
    module: nn.Module,
    optimizers: Mapping[str, Optimizer],
    parts: Mapping[str, Stateful] | None = None,
    batches: int = 1,
) -> int:
    """Load the newest checkpoint into module, optimisers and parts; returns its step, 0 for a fresh run.

    CheckpointError if it is damaged or does not fit.
    """
    paths = found(run)
    if not paths:
        return 0
    path, parts = paths[-1], parts or {}
    state = _read(path)
    check_batches(path, int(state.get("batches", 1)), batches)
    if set(state["optim"]) != set(optimizers):
        raise CheckpointError(
            f"{path}: holds optimisers {sorted(state['optim'])}, this recipe has {sorted(optimizers)}; "
            "use a new run folder"
        )
    missing = sorted(set(parts) - set(state))
    if missing:
        raise CheckpointError(
            f"{path}: lacks {', '.join(missing)}, which this recipe has; use a new run folder"
        )
    hub.load_strict(module, state["module"], where=str(path))
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(state["optim"][name])
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])


def check_batches(path: Path, was: int, now: int) -> None:
    """CheckpointError unless a step has as many micro-batches as before."""
    if was != now:
        raise CheckpointError(
            f"{path}: a step had {was} micro-batches (processes x train.accumulate), now it would have {now} "
            "and the data another order: choose processes and train.accumulate whose product is "
            f"{was}, or a new --run"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> CheckpointError:
    """What to say of a checkpoint that cannot be read."""
    reason = (str(error) or type(error).__name__).splitlines()[0][:160]
    return CheckpointError(f"{path}: damaged ({reason}); delete it to go on from the checkpoint before")
