"""How a step is taken: by one process (`Single`) or by several (`Ranks`; in shards, gpa.train.sharded).

The loop knows the surface of `Parallel` and no family. Ranks do not wrap the module: families call its parts,
which torch's DDP does not see, so gradients are averaged after the last micro-batch instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import torch
from torch import nn

from gpa.train import checkpoint, collectives
from gpa.train.arguments import PRECISIONS, TrainArgs
from gpa.train.collectives import Watch, lost_rank
from gpa.train.ema import Average
from gpa.train.optim import OptimArgs, Optimizer, make_optimizer

if TYPE_CHECKING:
    from gpa.train.families.base import Loss

T = TypeVar("T")
Parameters = Mapping[str, Sequence[nn.Parameter]]


class Update(NamedTuple):
    """Gradient norm before clipping, and whether the optimiser then stepped."""

    norm: float
    taken: bool


class Parallel(Protocol):
    """One process's part in a run: `rank` of `world`, what it computes on, and the verbs of a step."""

    rank: int
    world: int
    device: torch.device

    @property
    def zero(self) -> int:
        """The ZeRO stage that runs, 0 for none."""
        ...

    @property
    def fsdp(self) -> bool:
        """Whether FSDP2 runs."""
        ...

    @property
    def precision(self) -> str:
        """The precision that runs."""
        ...

    def prepare(self, module: nn.Module, params: Parameters, optim: OptimArgs) -> None:
        """Take the module over; `params` are what each optimiser trains."""
        ...

    def begin(self) -> None:
        """Start a step: the module is in training mode."""
        ...

    def forward(self, compute: Callable[[], Loss | None]) -> Loss | None:
        """Compute a loss in the run's precision."""
        ...

    def backward(self, loss: Loss, *, first: bool, last: bool) -> None:
        """Add a micro-batch's gradient; `first` and `last` are those of an optimiser's step."""
        ...

    def step(self, name: str, rate: float) -> Update:
        """Clip what all ranks have added and step; a norm that is no number or too large steps nothing."""
        ...

    def end(self) -> None:
        """End a step, after its last optimiser."""
        ...

    def save(self, run: Path, step: int) -> None:
        """Write a checkpoint, whole or not at all; with train.async_save beside the steps that follow."""
        ...

    @property
    def failed(self) -> bool:
        """Whether a checkpoint written beside the steps has failed here."""
        ...

    def settle(self) -> None:
        """Wait for what is written beside the steps; its error ends all ranks."""
        ...

    def restore(self, run: Path) -> int:
        """Load the newest checkpoint; returns its step, 0 for a fresh run."""
        ...

    def whole(self) -> AbstractContextManager[nn.Module | None]:
        """The module to evaluate and export on rank 0, with averaged weights if there are; None elsewhere."""
        ...

    def on_rank_zero(self, act: Callable[[], T]) -> T:
        """What rank 0 gets from `act`, on all ranks; its errors end all of them."""
        ...

    def gather(self, item: T) -> list[T]:
        """The item of every rank, on all ranks."""
        ...

    def largest(self, number: int) -> int:
        """The largest number of all ranks, on all ranks."""
        ...

    def close(self) -> None:
        """Wait for what is being written, and leave the group of processes, if it was joined for this run."""
        ...


