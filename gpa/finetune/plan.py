"""What learning a voice will take, said before it starts: minutes found, rows dropped, steps, memory, time.

The time of a step is measured on this machine with the very batch and network that will be trained; the
faster of float32 and bfloat16 products is chosen by it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpa.data.tokenset import TokenSet, read_about
from gpa.finetune import collect
from gpa.models.gpa.backbone import Backbone
from gpa.train.ar import LMFamily
from gpa.train.engine import autocast, place
from gpa.train.plan import GIB, Shape

PASSES = 8  # over the voice, if no number of steps is given
FEWEST, MOST = 40, 1000  # steps
EVALUATION = 2.0  # seconds of judging per item, suite and model: measured on two cores


@dataclass(frozen=True)
class Found:
    """What the folder holds: seconds kept, clips to train and to test on, reasons of dropped rows, texts."""

    seconds: float
    clips: int
    held: int
    rejected: Mapping[str, int]
    heard: int
    ids: int

    @classmethod
    def of(cls, manifest: Path, prepared: Path) -> Found:
        """Read off the manifest and what `gpa prepare` made of it."""
        rows = TokenSet.open(prepared)
        seconds = [float(row["seconds"]) for row in rows]
        train = [row for row in rows if row["split"] == "train"]
        ids = sum(len(row["semantic"]) for row in train)
        about = read_about(prepared)
        filled = sum(row.get("text_source", "given") != "given" for row in collect.read(manifest))
        return cls(sum(seconds), len(train), len(rows) - len(train), about["rejected"], filled, ids)


def steps_for(ids: int, batch_ids: int, replay_share: float) -> int:
    """Steps that show the voice's `ids` PASSES times, each for recognition and for speech."""
    wanted = 2 * PASSES * ids / (batch_ids * (1 - replay_share))
    return int(min(MOST, max(FEWEST, wanted)))


@dataclass(frozen=True)
class Cost:
    """Measured: seconds of a step in the faster precision; reckoned: bytes of memory."""

    precision: str
    step_seconds: float
    memory: float
    weights: int
    trained: int


def measure(family: LMFamily, device: torch.device) -> Cost:
    """Two steps in each precision without an update; the second of them counts."""
    module = family.build().to(device)
    assert isinstance(module, Backbone)
    took = {precision: _step_seconds(family, module, device, precision) for precision in ("fp32", "bf16")}
    precision = "bf16" if took["bf16"] < 0.8 * took["fp32"] else "fp32"
    weights = sum(p.numel() for p in module.parameters())
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    # Weights in float32; of what trains the gradient and two moments; twice the bytes of bf16 activations.
    activations = 2 * Shape.of(module).activation_bytes(family.recipe.data.batch_ids, checkpointing=False)
    return Cost(precision, took[precision], 4.0 * weights + 12.0 * trained + activations, weights, trained)


def _step_seconds(family: LMFamily, module: nn.Module, device: torch.device, precision: str) -> float:
    took = 0.0
    for _ in range(2):
        began = time.perf_counter()
        with autocast(precision, device):
            loss = next(family.losses(module, place(family.batch(0), device), 0))
        loss.value.backward()
        module.zero_grad()
        took = time.perf_counter() - began
    return took


def lines(found: Found, cost: Cost, recipe: Any, items: int) -> Iterator[str]:
    """The plan for people."""
    dropped = ", ".join(f"{code} {n}" for code, n in found.rejected.items()) or "none"
    clips = f"{found.clips + found.held} clips, {found.held} held out"
    yield f"voice      {found.seconds / 60:.1f} min in {clips}"
    yield f"rejected   {dropped}"
    yield (
        f"text       {found.heard} parts had none and were transcribed" if found.heard else "text       given"
    )
    what = f"adapter of rank {recipe.adapter.rank}" if recipe.adapter.rank else "all weights"
    yield f"training   {what}: {cost.trained:,} of {cost.weights:,} weights"
    share = f", {100 * recipe.data.replay_share:.0f} % rehearsal" if recipe.data.replay else ""
    yield f"steps      {recipe.train.steps} of {recipe.data.batch_ids:,} ids{share}, {cost.precision}"
    yield f"memory     about {cost.memory / GIB:.1f} GiB"
    minutes = recipe.train.steps * cost.step_seconds / 60
    yield f"time       about {minutes:.1f} min ({cost.step_seconds:.2f} s a step, measured here)"
    if items:
        yield f"           and {10 * items * EVALUATION / 60:.0f} min for the table before and after"
