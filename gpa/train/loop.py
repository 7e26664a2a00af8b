"""THE training loop: step, log, evaluate, save, resume. It knows no model family and no launcher.

A family gives modules, batches and losses, `Parallel` says how a step is shared. A step is
`world * accumulate` micro-batches; batch and randomness of each depend on (seed, its number) alone. So a
checkpoint is weights, optimiser state and a step number, a resumed run repeats an uninterrupted one bit for
bit, and several processes repeat what one does with as many micro-batches.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from gpa import disk
from gpa.errors import Stopped, TrainingError
from gpa.train import checkpoint, environment, launch, samples, signals, trackers
from gpa.train.families.base import to_device
from gpa.train.meter import SECONDS, Meter, told
from gpa.train.metrics import MetricsLog, mean
from gpa.train.optim import OptimArgs, learning_rate
from gpa.train.parallel import Parallel, autocast
from gpa.train.prefetch import Make, prefetch
from gpa.train.step_trace import traced

if TYPE_CHECKING:
    from gpa.train.arguments import TrainArgs
    from gpa.train.families.base import Family, Loss

log = logging.getLogger(__name__)
# What ranks tell each other: 0 is to go on, 1 that the time is up, more a signal; or a checkpoint failed.
_SIGNAL, _FAILED = 1, 128


def train(
    family: Family,
    args: TrainArgs,
    optim: OptimArgs,
    run: Path,
    *,
    progress: bool = True,
    parallel: Parallel | None = None,
    about: dict[str, Any] | None = None,
) -> nn.Module:
    """Train to `args.steps`, resuming from the newest checkpoint in `run` if there is one; export at the end.

    `about` are facts to keep with the run. TrainingError when a loss or gradient is not finite: nothing of
    that step is kept. Stopped by a signal (gpa.train.signals), after a checkpoint.
    """
    trackers.check(args.tracker)
    parallel = parallel or launch.start(args)
    module, start = _prepare(family, parallel, args, optim, run, about or {})
    first = parallel.rank == 0
    tracker = trackers.Tracker(args.tracker if first else "none", run, start)
    metrics = MetricsLog(run / "metrics.jsonl", start, active=first, tracker=tracker)
    story = _Story(parallel, args, optim, metrics)
    deadline = time.monotonic() + (args.max_seconds or math.inf)
    numbers = _numbers(parallel, args, range(start, args.steps))
    end = 0
    with (
        closing(tracker),
        signals.noted(log.warning) as asked,
        prefetch(family.batch, numbers, args.workers) as batch,
    ):
        steps = story.steps(start, progress and first)
        for step in traced(steps, run, args.profile if first else 0, parallel.device):
            rows, norms = one_step(family, module, parallel, args, optim, step, batch, story.meter)
            done, last = step + 1, step + 1 == args.steps
            rows = [story.meter.add(row) for row in rows]
            if last or done % args.log_every == 0:
                story.tell(done, rows, norms)
            if last or done % args.eval_every == 0:
                with parallel.whole() as whole:
                    # B023 warns of loop variables in functions that are called later; this one is at once.
                    parallel.on_rank_zero(lambda: _evaluate(family, whole, args, run, done, metrics))  # noqa: B023
            late = int(time.monotonic() > deadline)
            end = _FAILED if parallel.failed else _SIGNAL + asked.signum if asked.signum else late
            end = parallel.largest(end)
            if end < _FAILED and (last or end or done % args.save_every == 0):
                _save(family, parallel, run, done)
            if end:
                break
        parallel.settle()
    if end > _SIGNAL:
        raise Stopped(end - _SIGNAL, f"checkpoint saved at step {done} of {args.steps}")
    if end:
        log.warning("stopped at step %d after max_seconds=%g", done, args.max_seconds)
    with parallel.whole() as whole:
        parallel.on_rank_zero(lambda: _export(family, whole, run / "export"))
    return module


def _prepare(
    family: Family, parallel: Parallel, args: TrainArgs, optim: OptimArgs, run: Path, about: dict[str, Any]
) -> tuple[nn.Module, int]:
    """Module and process group as they were at the newest checkpoint, and its step."""
    torch.manual_seed(args.seed)
    module = family.build().to(parallel.device)
    launch.adapt(module, args, parallel.device)
    params = family.parameters(module)
    trained = sum(p.numel() for part in params.values() for p in part)
    total = sum(p.numel() for p in module.parameters())
    parallel.prepare(module, params, optim)
    launch.check(parallel, args)
    start = parallel.restore(run)
    if start and isinstance(family, checkpoint.Seekable):
        if position := parallel.on_rank_zero(lambda: checkpoint.position(run, start)):
            family.seek(position)
    names = ("world", "zero", "fsdp", "precision")
    facts = {name: getattr(parallel, name) for name in names}
    facts["device"] = torch.cuda.get_device_name() if parallel.device.type == "cuda" else str(parallel.device)
    parallel.on_rank_zero(lambda: environment.record(run, start, {**facts, **about}))
    log.info("%s parameters, %s of them trained; run folder %s", f"{total:,}", f"{trained:,}", run)
    kind = "FSDP2" if parallel.fsdp else f"ZeRO stage {parallel.zero}"
    shared = f", {parallel.world} processes, {kind}" if parallel.world > 1 else ""
    resumed = "resumed from a checkpoint" if start else "a fresh run"
    log.info("step %d to %d, %s%s", start, args.steps, resumed, shared)
    return module, start


def step_seed(seed: int, step: int) -> int:
    """Seed of torch's generator in one micro-batch: 32 bits of numpy's SeedSequence, the same on every
    platform.
    """
    return int(np.random.SeedSequence((seed, step)).generate_state(1)[0])


Row = dict[str, float]


def _numbers(parallel: Parallel, args: TrainArgs, steps: range) -> range:
    """Numbers of this rank's micro-batches in these steps."""
    size = parallel.world * args.accumulate
    return range(steps.start * size + parallel.rank, steps.stop * size, parallel.world)


