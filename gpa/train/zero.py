"""ZeRO stages 1 to 3 by DeepSpeed's own engine, on GPUs and on CPU ranks.

Not through accelerate, which on a CPU starts unrelated processes instead. DeepSpeed's hooks expect one module
whose call is the forward pass, so `Whole` makes the computation of a loss the call of a module; parameters
that a family reads without calling their module are then gathered like all others.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from gpa import disk
from gpa.errors import MissingExtraError, UsageError
from gpa.train import checkpoint
from gpa.train.ema import Average
from gpa.train.optim import OptimArgs, make_optimizer
from gpa.train.parallel import (
    Parameters,
    Update,
    Watch,
    autocast,
    gather,
    largest,
    leave,
    lost_rank,
    on_rank_zero,
)

if TYPE_CHECKING:
    from gpa.train.arguments import TrainArgs
    from gpa.train.families.base import Loss

T = TypeVar("T")
_SWITCH = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
TAG = "shards"  # the folder inside a checkpoint that DeepSpeed fills


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


class Zero:
    """One rank of a ZeRO run."""

    def __init__(self, args: TrainArgs, device: torch.device, rank: int, world: int) -> None:
        self.args, self.device, self.rank, self.world = args, device, rank, world
        self.average: Average | None = None
        self.watch = self.copies = Watch()
        self.fresh, self.joined = True, False

    def prepare(self, module: nn.Module, params: Parameters, optim: OptimArgs) -> None:
        """Shard the module's training state; UsageError for what DeepSpeed cannot do."""
        name = _only(params, optim)
        deepspeed = _deepspeed(self.args.precision)
        trained = {id(p) for p in params[name]}
        for p in module.parameters():  # what no optimiser has needs no gradient, and DeepSpeed wants it said
            p.requires_grad_(id(p) in trained)
        self.twin = copy.deepcopy(module).cpu() if self.rank == 0 else None
        self.module = module
        self.optimizer_name = name
        self.engine, *_ = deepspeed.initialize(
            model=Whole(module),
            optimizer=make_optimizer(params[name], module, optim),
            config=_config(self.args, self.world, optim),
            dist_init_required=False,
        )
        self.watch = Watch(buffers=list(module.buffers()))
        self.watch.agree()
        self.names = [name for name, _ in module.named_parameters()]
        self.copies = Watch(list(module.parameters()))
        if self.args.ema:
            self.average = Average(_masters(self.engine.optimizer), self.args.ema)

    @property
    def zero(self) -> int:
        """The stage DeepSpeed runs."""
        return int(self.engine.zero_optimization_stage())

    @property
    def precision(self) -> str:
        """The precision DeepSpeed runs."""
        return "bf16" if self.engine.bfloat16_enabled() else "fp16" if self.engine.fp16_enabled() else "fp32"

    @property
    def batches(self) -> int:
        """Micro-batches in a step."""
        return self.world * self.args.accumulate

    def begin(self) -> None:
        self.engine.train()
        self.watch.begin()
        self.fresh = True

    def forward(self, compute: Callable[[], Loss | None]) -> Loss | None:
        def inside() -> Loss | None:
            with autocast(self.args.precision, self.device):  # DeepSpeed switches one around it off
                return compute()

        if not self.fresh:  # one loss per micro-batch: this call only finds that there is no other
            return inside()
        whole: Any = self.engine.module
        self.copies.begin()
        whole.compute = inside
        with lost_rank():
            self.engine()
        loss, whole.loss, whole.compute = whole.loss, None, None
        self._refuse_changes()
        return loss

    def _refuse_changes(self) -> None:
        names = [name for name, changed in zip(self.names, self.copies.changed(), strict=True) if changed]
        if names and self.args.zero < 3:  # stage 3 changes them itself, as it gathers them
            raise UsageError(
                f"train.zero={self.args.zero}: the forward pass of this recipe changes parameters "
                f"({names[0]}) and ZeRO would undo it from its own copy: use train.zero=0, on as many "
                "processes as you like"
            )

    def backward(self, loss: Loss, *, first: bool, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        with lost_rank():
            self.engine.backward(loss.value)
        self.fresh = not last

    def step(self, name: str, rate: float) -> Update:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        with lost_rank():
            self.watch.agree()
            self.engine.step()
        norm, taken = self.engine.get_global_grad_norm(), self.engine.was_step_applied()
        return Update(float("inf") if norm is None or not taken else float(norm), taken)

    def end(self) -> None:
        if self.average:
            self.average.update()

    def save(self, run: Path, step: int) -> None:
        folder = run / checkpoint.FOLDER
        partial, path = folder / f"step-{step:08d}.partial", folder / f"step-{step:08d}"
        facts = {"step": step, "world": self.world, "batches": self.batches, "zero": self.zero}
        self.on_rank_zero(lambda: _fresh_folder(partial))
        try:
            with lost_rank(), disk.room(path):
                self.engine.save_checkpoint(str(partial), tag=TAG, save_latest=False)
                if self.average:
                    torch.save(self.average.state_dict(), partial / f"ema-{self.rank}.pt")
            gather(None, self.world)  # every shard is written
            self.on_rank_zero(lambda: _publish(partial, path, run, facts))
        finally:
            if self.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)

    def restore(self, run: Path) -> int:
        path = self.on_rank_zero(lambda: checkpoint.newest(run, shards=True))
        if path is None:
            return 0
        try:
            facts = json.loads((path / "facts.json").read_text(encoding="utf-8"))
            _check_shards(path, facts, self)
            with tensors_alone():
                self.engine.load_checkpoint(str(path), tag=TAG)
            if self.average:
                file = path / f"ema-{self.rank}.pt"
                self.average.load_state_dict(torch.load(file, map_location=self.device, weights_only=True))
        except pickle.UnpicklingError as error:
            why = "it holds more than tensors, or other bytes, and nothing of it was executed"
            raise checkpoint.damaged(path, why) from error
        except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
            raise checkpoint.damaged(path, str(error) or type(error).__name__) from error
        return int(facts["step"])

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
            full = _full(p)
            if name in twins:
                twins[name].copy_(full)
        buffers = dict(self.module.named_buffers())
        for name, twin in self.twin.named_buffers() if self.twin is not None else ():
            twin.copy_(buffers[name])

    def on_rank_zero(self, act: Callable[[], T]) -> T:
        return on_rank_zero(act, self.rank)

    def gather(self, item: T) -> list[T]:
        return gather(item, self.world)

    def largest(self, number: int) -> int:
        return largest(number, self.device)

    def close(self) -> None:
        if self.joined:
            leave()


def _only(params: Parameters, optim: OptimArgs) -> str:
    """The name of the one optimiser there may be."""
    if len(params) != 1:
        names = " and ".join(params)
        raise UsageError(
            f"train.zero: this recipe has {len(params)} optimisers ({names}), DeepSpeed's engine takes one; "
            "use train.zero=0, on as many processes as you like"
        )
    if optim.name != "adamw":
        raise UsageError(
            f"train.zero with optim.name={optim.name}: ZeRO cuts parameters into flat pieces, {optim.name} "
            "needs whole matrices; use optim.name=adamw, or train.zero=0"
        )
    if optim.skip_above:
        raise UsageError("train.zero with optim.skip_above: DeepSpeed's step cannot be withheld; set it to 0")
    return next(iter(params))


def _deepspeed(precision: str) -> Any:
    """The package, quiet, and without what it would compile; UsageError if it cannot do `precision` here."""
    os.environ.setdefault("LOCAL_RANK", "0")  # of a process that nobody launched
    try:
        import deepspeed
    except ImportError as error:
        raise MissingExtraError("deepspeed", "train") from error
    # A shared-memory all-reduce for CPUs, built at first use: it takes a compiler and a minute; gloo does.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("WARNING")
    if precision == "fp16" and not deepspeed.accelerator.get_accelerator().is_fp16_supported():
        raise UsageError("train.precision=fp16: DeepSpeed has none on this device; use bf16, or train.zero=0")
    return deepspeed


def _config(args: TrainArgs, world: int, optim: OptimArgs) -> dict[str, Any]:
    config: dict[str, Any] = {
        "train_batch_size": world * args.accumulate,  # in micro-batches: the family knows what is in one
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": args.accumulate,
        "gradient_clipping": optim.clip,
        "zero_optimization": {"stage": args.zero, **args.zero_options},
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }
    if args.precision != "fp32":
        config[args.precision] = {"enabled": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def _masters(optimizer: Any) -> list[Tensor]:
    """This rank's float32 pieces of the weights, whichever stage made them."""
    names = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")
    return list(next(getattr(optimizer, name) for name in names if hasattr(optimizer, name)))


def _full(p: nn.Parameter) -> Tensor:
    """A whole parameter in float32; all ranks must ask."""
    import deepspeed

    full = deepspeed.utils.safe_get_full_fp32_param(p) if p.requires_grad else None
    if full is not None:
        return full
    with deepspeed.zero.GatheredParameters([p]) if hasattr(p, "ds_id") else nullcontext():
        return p.detach().float().clone()


@contextmanager
def tensors_alone() -> Iterator[None]:
    """Within it torch.load, which DeepSpeed calls to execute whatever a file says, takes tensors alone.

    By torch's own switch, an environment variable, and with what DeepSpeed stores beside tensors allowed.
    """
    from deepspeed.runtime.fp16 import loss_scaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    known = [ZeroStageEnum, fragment_address, loss_scaler.LossScaler, loss_scaler.DynamicLossScaler]
    before = os.environ.get(_SWITCH)
    os.environ[_SWITCH] = "1"
    try:
        with torch.serialization.safe_globals(known):
            yield
    finally:
        os.environ.pop(_SWITCH)
        if before is not None:
            os.environ[_SWITCH] = before


def _fresh_folder(path: Path) -> None:
    if path.exists():  # of a save that was cut short
        shutil.rmtree(path)
    path.mkdir(parents=True)


def _publish(partial: Path, path: Path, run: Path, facts: dict[str, int]) -> None:
    disk.write_text(partial / "facts.json", json.dumps(facts))
    checkpoint.publish(partial, path, run)


def _check_shards(path: Path, facts: dict[str, int], engine: Zero) -> None:
    """CheckpointError unless the shards are those of as many ranks and of this stage."""
    for name, now in (("world", engine.world), ("zero", engine.zero)):
        if facts[name] != now:
            raise checkpoint.CheckpointError(
                f"{path}: written with train.{name}={facts[name]}, now it is {now}: ZeRO's shards fit only "
                f"the processes and the stage that wrote them; use train.{name}={facts[name]}, or a new run "
                "that starts from an export"
            )
    checkpoint.check_batches(path, facts["batches"], engine.batches)
