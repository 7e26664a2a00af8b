"""What the processes of a run say to each other: tensors made alike, words of rank 0, a lost rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gpa.errors import GPAError, TrainingError

T = TypeVar("T")
Group = dist.ProcessGroup | None  # None: that of the whole run
SIGNS = ("connection", "timed out", "timeout", "broken pipe")  # in messages of gloo and NCCL
BUCKET = 1 << 25  # elements per all-reduce: enough to fill a network, little beside the gradients


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


def on_rank_zero(act: Callable[[], T], rank: int, group: Group = None) -> T:
    """What rank 0 gets from `act`, on all ranks; errors that a user can meet end all of them."""
    outcome: list[Any] = [None, None]
    if rank == 0:
        try:
            outcome[0] = act()
        except (GPAError, OSError) as error:
            outcome[1] = error
    told = [outcome[0], None if outcome[1] is None else str(outcome[1])]
    with lost_rank():
        dist.broadcast_object_list(told, 0, group)
    if outcome[1] is not None:
        raise outcome[1]
    if told[1] is not None:
        raise TrainingError(f"rank 0 stopped: {told[1]}")
    return told[0]


def gather(item: T, world: int, group: Group = None) -> list[T]:
    """The item of every rank, on all ranks."""
    items: list[Any] = [None] * world
    with lost_rank():
        dist.all_gather_object(items, item, group)
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
