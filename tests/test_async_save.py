"""Checkpoints that a thread writes beside the steps: whole after kill -9, errors told."""

import os
import random
import resource
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gpa.errors import DiskError, TrainingError, UsageError
from gpa.train import checkpoint, metrics
from gpa.train.arguments import TrainArgs
from gpa.train.families.base import Loss
from gpa.train.loop import train
from gpa.train.optim import OptimArgs
from gpa.train.parallel import Single

KILLS = 12


class Regression:
    """A matrix that learns to add its inputs up; from `breaks` on its loss is no number."""

    def __init__(self, width: int = 8, breaks: int = 10**9) -> None:
        self.width, self.breaks = width, breaks

    def build(self) -> nn.Module:
        return nn.Linear(self.width, self.width)

    def parameters(self, module: nn.Module) -> dict[str, list[nn.Parameter]]:
        return {"model": list(module.parameters())}

    def batch(self, step: int) -> torch.Tensor:
        return torch.randn(4, self.width, generator=torch.Generator().manual_seed(step))

    def losses(self, module: nn.Module, batch: torch.Tensor, step: int) -> Iterator[Loss]:
        value = (module(batch) - batch.sum(1, keepdim=True)).square().mean()
        yield Loss(
            "model", value * (float("nan") if step >= self.breaks else 1), {"fit": float(value.detach())}
        )

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        return {}

    def export(self, module: nn.Module, path: Path) -> None:
        torch.save(module.state_dict(), path / "weights.pt")


def go(run: Path, family: Regression | None = None, **args: Any) -> None:
    every = {"steps": 6, "save_every": 1, "eval_every": 6, "log_every": 1, "ema": 0.5}
    train(family or Regression(), TrainArgs(**every | args), OptimArgs(warmup=1), run, progress=False)


def started(run: Path) -> tuple[Single, nn.Module, int]:
    """A process that saves asynchronously, as it goes on from the newest checkpoint."""
    parallel, module = Single(TrainArgs(async_save=True), torch.device("cpu")), nn.Linear(400, 400)
    parallel.prepare(module, {"model": list(module.parameters())}, OptimArgs())
    return parallel, module, parallel.restore(run)


def saves_until_killed(run: Path) -> None:
    """Every weight is the number of its step, and changes as soon as `save` is back."""
    parallel, module, step = started(run)
    while True:
        step += 1
        with torch.no_grad():
            for p in module.parameters():
                p.fill_(step)
        parallel.save(run, step)


def test_a_kill_at_any_moment_leaves_the_last_whole_checkpoint(tmp_path: Path) -> None:
    draw, seen, folder = random.Random(os.getpid()), 0, tmp_path / checkpoint.FOLDER
    for _ in range(KILLS):
        child = os.fork()
        if not child:
            saves_until_killed(tmp_path)
        try:
            end = time.monotonic() + 60
            while len(checkpoint.found(tmp_path)) < 2 and time.monotonic() < end:
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.1))
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        there = checkpoint.found(tmp_path)
        parallel, module, step = started(tmp_path)
        assert step == int(there[-1].stem[5:]) >= max(seen, 2) and not list(folder.glob("*.damaged"))
        assert all(bool((p == step).all()) for p in module.parameters()), "weights of another step"
        assert len(there) <= checkpoint.KEEP + 1 and sorted(folder.iterdir()) == there  # nothing half written
        seen = step


def test_checkpoints_are_those_of_a_run_that_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, though steps go on while they are written; the end waits for the last."""
    monkeypatch.setattr(checkpoint, "KEEP", 99)
    go(tmp_path / "waits")
    go(tmp_path / "goes-on", async_save=True)
    ours, theirs = checkpoint.found(tmp_path / "goes-on"), checkpoint.found(tmp_path / "waits")
    assert [p.name for p in ours] == [p.name for p in theirs] and len(ours) == 6
    for one, other in zip(ours, theirs, strict=True):
        a, b = (torch.load(path, weights_only=True) for path in (one, other))
        kept = [(x["step"], x["module"], x["optim"]["model"]["state"], x["ema"]) for x in (a, b)]
        torch.testing.assert_close(*kept, rtol=0, atol=0)


def test_steps_go_on_while_a_disk_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next save waits for the one before, and the end for the last."""
    write, disk_goes_on = checkpoint.write, threading.Event()

    def slow(path: Path, state: dict[str, Any]) -> None:
        assert disk_goes_on.wait(60)
        write(path, state)

    monkeypatch.setattr(checkpoint, "write", slow)
    parallel, module, _ = started(tmp_path)
    torch.nn.init.constant_(module.weight, 1)
    parallel.save(tmp_path, 1)
    assert not checkpoint.found(tmp_path)
    torch.nn.init.constant_(module.weight, 2)  # not what is being written
    disk_goes_on.set()
    parallel.save(tmp_path, 2)
    assert checkpoint.found(tmp_path)[0].stem == "step-00000001"
    parallel.close()
    kept = [torch.load(path, weights_only=True)["module"]["weight"] for path in checkpoint.found(tmp_path)]
    assert [tensor.unique().tolist() for tensor in kept] == [[1], [2]]


def test_a_full_disk_ends_the_run_at_the_next_step(tmp_path: Path) -> None:
    go(tmp_path, Regression(400), steps=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (300_000, limits[1])
    )  # no file may grow beyond, as on a full disk
    try:
        with pytest.raises(DiskError, match="step-0000000.*ulimit -f"):
            go(tmp_path, Regression(400), async_save=True, steps=2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.stem for p in checkpoint.found(tmp_path)] == ["step-00000001"]
    assert metrics.read(tmp_path / "metrics.jsonl")[-1]["step"] < 2000


def test_a_run_that_ends_by_another_error_keeps_what_was_being_written(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="step 4: the model loss is nan"):
        go(tmp_path, Regression(400, breaks=3), async_save=True)
    end = time.monotonic() + 60
    while checkpoint.found(tmp_path)[-1].stem != "step-00000003" and time.monotonic() < end:
        time.sleep(0.01)
    assert checkpoint.newest(tmp_path) == checkpoint.found(tmp_path)[-1]


def test_deepspeed_writes_for_itself() -> None:
    with pytest.raises(UsageError, match="async_save with train.zero=2: .*train.fsdp=true"):
        TrainArgs(async_save=True, zero=2)
