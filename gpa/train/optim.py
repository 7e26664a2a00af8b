"""AdamW with decay on matrices only, and the learning-rate schedule: linear warm-up, then a cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class OptimArgs:
    """AdamW and its schedule; `lr_end` is the share of `lr` left at the last step."""

    lr: float = 1e-3
    lr_end: float = 0.05
    warmup: int = 100
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = 0.01
    clip: float = 1.0
    skip_above: float = 0.0  # a step whose gradient norm exceeds this is not taken; 0: every step is


def make_optimizer(params: list[nn.Parameter], args: OptimArgs) -> torch.optim.Optimizer:
    """AdamW; vectors and scalars (norms, biases) are not decayed."""
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": args.weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=args.lr, betas=(args.beta1, args.beta2), foreach=True)


def learning_rate(args: OptimArgs, step: int, steps: int) -> float:
    """Rate of `step` (from 0) in a run of `steps`."""
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    done = (step - args.warmup) / max(1, steps - args.warmup)
    return args.lr * (args.lr_end + (1 - args.lr_end) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
