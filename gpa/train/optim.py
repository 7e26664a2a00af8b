"""The optimiser of a recipe, AdamW or Muon, and the learning-rate schedule: linear warm-up, then a cosine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from gpa.errors import UsageError


@dataclass(frozen=True)
class OptimArgs:
    """The optimiser and its schedule; `lr_end` is the share of `lr` left at the last step.

    `muon` orthogonalises the momentum of hidden matrices (Jordan et al. 2024) at AdamW's scale of steps, so
    one `lr` serves both; embeddings, vectors and convolutions stay with AdamW.
    """

    name: str = "adamw"
    lr: float = 1e-3
    lr_end: float = 0.05
    warmup: int = 100
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-8  # of AdamW, added to the root of the second moment
    weight_decay: float = 0.01
    clip: float = 1.0
    skip_above: float = 0.0  # a step whose gradient norm exceeds this is not taken; 0: every step is

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise UsageError(f"optim.name={self.name!r}: choose one of {', '.join(OPTIMIZERS)}")


class Optimizer(Protocol):
    """What the training loop needs of an optimiser; torch's own and `Both` have it."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...
    def step(self) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class Both:
    """Two optimisers of different parameters as one."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        self.parts = (first, second)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both: setting a rate there sets it."""
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of both."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self) -> None:
        """One step of each."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """States of both, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)


def _adamw(params: Sequence[nn.Parameter], args: OptimArgs) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": args.weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=args.lr, betas=(args.beta1, args.beta2), eps=args.eps, foreach=True)


def _adamw_alone(params: Sequence[nn.Parameter], module: nn.Module, args: OptimArgs) -> Optimizer:
    return _adamw(params, args)


def _muon(params: Sequence[nn.Parameter], module: nn.Module, args: OptimArgs) -> Optimizer:
    rows = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    hidden = [p for p in params if p.ndim == 2 and id(p) not in rows]
    others = [p for p in params if p.ndim != 2 or id(p) in rows]
    if not hidden:  # discriminators are convolutions
        return _adamw(params, args)
    muon = torch.optim.Muon(
        hidden, lr=args.lr, weight_decay=args.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return Both(muon, _adamw(others, args))


OPTIMIZERS: dict[str, Callable[[Sequence[nn.Parameter], nn.Module, OptimArgs], Optimizer]] = {
    "adamw": _adamw_alone,
    "muon": _muon,
}


def make_optimizer(params: Sequence[nn.Parameter], module: nn.Module, args: OptimArgs) -> Optimizer:
    """The optimiser of `params`, which are parameters of `module`; vectors and scalars are not decayed."""
    return OPTIMIZERS[args.name](params, module, args)


def learning_rate(args: OptimArgs, step: int, steps: int) -> float:
    """Rate of `step` (from 0) in a run of `steps`."""
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    done = (step - args.warmup) / max(1, steps - args.warmup)
    return args.lr * (args.lr_end + (1 - args.lr_end) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
