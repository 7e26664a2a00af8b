"""Runs of the real loop for `gpa bench train`: what a tracker and streamed shards cost beside a plain run."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpa.bench.throughput import RUN, SHARDED, TRACKED, Count
from gpa.train.loop import train

if TYPE_CHECKING:
    from gpa.bench.figures import Told
    from gpa.train.families.lm import LMFamily

NAMES = (RUN, TRACKED, SHARDED)
GROUP = 8  # shards in memory at once
TRACKER = "tensorboard"


class Runs:
    """Fresh runs of a recipe in a scratch folder; every step is logged, ten times as often as by default."""

    def __init__(self, whole: LMFamily, streamed: LMFamily, counts: tuple[int, int], scratch: Path) -> None:
        """`counts` are steps that are not timed, and steps that are."""
        self.whole, self.streamed, self.scratch = whole, streamed, scratch
        self.warmup, self.steps = counts[0], sum(counts)

    def turn(self, name: str, _warm: object, _timed: object, told: Told) -> Count:
        """Run the loop from its first batch on, whichever rows the others take; warm-up is not counted."""
        from gpa.train import metrics

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
