"""The stages of a fine-tune in order, each skipped if an earlier run of the same command finished it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from gpa import config as recipes
from gpa import pronounce
from gpa.data import prepare, tokenset
from gpa.data.checks import Limits
from gpa.errors import UsageError
from gpa.finetune import collect, compare, plan, replay
from gpa.models.gpa import GPA
from gpa.models.gpa.backbone import load_backbone
from gpa.models.gpa.outputs_gpa import Voice
from gpa.nn import threads as processor
from gpa.train import __main__ as trainer
from gpa.train import adapters, metrics
from gpa.train.ar import LMFamily, LMRecipe

REFERENCE_SECONDS = 6.0  # of the clip whose codes become the voice


@dataclass(frozen=True)
class Job:
    """What is to be learnt from what; 0 and "" mean: choose."""

    voice: Path
    out: Path
    model: str
    name: str = ""
    replay: str = ""
    rank: int = 16  # of the adapter; 0 trains all weights
    steps: int = 0
    lr: float = 0.0
    batch_ids: int = 2048
    items: int = 12
    judge: str = "auto"
    transcriber: str = "model"
    limit: float = 10.0
    licence: str = ""
    seed: int = 0
    threads: int | None = None  # None: as training chooses (gpa.nn.threads)
    device: str = "auto"
    offline: bool = False

    @property
    def called(self) -> str:
        """The name of the voice."""
        return self.name or self.voice.resolve().stem

    def decides(self) -> dict[str, Any]:
        """What another result would follow from."""
        free = {"out", "device", "offline", "limit", "threads", "items", "judge"}
        return {name: str(value) for name, value in vars(self).items() if name not in free}


@dataclass(frozen=True)
class Outcome:
    """The folder of the new model, the table, and what regressed past the limit."""

    model: Path
    table: str
    regressions: list[str]


def finetune(job: Job, say: Callable[[str], None] = print, *, only_plan: bool = False) -> Outcome | None:
    """Learn a voice; None after the plan if that is all that was wanted.

    UsageError where `out` belongs to another job, DataError for a folder with too little speech.
    """
    _claim(job)
    processor.settle(None, job.threads)  # before any model: training needs most
    base = GPA.from_pretrained(job.model, device=job.device, offline=job.offline)
    if job.called in base.voices:
        raise UsageError(f"the model has a voice {job.called!r} already: give the new one another --name")
    judge = compare.choose_judge(job.judge, base) if job.items else None
    _data(job, base)
    recipe = _recipe(job, base)
    family = LMFamily(recipes.build(LMRecipe, recipe))
    cost = plan.measure(family, base.device)
    recipe["train"]["precision"] = cost.precision
    found = plan.Found.of(job.out / "manifest.jsonl", job.out / "tokens")
    for line in plan.lines(found, cost, recipes.build(LMRecipe, recipe), job.items):
        say(line)
    if only_plan:
        return None
    _train(job, recipe)
    before = _measured(job, base, judge, "before") if judge else []
    made = _assemble(job, base)
    if not judge:
        return Outcome(made, "", [])
    after = _measured(job, GPA.from_pretrained(made, device=job.device), judge, "after")
    told = compare.table(before, after, judge.name)
    tokenset.write_text(job.out / "comparison.md", told + "\n")
    compare.picture(
        before, after, metrics.read(job.out / "run" / "metrics.jsonl"), job.out / "comparison.png"
    )
    return Outcome(made, told, compare.regressions(before, after, job.limit))


def _claim(job: Job) -> None:
    path = job.out / "job.json"
    if not path.is_file():
        if job.out.exists() and any(job.out.iterdir()):
            raise UsageError(f"{job.out} is not empty and no fine-tune: give another folder")
        job.out.mkdir(parents=True, exist_ok=True)
        tokenset.write_json(path, job.decides())
    known = json.loads(path.read_text(encoding="utf-8"))
    if differs := [key for key, value in job.decides().items() if known.get(key) != value]:
        raise UsageError(
            f"{job.out} holds another fine-tune ({', '.join(differs)} differ): give another folder"
        )


def _once(path: Path, make: Callable[[], Any]) -> Path:
    if not path.exists():
        make()
    return path


def _data(job: Job, base: GPA) -> None:
    """The manifest, its ids, rows to rehearse, and items to compare on."""
    manifest, texts = job.out / "manifest.jsonl", replay.sentences()
    hear = _transcriber(job, base)
    _once(
        manifest,
        lambda: collect.collect(job.voice, job.called, hear, f"heard by {job.transcriber}", manifest),
    )
    allow = () if job.licence else ("no_licence",)
    limits = Limits(seen_speakers=("dev",), allow=allow)
    work = prepare.Job(manifest, job.out / "tokens", job.model, limits, job.licence, max_rejected=0.5)
    prepare.prepare(dataclasses.replace(work, device=job.device, offline=job.offline))
    if not job.replay and base.voices:
        own = job.out / "replay"
        recordings = collect.training_sounds(manifest, base.sample_rate)
        _once(own / "tokens.jsonl", lambda: replay.write(base, texts[0], recordings, own))
    if job.items:
        items = job.out / "items"
        args = (base, manifest, job.called, texts[1], job.items, items)
        _once(items / "speech" / "manifest.jsonl", lambda: compare.write_items(*args))


def _transcriber(job: Job, base: GPA) -> collect.Hear:
    if job.transcriber not in ("model", "judge"):
        raise UsageError(f"transcriber {job.transcriber!r}: choose model or judge")
    if job.transcriber == "judge":
        return compare.choose_judge("extra", base).words
    return compare.own_ear(base)


def _recipe(job: Job, base: GPA) -> dict[str, Any]:
    """The recipe, which is a file of its own: `gpa train OUT/recipe.yaml` is the training alone."""
    tokens = tokenset.TokenSet.open(job.out / "tokens")
    ids = sum(len(row["semantic"]) for row in tokens if row["split"] == "train")
    rehearsal = job.replay or (str(job.out / "replay") if base.voices else "")
    share = 0.5
    steps = job.steps or plan.steps_for(ids, job.batch_ids, share if rehearsal else 0.0)
    longest = min(2 * max(int(row["length"]) for row in tokens), base.processor.context)  # a conversion's
    return {
        "kind": "gpa",
        "init": str(base.path),
        "format": base.config.format,
        "model": {},
        "data": {
            "tokens": str(job.out / "tokens"),
            "replay": rehearsal,
            "replay_share": share,
            "pronunciations": str(base.path / pronounce.FILE) if base.processor.pronunciations else "",
            "drop_text": 0.1 if base.config.gamma else 0.0,  # what guidance by a text is measured against
            "max_ids": longest,
            "batch_ids": max(job.batch_ids, longest),
        },
        "adapter": {"rank": job.rank, "alpha": float(2 * job.rank)},
        "weights": {"alignment": 0.0},
        "optim": {"lr": job.lr or (1e-3 if job.rank else 1e-4), "warmup": min(20, steps // 4)},
        "train": {
            "steps": steps,
            "save_every": max(1, min(50, steps // 2)),
            "eval_every": max(1, steps // 4),
            "log_every": max(1, min(10, steps // 4)),
            "seed": job.seed,
            "threads": job.threads or 0,
        },
    }


def _train(job: Job, recipe: Mapping[str, Any]) -> None:
    """The one training loop; the recipe of an interrupted run is kept, as its precision was measured then."""
    path = job.out / "recipe.yaml"
    _once(path, lambda: tokenset.write_text(path, yaml.safe_dump(dict(recipe), sort_keys=False)))
    if not (job.out / "run" / "export" / "config.json").is_file():
        trainer.main([str(path), "--run", str(job.out / "run")])


def _assemble(job: Job, base: GPA) -> Path:
    """The whole model: the base with the trained network and the voice, and the adapter beside it."""
    made, export = job.out / "model", job.out / "run" / "export"
    whole = GPA.from_pretrained(job.model, device="cpu", offline=job.offline)
    whole.lm = load_backbone(export).eval()
    whole.add_voice(job.called, _voice(job, base))
    about = {**whole.config.about, "fine-tuned": f"{job.called}, from {whole.config.name}"}
    whole.config = dataclasses.replace(whole.config, name=f"{whole.config.name}-{job.called}", about=about)
    whole.save_pretrained(made, overwrite=True)
    if (export / adapters.FOLDER).is_dir():
        shutil.copytree(export / adapters.FOLDER, made / adapters.FOLDER, dirs_exist_ok=True)
    return made


def _voice(job: Job, base: GPA) -> Voice:
    """The codes of the training clip whose length is nearest to a good reference."""
    sounds = collect.training_sounds(job.out / "manifest.jsonl", base.sample_rate)
    best = min(sounds, key=lambda sound: abs(len(sound[0]) / sound[1] - REFERENCE_SECONDS), default=None)
    if best is None:
        raise UsageError(f"{job.voice}: no clip can serve as the voice's reference")
    return base.processor.voice(best, job.called, {"from": "gpa finetune"})


def _measured(job: Job, model: GPA, judge: compare.Judge, when: str) -> list[compare.Line]:
    path = job.out / f"{when}.json"
    if not path.is_file():
        if job.called not in model.voices:
            model.add_voice(job.called, _voice(job, model))
        samples = job.out / "samples" / when
        with torch.inference_mode():
            lines = compare.measure(model, job.out / "items", job.called, job.items, judge, samples)
        compare.save(lines, path)
    return compare.load(path)