def one_step(
    family: Family,
    module: nn.Module,
    parallel: Parallel,
    args: TrainArgs,
    optim: OptimArgs,
    step: int,
    batch: Make | None = None,
    meter: Meter | None = None,
) -> tuple[list[Row], Row]:
    """One step; returns the metrics of this rank's micro-batches and the gradient norms.

    Batches are made by `batch`, or by the family; `meter` is told where the step's time goes.
    """
    meter = meter or Meter(parallel.device)
    meter.begin()
    parallel.begin()
    rate = learning_rate(optim, step, args.steps)
    numbers = _numbers(parallel, args, range(step, step + 1))
    make = batch or family.batch
    streams = [_losses(family, make, module, parallel, args.seed, step, number, meter) for number in numbers]
    rows: list[Row] = [{} for _ in streams]
    norms: Row = {}
    while losses := _round(parallel, streams, meter):
        name = losses[0].optimizer
        norm, taken = parallel.step(name, rate)
        meter.lap("optimizer")
        for row, loss in zip(rows, losses, strict=True):
            row |= loss.metrics
            _check_finite(loss, norm, parallel.precision, step)
        if math.isfinite(norm):
            norms[f"grad_norm/{name}"] = norm
        if not taken:
            log.warning("step %d: gradient norm %.3g, %s not updated", step + 1, norm, name)
    parallel.end()
    meter.lap("optimizer")
    return rows, norms


def _losses(
    family: Family,
    make: Make,
    module: nn.Module,
    parallel: Parallel,
    seed: int,
    step: int,
    number: int,
    meter: Meter,
) -> Iterator[Loss]:
    """The losses of one micro-batch; its random numbers are its own, whatever is computed in between."""
    torch.manual_seed(step_seed(seed, number))  # dropout and dither repeat after a resume
    batch = to_device(make(number), parallel.device)
    meter.lap("data")
    for loss in family.losses(module, batch, step):
        state = _random(parallel.device)
        yield loss
        torch.set_rng_state(state[0])
        if len(state) > 1:
            torch.cuda.set_rng_state(state[1], parallel.device)


def _random(device: torch.device) -> list[Tensor]:
    cpu = [torch.get_rng_state()]
    return [*cpu, torch.cuda.get_rng_state(device)] if device.type == "cuda" else cpu


def _round(parallel: Parallel, streams: Sequence[Iterator[Loss]], meter: Meter) -> list[Loss]:
    """The next loss of every micro-batch, its gradient added; none when the step's losses are through."""
    losses: list[Loss] = []
    for n, stream in enumerate(streams, 1):
        loss = parallel.forward(lambda: next(stream, None))  # noqa: B023 (called at once)
        if loss is None:
            return []
        parallel.backward(loss, first=n == 1, last=n == len(streams))
        meter.lap("compute")
        losses.append(loss._replace(value=loss.value.detach()))
    return losses


