"""A run whose training state lies in shards: what ZeRO (gpa.train.zero) and FSDP2 (gpa.train.fsdp) share.

Both hook into one module whose call is the forward pass, so `Whole` makes the computation of a loss the call
of a module. Rank 0 keeps a whole copy on the CPU, filled from all ranks, to evaluate and export.
"""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from gpa import disk
from gpa.errors import UsageError
from gpa.train import checkpoint, collectives
from gpa.train.collectives import Watch, lost_rank
from gpa.train.ema import Average
from gpa.train.parallel import Parameters, Update, autocast

if TYPE_CHECKING:
    from gpa.train.arguments import TrainArgs
    from gpa.train.families.base import Loss
    from gpa.train.optim import OptimArgs

T = TypeVar("T")


class Whole(nn.Module):
    """A module whose forward pass is whatever `compute` does with the module inside."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.compute: Callable[[], Loss | None] | None = None
        self.loss: Loss | None = None

    def forward(self) -> Tensor | None:
        self.loss = self.compute() if self.compute else None
        return self.loss.value if self.loss else None


class Sharded(ABC):
    """One rank of a run in shards; its children say how state is sharded, stepped, written and read."""

    setting: str  # what chose it, and what chooses another kind
    instead: str
    fits: tuple[str, ...]  # of `facts`: what has to be as it was when a checkpoint was written

    def __init__(self, args: TrainArgs, device: torch.device, rank: int, world: int) -> None:
        self.args, self.device, self.rank, self.world = args, device, rank, world
        self.average: Average | None = None
        self.watch = Watch()
        self.writer = checkpoint.Writer()
        self.group: collectives.Group = None  # by which ranks speak while they write
        self.fresh, self.joined = True, False

    def prepare(self, module: nn.Module, params: Parameters, optim: OptimArgs) -> None:
        """Shard the module's training state; UsageError for what cannot be sharded."""
        name = self._only(params, optim)
        trained = {id(p) for p in params[name]}
        for p in module.parameters():  # what no optimiser has needs no gradient, and it wants saying
            p.requires_grad_(id(p) in trained)
        self.twin = copy.deepcopy(module).cpu() if self.rank == 0 else None
        self.module, self.optim, self.root = module, optim, Whole(module)
        pieces = self._shard(params[name])
        self.watch = Watch(buffers=list(module.buffers()))
        self.watch.agree()
        if self.args.ema:
            self.average = Average(pieces, self.args.ema)

    def _only(self, params: Parameters, optim: OptimArgs) -> str:
        """The name of the one optimiser there may be."""
        if len(params) != 1:
            names = " and ".join(params)
            raise UsageError(
                f"{self.setting}: this recipe has {len(params)} optimisers ({names}), shards are of one; "
                f"use {self.instead}, on as many processes as you like"
            )
        if optim.name != "adamw":
            raise UsageError(
                f"{self.setting} with optim.name={optim.name}: parameters are cut into pieces, {optim.name} "
                f"needs whole matrices; use optim.name=adamw, or {self.instead}"
            )
        return next(iter(params))

    @abstractmethod
    def _shard(self, params: Sequence[nn.Parameter]) -> list[Tensor]:
        """Shard `root` and what trains `params`; returns this rank's float32 pieces of the weights."""

    @property
    def zero(self) -> int:
        return 0

    @property
    def fsdp(self) -> bool:
        return False

    @property
    @abstractmethod
    def precision(self) -> str:
        """The precision that runs."""

    @property
    def batches(self) -> int:
        """Micro-batches in a step."""
        return self.world * self.args.accumulate

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint says of its run."""
        return {"world": self.world, "batches": self.batches, "zero": self.zero, "fsdp": self.fsdp}

    def begin(self) -> None:
        self.root.train()
        self.watch.begin()
        self.fresh = True

    def forward(self, compute: Callable[[], Loss | None]) -> Loss | None:
        def inside() -> Loss | None:
            with autocast(self.args.precision, self.device):  # DeepSpeed switches one around it off
                return compute()

        if not self.fresh:  # one loss per micro-batch: this call only finds that there is no other
            return inside()
        self.root.compute = inside
        with lost_rank():
            self._call()
        loss, self.root.loss, self.root.compute = self.root.loss, None, None
        return loss

    @abstractmethod
    def _call(self) -> None:
        """Call `root` under whatever hooks it has."""

    def _refuse_changes(self, names: Sequence[str], params: Watch) -> None:
        """UsageError if the forward pass itself moved a parameter: the shards would undo it."""
        changed = [name for name, moved in zip(names, params.changed(), strict=True) if moved]
        if changed:
            raise UsageError(
                f"{self.setting}: the forward pass of this recipe changes parameters ({changed[0]}) and the "
                f"shards would undo it: use {self.instead}, on as many processes as you like"
            )

    @abstractmethod
    def backward(self, loss: Loss, *, first: bool, last: bool) -> None:
        """Add a micro-batch's gradient."""

    @abstractmethod
    def step(self, name: str, rate: float) -> Update:
        """Clip by the norm over all ranks, and step."""

    def end(self) -> None:
        if self.average:
            self.average.update()

    def save(self, run: Path, step: int) -> None:
        folder = run / checkpoint.FOLDER
        partial, path = folder / f"step-{step:08d}.partial", folder / f"step-{step:08d}"
        self.settle()
        self.on_rank_zero(lambda: _fresh_folder(partial))
        facts, write = {"step": step, **self.facts}, self._writing(partial)

        def store() -> None:
            try:
                with lost_rank(), disk.room(path):
                    write()
                collectives.gather(None, self.world, self.group)  # every shard is written
                collectives.on_rank_zero(lambda: _publish(partial, path, run, facts), self.rank, self.group)
            finally:
                if self.rank == 0:
                    shutil.rmtree(partial, ignore_errors=True)

        self.writer.start(store) if self.args.async_save else store()

    @abstractmethod
    def _writing(self, folder: Path) -> Callable[[], None]:
        """What writes this rank's shards as they are now, also when steps have gone on."""

    @property
    def failed(self) -> bool:
        return self.writer.failed

    def settle(self) -> None:
        self.writer.wait()  # all ranks have failed, or none

    def restore(self, run: Path) -> int:
        path = self.on_rank_zero(lambda: checkpoint.newest(run, shards=True))
        if path is None:
            return 0
        try:
            facts = json.loads((path / "facts.json").read_text(encoding="utf-8"))
            self._check(path, facts)
            self._read(path, facts)
        except pickle.UnpicklingError as error:
            why = "it holds more than tensors, or other bytes, and nothing of it was executed"
            raise checkpoint.damaged(path, why) from error
        except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
            raise checkpoint.damaged(path, str(error) or type(error).__name__) from error
        return int(facts["step"])

    def _check(self, path: Path, facts: dict[str, Any]) -> None:
        """CheckpointError unless what was written is what this run reads."""
        for name in self.fits:
            was, now = facts.get(name), self.facts[name]
            if was != now:
                raise checkpoint.CheckpointError(
                    f"{path}: written with train.{name}={was}, now it is {now}: these shards fit only what "
                    f"wrote them; use train.{name}={was}, or a new run that starts from an export"
                )
        checkpoint.check_batches(path, facts["batches"], self.batches)

    @abstractmethod
    def _read(self, path: Path, facts: dict[str, Any]) -> None:
        """Load this rank's shards."""

    @contextmanager
    def whole(self) -> Iterator[nn.Module | None]:
        """A copy on rank 0 with all weights in float32, on the device for as long as it is looked at."""
        with self.average.in_place() if self.average else nullcontext():
            self._fill()
        try:
            yield self.twin.to(self.device) if self.twin else None
        finally:
            if self.twin:
                self.twin.cpu()

    @torch.no_grad()
    def _fill(self) -> None:
        """Bring the copy up to date: float32 weights from all ranks, buffers from this one."""
        twins = dict(self.twin.named_parameters()) if self.twin is not None else {}
        for name, p in self.module.named_parameters():
            full = self._full(p)
            if name in twins:
                twins[name].copy_(full)
        buffers = dict(self.module.named_buffers())
        for name, twin in self.twin.named_buffers() if self.twin is not None else ():
            twin.copy_(buffers[name])

    @abstractmethod
    def _full(self, p: nn.Parameter) -> Tensor:
        """A whole parameter in float32; all ranks must ask."""

    def on_rank_zero(self, act: Callable[[], T]) -> T:
        return collectives.on_rank_zero(act, self.rank)

    def gather(self, item: T) -> list[T]:
        return collectives.gather(item, self.world)

    def largest(self, number: int) -> int:
        return collectives.largest(number, self.device)

    def close(self) -> None:
        self.writer.join()
        if self.joined:
            collectives.leave()


def _fresh_folder(path: Path) -> None:
    if path.exists():  # of a save that was cut short
        shutil.rmtree(path)
    path.mkdir(parents=True)


def _publish(partial: Path, path: Path, run: Path, facts: dict[str, Any]) -> None:
    disk.write_text(partial / "facts.json", json.dumps(facts))
    checkpoint.publish(partial, path, run)
