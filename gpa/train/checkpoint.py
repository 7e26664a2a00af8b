"""Run folder: checkpoints written to a temporary name and renamed, the two newest kept, restored by the highest step."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from torch import nn

from gpa.errors import CheckpointError

KEEP = 2


def _found(run: Path) -> list[Path]:
    return sorted(p for p in (run / "checkpoints").glob("step-*.pt") if p.stem[5:].isdigit())


def save(run: Path, step: int, module: nn.Module, optimizers: dict[str, torch.optim.Optimizer]) -> Path:
    """Write one checkpoint atomically: a kill while writing leaves the previous one in place."""
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save({"step": step, "module": module.state_dict(), "optim": {k: o.state_dict() for k, o in optimizers.items()}}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    for old in _found(run)[:-KEEP]:
        old.unlink()
    return path


def restore(run: Path, module: nn.Module, optimizers: dict[str, torch.optim.Optimizer]) -> int:
    """Load the newest checkpoint into module and optimisers; returns its step, 0 for a fresh run."""
    found = _found(run)
    if not found:
        return 0
    state = torch.load(found[-1], map_location="cpu", weights_only=True)
    if set(state["optim"]) != set(optimizers):
        raise CheckpointError(f"{found[-1]}: holds optimisers {sorted(state['optim'])}, this recipe has {sorted(optimizers)}; use a new run folder")
    module.load_state_dict(state["module"], strict=True)
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(state["optim"][name])
    return int(state["step"])


def clear(run: Path) -> None:
    """Forget a run's checkpoints."""
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