def _check_finite(loss: Loss, norm: float, precision: str, step: int) -> None:
    if loss.value.isfinite() and (math.isfinite(norm) or precision == "fp16"):  # fp16 overflows now and then
        return
    parts = ", ".join(f"{name} {value:.4g}" for name, value in loss.metrics.items())
    raise TrainingError(
        f"step {step + 1}: the {loss.optimizer} loss is {loss.value.item():.4g}, its gradient "
        f"{norm:.4g} ({parts}); checkpoints are from before. Lower optim.lr or optim.clip, or raise "
        "optim.warmup, and start in a new run folder"
    )


class _Story:
    """What a run says while it goes on: a bar or lines on rank 0's console, and metrics.jsonl."""

    def __init__(self, parallel: Parallel, args: TrainArgs, optim: OptimArgs, metrics: MetricsLog) -> None:
        self.parallel, self.args, self.optim, self.metrics = parallel, args, optim, metrics
        self.meter, self.began = Meter(parallel.device, parallel.precision), time.monotonic()

    def steps(self, start: int, show: bool) -> Iterator[int]:
        """Step numbers from `start`, with a bar on a terminal."""
        hidden = not (show and sys.stderr.isatty())
        self.lines = show and hidden
        steps = range(start, self.args.steps)
        self.bar = tqdm(steps, initial=start, total=self.args.steps, disable=hidden, dynamic_ncols=True)
        yield from self.bar

    def tell(self, done: int, rows: list[Row], norms: Row) -> None:
        """One line, of the means over all micro-batches of this step."""
        ranks = self.parallel.gather((rows, self.meter.take()))
        if self.parallel.rank:
            return
        micros = zip(*(theirs for theirs, _ in ranks), strict=True)  # in the order of their numbers
        logged = {**mean(row for micro in micros for row in micro), **norms}
        logged |= self.meter.rates(counts for _, counts in ranks)
        rate = learning_rate(self.optim, done - 1, self.args.steps)
        seconds = self.metrics.seconds + time.monotonic() - self.began
        self.metrics.write(done, {**logged, "lr": rate, "seconds": seconds})
        shown = {n: f"{value:.3g}" for n, value in logged.items() if not n.startswith(SECONDS) and n != "mfu"}
        self.bar.set_postfix(dict(list(shown.items())[:4]))
        if self.lines:
            pairs = "  ".join(f"{name} {value}" for name, value in {**shown, "lr": f"{rate:.3g}"}.items())
            log.info("step %d/%d  %s  %s", done, self.args.steps, pairs, told(logged))


def _evaluate(
    family: Family, module: nn.Module | None, args: TrainArgs, run: Path, done: int, metrics: MetricsLog
) -> None:
    """Held-out metrics into the log, and the weights into best.pt if they are the best so far."""
    assert module is not None
    module.eval()
    device = next(module.parameters()).device
    before = metrics.least.get(args.best, math.inf)
    with torch.inference_mode(), autocast(args.precision, device), launch.uncompiled(args):
        values = {f"eval/{name}": value for name, value in family.evaluate(module).items()}
        metrics.write(done, values)
        if isinstance(family, samples.Audible):
            _make_samples(family, module, run, done, metrics)
    if not args.best:
        return
    if args.best not in values:
        known = ", ".join(sorted(values)) or "none"
        raise TrainingError(f"train.best={args.best}: this recipe's held-out metrics are {known}")
    if metrics.least[args.best] < before:
        checkpoint.save_best(run, done, module, args.best, values[args.best])


def _make_samples(
    family: samples.Audible, module: nn.Module, run: Path, done: int, metrics: MetricsLog
) -> None:
    """What the model sounds like into run folder and tracker; no run ends because that fails."""
    try:
        if said := family.sound_samples(module):
            metrics.tracker.media(done, samples.write(run, done, said))
    except Exception as error:  # noqa: BLE001 (of a codec, an encoder of sound or a disk)
        why = (str(error).splitlines() or [""])[0]
        log.warning("step %d: no samples, the run goes on: %s: %s", done, type(error).__name__, why)
        metrics.write(done, {"samples_failed": 1.0})


def _save(family: Family, parallel: Parallel, run: Path, done: int) -> None:
    parallel.save(run, done)
    if isinstance(family, checkpoint.Seekable) and (position := family.position()):
        parallel.on_rank_zero(lambda: checkpoint.save_position(run, done, position))


def _export(family: Family, module: nn.Module | None, path: Path) -> None:
    assert module is not None
    with disk.written_whole(path, overwrite=True) as folder:
        family.export(module.eval(), folder)
