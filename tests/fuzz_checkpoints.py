"""Damaged run folders: a run resumes as from undamaged ones, from the checkpoint before, or not at all."""

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gpa.errors import CheckpointError
from gpa.train import checkpoint, metrics
from gpa.train.arguments import TrainArgs
from gpa.train.optim import OptimArgs
from gpa.train.parallel import Single

OLD, NEW = 3, 7  # steps that have a checkpoint
NAMES = ("checkpoints/step-00000003.pt", "checkpoints/step-00000007.pt", "recipe.yaml", "metrics.jsonl")


def started() -> Single:
    """A process with a small module and its optimiser."""
    torch.manual_seed(0)
    parallel = Single(TrainArgs(), torch.device("cpu"))
    module = nn.Linear(8, 8)
    parallel.prepare(module, {"model": list(module.parameters())}, OptimArgs())
    return parallel


@functools.cache
def made() -> Path:
    """A run with two checkpoints, each of its own weights."""
    run = Path(tempfile.mkdtemp(prefix="gpa-fuzz-"))
    atexit.register(shutil.rmtree, run)
    log, parallel = metrics.MetricsLog(run / "metrics.jsonl", 0), started()
    checkpoint.claim(run, OptimArgs(lr=0.01))
    for step in range(1, NEW + 1):
        log.write(step, {"loss": 1 / step, "seconds": float(step)})
        if step in (OLD, NEW):
            nn.init.constant_(parallel.module.weight, step)  # type: ignore[arg-type]
            parallel.save(run, step)
    return run


def flip(random: np.random.Generator, run: Path) -> None:
    path = run / str(random.choice(NAMES))
    content = np.fromfile(path, np.uint8)
    for _ in range(random.integers(1, 4)):
        content[random.integers(len(content))] ^= 1 << random.integers(8)
    content.tofile(path)


def cut(random: np.random.Generator, run: Path) -> None:
    path = run / str(random.choice(NAMES))
    content = path.read_bytes()
    path.write_bytes(content[: random.integers(len(content))])


def grow(random: np.random.Generator, run: Path) -> None:
    with (run / str(random.choice(NAMES))).open("ab") as file:
        file.write(random.bytes(random.integers(1, 200)))


def delete(random: np.random.Generator, run: Path) -> None:
    (run / str(random.choice(NAMES))).unlink()


def swap(random: np.random.Generator, run: Path) -> None:
    one, other = (run / str(name) for name in random.choice(NAMES, 2, replace=False))
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def leave(random: np.random.Generator, run: Path) -> None:
    """What a killed run may leave beside its files."""
    (run / "checkpoints" / ".step-00000009.0.tmp.pt").write_bytes(random.bytes(100))
    (run / "checkpoints" / "step-00000009.partial").mkdir()


DAMAGES: list[Callable[[np.random.Generator, Path], None]] = [flip, flip, cut, grow, delete, swap, leave]


def trial(random: np.random.Generator, folder: Path) -> bool:
    """One damage, or two; resumed with the learning rate of the run, or another, which is never taken."""
    run = folder / "run"
    shutil.copytree(made(), run)
    for _ in range(1 + (random.random() < 0.2)):
        try:
            DAMAGES[random.integers(len(DAMAGES))](random, run)
        except (OSError, ValueError, IndexError):  # the file is gone, or empty, by the first
            pass
    there = bool(checkpoint.found(run))
    other = random.random() < 0.2 and there
    try:
        checkpoint.claim(run, OptimArgs(lr=0.5 if other else 0.01))
        assert not other, "another learning rate was taken"
        parallel = started()
        step = parallel.restore(run)
        rows = metrics.MetricsLog(run / "metrics.jsonl", step)
    except CheckpointError:
        return False
    assert step in ((OLD, NEW) if there else (0,)), step
    weight = parallel.module.weight
    assert step == 0 or bool((weight == step).all()), "weights of another step"
    assert rows.least.get("step", 0) <= max(step, 1)
    return True
