"""Runs of the real loop for `gpa bench train`: what a tracker and shards that stream cost beside a plain run."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from gpa.bench.peer import Told
from gpa.bench.throughput import RUN, SHARDED, TRACKED, Count
from gpa.train import metrics
from gpa.train.families.lm import LMFamily, LMRecipe
from gpa.train.loop import train

NAMES = (RUN, TRACKED, SHARDED)
GROUP = 8  # shards in memory at once
TRACKER = "tensorboard"


class Runs:
    """Fresh runs of a recipe in a scratch folder; every step is logged, ten times as often as by default."""

    def __init__(self, recipe: LMRecipe, warmup: int, steps: int, scratch: Path) -> None:
        data = replace(recipe.data, replay="", dev_rows=1)
        self.warmup, self.steps, self.scratch = warmup, warmup + steps, scratch
        self.whole = LMFamily(replace(recipe, data=data))
        self.streamed = LMFamily(replace(recipe, data=replace(data, shuffle_shards=GROUP)))

    def turn(self, name: str, _warm: object, _timed: object, told: Told) -> Count:
        """Run the loop from its first batch on, whichever rows the others take; warm-up is not counted."""
        family = self.streamed if name == SHARDED else self.whole
        of = self.steps
        args = replace(
            family.recipe.train,
            steps=of,
            log_every=1,
            save_every=of,
            eval_every=of,
            tracker=TRACKER if name == TRACKED else "none",
        )
        told(0, of)
        with tempfile.TemporaryDirectory(dir=self.scratch) as run:
            train(family, args, family.recipe.optim, Path(run), progress=False)
            logged = {row["step"]: row for row in metrics.read(Path(run) / "metrics.jsonl") if "lr" in row}
        began = logged[self.warmup]["seconds"] if self.warmup else 0.0
        batches = [family.batch(step) for step in range(self.warmup, of)]
        tokens, positions = sum(b.real for b in batches), sum(b.ids.numel() for b in batches)
        return Count(tokens, positions, of - self.warmup, logged[of]["seconds"] - began)
