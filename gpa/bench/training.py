"""`gpa bench train`: steps from live audio, from cached ids, and packed; beside transformers' Trainer.

All but the last take the same step of the real loop on one network, the last one its own on a network of the
same shape. They take turns on the same rows, so whatever else the machine does meets all of them.
docs/bench.md says what each number counts.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn

from gpa import config
from gpa.bench.figures import Told, progress
from gpa.bench.peer import Peer, finished
from gpa.bench.throughput import LIVE, PACKED, PADDED, SORTED, TITLES, TRAINER, Count, Result, speed
from gpa.errors import MissingExtraError, UsageError
from gpa.models.gpa.modeling_gpa import Backbone
from gpa.nn import threads
from gpa.train import launch, loop
from gpa.train.families.lm import NETWORK, LMFamily, LMRecipe
from gpa.train.planning import Shape, known_peak
from gpa.train.prefetch import Make, prefetch

if TYPE_CHECKING:
    from gpa.bench.variants import Given, Maker, Pick, Rows, Sound
    from gpa.train.parallel import Parallel

    Drawn = Sequence[tuple[Pick, int]]
    Turn = Callable[[Drawn, Drawn, Told], Count]  # rows to warm up with, and rows to time

NO_AUDIO = "it needs the recordings: --audio MANIFEST"


@dataclass(frozen=True)
class Settings:
    """What to measure: a recipe and its data, and how much of it; None means what the recipe says."""

    recipe: str | Path
    overrides: tuple[str, ...] = ()
    tokens: str | Path | None = None
    audio: Path | None = None
    model: str = "gpa-mini"
    offline: bool = False
    rounds: int = 3
    steps: int = 6
    warmup: int = 2
    rows: int | None = None
    threads: int | None = None
    runs: bool = False  # also whole runs, with a tracker and with shards


def measure(settings: Settings, say: Callable[[str], None] = lambda _: None) -> Result:
    """Run every variant in turns; `say` is told of each turn, and every few seconds how far it is.

    UsageError for a recipe that is not of a language model, or a launcher of several processes; DataError and
    CheckpointError for data that does not fit.
    """
    if launch.Launched.read().world > 1 or torch.cuda.device_count() > 1:
        raise UsageError(
            "a measurement is of one process and one device: no launcher, CUDA_VISIBLE_DEVICES=0"
        )
    recipe, vocab_size = read_recipe(settings)
    threads.settle(None, recipe.train.threads or None)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            return _measure(settings, recipe, vocab_size, Path(scratch), say)
    except torch.OutOfMemoryError as error:
        raise UsageError("out of memory: lower --rows and data.batch_ids") from error


def read_recipe(settings: Settings) -> tuple[LMRecipe, int]:
    """The recipe for one process, one micro-batch a step and rows packed; and its `model.vocab_size` or 0.

    Weights are fresh, as no speed depends on them, and nothing is evaluated. Where the recipe packs nothing,
    sequences hold `data.max_ids`.
    """
    tree = config.load_yaml(settings.recipe, list(settings.overrides))
    if tree.get("kind") != "gpa":
        raise UsageError(
            f"{settings.recipe}: kind {tree.get('kind')!r}; only language models, kind gpa, so far"
        )
    model = dict(tree.get("model") or {})
    vocab_size = int(model.pop("vocab_size", 0))
    if settings.tokens:
        others = ("replay", "pronunciations")  # files of the recipe's own
        kept = {key: value for key, value in (tree.get("data") or {}).items() if key not in others}
        tree["data"] = {**kept, "tokens": str(settings.tokens)}
    tree = {key: value for key, value in tree.items() if key not in ("codec", "validate", "instructions")}
    recipe = config.build(LMRecipe, {**tree, "model": model, "export": NETWORK})
    train = replace(
        recipe.train,
        threads=settings.threads or recipe.train.threads,
        accumulate=1,
        zero=0,
        zero_options={},
        world=0,
        workers=recipe.train.workers if sys.platform == "linux" else 0,  # others cannot be sent what we hold
    )
    data = replace(recipe.data, pack_ids=recipe.data.pack_ids or recipe.data.max_ids)
    return replace(recipe, train=train, data=data), vocab_size


def _measure(
    settings: Settings, recipe: LMRecipe, vocab_size: int, scratch: Path, say: Callable[[str], None]
) -> Result:
    parallel = launch.start(recipe.train)
    from gpa.bench.variants import Given, Rows

    say(f"{settings.recipe}: reading {recipe.data.tokens}")
    family = Given(recipe, vocab_size)
    rows = Rows(family, _sound(settings, family, parallel))
    size = settings.rows or max(1, round(recipe.data.batch_ids / rows.mean_length))
    ours = Ours(family, parallel)
    turns, skipped = _turns(ours, rows, size, settings, scratch)
    counts: dict[str, list[Count]] = {name: [] for name in turns}
    used: list[int] = []
    for number in range(settings.rounds):
        drawn = rows.draw((settings.warmup + settings.steps) * size, recipe.train.seed, number)
        warm, timed = drawn[: settings.warmup * size], drawn[settings.warmup * size :]
        used += [len(rows.row(pick).ids) for pick, _ in timed]
        for name in counts:
            head = f"round {number + 1}/{settings.rounds}  {TITLES[name]}"
            counts[name].append(turns[name](warm, timed, progress(head, say)))
            say(f"{head}: {speed(counts[name][-1:]):.0f} tokens/s")
    shape = Shape.of(ours.network)
    about = _about(settings, recipe, parallel, rows, size) | {"parameters": shape.parameters}
    flops = sum(n * shape.flops_per_id(n) for n in used) / sum(used)
    return Result(about, counts, skipped, flops, peak(parallel.device, recipe.train.precision))


def _turns(
    ours: Ours, rows: Rows, size: int, settings: Settings, scratch: Path
) -> tuple[dict[str, Turn], dict[str, str]]:
    """What each variant does with a round's rows, to warm up and timed; and why others cannot run."""

    def turn(make: Callable[[Drawn], list[Maker]], workers: int | None = None) -> Turn:
        return lambda warm, timed, told: ours.turn(make(warm), make(timed), told, workers)

    turns: dict[str, Turn] = {}
    skipped: dict[str, str] = {}
    if rows.live:
        turns[LIVE] = turn(lambda drawn: rows.padded(drawn, size, live=True), 0)
    else:
        skipped[LIVE] = NO_AUDIO
    turns[PADDED] = turn(lambda drawn: rows.padded(drawn, size))
    turns[PACKED] = turn(rows.packed)
    turns[SORTED] = turn(lambda drawn: rows.packed(drawn, pack=False))
    folder, parallel = ours.recipe.data.folders[0], ours.parallel
    try:
        peer = Peer(fresh_network(ours.family, parallel), folder, ours.recipe.train, parallel.device, scratch)
        turns[TRAINER] = lambda warm, timed, told: peer.turn(
            [pick for pick, _ in (*warm, *timed)], rows.row, size, settings.warmup, told
        )
    except MissingExtraError as error:
        skipped[TRAINER] = str(error)
    if settings.runs:
        from gpa.bench.whole_runs import GROUP, NAMES, Runs

        data = replace(ours.recipe.data, replay="", dev_rows=1)
        whole, streamed = (
            LMFamily(replace(ours.recipe, data=replace(data, shuffle_shards=shards))) for shards in (0, GROUP)
        )
        runs = Runs(whole, streamed, (settings.warmup, settings.steps), scratch)
        turns |= {name: partial(runs.turn, name) for name in NAMES}
    return turns, skipped


