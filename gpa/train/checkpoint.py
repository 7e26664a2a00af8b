"""Run folder: its recipe, and checkpoints written to a temporary name and renamed.

The two newest are kept, the highest step is restored.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from gpa import config, hub
from gpa.errors import CheckpointError

KEEP = 2
# What a resumed run may change. More steps keep the past, though the learning rate then had another future.
FREE = {
    f"train.{name}" for name in ("steps", "max_seconds", "save_every", "eval_every", "log_every", "threads")
}


def claim(run: Path, recipe: Any) -> None:
    """Write the resolved recipe (a dataclass) to run/recipe.yaml.

    CheckpointError naming the keys if the folder holds checkpoints of another recipe; `FREE` ones may differ.
    """
    path = run / "recipe.yaml"
    text = config.dump(recipe)
    if path.is_file() and _found(run):
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


def _found(run: Path) -> list[Path]:
    return sorted(p for p in (run / "checkpoints").glob("step-*.pt") if p.stem[5:].isdigit())


def save(run: Path, step: int, module: nn.Module, optimizers: dict[str, torch.optim.Optimizer]) -> Path:
    """Write one checkpoint atomically: a kill while writing leaves the previous one in place.

    Only the `KEEP` newest stay.
    """
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    partial = path.with_suffix(".partial")
    optim = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
    with partial.open("wb") as file:
        torch.save({"step": step, "module": module.state_dict(), "optim": optim}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    for old in _found(run)[:-KEEP]:
        old.unlink()
    return path


def restore(run: Path, module: nn.Module, optimizers: dict[str, torch.optim.Optimizer]) -> int:
    """Load the newest checkpoint into module and optimisers; returns its step, 0 for a fresh run.

    CheckpointError if it is damaged or does not fit.
    """
    found = _found(run)
    if not found:
        return 0
    state = _read(found[-1])
    if set(state["optim"]) != set(optimizers):
        raise CheckpointError(
            f"{found[-1]}: holds optimisers {sorted(state['optim'])}, this recipe has {sorted(optimizers)}; "
            "use a new run folder"
        )
    hub.load_strict(module, state["module"], where=str(found[-1]))
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(state["optim"][name])
    return int(state["step"])


def _read(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise CheckpointError(
            f"{path}: damaged ({reason}); delete it to go on from the checkpoint before"
        ) from error
