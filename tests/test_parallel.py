"""Several processes do what one does: data parallel and ZeRO on two CPU ranks, killed, resumed, refused."""

import importlib.util
import json
import os
import random
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from gpa import config
from gpa.cli import main as cli
from gpa.data import feature_cache
from gpa.errors import CheckpointError, DiskError, MissingExtraError, TrainingError, UsageError
from gpa.models.gpa.modeling_gpa import load_backbone
from gpa.train import checkpoint, environment, metrics
from gpa.train.arguments import TrainArgs
from gpa.train.command import main
from gpa.train.families.base import Loss, to_device
from gpa.train.families.lm import LMData as LM
from gpa.train.families.lm import LMFamily, LMRecipe
from gpa.train.launch import Launched, adapt, check, resolve
from gpa.train.loop import train
from gpa.train.meter import Meter
from gpa.train.optim import OptimArgs
from gpa.train.parallel import Single, lost_rank
from ranks import launch, ranks
from training import (
    codec_tree,
    lm_tree,
    story,
    timeless,
    write_encoder,
    write_manifest,
    write_recipe,
    write_tokens,
)

pytestmark = pytest.mark.usefixtures("threads_kept")
pytest.importorskip("sentencepiece")
ROOT = Path(__file__).resolve().parent.parent
STEPS = 20
SHORT = ("train.steps=2", "train.best=''")
HEARD = ("validate.rows=1", "validate.frame_rate=25")
HALF = ("train.precision=bf16", "train.gradient_checkpointing=true")
SHARDED = "train.zero_options={stage3_param_persistence_threshold: 0}"  # or so small a model stays whole


class Site:
    """Recipes and run folders of this file, and what two ranks and one process made of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        write_tokens(root / "tokens")
        tree = lm_tree(root / "tokens")
        # With this eps updates are nearly linear in gradients. With a small one their scale is lost, and
        # where one is about 1e-8 at the first step, its last bits decide the direction of a whole step.
        tree["optim"]["eps"] = 0.01
        tree["train"] |= {"steps": STEPS, "save_every": 5, "eval_every": 10, "ema": 0.8, "best": "eval/tts"}
        self.lm = write_recipe(root / "lm.yaml", tree)
        manifest, encoder = write_manifest(root), write_encoder(root / "encoder")
        feature_cache.main([str(manifest), "--encoder", str(encoder), "-o", str(root / "cache")])
        self.codec = write_recipe(root / "codec.yaml", codec_tree(root / "cache"))
        self.train("codec", self.codec, "train.steps=1", "train.eval_every=1")
        frozen = codec_tree(root / "cache", init=str(root / "codec" / "export"), freeze_ids=True, model={})
        self.frozen = write_recipe(root / "frozen.yaml", {**frozen, "weights": {"adversarial_from": 1}})

    def argv(self, name: str, recipe: Path, *overrides: str) -> list[str]:
        return [str(recipe), *overrides, "--run", str(self.root / name)]

    def train(self, name: str, recipe: Path, *overrides: str) -> Path:
        main(self.argv(name, recipe, *overrides))
        return self.root / name

    def story(self, name: str) -> list[dict[str, float]]:
        """Return the metrics without wall-clock time."""
        return story(self.root / name)

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.root / name / "export" / "model.safetensors")

    def told(self, name: str) -> list[str]:
        return [json.loads((self.root / f"told-{rank}.json").read_text())[name] for rank in (0, 1)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """One process with two micro-batches a step, then everything two ranks are asked to do, in one launch."""
    pytest.importorskip("deepspeed")
    site = Site(tmp_path_factory.mktemp("engine"))
    site.train("single", site.lm, "train.accumulate=2")
    site.train("gan", site.frozen, "train.accumulate=2")
    half = site.root / "halfway"  # as if one process had stopped after ten steps and two went on
    shutil.copytree(site.root / "single", half)
    for path in checkpoint.found(half)[-1:]:
        path.unlink()
    shutil.copytree(half, site.root / "twice")
    plan = {name: {"argv": argv} for name, argv in cases(site).items()}
    done = ranks(site.root, plan)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    site.log = done.stderr  # type: ignore[attr-defined]
    return site


def cases(site: Site) -> dict[str, list[str]]:
    alone = "weights.adversarial_from=-1"  # no discriminator: one optimiser
    plan = {
        "ranks": site.argv("ranks", site.lm, "train.world=2", "train.workers=1"),
        "heard": site.argv("heard", site.lm, *SHORT, "train.zero=3", SHARDED, *HEARD),
        **{f"zero{n}": site.argv(f"zero{n}", site.lm, f"train.zero={n}", SHARDED) for n in (1, 2, 3)},
        "zero2-accumulate": site.argv(
            "zero2-accumulate", site.lm, *SHORT, "train.zero=2", "train.accumulate=2"
        ),
        "halfway": site.argv("halfway", site.lm),
        "gan-ranks": site.argv("gan-ranks", site.frozen),
        "frozen-zero2": site.argv("frozen-zero2", site.frozen, alone, "train.zero=2"),
        "frozen-zero3": site.argv("frozen-zero3", site.frozen, alone, "train.zero=3", SHARDED),
        "codebook": site.argv("codebook", site.codec),
        "fsdp": site.argv("fsdp", site.lm, "train.fsdp=true"),
        "fsdp-accumulate": site.argv(
            "fsdp-accumulate", site.lm, *SHORT, "train.fsdp=true", "train.accumulate=2"
        ),
        "frozen-fsdp": site.argv("frozen-fsdp", site.frozen, alone, "train.fsdp=true"),
        "half-fsdp": site.argv("half-fsdp", site.lm, *SHORT, "train.fsdp=true", *HALF),
    }
    for n in (1, 2, 3):
        thrifty = f"train.gradient_checkpointing={str(n == 3).lower()}"
        half = (*SHORT, f"train.zero={n}", "train.precision=bf16", SHARDED, thrifty)
        plan[f"half{n}"] = site.argv(f"half{n}", site.lm, *half)
    refused = {
        "twice": site.argv("twice", site.lm, "train.accumulate=2"),
        "world": site.argv("world", site.lm, "train.world=4"),
        "gan-zero": site.argv("gan-zero", site.frozen, "train.zero=2"),
        "fp16-zero": site.argv("fp16-zero", site.lm, "train.zero=2", "train.precision=fp16"),
        "muon-zero": site.argv("muon-zero", site.lm, "train.zero=1", "optim.name=muon"),
        "codebook-zero": site.argv("codebook-zero", site.codec, "train.zero=2"),
        "gan-fsdp": site.argv("gan-fsdp", site.frozen, "train.fsdp=true"),
        "fp16-fsdp": site.argv("fp16-fsdp", site.lm, "train.fsdp=true", "train.precision=fp16"),
        "muon-fsdp": site.argv("muon-fsdp", site.lm, "train.fsdp=true", "optim.name=muon"),
        "codebook-fsdp": site.argv("codebook-fsdp", site.codec, "train.fsdp=true"),
        "zero-fsdp": site.argv("zero-fsdp", site.lm, "train.fsdp=true", "train.zero=2"),
    }
    return plan | refused


def close(a: list[dict[str, float]], b: list[dict[str, float]], tolerance: float) -> None:
    """Assert that two stories tell the same, to float tolerance."""
    assert [sorted(row) for row in a] == [sorted(row) for row in b]
    for one, other in zip(a, b, strict=True):
        for name, value in one.items():
            assert value == pytest.approx(other[name], rel=tolerance, abs=tolerance), (one["step"], name)


# Several processes follow one -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ranks", "zero1", "zero2", "zero3", "fsdp"])
def test_two_ranks_follow_one_process(name: str, site: Site) -> None:
    """Twenty steps: losses per task, gradient norms, held-out metrics of averaged weights, final weights."""
    close(site.story(name), site.story("single"), 1e-5)
    one, two = site.weights("single"), site.weights(name)
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=1e-6, atol=1e-7)
    assert site.story(name)[0]["grad_norm/model"] > 0
    facts = json.loads((site.root / name / "environment.json").read_text())[-1]
    stage = int(name[-1]) if name[-1].isdigit() else 0
    assert (facts["world"], facts["zero"], facts["precision"]) == (2, stage, "fp32")
    assert facts["fsdp"] == (name == "fsdp")


def test_ranks_end_with_the_same_weights(site: Site) -> None:
    """Also where the forward pass itself moves a code book and batch statistics."""
    for name in ("ranks", "zero1", "zero2", "gan-ranks", "codebook"):
        first, second = site.told(name)
        assert first == second and not first.startswith("refused"), (name, first, second)


def test_two_optimisers_on_two_ranks(site: Site) -> None:
    """Generator and discriminator of a codec, the second from step 2 on."""
    close(site.story("gan-ranks"), site.story("gan"), 2e-3)
    assert any("grad_norm/discriminator" in row for row in site.story("gan-ranks"))


@pytest.mark.parametrize("name", ["gan", "gan-ranks", "frozen-zero2", "frozen-zero3", "frozen-fsdp"])
def test_frozen_parameters_stay_bit_identical(name: str, site: Site) -> None:
    before, after = site.weights("codec"), site.weights(name)
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"prenet", "decoder"}


def test_rank_0_generates_from_whole_weights(site: Site) -> None:
    """The slow twin is the run's export, which holds the averaged weights that were evaluated."""
    found = site.story("heard")[-1]
    family = LMFamily(config.build(LMRecipe, config.load_yaml(site.lm, list(HEARD))))
    module = load_backbone(site.root / "heard" / "export")
    said = {f"eval/{name}": value for name, value in family.evaluate(module).items()}
    assert said.keys() | {"step"} == found.keys() and "eval/tts_roundtrip_wer" in said
    for name, value in said.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


