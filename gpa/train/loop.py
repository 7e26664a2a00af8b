"""THE training loop: step, log, evaluate, save, resume. It knows no model family.

A family gives modules, batches and losses. Batch and randomness of step N depend on (seed, N) alone, so a
checkpoint is weights, optimiser state and a step number, and a resumed run repeats an uninterrupted one bit
for bit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from gpa.errors import TrainingError, UsageError
from gpa.train import checkpoint
from gpa.train.metrics import MetricsLog
from gpa.train.optim import OptimArgs, learning_rate, make_optimizer

log = logging.getLogger(__name__)


class Loss(NamedTuple):
    """One optimiser step's worth: which optimiser, what to minimise, what to log."""

    optimizer: str
    value: Tensor
    metrics: dict[str, float]


class Family(Protocol):
    """What the loop needs of a model family."""

    def build(self) -> nn.Module:
        """The module that is trained, initialised from the seed."""
        ...

    def parameters(self, module: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by optimiser name, e.g. generator and discriminator."""
        ...

    def batch(self, step: int) -> Any:
        """Batch number `step`: a pure function of the seed and the step."""
        ...

    def losses(self, module: nn.Module, batch: Any, step: int) -> Iterator[Loss]:
        """Losses in the order in which their optimisers step."""
        ...

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Held-out metrics."""
        ...

    def export(self, module: nn.Module, path: Path) -> None:
        """Write what inference loads."""
        ...


@dataclass(frozen=True)
class TrainArgs:
    """How long, how often (in steps), on how many threads."""

    steps: int = 1000
    save_every: int = 200
    eval_every: int = 200
    log_every: int = 10
    seed: int = 0
    threads: int = 0  # 0: torch's choice
    max_seconds: float = 0.0  # stop early (after a checkpoint); 0: never

    def __post_init__(self) -> None:
        for name in ("steps", "save_every", "eval_every", "log_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"train.{name}={getattr(self, name)}: at least 1")
        if self.seed < 0:
            raise UsageError(f"train.seed={self.seed}: at least 0")


def train(
    family: Family, args: TrainArgs, optim: OptimArgs, run: Path, *, progress: bool = True
) -> nn.Module:
    """Train to `args.steps`, resuming from the newest checkpoint in `run` if there is one; export at the end.

    TrainingError when a loss or gradient is not finite: nothing of that step is kept.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    module = family.build()
    optimizers = {name: make_optimizer(params, optim) for name, params in family.parameters(module).items()}
    start = checkpoint.restore(run, module, optimizers)
    _announce(module, optimizers, args, run, start)
    metrics = MetricsLog(run / "metrics.jsonl", start)
    began = time.monotonic()
    steps = range(start, args.steps)
    bar = tqdm(steps, initial=start, total=args.steps, disable=not progress, dynamic_ncols=True)
    for step in bar:
        logged = _step(family, module, optimizers, args, optim, step)
        done = step + 1
        if done % args.log_every == 0 or done == args.steps:
            rate, seconds = learning_rate(optim, step, args.steps), metrics.seconds + time.monotonic() - began
            metrics.write(done, {**logged, "lr": rate, "seconds": seconds})
            bar.set_postfix({k: f"{v:.3g}" for k, v in list(logged.items())[:4]})
        if done % args.eval_every == 0 or done == args.steps:
            metrics.write(done, {f"eval/{k}": v for k, v in _evaluate(family, module).items()})
        late = args.max_seconds and time.monotonic() - began > args.max_seconds
        if done % args.save_every == 0 or done == args.steps or late:
            checkpoint.save(run, done, module, optimizers)
        if late:
            log.warning("stopped at step %d after max_seconds=%g", done, args.max_seconds)
            break
    family.export(module.eval(), run / "export")
    return module


Optimizers = dict[str, torch.optim.Optimizer]


def _announce(module: nn.Module, optimizers: Optimizers, args: TrainArgs, run: Path, start: int) -> None:
    trained = sum(p.numel() for o in optimizers.values() for group in o.param_groups for p in group["params"])
    total = sum(p.numel() for p in module.parameters())
    log.info("%s parameters, %s of them trained; run folder %s", f"{total:,}", f"{trained:,}", run)
    log.info("step %d to %d, %s", start, args.steps, "resumed from a checkpoint" if start else "a fresh run")


def step_seed(seed: int, step: int) -> int:
    """Seed of torch's generator in one step: 32 bits of numpy's SeedSequence, the same on every platform."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1)[0])


def _step(
    family: Family, module: nn.Module, optimizers: Optimizers, args: TrainArgs, optim: OptimArgs, step: int
) -> dict[str, float]:
    torch.manual_seed(step_seed(args.seed, step))  # dropout and dither repeat after a resume
    module.train()
    logged: dict[str, float] = {}
    rate = learning_rate(optim, step, args.steps)
    for loss in family.losses(module, family.batch(step), step):
        optimizer = optimizers[loss.optimizer]
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss.value.backward()
        params = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(params, optim.clip)
        _check_finite(loss, norm, step)
        taken = not optim.skip_above or norm <= optim.skip_above
        if taken:
            optimizer.step()
        else:
            log.warning("step %d: gradient norm %.3g, %s not updated", step + 1, norm, loss.optimizer)
        logged |= {**loss.metrics, f"grad_norm/{loss.optimizer}": float(norm)}
    return logged


def _check_finite(loss: Loss, norm: Tensor, step: int) -> None:
    if loss.value.isfinite() and norm.isfinite():
        return
    parts = ", ".join(f"{name} {value:.4g}" for name, value in loss.metrics.items())
    raise TrainingError(
        f"step {step + 1}: the {loss.optimizer} loss is {loss.value.item():.4g}, its gradient "
        f"{norm.item():.4g} ({parts}); checkpoints are from before. Lower optim.lr or optim.clip, or raise "
        "optim.warmup, and start in a new run folder"
    )


def _evaluate(family: Family, module: nn.Module) -> dict[str, float]:
    module.eval()
    with torch.inference_mode():
        return family.evaluate(module)