class Single:
    """One process, one device."""

    rank, world, zero, fsdp = 0, 1, 0, False

    def __init__(self, args: TrainArgs, device: torch.device) -> None:
        self.args, self.device, self.precision = args, device, args.precision
        self.scaler = torch.amp.GradScaler(device.type, enabled=args.precision == "fp16")
        self.average: Average | None = None
        self.optimizers: dict[str, Optimizer] = {}
        self.writer = checkpoint.Writer()

    def prepare(self, module: nn.Module, params: Parameters, optim: OptimArgs) -> None:
        self.module, self.optim = module, optim
        self.optimizers = {name: make_optimizer(part, module, optim) for name, part in params.items()}
        if self.args.ema:
            self.average = Average([p for part in params.values() for p in part], self.args.ema)

    def begin(self) -> None:
        self.module.train()

    def forward(self, compute: Callable[[], Loss | None]) -> Loss | None:
        with autocast(self.precision, self.device):
            return compute()

    def backward(self, loss: Loss, *, first: bool, last: bool) -> None:
        if first:
            self.optimizers[loss.optimizer].zero_grad(set_to_none=True)
        value = loss.value / self.args.accumulate if self.args.accumulate > 1 else loss.value
        self.scaler.scale(value).backward()

    def step(self, name: str, rate: float) -> Update:
        optimizer: Any = self.optimizers[name]
        for group in optimizer.param_groups:
            group["lr"] = rate
        params = [p for group in optimizer.param_groups for p in group["params"]]
        self._share(params)
        self.scaler.unscale_(optimizer)
        norm = float(nn.utils.clip_grad_norm_(params, self.optim.clip))
        limit = self.optim.skip_above or float("inf")
        taken = norm < float("inf") and norm <= limit
        if taken:
            self.scaler.step(optimizer)
        self.scaler.update()
        return Update(norm, taken)

    def _share(self, params: list[nn.Parameter]) -> None:
        """Make the gradients those of all ranks."""

    def end(self) -> None:
        if self.average:
            self.average.update()

    @property
    def batches(self) -> int:
        """Micro-batches in a step."""
        return self.world * self.args.accumulate

    def _parts(self) -> dict[str, checkpoint.Stateful]:
        parts: dict[str, checkpoint.Stateful] = {"ema": self.average} if self.average else {}
        return {**parts, "scaler": self.scaler} if self.scaler.is_enabled() else parts

    def _state(self) -> dict[str, Any]:
        return checkpoint.state_of(self.module, self.optimizers, self._parts(), self.batches)

    def save(self, run: Path, step: int) -> None:
        self.settle()
        if not self.args.async_save:
            self.on_rank_zero(lambda: checkpoint.save(run, step, self._state()))
        elif self.rank == 0:
            self.writer.start(partial(checkpoint.save, run, step, checkpoint.copied(self._state())))

    @property
    def failed(self) -> bool:
        return self.writer.failed

    def settle(self) -> None:
        if self.args.async_save:
            self.on_rank_zero(self.writer.wait)

    def restore(self, run: Path) -> int:
        path = self.on_rank_zero(lambda: checkpoint.newest(run))
        if path is None:
            return 0
        return checkpoint.restore(path, self.module, self.optimizers, self._parts(), self.batches)

    @contextmanager
    def whole(self) -> Iterator[nn.Module | None]:
        with self.average.in_place() if self.average else nullcontext():
            yield self.module if self.rank == 0 else None

    def on_rank_zero(self, act: Callable[[], T]) -> T:
        return act()

    def gather(self, item: T) -> list[T]:
        return [item]

    def largest(self, number: int) -> int:
        return number

    def close(self) -> None:
        self.writer.join()


class Ranks(Single):
    """Several processes with the same weights; each takes its share of a step's micro-batches.

    What a forward pass itself changes (batch statistics, code books) comes from rank 0 after every step's
    micro-batches, as torch's DDP does for buffers.
    """

    def __init__(self, args: TrainArgs, device: torch.device, rank: int, world: int) -> None:
        super().__init__(args, device)
        self.rank, self.world, self.joined = rank, world, False
        self.watch = Watch()

    def prepare(self, module: nn.Module, params: Parameters, optim: OptimArgs) -> None:
        super().prepare(module, params, optim)
        self.watch = Watch(list(module.parameters()), list(module.buffers()))
        collectives.send([*self.watch.params, *self.watch.buffers])
        if self.average:
            self.average = Average(self.average.tensors, self.args.ema)

    def begin(self) -> None:
        super().begin()
        self.watch.begin()

    def _share(self, params: list[nn.Parameter]) -> None:
        with lost_rank():
            self.watch.agree()
            collectives.average(params, self.world)

    def step(self, name: str, rate: float) -> Update:
        update = super().step(name, rate)
        self.watch.begin()
        return update

    def on_rank_zero(self, act: Callable[[], T]) -> T:
        return collectives.on_rank_zero(act, self.rank)

    def gather(self, item: T) -> list[T]:
        return collectives.gather(item, self.world)

    def largest(self, number: int) -> int:
        return collectives.largest(number, self.device)

    def close(self) -> None:
        super().close()
        if self.joined:
            collectives.leave()


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Context in which matrix products are of `precision`; fp32 changes nothing."""
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32")
