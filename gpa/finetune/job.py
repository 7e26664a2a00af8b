"""The stages of a fine-tune in order, each skipped if an earlier run of the same command finished it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from gpa import config as recipes
from gpa import disk
from gpa.codec.bicodec_config import BiCodecConfig
from gpa.codec.voice import Voice
from gpa.data import token_folder
from gpa.data.checks import Limits
from gpa.engine.network import Network
from gpa.errors import UsageError
from gpa.finetune import collect, comparison, estimate, replay
from gpa.models.gpa import GPA
from gpa.models.gpa import checkpoint_gpa as files
from gpa.nn import threads as processor
from gpa.train import adapters, metrics
from gpa.train import command as trainer
from gpa.train.families import speaker_adaptation as voices
from gpa.train.families.lm import LMFamily, LMRecipe

if TYPE_CHECKING:
    from gpa.evals.judges.all_judges import Judges

REFERENCE_SECONDS = 6.0  # of the clip whose codes become the voice
SHARE = 0.5  # of a language model's batches that is rehearsed
VOICE_LR = 2e-3


@dataclass(frozen=True)
class Job:
    """What is to be learnt from what; 0 and "" mean: choose."""

    voice: Path
    out: Path
    model: str
    name: str = ""
    replay: str = ""
    voice_rank: int = 4  # of the changes of the decoder; 0 learns the speaker vector alone
    voice_steps: int = estimate.VOICE_STEPS
    adapt_lm: bool = False  # the language model as well
    rank: int = 16  # of its adapter; 0 trains all its weights
    steps: int = 0
    lr: float = 0.0
    batch_ids: int = 2048
    items: int = 12
    judge: str = "auto"
    transcriber: str = "model"
    limit: float = 10.0
    licence: str = ""
    seed: int = 0
    threads: int | None = None  # None: as the model's size says (gpa.nn.threads)
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
    """The folder of the new model, the table, what regressed past the limit, and minutes: told and taken."""

    model: Path
    table: str
    regressions: list[str]
    predicted: float
    took: float


def finetune(job: Job, say: Callable[[str], None] = print, *, only_plan: bool = False) -> Outcome | None:
    """Learn a voice; None after the plan, which touches nothing, if that is all that was wanted.

    UsageError where `out` belongs to another job, DataError for a folder with too little speech.
    """
    folder = files.find(job.model, offline=job.offline)
    processor.settle(files.count_weights(folder), job.threads)  # before anything is timed or loaded
    told = _plan(job, folder)
    for line in told.lines():
        say(line)
    if only_plan:
        return None
    _claim(job)
    with disk.held(job.out, "fine-tune"):
        return _staged(job, told, say)


def _staged(job: Job, told: estimate.Plan, say: Callable[[str], None]) -> Outcome:
    """All stages that an earlier run of the job left."""
    predicted = _once_json(job.out / "plan.json", lambda: {"minutes": told.minutes, **told.seconds})
    clock = estimate.Clock(job.out / "times.json")
    base = GPA.from_pretrained(job.model, device=job.device, offline=job.offline)
    judges = comparison.choose_judges(job.judge, base) if job.items else None
    clock.stage("loading")
    _data(job, base)
    _say_rejected(job, say)
    clock.stage("preparing")
    voice = _learn_voice(job, base)
    clock.stage("voice")
    if job.adapt_lm:
        _learn_words(job, base)
        clock.stage("language model")
    made = _assemble(job, voice)
    if judges is None:
        return Outcome(made, "", [], predicted["minutes"], clock.minutes)
    table, regressions = _compared(job, base, made, judges)
    clock.stage("table")
    return Outcome(made, table, regressions, predicted["minutes"], clock.minutes)


def _plan(job: Job, folder: Path) -> estimate.Plan:
    """From headers and a probe; UsageError for a voice that the model in `folder` has already."""
    if (folder / files.VOICES / f"{job.called}.json").is_file():
        raise UsageError(f"the model has a voice {job.called!r} already: give the new one another --name")
    found = estimate.Found.of(job.voice)
    codec = BiCodecConfig.read(files.codec_folder(folder))
    ids = found.seconds * codec.sample_rate / codec.latent_hop_length
    rehearses = bool(job.adapt_lm and not job.replay and list((folder / files.VOICES).glob("*.json")))
    size = estimate.Size(
        job.voice_steps,
        (job.steps or estimate.steps_for(ids, job.batch_ids, SHARE)) if job.adapt_lm else 0,
        job.batch_ids,
        6 if job.adapt_lm else 2,
        job.items,
        estimate.REHEARSED if rehearses else 0,
    )
    return estimate.plan(found, size, files.codec_folder(folder), folder)


def _claim(job: Job) -> None:
    path = job.out / "job.json"
    if not path.is_file():
        if job.out.exists() and any(job.out.iterdir()):
            raise UsageError(f"{job.out} is not empty and no fine-tune: give another folder")
        job.out.mkdir(parents=True, exist_ok=True)
        token_folder.write_json(path, job.decides())
    known = json.loads(path.read_text(encoding="utf-8"))
    if differs := [key for key, value in job.decides().items() if known.get(key) != value]:
        raise UsageError(
            f"{job.out} holds another fine-tune ({', '.join(differs)} differ): give another folder"
        )


def _once(path: Path, make: Callable[[], Any]) -> Path:
    if not path.exists():
        make()
    return path


def _once_json(path: Path, make: Callable[[], Any]) -> Any:
    _once(path, lambda: token_folder.write_json(path, make()))
    return json.loads(path.read_text(encoding="utf-8"))


def _data(job: Job, base: GPA) -> None:
    """The manifest, its ids, and items to compare on."""
    manifest, texts = job.out / "manifest.jsonl", replay.sentences()
    hear = _transcriber(job, base)
    _once(
        manifest,
        lambda: collect.collect(job.voice, job.called, hear, f"heard by {job.transcriber}", manifest),
    )
    allow = () if job.licence else ("no_licence",)
    limits = Limits(seen_speakers=("dev",), allow=allow)
    from gpa.data import prepare

    work = prepare.Job(manifest, job.out / "tokens", job.model, limits, job.licence, max_rejected=0.5)
    prepare.prepare(dataclasses.replace(work, device=job.device, offline=job.offline))
    if job.items:
        items = job.out / "items"
        args = (base, manifest, job.called, texts[1], job.items, items)
        _once(items / "speech" / "manifest.jsonl", lambda: comparison.write_items(*args))


def _say_rejected(job: Job, say: Callable[[str], None]) -> None:
    rejected = token_folder.read_about(job.out / "tokens")["rejected"]
    dropped = ", ".join(f"{code} {n['rows']}" for code, n in rejected.items()) or "none"
    say(f"rejected   {dropped}")


def _transcriber(job: Job, base: GPA) -> collect.Hear:
    if job.transcriber not in ("model", "judge"):
        raise UsageError(f"transcriber {job.transcriber!r}: choose model or judge")
    if job.transcriber == "judge":
        return comparison.choose_judges("extra", base).words
    return comparison.own_recogniser(base)


def _learn_voice(job: Job, base: GPA) -> Voice:
    """What carries the voice, by the one training loop, beginning with what `gpa voice` makes of one clip."""
    start, run = job.out / "start.json", job.out / "run-voice"
    _once(start, lambda: _of_clip(job, base).save(start))
    steps = job.voice_steps
    recipe = {
        "kind": "voice",
        "init": str(base.path),
        "data": {
            "tokens": str(job.out / "tokens"),
            "manifest": str(job.out / "manifest.jsonl"),
            "voice": str(start),
        },
        "rank": job.voice_rank,
        "optim": {"lr": VOICE_LR, "warmup": min(20, steps // 4), "weight_decay": 0.0},
        "train": {
            "steps": steps,
            "save_every": max(1, min(50, steps // 2)),
            "eval_every": max(1, steps // 5),
            "log_every": max(1, min(10, steps // 4)),
            "best": "eval/loss",
            "seed": job.seed,
            "threads": job.threads or torch.get_num_threads(),  # as decided at the start
        },
    }
    made = run / "export" / voices.FILE
    if not made.is_file():
        _run(job.out / "recipe-voice.yaml", recipe, run)
    return Voice.load(made)


def _run(path: Path, recipe: Mapping[str, Any], run: Path) -> None:
    """The one training loop; the recipe is a file of its own: `gpa train OUT/recipe.yaml` is the same."""
    _once(path, lambda: disk.write_text(path, yaml.safe_dump(dict(recipe), sort_keys=False)))
    trainer.main([str(path), "--run", str(run)])


def _learn_words(job: Job, base: GPA) -> None:
    """An adapter of the language model, while it rehearses what it could do."""
    if not job.replay and base.voices:
        own = job.out / "replay"
        recordings = collect.training_sounds(job.out / "manifest.jsonl", base.sample_rate)
        texts, like = replay.sentences()[0], job.out / "tokens"
        _once(own / token_folder.PREPARED, lambda: replay.write(base, texts, recordings, like, own))
    if not (job.out / "run" / "export" / "config.json").is_file():
        recipe = _recipe(job, base)
        recipe["train"]["precision"] = estimate.precision(
            LMFamily(recipes.build(LMRecipe, recipe)), base.device
        )
        _run(job.out / "recipe.yaml", recipe, job.out / "run")


def _recipe(job: Job, base: GPA) -> dict[str, Any]:
    """Of the language model's adapter."""
    tokens = token_folder.TokenSet.open(job.out / "tokens")
    ids = sum(len(row["semantic"]) for row in tokens if row["split"] == "train")
    rehearsal = job.replay or (str(job.out / "replay") if base.voices else "")
    steps = job.steps or estimate.steps_for(ids, job.batch_ids, SHARE if rehearsal else 0.0)
    longest = min(2 * max(int(row["length"]) for row in tokens), base.processor.context)  # a conversion's
    return {
        "kind": "gpa",
        "init": str(base.path),
        "format": base.config.format,
        "model": {},
        "data": {
            "tokens": str(job.out / "tokens"),
            "replay": rehearsal,
            "replay_share": SHARE,
            "drop_text": 0.1 if base.config.gamma else 0.0,  # what guidance by a text is measured against
            "max_ids": longest,
            "batch_ids": max(job.batch_ids, longest),
        },
        "tasks": {name: {} for name in base.config.tasks},
        "adapter": {"rank": job.rank, "alpha": float(2 * job.rank)},
        "weights": {"alignment": 0.0},
        "optim": {"lr": job.lr or (1e-3 if job.rank else 1e-4), "warmup": min(20, steps // 4)},
        "train": {
            "steps": steps,
            "save_every": max(1, min(50, steps // 2)),
            "eval_every": max(1, steps // 4),
            "log_every": max(1, min(10, steps // 4)),
            "seed": job.seed,
            "threads": job.threads or torch.get_num_threads(),  # as decided at the start
        },
    }


def _assemble(job: Job, voice: Voice) -> Path:
    """The whole model: the base with the voice and, where one was trained, the network and its adapter."""
    made, export = job.out / "model", job.out / "run" / "export"
    whole = GPA.from_pretrained(job.model, device="cpu", offline=job.offline)
    if job.adapt_lm:
        whole.network, _ = Network.load(export)
    whole.add_voice(job.called, voice)
    voice.save(job.out / voices.FILE)
    about = {**whole.config.about, "fine-tuned": f"{job.called}, from {whole.config.name}"}
    whole.config = dataclasses.replace(whole.config, name=f"{whole.config.name}-{job.called}", about=about)
    whole.save_pretrained(made, overwrite=True)
    if job.adapt_lm and (export / adapters.FOLDER).is_dir():
        shutil.copytree(export / adapters.FOLDER, made / adapters.FOLDER, dirs_exist_ok=True)
    return made


def _of_clip(job: Job, base: GPA) -> Voice:
    """The voice of the training clip whose length is nearest to a good reference: what `gpa voice` makes."""
    sounds = collect.training_sounds(job.out / "manifest.jsonl", base.sample_rate)
    best = min(sounds, key=lambda sound: abs(len(sound[0]) / sound[1] - REFERENCE_SECONDS), default=None)
    if best is None:
        raise UsageError(f"{job.voice}: no clip can serve as the voice's reference")
    return base.processor.voice(best, job.called, {"from": "gpa finetune"})


def _compared(job: Job, base: GPA, made: Path, judges: Judges) -> tuple[str, list[str]]:
    """The table before and after, which is also written, and what regressed."""
    new = GPA.from_pretrained(made, device=job.device)
    scale = comparison.Scale(job.out / "items", job.called, job.items, judges)
    worse = []
    if not job.adapt_lm and not comparison.same_sound(base, new, replay.sentences()[1][0]):
        worse.append("an old voice: its sound is not what it was to the bit")
    base.add_voice(job.called, Voice.load(job.out / "start.json"))
    before, after = (_measured(job, model, scale, when) for model, when in ((base, "before"), (new, "after")))
    told = comparison.table(before, after, comparison.names(judges))
    disk.write_text(job.out / "comparison.md", told + "\n")
    logs = [job.out / run / "metrics.jsonl" for run in ("run-voice", "run")]
    rows = [row for path in logs if path.is_file() for row in metrics.read(path)]
    comparison.picture(before, after, rows, job.out / "comparison.png")
    return told, worse + comparison.regressions(before, after, job.limit)


def _measured(job: Job, model: GPA, scale: comparison.Scale, when: str) -> list[comparison.Line]:
    path = job.out / f"{when}.json"
    if not path.is_file():
        with torch.inference_mode():
            wavs = job.out / "samples" / when
            comparison.save(comparison.measure(model, scale, wavs, everything=job.adapt_lm), path)
    return comparison.load(path)
