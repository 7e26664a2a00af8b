"""From what a launcher started to the processes of a run, and whether that is what the recipe asks for.

Launchers (torchrun, accelerate, srun) speak through environment variables, and some degrade without a word:
they start unrelated single processes, or drop ZeRO. So what was asked is compared with what runs, before the
first step.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from gpa.errors import MissingExtraError, TrainingError, UsageError
from gpa.nn import threads
from gpa.nn.device import bfloat16_slowdown
from gpa.train.parallel import Parallel, Ranks, Single

if TYPE_CHECKING:
    from gpa.train.arguments import TrainArgs
    from gpa.train.sharded import Sharded

log = logging.getLogger(__name__)
SLOW = 2.0  # times as long in bfloat16 as in float32: it is emulated
# Processes that a launcher counts, in variables that are no rank: MPI, PMI, and the present step of srun.
COUNTS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")


@dataclass(frozen=True)
class Launched:
    """What the environment says: the place of this process, and what the launcher was told to provide."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    cpu: bool = False
    zero: int | None = None  # None: the launcher has no opinion
    fsdp: bool | None = None
    precision: str | None = None

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Launched:
        """TrainingError if several processes were meant and this one was not told its rank."""
        env = environment
        alone = "RANK" not in env
        several = max((int(env[name]) for name in COUNTS if env.get(name, "").isdigit()), default=1) > 1
        if alone and (several or "MASTER_ADDR" in env):
            raise TrainingError(
                "the launcher was to start several processes, but this one has no rank and would be alone. "
                "Use  torchrun --nproc_per_node N -m gpa.train ...  or accelerate launch with a file of "
                "recipes/launch (accelerate's own MULTI_CPU starts a single process)"
            )
        zero = (
            env.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "") if _true(env, "ACCELERATE_USE_DEEPSPEED") else ""
        )
        precision = env.get("ACCELERATE_MIXED_PRECISION", "no")
        return cls(
            rank=int(env.get("RANK", 0)),
            world=int(env.get("WORLD_SIZE", 1)),
            local_rank=int(env.get("LOCAL_RANK", 0)),
            cpu=_true(env, "ACCELERATE_USE_CPU"),
            zero=int(zero) if zero.isdigit() else None,
            fsdp=True if _true(env, "ACCELERATE_USE_FSDP") else None,
            precision=None if precision == "no" else precision,  # it says so also where nobody chose
        )

    @property
    def device(self) -> torch.device:
        """The GPU of this process, or the CPU."""
        if self.cpu or not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", self.local_rank % torch.cuda.device_count())


def _true(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() in ("1", "true", "yes")


def resolve(tree: dict[str, Any], launched: Launched) -> None:
    """Where a recipe does not say how to shard, or in what precision, the launch file does."""
    train = tree.setdefault("train", {})
    if not isinstance(train, dict):
        return  # refused, by name, where the recipe is built
    for name in ("zero", "fsdp", "precision"):
        if name not in train and getattr(launched, name) is not None:
            train[name] = getattr(launched, name)


def start(args: TrainArgs, launched: Launched | None = None) -> Parallel:
    """The process group for this process, connected to the others if there are any, and its threads."""
    environment = launched or Launched.read()
    threads.settle(None, args.threads or None)
    device = environment.device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:  # transformers loads an installed DeepSpeed whenever it saves; unasked, that warns of what it found
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if environment.world == 1 and not args.zero and not args.fsdp:
        return Single(args, device)
    joins = not dist.is_initialized()
    if joins:
        backend = "nccl" if device.type == "cuda" else "gloo"
        options: dict[str, Any] = {"timeout": timedelta(seconds=args.timeout)}
        if "RANK" not in os.environ:  # shards in one process: there is nobody to find
            options |= {"store": dist.HashStore(), "rank": 0, "world_size": 1}
        dist.init_process_group(backend, **options)
    parallel = _kind(args)(args, device, environment.rank, environment.world)
    parallel.joined = joins
    return parallel


def slow_bfloat16(args: TrainArgs, optimizer: str, device: torch.device) -> str | None:
    """What to change where a recipe computes in bfloat16 and this processor only emulates it; else None.

    torch's Muon orthogonalises in bfloat16 whatever the precision of the products is.
    """
    half = {"train.precision=fp32": args.precision == "bf16", "optim.name=adamw": optimizer == "muon"}
    remedies = [remedy for remedy, wanted in half.items() if wanted]
    if device.type != "cpu" or not remedies or (times := bfloat16_slowdown()) < SLOW:
        return None
    return (
        f"bfloat16 takes this processor {times:.0f} times as long as float32; "
        f"steps are faster with {' '.join(remedies)}, in a new --run"
    )


def _kind(args: TrainArgs) -> type[Ranks | Sharded]:
    """Plain ranks, or those of a library of which nothing is imported unless a recipe asks for it."""
    if args.zero:
        from gpa.train.zero import Zero

        return Zero
    if args.fsdp:
        from gpa.train.fsdp import Fsdp

        return Fsdp
    return Ranks


def check(parallel: Parallel, args: TrainArgs, launched: Launched | None = None) -> None:
    """TrainingError unless what runs is what the recipe, and the launcher, were asked for."""
    environment = launched or Launched.read()
    wanted = [
        ("world", args.world or parallel.world, parallel.world, "the recipe"),
        ("zero", args.zero, parallel.zero, "the recipe"),
        ("fsdp", args.fsdp, parallel.fsdp, "the recipe"),
        ("precision", args.precision, parallel.precision, "the recipe"),
        ("world", environment.world, parallel.world, "the launcher"),
        ("zero", _or(environment.zero, parallel.zero), parallel.zero, "the launch file"),
        ("fsdp", _or(environment.fsdp, parallel.fsdp), parallel.fsdp, "the launch file"),
        ("precision", _or(environment.precision, parallel.precision), parallel.precision, "the launch file"),
    ]
    for name, asked, runs, who in wanted:
        if asked != runs:
            processes = args.world or parallel.world
            raise TrainingError(
                f"train.{name}: {who} asks for {asked}, what runs has {runs}. To get it: torchrun "
                f"--nproc_per_node {processes} -m gpa.train RECIPE train.{name}={asked}, or a launch file "
                "that says the same"
            )


def _or(asked: Any, runs: Any) -> Any:
    """What was asked for, or, without an opinion, what runs."""
    return runs if asked is None else asked


def adapt(module: nn.Module, args: TrainArgs, device: torch.device) -> None:
    """Set attention kernel, checkpointed activations and compilation; UsageError where a module has none."""
    _choose_attention(module, args, device)
    if args.gradient_checkpointing:
        names = (
            "activation_checkpointing_enable",
            "gradient_checkpointing_enable",
        )  # new and old transformers
        enable = next((getattr(module, name) for name in names if hasattr(module, name)), None)
        if enable is None:
            raise UsageError(
                f"train.gradient_checkpointing: {type(module).__name__} has no such thing; set it to false"
            )
        enable({"use_reentrant": False})
    if args.compile:  # families call the parts of their module, so the parts are what is compiled
        for part in module.children():
            part.compile()


def uncompiled(args: TrainArgs) -> AbstractContextManager[None]:
    """Within it compiled parts run as written: held-out rows have a length each, growing ones many."""
    return torch.compiler.set_stance("force_eager") if args.compile else nullcontext()


def _choose_attention(module: nn.Module, args: TrainArgs, device: torch.device) -> None:
    gpu, chosen = device.type == "cuda", args.attention
    flash = gpu and importlib.util.find_spec("flash_attn") is not None
    if chosen == "auto":
        if not hasattr(module, "set_attn_implementation"):
            return
        fast = "flash_attention_2" if flash and args.precision != "fp32" else "sdpa"
        chosen = fast if gpu else "segments"
    elif chosen == "flash_attention_2" and not flash:
        raise (
            MissingExtraError("flash_attn", "flash")
            if gpu
            else UsageError("train.attention=flash_attention_2 needs a GPU")
        )
    choose = getattr(module, "set_attn_implementation", None)
    if choose is None:
        raise UsageError(f"train.attention={chosen}: {type(module).__name__} has no choice; leave it at auto")
    choose(chosen)
    log.info("attention: %s", chosen)