def test_accumulation_in_shards(site: Site) -> None:
    site.train("four", site.lm, *SHORT, "train.accumulate=4")
    for name in ("zero2-accumulate", "fsdp-accumulate"):
        assert [row["step"] for row in site.story(name)] == [1, 2, 2]
        close(site.story(name), site.story("four"), 1e-5)


@pytest.mark.parametrize("name", ["half1", "half2", "half3", "half-fsdp"])
def test_shards_in_half_precision(name: str, site: Site) -> None:
    facts = json.loads((site.root / name / "environment.json").read_text())[-1]
    assert facts["precision"] == "bf16"
    rows, exact = site.story(name), site.story("single")
    losses = [key for key in rows[0] if key in ("tts", "asr", "vc")]
    assert losses and all(rows[0][key] == pytest.approx(exact[0][key], rel=0.02) for key in losses)
    assert all(t.dtype == torch.float32 for t in site.weights(name).values())  # the masters, not the copies


# Stopped and started again ----------------------------------------------------------------------------------


Killed = tuple[str, subprocess.CompletedProcess[str], Path]


@pytest.fixture(scope="module", params=["zero2", "fsdp"])
def killed(site: Site, request: pytest.FixtureRequest) -> Killed:
    """A run in shards that lost its second rank to SIGKILL at a random step; FSDP2 saves beside steps."""
    kind = request.param
    how = ["train.zero=2", SHARDED] if kind == "zero2" else ["train.fsdp=true", "train.async_save=true"]
    at = 2 * random.Random(os.getpid()).randrange(6, STEPS) + 1  # its batch of a step from 6 on
    folder = site.root / f"killed-{kind}"
    argv = site.argv(f"{folder.name}/run", site.lm, *how)
    done = ranks(folder, {"killed": {"argv": argv, "kill": [1, at]}})
    return kind, done, folder / "run"


def test_a_lost_rank_ends_the_run_with_the_last_checkpoint_intact(killed: Killed) -> None:
    kind, done, run = killed
    assert done.returncode != 0
    last = int(metrics.read(run / "metrics.jsonl")[-1]["step"]) // 5 * 5
    steps = [int(path.name[5:]) for path in checkpoint.found(run, shards=True)]
    begun = steps[-1:] if kind == "zero2" else [*steps[-1:], last]  # the last may have been being written
    assert last in begun and not (run / "export").exists()
    assert not steps or checkpoint.newest(run, shards=True) == checkpoint.found(run, shards=True)[-1]


def test_killed_and_resumed_by_accelerate_is_uninterrupted(killed: Killed, site: Site) -> None:
    """The same losses, data and weights, bit for bit; how to shard comes from the launch file."""
    pytest.importorskip("accelerate")
    kind, _, run = killed
    partial = run / "checkpoints" / "step-00000099.partial"  # a save that was cut
    partial.mkdir()
    file = str(ROOT / "recipes" / "launch" / f"{kind}.yaml")
    two = ("--config_file", file, "--num_processes", "2", "--main_process_port", "0")
    argv = site.argv(f"{run.parent.name}/run", site.lm, *([SHARDED] if kind == "zero2" else []))
    done = launch("accelerate.commands.launch", *two, "-m", "gpa.train", *argv)
    assert done.returncode == 0, done.stderr[-6000:]
    assert site.story(f"{run.parent.name}/run") == site.story(kind) and not partial.exists()
    one, two_ = site.weights(kind), site.weights(f"{run.parent.name}/run")
    assert one.keys() == two_.keys() and all(torch.equal(one[key], two_[key]) for key in one)
    assert len(json.loads((run / "environment.json").read_text())) == 2  # both starts


def test_one_process_reads_the_shards_of_two(site: Site) -> None:
    """At the last step it exports whole weights from them; from an earlier one it goes on."""
    how = (site.lm, "train.fsdp=true", "train.accumulate=2")
    for name, newest in (("fsdp-export", STEPS), ("fsdp-alone", STEPS - 5)):
        shutil.copytree(site.root / "fsdp", site.root / name)
        shutil.rmtree(site.root / name / "export")
        for path in checkpoint.found(site.root / name, shards=True):
            if int(path.name[5:]) > newest:
                shutil.rmtree(path)
        site.train(name, *how)
        for key, tensor in site.weights("fsdp").items():
            torch.testing.assert_close(site.weights(name)[key], tensor, rtol=1e-6, atol=1e-7)
    assert site.weights("fsdp-export").keys() == site.weights("single").keys()
    close(site.story("fsdp-alone"), site.story("single"), 1e-5)


def test_fsdp_checkpoints_hold_shards_and_nothing_that_would_be_executed(site: Site) -> None:
    path = checkpoint.found(site.root / "fsdp", shards=True)[-1]
    files = sorted(path.glob("*.safetensors"))
    assert {p.name for p in path.iterdir()} == {"SHA256SUMS", "facts.json", *(p.name for p in files)}
    halves = [load_file(file)["exp_avg.model.layers.0.mlp.up_proj.weight"] for file in files]
    assert [tuple(half.shape) for half in halves] == [(32, 32), (32, 32)]  # of 64 rows
    with pytest.raises(CheckpointError, match="train.fsdp .was True, is False"):
        shutil.copytree(site.root / "fsdp", site.root / "fsdp-not")
        site.train("fsdp-not", site.lm, "train.accumulate=2")


def test_two_ranks_go_on_where_one_process_stopped(site: Site) -> None:
    assert len(json.loads((site.root / "halfway" / "environment.json").read_text())) == 2
    close(site.story("halfway"), site.story("single"), 1e-5)


def test_what_cannot_go_on_is_refused_with_the_reason(site: Site) -> None:
    reasons = {
        "twice": "a step had 2 micro-batches.*now it would have 4.*product is 2",
        "world": "train.world: the recipe asks for 4, what runs has 2.*torchrun --nproc_per_node 4",
        "gan-zero": "2 optimisers .generator and discriminator.*train.zero=0",
        "fp16-zero": "train.precision=fp16.*use bf16",
        "muon-zero": "muon.*whole matrices",
        "codebook-zero": "changes parameters.*codebook.*train.zero=0",
        "gan-fsdp": "2 optimisers .generator and discriminator.*train.fsdp=false",
        "fp16-fsdp": "train.precision=fp16.*use bf16",
        "muon-fsdp": "muon.*whole matrices.*train.fsdp=false",
        "codebook-fsdp": "changes parameters.*codebook.*train.fsdp=false",
        "zero-fsdp": "train.fsdp with train.zero=2: .*set one of them",
    }
    for name, reason in reasons.items():
        for told in site.told(name):
            assert told.startswith("refused: ") and re.search(reason, told, re.DOTALL), (name, told)


# One process -----------------------------------------------------------------------------------------------


class Toy:
    """Regression; batch `i` is drawn from its number, or from `means_of` numbers; `blow_up` is a step."""

    def __init__(self, means_of: int = 1, blow_up: int = -1) -> None:
        self.means_of, self.blow_up = means_of, blow_up

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.0), nn.Linear(3, 1))

    def parameters(self, module: nn.Module) -> dict[str, list[nn.Parameter]]:
        return {"model": list(module.parameters())}

    def batch(self, step: int) -> list[torch.Tensor]:
        numbers = range(step * self.means_of, (step + 1) * self.means_of)
        return [torch.from_numpy(np.random.default_rng(n).normal(size=(5, 4))).float() for n in numbers]

    def losses(self, module: nn.Module, batch: list[torch.Tensor], step: int) -> Iterator[Loss]:
        parts = [(module(x)[:, 0] - x.sum(1)).square().mean() for x in batch]
        value = torch.stack(parts).mean() * (1e30 if step == self.blow_up else 1.0)
        yield Loss("model", value, {"fit": float(value.detach()), "tokens": 15.0, "positions": 20.0})

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        x = self.batch(1000)[0]
        return {"fit": float((module(x)[:, 0] - x.sum(1)).square().mean().detach())}

    def export(self, module: nn.Module, path: Path) -> None:
        path.mkdir(exist_ok=True)
        torch.save(module.state_dict(), path / "weights.pt")


def toy(run: Path, family: Toy | None = None, optim: OptimArgs | None = None, **args: Any) -> dict[str, Any]:
    """Train a toy for six steps; returns its newest checkpoint."""
    every = {"steps": 6, "save_every": 1, "eval_every": 1, "log_every": 1}
    train(
        family or Toy(), TrainArgs(**every | args), optim or OptimArgs(lr=0.05, warmup=1), run, progress=False
    )
    return torch.load(checkpoint.found(run)[-1], weights_only=True)


def test_accumulation_is_one_large_mean(tmp_path: Path) -> None:
    small, large = toy(tmp_path / "small", accumulate=3), toy(tmp_path / "large", Toy(means_of=3))
    for key, tensor in large["module"].items():
        torch.testing.assert_close(small["module"][key], tensor, rtol=1e-5, atol=1e-6)
    rows = [metrics.read(tmp_path / name / "metrics.jsonl") for name in ("small", "large")]
    assert [r["fit"] for r in rows[0] if "fit" in r] == pytest.approx(
        [r["fit"] for r in rows[1] if "fit" in r]
    )


def test_averaged_weights_equal_their_slow_twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "KEEP", 99)
    state = toy(tmp_path, ema=0.75)
    torch.manual_seed(0)
    mean = [p.detach().clone() for p in Toy().build().parameters()]
    for path in checkpoint.found(tmp_path):
        now = torch.load(path, weights_only=True)["module"].values()
        mean = [0.75 * m + 0.25 * p for m, p in zip(mean, now, strict=True)]
    exported = torch.load(tmp_path / "export" / "weights.pt", weights_only=True)
    for slow, fast, out in zip(mean, state["ema"]["values"], exported.values(), strict=True):
        torch.testing.assert_close(fast, slow)
        assert torch.equal(out, fast)
    assert not torch.equal(out, list(state["module"].values())[-1])  # the weights themselves went on


def test_averages_and_loss_scale_resume(tmp_path: Path) -> None:
    whole = toy(tmp_path / "whole", ema=0.9, precision="fp16")
    toy(tmp_path / "cut", ema=0.9, precision="fp16", steps=6, max_seconds=1e-9)
    cut = toy(tmp_path / "cut", ema=0.9, precision="fp16")
    assert whole["scaler"] == cut["scaler"] and whole["step"] == cut["step"] == 6
    assert all(map(torch.equal, whole["ema"]["values"], cut["ema"]["values"]))
    with pytest.raises(CheckpointError, match="lacks scaler"):
        shutil.copytree(tmp_path / "whole", tmp_path / "other")
        path = checkpoint.found(tmp_path / "other")[-1]
        checkpoint.write(path, {k: v for k, v in whole.items() if k != "scaler"})
        toy(tmp_path / "other", ema=0.9, precision="fp16", steps=7)


def test_an_overflow_in_fp16_skips_the_step_and_halves_the_scale(tmp_path: Path) -> None:
    state = toy(tmp_path, Toy(blow_up=2), precision="fp16")
    rows = [row for row in metrics.read(tmp_path / "metrics.jsonl") if "lr" in row]
    skipped = [row["step"] for row in rows if "grad_norm/model" not in row]
    assert 3 in skipped and 6 not in skipped  # the scale starts high, so the first step may overflow as well
    assert state["scaler"]["scale"] == 2.0 ** (16 - len(skipped)) and state["step"] == 6


def test_a_step_above_the_limit_is_not_taken(tmp_path: Path) -> None:
    toy(tmp_path / "all", steps=2)
    toy(tmp_path / "none", steps=2, optim=OptimArgs(skip_above=1e-9))
    torch.manual_seed(0)
    fresh = Toy().build().state_dict()
    kept, moved = (
        torch.load(checkpoint.found(tmp_path / n)[-1], weights_only=True)["module"] for n in ("none", "all")
    )
    assert all(
        torch.equal(kept[key], fresh[key]) and not torch.equal(moved[key], fresh[key]) for key in fresh
    )


def test_another_number_of_micro_batches_does_not_resume(tmp_path: Path) -> None:
    toy(tmp_path, steps=2, accumulate=2)
    with pytest.raises(CheckpointError, match="2 micro-batches.*now it would have 1.*product is 2"):
        toy(tmp_path, steps=3)


def test_the_best_weights_are_kept(tmp_path: Path) -> None:
    state = toy(tmp_path, best="eval/fit", steps=9, optim=OptimArgs(lr=0.5, warmup=1))
    evals = [row["eval/fit"] for row in metrics.read(tmp_path / "metrics.jsonl") if "eval/fit" in row]
    best = torch.load(tmp_path / "checkpoints" / "best.pt", weights_only=True)
    assert best["step"] == 1 + int(np.argmin(evals)) and best["metric"]["eval/fit"] == pytest.approx(
        min(evals)
    )
    module = Toy().build()
    module.load_state_dict(best["module"])
    assert Toy().evaluate(module)["fit"] == pytest.approx(min(evals), rel=1e-4)
    assert state["step"] == 9
    with pytest.raises(TrainingError, match="eval/wer.*held-out metrics are eval/fit"):
        toy(tmp_path / "other", best="eval/wer")


def test_counts_become_rates(tmp_path: Path) -> None:
    toy(tmp_path, accumulate=2)
    row = metrics.read(tmp_path / "metrics.jsonl")[0]
    assert row["padding"] == 0.25 and row["tokens_per_s"] > 0 and "tokens" not in row
    meter = Meter(torch.device("cpu"))
    meter.since -= 10
    assert meter.rates([meter.counts | {"tokens": 30.0, "positions": 40.0}] * 2)[
        "tokens_per_s"
    ] == pytest.approx(6, rel=0.01)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    toy(tmp_path, steps=2)
    before = {path: path.read_bytes() for path in checkpoint.found(tmp_path)}
    wide = nn.Linear(500, 500)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (300_000, limits[1])
    )  # no file may grow beyond, as on a full disk
    try:
        with pytest.raises(DiskError):
            checkpoint.save(tmp_path, 3, checkpoint.state_of(wide, {}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()} == before


def test_checkpointed_activations_change_nothing_but_memory(tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens")
    recipe = write_recipe(tmp_path / "lm.yaml", lm_tree(tmp_path / "tokens"))
    stories = []
    for name, change in (("plain", "train.attention=sdpa"), ("thrifty", "train.gradient_checkpointing=true")):
        main([str(recipe), *SHORT, change, "--run", str(tmp_path / name)])
        stories.append(metrics.read(tmp_path / name / "metrics.jsonl"))
    close(*([timeless(row) for row in told] for told in stories), 1e-6)
    with pytest.raises(UsageError, match="Sequential has no such thing"):
        toy(tmp_path / "toy", gradient_checkpointing=True)


def test_what_cannot_be_had_here_is_refused() -> None:
    cpu = torch.device("cpu")
    with pytest.raises(UsageError, match="needs a GPU"):
        adapt(nn.Linear(1, 1), TrainArgs(attention="flash_attention_2"), cpu)
    with pytest.raises(UsageError, match="has no choice"):
        adapt(nn.Linear(1, 1), TrainArgs(attention="eager"), cpu)
    for wrong in ({"zero": 4}, {"ema": 1.0}, {"best": "tts"}, {"accumulate": 0}, {"zero_options": {"a": 1}}):
        with pytest.raises(UsageError, match=f"train.{next(iter(wrong))}"):
            TrainArgs(**wrong)  # type: ignore[arg-type]


def test_compiling_compiles_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    module = Toy().build()
    adapt(module, TrainArgs(compile=True), torch.device("cpu"))
    assert compiled == list(module.children())


# Launchers --------------------------------------------------------------------------------------------------


def test_a_launcher_that_forgot_the_ranks_is_caught() -> None:
    assert Launched.read({}) == Launched()
    for forgetful in (
        {"MASTER_ADDR": "127.0.0.1"},
        {"OMPI_COMM_WORLD_SIZE": "2"},
        {"SLURM_STEP_NUM_TASKS": "8"},
    ):
        with pytest.raises(TrainingError, match="no rank.*torchrun"):
            Launched.read(forgetful)
    told = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a"}
    assert Launched.read(told) == Launched(3, 4, 1)
    by_file = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
    assert Launched.read(told | by_file | {"ACCELERATE_MIXED_PRECISION": "bf16"}).zero == 2
    assert Launched.read(told | {"ACCELERATE_USE_FSDP": "true"}).fsdp


def test_the_launch_file_speaks_where_the_recipe_does_not() -> None:
    tree: dict[str, Any] = {"train": {"precision": "fp32"}}
    resolve(tree, Launched(zero=3, precision="bf16"))
    assert tree == {"train": {"precision": "fp32", "zero": 3}}
    resolve(tree := {}, Launched(fsdp=True))
    assert tree == {"train": {"fsdp": True}}
    engine = Single(TrainArgs(), torch.device("cpu"))
    check(engine, TrainArgs(), Launched())
    for args, place_, reason in [
        (TrainArgs(world=2), Launched(), "train.world: the recipe asks for 2, what runs has 1"),
        (TrainArgs(zero=2), Launched(), "train.zero: the recipe asks for 2, what runs has 0"),
        (
            TrainArgs(precision="bf16"),
            Launched(),
            "train.precision: the recipe asks for bf16, what runs has fp32",
        ),
        (TrainArgs(), Launched(world=2), "train.world: the launcher asks for 2"),
        (TrainArgs(), Launched(zero=3), "train.zero: the launch file asks for 3"),
        (TrainArgs(), Launched(fsdp=True), "train.fsdp: the launch file asks for True"),
        (TrainArgs(), Launched(precision="bf16"), "train.precision: the launch file asks for bf16"),
    ]:
        with pytest.raises(TrainingError, match=f"{reason}.*torchrun"):
            check(engine, args, place_)


def test_a_lost_connection_says_what_to_do() -> None:
    for reason in ("[gloo] Connection closed by peer [127.0.0.1]:4", "Timed out waiting 600000ms for recv"):
        with pytest.raises(TrainingError, match="gone or silent.*last checkpoint is intact.*same command"):
            with lost_rank():
                raise RuntimeError(reason)
    with pytest.raises(RuntimeError, match="shapes"):
        with lost_rank():
            raise RuntimeError("shapes do not match")


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "launch").glob("*.yaml")), ids=lambda p: p.stem)
def test_launch_files_are_what_accelerate_reads(path: Path) -> None:
    configuration = pytest.importorskip("accelerate.commands.config.config_args")
    read = configuration.load_config_from_file(str(path))
    assert read.num_processes >= 1 and str(read.distributed_type).split(".")[-1] in (
        "NO",
        "MULTI_GPU",
        "DEEPSPEED",
        "FSDP",
    )
    stage = read.deepspeed_config.get("zero_stage") if "DEEPSPEED" in str(read.distributed_type) else None
    assert path.stem[:-1] != "zero" or stage == int(path.stem[-1])
    assert (path.stem == "fsdp") == (read.fsdp_config.get("fsdp_version") == 2)


