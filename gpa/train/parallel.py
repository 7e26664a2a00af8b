"""How a step is taken: by one process (`Single`) or by several (`Ranks`, and `Zero` in its own file).

The loop knows the surface of `Parallel` and no family. Ranks do not wrap the module: families call its parts,
which torch's DDP does not see, so gradients are averaged after the last micro-batch instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gpa.errors import GPAError, TrainingError
from gpa.train import checkpoint
from gpa.train.arguments import PRECISIONS, TrainArgs
from gpa.train.ema import Average
from gpa.train.optim import OptimArgs, Optimizer, make_optimizer

if TYPE_CHECKING:
    from gpa.train.families.base import Loss

T = TypeVar("T")
Parameters = Mapping[str, Sequence[nn.Parameter]]
SIGNS = ("connection", "timed out", "timeout", "broken pipe")  # in messages of gloo and NCCL
BUCKET = 1 << 25  # elements per all-reduce: enough to fill a network, little beside the gradients


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
        """Write a checkpoint, whole or not at all."""
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
        """Leave the group of processes, if it was joined for this run."""
        ...


class Single:
    """One process, one device."""

    rank, world, zero = 0, 1, 0

    def __init__(self, args: TrainArgs, device: torch.device) -> None:
        self.args, self.device, self.precision = args, device, args.precision
        self.scaler = torch.amp.GradScaler(device.type, enabled=args.precision == "fp16")
        self.average: Average | None = None
        self.optimizers: dict[str, Optimizer] = {}

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

    def save(self, run: Path, step: int) -> None:
        self.on_rank_zero(
            lambda: checkpoint.save(run, step, self.module, self.optimizers, self._parts(), self.batches)
        )

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
        pass


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
        send([*self.watch.params, *self.watch.buffers])
        if self.average:
            self.average = Average(self.average.tensors, self.args.ema)

    def begin(self) -> None:
        super().begin()
        self.watch.begin()

    def _share(self, params: list[nn.Parameter]) -> None:
        with lost_rank():
            self.watch.agree()
            average(params, self.world)

    def step(self, name: str, rate: float) -> Update:
        update = super().step(name, rate)
        self.watch.begin()
        return update

    def on_rank_zero(self, act: Callable[[], T]) -> T:
        return on_rank_zero(act, self.rank)

    def gather(self, item: T) -> list[T]:
        return gather(item, self.world)

    def largest(self, number: int) -> int:
        return largest(number, self.device)

    def close(self) -> None:
        if self.joined:
            leave()


class Watch:
    """Keeps alike on all ranks what forward passes change: buffers, and parameters changed in place.

    torch counts the versions of a parameter; buffers are sent unasked, since batch norm changes them
    uncounted.
    """

    def __init__(self, params: Sequence[Tensor] = (), buffers: Sequence[Tensor] = ()) -> None:
        self.params, self.buffers = list(params), list(buffers)
        self.begin()

    def begin(self) -> None:
        """From here on changes count."""
        self.versions = [p._version for p in self.params]

    def changed(self) -> list[bool]:
        """Which parameters this rank changed since `begin`."""
        return [p._version != version for p, version in zip(self.params, self.versions, strict=True)]

    def agree(self) -> None:
        """Buffers, and parameters that any rank changed, become those of rank 0."""
        send(self.buffers)
        if not self.params:
            return
        flags = torch.tensor(self.changed(), dtype=torch.int32, device=self.params[0].device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        send([p for p, flag in zip(self.params, flags.tolist(), strict=True) if flag])


@torch.no_grad()
def send(tensors: Sequence[Tensor]) -> None:
    """Tensors become those of rank 0."""
    for bucket in _buckets(sorted(tensors, key=lambda t: str(t.dtype))):
        flat = torch.cat([t.detach().reshape(-1) for t in bucket])
        dist.broadcast(flat, 0)
        for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))


def average(params: Sequence[nn.Parameter], world: int) -> None:
    """Gradients become their mean over the ranks; one that no rank has stays None, as in a single process."""
    present = torch.tensor([p.grad is not None for p in params], dtype=torch.int32, device=params[0].device)
    dist.all_reduce(present)
    for p, ranks in zip(params, present.tolist(), strict=True):
        if ranks and p.grad is None:
            p.grad = torch.zeros_like(p)
    for bucket in _buckets([p.grad for p in params if p.grad is not None]):
        flat = torch.cat([grad.reshape(-1) for grad in bucket])
        dist.all_reduce(flat)
        flat /= world
        for grad, part in zip(bucket, flat.split([grad.numel() for grad in bucket]), strict=True):
            grad.copy_(part.view_as(grad))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type, not many elements together."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.numel() > BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


def on_rank_zero(act: Callable[[], T], rank: int) -> T:
    """What rank 0 gets from `act`, on all ranks; errors that a user can meet end all of them."""
    outcome: list[Any] = [None, None]
    if rank == 0:
        try:
            outcome[0] = act()
        except (GPAError, OSError) as error:
            outcome[1] = error
    told = [outcome[0], None if outcome[1] is None else str(outcome[1])]
    with lost_rank():
        dist.broadcast_object_list(told, 0)
    if outcome[1] is not None:
        raise outcome[1]
    if told[1] is not None:
        raise TrainingError(f"rank 0 stopped: {told[1]}")
    return told[0]


def gather(item: T, world: int) -> list[T]:
    """The item of every rank, on all ranks."""
    items: list[Any] = [None] * world
    with lost_rank():
        dist.all_gather_object(items, item)
    return items


def largest(number: int, device: torch.device) -> int:
    """The largest number of all ranks, on all ranks."""
    shared = torch.tensor(number, device=device)
    with lost_rank():
        dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared)


@contextmanager
def lost_rank() -> Iterator[None]:
    """A broken connection, or a silence beyond train.timeout, as an error that says what to do."""
    try:
        yield
    except RuntimeError as error:  # gloo raises it bare, NCCL a subclass
        text = str(error).lower()
        if isinstance(error, GPAError) or not any(sign in text for sign in SIGNS):
            raise
        reason = str(error).splitlines()[0][:160]
        raise TrainingError(
            f"another process of this run is gone or silent ({reason}); the last checkpoint is intact, the "
            "same command goes on from it. A slow evaluation needs a larger train.timeout"
        ) from error


def leave() -> None:
    """Leave the group of processes, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Context in which matrix products are of `precision`; fp32 changes nothing."""
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32")


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on `device`: tensors in dataclasses, sequences and mappings, or alone."""
    if device.type == "cpu":
        return batch
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return dataclasses.replace(batch, **{k: to_device(v, device) for k, v in vars(batch).items()})
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch
