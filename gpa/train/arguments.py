"""What a recipe says about the run itself, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from gpa.errors import UsageError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ATTENTION = ("auto", "eager", "sdpa", "segments", "flash_attention_2")
ZERO_STAGES = (0, 1, 2, 3)
TRACKERS = ("none", "tensorboard", "trackio", "wandb")
_CHOICES = (("precision", PRECISIONS), ("attention", ATTENTION), ("zero", ZERO_STAGES), ("tracker", TRACKERS))
CONFLICTS = {  # of what may not be set beside train.zero, or not without
    "zero_options": "they need train.zero=1, 2 or 3",
    "fsdp": "these are two ways to shard one run; set one of them",
    "async_save": "DeepSpeed writes its shards itself; shard by train.fsdp=true instead, or set it to false",
}


@dataclass(frozen=True)
class TrainArgs:
    """How long, how often (in steps), on how many threads; then on how many processes, and how.

    A step is `world * accumulate` micro-batches, each the family's batch of its own number: the same product
    gives the same run, whoever computes it. docs/launch.md has the commands.
    """

    steps: int = 1000
    save_every: int = 200
    eval_every: int = 200
    log_every: int = 10
    seed: int = 0
    threads: int = 0  # of the processor; 0: GPA_THREADS, else torch's choice
    max_seconds: float = 0.0  # stop early (after a checkpoint); 0: never
    precision: str = "fp32"  # of matrix products: fp32, or bf16 or fp16 with weights and sums kept in float32
    world: int = 0  # processes there must be; 0: as many as were started
    zero: int = 0  # DeepSpeed's ZeRO: 1 shards optimiser state, 2 gradients too, 3 weights too; 0: none of it
    zero_options: dict[str, Any] = field(default_factory=dict)  # more of its zero_optimization section
    fsdp: bool = False  # torch's FSDP2 instead: weights, gradients and optimiser state in shards
    accumulate: int = 1  # micro-batches of each process per step
    gradient_checkpointing: bool = False  # activations are computed twice instead of kept
    compile: bool = False  # torch.compile of the module's parts
    # auto: on a GPU flash_attention_2 with the package in half precision, else sdpa; on a CPU segments
    attention: str = "auto"
    ema: float = 0.0  # decay of averaged weights, which are then evaluated and exported; 0: none
    best: str = ""  # held-out metric, as eval/tts, whose lowest value is kept in checkpoints/best.pt
    async_save: bool = False  # checkpoints are copied, and written while steps go on
    tracker: str = "none"  # metrics and samples also to tensorboard (RUN/tensorboard), trackio or wandb
    profile: int = 0  # steps, after the first few, that are traced into RUN/profile; 0: none
    workers: int = 0  # of each process, that make coming batches meanwhile; 0: the step makes its own
    timeout: float = 600.0  # seconds until a process that went silent is given up; evaluation must fit in

    def __post_init__(self) -> None:
        for name in ("steps", "save_every", "eval_every", "log_every", "accumulate"):
            if getattr(self, name) < 1:
                raise UsageError(f"train.{name}={getattr(self, name)}: at least 1")
        for name, choices in _CHOICES:
            if getattr(self, name) not in choices:
                known = ", ".join(map(str, choices))
                raise UsageError(f"train.{name}={getattr(self, name)!r}: choose one of {known}")
        for name in ("seed", "world", "workers", "threads", "profile"):
            if getattr(self, name) < 0:
                raise UsageError(f"train.{name}={getattr(self, name)}: at least 0")
        if not 0 <= self.ema < 1:
            raise UsageError(f"train.ema={self.ema}: at least 0 and below 1, as 0.999")
        if self.timeout <= 0:
            raise UsageError(f"train.timeout={self.timeout}: seconds, above 0")
        self._check_best()
        for name, why in CONFLICTS.items():
            if getattr(self, name) and bool(self.zero) != (name == "zero_options"):
                raise UsageError(f"train.{name} with train.zero={self.zero}: {why}")

    def _check_best(self) -> None:
        if self.best and not self.best.startswith("eval/"):
            raise UsageError(f"train.best={self.best!r}: a held-out metric, as eval/tts")
        if self.best.endswith("_stop"):
            raise UsageError(
                f"train.best={self.best}: the lowest value is kept, and there the highest is best"
            )