# What is kept with a run ------------------------------------------------------------------------------------


def test_the_fingerprint_tells_data_apart(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_bytes(b"x" * (environment.EDGE * 3))
    section = LM(str(tmp_path / "folder"))
    first = environment.fingerprint(section)
    assert set(first) == {"tokens"} and first == environment.fingerprint(section)
    with (tmp_path / "folder" / "a").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"y")
    assert environment.fingerprint(section) != first


def test_the_plot_command_draws_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy(tmp_path)
    assert cli.main(["plot", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'loss.png'}\n"
    assert (tmp_path / "loss.png").stat().st_size > 1000
    assert cli.main(["plot", str(tmp_path / "nowhere")]) == UsageError.exit_code


def test_tensorboard_is_written_or_named(tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(MissingExtraError, match="tensorboard.*train"):
            toy(tmp_path, tracker="tensorboard")
    else:
        toy(tmp_path, tracker="tensorboard")
        assert list((tmp_path / "tensorboard").iterdir())


def test_batches_are_placed_whole() -> None:
    @dataclass
    class Batch:
        ids: torch.Tensor
        names: list[str]
        more: dict[str, torch.Tensor]

    meta = torch.device("meta")
    placed = to_device(Batch(torch.ones(2), ["a"], {"x": torch.ones(1)}), meta)
    assert placed.ids.device == placed.more["x"].device == meta and placed.names == ["a"]
