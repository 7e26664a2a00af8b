"""ZeRO stages 1 to 3 by DeepSpeed's own engine, on GPUs and on CPU ranks.

Not through accelerate, which on a CPU starts unrelated processes instead. Parameters that a family reads
without calling their module are gathered like all others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gpa.errors import MissingExtraError, UsageError
from gpa.train.collectives import Watch, lost_rank
from gpa.train.optim import OptimArgs, make_optimizer
from gpa.train.parallel import Parameters, Update
from gpa.train.sharded import Sharded

if TYPE_CHECKING:
    from gpa.train.arguments import TrainArgs
    from gpa.train.families.base import Loss

_SWITCH = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
TAG = "shards"  # the folder inside a checkpoint that DeepSpeed fills


class Zero(Sharded):
    """One rank of a ZeRO run."""

    setting, instead = "train.zero", "train.zero=0"
    fits = ("world", "zero")

    def _only(self, params: Parameters, optim: OptimArgs) -> str:
        if optim.skip_above:
            raise UsageError(
                "train.zero with optim.skip_above: DeepSpeed's step cannot be withheld; set it to 0"
            )
        return super()._only(params, optim)

    def _shard(self, params: Sequence[nn.Parameter]) -> list[Tensor]:
        deepspeed = _deepspeed(self.args.precision)
        self.engine, *_ = deepspeed.initialize(
            model=self.root,
            optimizer=make_optimizer(params, self.module, self.optim),
            config=_config(self.args, self.world, self.optim),
            dist_init_required=False,
        )
        self.names = [name for name, _ in self.module.named_parameters()]
        self.copies = Watch(list(self.module.parameters()))
        return _masters(self.engine.optimizer)

    @property
    def zero(self) -> int:
        """The stage DeepSpeed runs."""
        return int(self.engine.zero_optimization_stage())

    @property
    def precision(self) -> str:
        """The precision DeepSpeed runs."""
        return "bf16" if self.engine.bfloat16_enabled() else "fp16" if self.engine.fp16_enabled() else "fp32"

    def begin(self) -> None:
        self.engine.train()
        super().begin()

    def _call(self) -> None:
        self.copies.begin()
        self.engine()
        if self.args.zero < 3:  # stage 3 changes them itself, as it gathers them
            self._refuse_changes(self.names, self.copies)

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

    def _writing(self, folder: Path) -> Callable[[], None]:
        def write() -> None:
            self.engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)
            if self.average:
                torch.save(self.average.state_dict(), folder / f"ema-{self.rank}.pt")

        return write

    def _read(self, path: Path, facts: dict[str, Any]) -> None:
        with tensors_alone():
            self.engine.load_checkpoint(str(path), tag=TAG)
        if self.average:
            file = path / f"ema-{self.rank}.pt"
            self.average.load_state_dict(torch.load(file, map_location=self.device, weights_only=True))

    def _full(self, p: nn.Parameter) -> Tensor:
        import deepspeed

        full = deepspeed.utils.safe_get_full_fp32_param(p) if p.requires_grad else None
        if full is not None:
            return full
        with deepspeed.zero.GatheredParameters([p]) if hasattr(p, "ds_id") else nullcontext():
            return p.detach().float().clone()


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