def _sound(settings: Settings, family: Given, parallel: Parallel) -> Sound | None:
    if settings.audio is None:
        return None
    tokens = family.recipe.data.folders[0]
    from gpa.bench.variants import Sound

    sound = Sound.open(
        settings.audio, settings.model, tokens, device=parallel.device, offline=settings.offline
    )
    sound.check(family)
    return sound


def fresh_network(family: LMFamily, parallel: Parallel) -> nn.Module:
    """A network as the loop would start with, on the device."""
    args = family.recipe.train
    torch.manual_seed(args.seed)
    module = family.build().to(parallel.device)
    launch.adapt(module, args, parallel.device)
    return module


class Ours:
    """The steps of the real loop, timed: one network and optimiser, whatever the batches are made from."""

    def __init__(self, family: Given, parallel: Parallel) -> None:
        self.family, self.parallel, self.recipe = family, parallel, family.recipe
        self.module = fresh_network(family, parallel)
        parallel.prepare(self.module, family.parameters(self.module), self.recipe.optim)

    @property
    def network(self) -> Backbone:
        """The language model."""
        assert isinstance(self.module, Backbone)
        return self.module

    def turn(
        self, warm: Sequence[Maker], timed: Sequence[Maker], told: Told, workers: int | None = None
    ) -> Count:
        """Steps on the batches of `warm`, then timed ones, made by as many `workers` as the recipe has.

        Without workers, making a batch belongs to its step. Each step is `told`.
        """
        self.family.makers = [*warm, *timed]
        numbers = range(len(self.family.makers))
        workers = self.recipe.train.workers if workers is None else workers
        with prefetch(self.family.batch, numbers, workers) as batch:
            for step in numbers[: len(warm)]:
                self._step(step, batch, told)
            began = finished(self.parallel.device)
            found = [row for step in numbers[len(warm) :] for row in self._step(step, batch, told)]
            seconds = finished(self.parallel.device) - began
        tokens, positions = (int(sum(row[name] for row in found)) for name in ("tokens", "positions"))
        return Count(tokens, positions, len(timed), seconds)

    def _step(self, step: int, batch: Make, told: Told) -> list[dict[str, float]]:
        args, optim = self.recipe.train, self.recipe.optim
        found, _ = loop.one_step(self.family, self.module, self.parallel, args, optim, step, batch)
        told(step + 1, len(self.family.makers))
        return found


def peak(device: torch.device, precision: str) -> float | None:
    """Operations per second of a GPU that `gpa plan` knows, for half precision; else None."""
    if device.type != "cuda" or precision == "fp32":
        return None
    return known_peak(torch.cuda.get_device_name(device))


def _about(settings: Settings, recipe: LMRecipe, parallel: Parallel, rows: Rows, size: int) -> dict[str, Any]:
    cuda = parallel.device.type == "cuda"
    return {
        "bench": "train",
        "recipe": str(settings.recipe),
        "overrides": list(settings.overrides),
        "tokens": recipe.data.tokens,
        "audio": None if settings.audio is None else str(settings.audio),
        "device": torch.cuda.get_device_name(parallel.device) if cuda else parallel.device.type,
        "threads": torch.get_num_threads(),
        "workers": recipe.train.workers,
        "precision": parallel.precision,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rounds": settings.rounds,
        "steps": settings.steps,
        "warmup": settings.warmup,
        "rows": size,
        "mean_length": rows.mean_length,
        "pack_ids": recipe.data.pack_ids,
        "batch_ids": recipe.data.batch_ids,
    }
