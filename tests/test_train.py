"""The training loop on a few real clips: it learns, resumes bit by bit, outlives kills, names mistakes."""

import logging
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from gpa import config
from gpa.codec import trained
from gpa.codec.base import AudioTokens
from gpa.codec.bicodec import BiCodec
from gpa.codec.harmonic import HarmonicDecoder
from gpa.codec.pitch import yin
from gpa.codec.voice import Voice
from gpa.data import feature_cache
from gpa.data.feature_cache import FeatureCache
from gpa.data.rows import LMBatch
from gpa.errors import CheckpointError, DiskError, TrainingError, UsageError
from gpa.lab.merge import average
from gpa.nn.device import bfloat16_slowdown
from gpa.prompt.tasks import DEFAULT
from gpa.train import checkpoint, launch, metrics
from gpa.train.arguments import TrainArgs
from gpa.train.command import family_of, main
from gpa.train.families.base import Family, Loss
from gpa.train.families.codec import CodecFamily, CodecRecipe
from gpa.train.loop import step_seed, train
from gpa.train.optim import Both, OptimArgs, Optimizer, learning_rate, make_optimizer
from training import (
    codec_tree,
    ctc_tree,
    latent_tree,
    lm_tree,
    story,
    write_encoder,
    write_manifest,
    write_recipe,
    write_tokens,
)

pytestmark = pytest.mark.usefixtures("threads_kept")
pytest.importorskip("sentencepiece")
KINDS = ("codec", "ctc", "gpa", "latent")
HARMONIC = {"input_channel": 16, "channels": 16, "hidden": 32, "layers": 1, "bands": 12}  # a decoder
REFINER = {"decoder": {"refiner": {"dim": 8, "hidden": 16, "layers": 1}}}
SOUND: dict[str, Any] = {"freeze_ids": True, "model": REFINER}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with encoder, manifest, feature cache (made by its command) and token folder."""
    root = tmp_path_factory.mktemp("data")
    manifest, encoder = write_manifest(root), write_encoder(root / "encoder")
    feature_cache.main([str(manifest), "--encoder", str(encoder), "-o", str(root / "cache")])
    write_tokens(root / "tokens")
    return root


def tree_of(kind: str, data: Path, **changes: Any) -> dict[str, Any]:
    if kind == "gpa":
        return lm_tree(data / "tokens", **changes)
    return {"codec": codec_tree, "ctc": ctc_tree, "latent": latent_tree}[kind](data / "cache", **changes)


def go(tree: dict[str, Any], folder: Path, *overrides: str) -> Path:
    """Train a recipe as the command does, but for the picture; returns the run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    run = folder / "run"
    family, recipe = family_of(config.load_yaml(write_recipe(folder / "recipe.yaml", tree), list(overrides)))
    checkpoint.claim(run, recipe)
    train(family, recipe.train, recipe.optim, run, progress=False)
    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = sorted((run / "checkpoints").glob("step-*.pt"))[-1]
    return torch.load(newest, weights_only=True)


def same(a: Any, b: Any) -> bool:
    """Whether two nested states are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One uninterrupted run of each family; read only."""
    return {kind: go(tree_of(kind, data), tmp_path_factory.mktemp(kind)) for kind in KINDS}


# The loop --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_leaves_what_it_should(kind: str, runs: dict[str, Path]) -> None:
    run = runs[kind]
    rows = story(run)
    assert [row["step"] for row in rows] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert all(np.isfinite(value) for row in rows for value in row.values())
    assert any(key.startswith("eval/") for key in rows[3])
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["step-00000004.pt", "step-00000006.pt"]  # the two newest, nothing partial
    assert yaml.safe_load((run / "recipe.yaml").read_text())["kind"] == kind
    expected = {"codec": {"heads.safetensors"}, "gpa": {"tokenizer.json"}}.get(kind, set())
    assert {"config.json", "model.safetensors", *expected} <= {p.name for p in (run / "export").iterdir()}


class Interrupted(Exception):
    pass


class Fragile:
    """A family that fails at a step, as a power cut would."""

    def __init__(self, family: Family, at: int) -> None:
        self.family, self.at = family, at

    def __getattr__(self, name: str) -> Any:
        return getattr(self.family, name)

    def batch(self, step: int) -> Any:
        if step == self.at:
            raise Interrupted
        return self.family.batch(step)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [1, 3, 4])  # before the first checkpoint, between two, right after one
def test_resumed_is_uninterrupted(
    kind: str, at: int, data: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    family, recipe = family_of(tree_of(kind, data))
    run = tmp_path / "run"
    checkpoint.claim(run, recipe)
    with pytest.raises(Interrupted):
        train(Fragile(family, at), recipe.train, recipe.optim, run, progress=False)  # type: ignore[arg-type]
    assert go(tree_of(kind, data), tmp_path) == run
    assert story(run) == story(runs[kind])  # one story: no line twice, none of the lost steps
    assert same(weights(run), weights(runs[kind]))
    exported = [load_file(path / "export" / "model.safetensors") for path in (run, runs[kind])]
    assert same(*exported)


def test_muon_in_bf16_learns_and_resumes_alike(data: Path, tmp_path: Path) -> None:
    changes = ("train.precision=bf16", "optim.name=muon")
    whole = go(tree_of("gpa", data), tmp_path / "whole", *changes)
    tree = config.load_yaml(write_recipe(tmp_path / "recipe.yaml", tree_of("gpa", data)), list(changes))
    family, recipe = family_of(tree)
    checkpoint.claim(tmp_path / "run", recipe)
    with pytest.raises(Interrupted):
        train(
            Fragile(family, 5),  # type: ignore[arg-type]
            recipe.train,
            recipe.optim,
            tmp_path / "run",
            progress=False,
        )
    cut = go(tree_of("gpa", data), tmp_path, *changes)
    assert story(cut) == story(whole) and same(weights(cut), weights(whole))
    assert all(t.dtype == torch.float32 for t in weights(cut)["module"].values() if t.is_floating_point())


def test_muon_takes_hidden_matrices_only() -> None:
    module = nn.Sequential(nn.Embedding(5, 4), nn.Conv1d(4, 4, 3), nn.Linear(4, 3))
    both = make_optimizer(list(module.parameters()), module, OptimArgs(name="muon"))
    assert isinstance(both, Both)
    muon, adamw = ([id(p) for group in part.param_groups for p in group["params"]] for part in both.parts)
    assert muon == [id(module[2].weight)]
    assert sorted(muon + adamw) == sorted(id(p) for p in module.parameters())
    for group in both.param_groups:
        group["lr"] = 0.5  # as the loop does at every step
    assert all(group["lr"] == 0.5 for part in both.parts for group in part.param_groups)


def test_an_unknown_optimiser_or_precision_names_the_known() -> None:
    with pytest.raises(UsageError, match="adamw, muon"):
        OptimArgs(name="sgd")
    with pytest.raises(UsageError, match="fp32, bf16"):
        TrainArgs(precision="fp8")


def test_the_command_trains_and_draws(data: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", tree_of("gpa", data))
    main([str(recipe), "train.steps=1", "--run", str(tmp_path / "run")])
    assert (tmp_path / "run" / "loss.png").stat().st_size > 1000


def test_random_numbers_of_a_step_depend_on_seed_and_step() -> None:
    seeds = {step_seed(seed, step) for seed in range(3) for step in range(100)}
    assert len(seeds) == 300 and max(seeds) < 2**32
    assert [step_seed(0, 7), step_seed(1, 0)] == [
        1369798745,
        1835504127,
    ]  # never to change: runs resume by them


def test_time_goes_on_after_a_resume(data: Path, tmp_path: Path) -> None:
    run = go(tree_of("gpa", data), tmp_path, "train.steps=2")
    log = metrics.read(run / "metrics.jsonl")
    first = max(row.get("seconds", 0.0) for row in log)
    go(tree_of("gpa", data), tmp_path, "train.steps=4")
    seconds = [row["seconds"] for row in metrics.read(run / "metrics.jsonl") if "seconds" in row]
    assert seconds == sorted(seconds) and seconds[-1] > first > 0


def test_max_seconds_stops_after_a_checkpoint(data: Path, tmp_path: Path) -> None:
    run = go(tree_of("gpa", data), tmp_path, "train.max_seconds=1e-6")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000001.pt"]
    assert (run / "export" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_process_resumes_bit_for_bit(kind: str, data: Path, tmp_path: Path) -> None:
    """SIGKILL at a random moment, thrice, saves included; then the same command to the end."""
    tree = tree_of(kind, data)
    tree["train"] = {"steps": 60, "save_every": 3, "eval_every": 20, "log_every": 1, "threads": 1}
    whole = go(tree, tmp_path / "whole")
    recipe = write_recipe(tmp_path / "recipe.yaml", tree)
    run = tmp_path / "run"
    command = [sys.executable, "-m", "gpa.train", str(recipe), "--run", str(run)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    draw, killed = random.Random(kind), 0
    for target in (7, 23, 41):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        while process.poll() is None and last_step(run) < target:
            time.sleep(0.005)
        time.sleep(draw.random() * 0.05)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert story(run) == story(whole)
    assert same(weights(run), weights(whole))


def last_step(run: Path) -> int:
    path = run / "metrics.jsonl"
    rows = metrics.read(path) if path.exists() else []
    return int(rows[-1]["step"]) if rows else 0


def has_conversion(batch: Any) -> bool:
    return not isinstance(batch, LMBatch) or bool((batch.task == DEFAULT.index("vc")).any())


@pytest.mark.parametrize(
    ("kind", "name"), [("codec", "mel"), ("ctc", "ctc"), ("gpa", "vc"), ("latent", "mel")]
)
def test_one_batch_can_be_overfitted(kind: str, name: str, data: Path, tmp_path: Path) -> None:
    family, recipe = family_of(tree_of(kind, data))

    first = next(batch for step in range(9) if has_conversion(batch := family.batch(step)))

    class OneBatch(Fragile):
        def batch(self, step: int) -> Any:
            return first

    args = TrainArgs(steps=40, save_every=40, eval_every=40, log_every=1, threads=1)
    optim = OptimArgs(lr=1e-2, warmup=4)
    train(OneBatch(family, -1), args, optim, tmp_path, progress=False)  # type: ignore[arg-type]
    values = [row[name] for row in story(tmp_path) if name in row]
    assert len(values) == 40 and np.isfinite(values).all()
    assert np.mean(values[-5:]) < 0.8 * values[0]


# Checkpoints and metrics -----------------------------------------------------------------------------------


def module_and_optimizers(value: float) -> tuple[nn.Module, dict[str, Optimizer]]:
    module = nn.Linear(2, 2)
    nn.init.constant_(module.weight, value)
    return module, {"model": make_optimizer(list(module.parameters()), module, OptimArgs())}


def restored(run: Path, module: nn.Module, optimizers: dict[str, Optimizer]) -> int:
    path = checkpoint.newest(run)
    return checkpoint.restore(path, module, optimizers) if path else 0


def test_a_partial_checkpoint_is_ignored(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, checkpoint.state_of(*module_and_optimizers(float(step))))
    folder = tmp_path / "checkpoints"
    (folder / "step-00000009.partial").write_bytes(b"half a checkp")
    (folder / "step-notes.pt").write_bytes(b"somebody's")
    module, optimizers = module_and_optimizers(0.0)
    assert restored(tmp_path, module, optimizers) == 3
    assert (module.weight == 3).all()
    assert sorted(path.name for path in folder.glob("step-0*.pt")) == ["step-00000002.pt", "step-00000003.pt"]


def test_a_write_that_fails_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, 1, checkpoint.state_of(*module_and_optimizers(1.0)))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match="disk is full: it is the one at /"):
        checkpoint.save(tmp_path, 2, checkpoint.state_of(*module_and_optimizers(2.0)))
    assert restored(tmp_path, *module_and_optimizers(0.0)) == 1


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, checkpoint.state_of(*module_and_optimizers(1.0)))
    module, optimizers = module_and_optimizers(0.0)
    with pytest.raises(CheckpointError, match="holds optimisers"):
        restored(tmp_path, module, {"generator": optimizers["model"]})
    with pytest.raises(CheckpointError, match="do not fit"):
        restored(tmp_path, nn.Linear(3, 2), optimizers)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="every checkpoint is damaged .step-00000001.pt it carries no"):
        restored(tmp_path, module, optimizers)
    assert path.is_file()  # or the next run would be a fresh one


def test_metrics_are_rewound_and_torn_lines_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = metrics.MetricsLog(path, 0)
    for step in (1, 2, 3):
        log.write(step, {"loss": 1 / step, "seconds": float(step)})
    log.write(3, {})
    with path.open("a") as file:
        file.write('{"step": 4, "loss"')
    again = metrics.MetricsLog(path, 2)
    assert again.seconds == 2.0
    again.write(3, {"loss": 0.5})
    assert metrics.read(path) == [
        {"step": 1, "loss": 1.0, "seconds": 1.0},
        {"step": 2, "loss": 0.5, "seconds": 2.0},
        {"step": 3, "loss": 0.5},
    ]


# What is refused, and what is said -------------------------------------------------------------------------


def test_another_recipe_does_not_resume(data: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    run = go(tree_of("gpa", data), tmp_path, "train.steps=2")
    before = (run / "recipe.yaml").read_text()
    with pytest.raises(CheckpointError, match=r"another recipe: optim.lr \(was 0.003, is 0.1\), train.seed"):
        go(tree_of("gpa", data), tmp_path, "optim.lr=0.1", "train.seed=1")
    assert (run / "recipe.yaml").read_text() == before
    free = (
        "train.steps=3",
        "train.save_every=1",
        "train.eval_every=9",
        "train.log_every=1",
        "train.threads=2",
    )
    go(tree_of("gpa", data), tmp_path, *free, "train.max_seconds=900")
    assert last_step(run) == 3


def test_other_data_in_the_same_folder_do_not_resume(data: Path, tmp_path: Path) -> None:
    tokens = shutil.copytree(data / "tokens", tmp_path / "tokens")
    recipe, run = write_recipe(tmp_path / "recipe.yaml", lm_tree(tokens)), tmp_path / "run"
    line = [str(recipe), "--run", str(run)]
    main([*line, "train.steps=1"])
    (tokens / ".hidden").write_text("of a file manager")
    main([*line, "train.steps=2"])
    (tokens / "more.txt").write_text("rows")
    with pytest.raises(CheckpointError, match="other content of data.tokens: bring it back"):
        main([*line, "train.steps=3"])
    assert last_step(run) == 2
    shutil.rmtree(run / "checkpoints")  # nothing is left that was learnt
    main([*line, "train.steps=1"])


def test_a_setting_newer_than_the_run_does_not_stop_it(tmp_path: Path, data: Path) -> None:
    run = go(tree_of("gpa", data), tmp_path, "train.steps=1")
    saved = yaml.safe_load((run / "recipe.yaml").read_text())
    del saved["optim"]["skip_above"]
    (run / "recipe.yaml").write_bytes(checkpoint.sealed(yaml.safe_dump(saved).encode()))
    go(tree_of("gpa", data), tmp_path, "train.steps=2")
    assert "skip_above" in (run / "recipe.yaml").read_text()


def test_a_fresh_folder_takes_any_recipe(data: Path, tmp_path: Path) -> None:
    _, recipe = family_of(tree_of("gpa", data))
    (tmp_path / "recipe.yaml").write_text(
        "kind: other\n"
    )  # a run that was stopped before its first checkpoint
    checkpoint.claim(tmp_path, recipe)
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["kind"] == "gpa"


def test_the_start_says_what_is_trained_and_where(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="gpa.train"):
        run = go(tree_of("gpa", data), tmp_path, "train.steps=1")
        go(tree_of("gpa", data), tmp_path, "train.steps=2")
    count = sum(tensor.numel() for tensor in load_file(run / "export" / "model.safetensors").values())
    assert f"{count:,} parameters" in caplog.text and str(run) in caplog.text
    assert "step 0 to 1, a fresh run" in caplog.text and "step 1 to 2, resumed" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_with_its_step(value: float, tmp_path: Path) -> None:
    class Diverging:
        def build(self) -> nn.Module:
            return nn.Linear(1, 1)

        def parameters(self, module: nn.Module) -> dict[str, list[nn.Parameter]]:
            return {"model": list(module.parameters())}

        def batch(self, step: int) -> float:
            return value if step == 3 else 1.0

        def losses(self, module: nn.Module, batch: float, step: int) -> Iterator[Loss]:
            yield Loss("model", module(torch.ones(1, 1)).square().sum() * batch, {"part": batch})

        def evaluate(self, module: nn.Module) -> dict[str, float]:
            return {}

        def export(self, module: nn.Module, path: Path) -> None: ...

    args = TrainArgs(steps=9, save_every=1, eval_every=9, log_every=1)
    with pytest.raises(TrainingError, match=f"step 4: the model loss is {value:.4g}.*part.*optim.lr"):
        train(Diverging(), args, OptimArgs(), tmp_path, progress=False)
    assert restored(tmp_path, nn.Linear(1, 1), module_optimizer()) == 3


def module_optimizer() -> dict[str, torch.optim.Optimizer]:
    module = nn.Linear(1, 1)
    return {"model": make_optimizer(list(module.parameters()), module, OptimArgs())}


def test_ids_are_rounded_from_the_step_that_the_recipe_names(data: Path, tmp_path: Path) -> None:
    tree = tree_of("codec", data, quantize_from=3)
    whole = go(tree, tmp_path / "whole")
    rounding = [row["vq"] for row in story(whole) if "vq" in row]
    assert rounding[:3] == [0, 0, 0] and min(rounding[3:]) > 0
    family, recipe = family_of(tree)
    checkpoint.claim(tmp_path / "run", recipe)
    for at in (2, 5):  # stopped before the codebook starts, and after
        with pytest.raises(Interrupted):
            run = tmp_path / "run"
            train(Fragile(family, at), recipe.train, recipe.optim, run, progress=False)  # type: ignore[arg-type]
    cut = go(tree, tmp_path)
    assert story(cut) == story(whole) and same(weights(cut), weights(whole))


def test_what_the_encoder_hears_is_learnt_from(data: Path, tmp_path: Path) -> None:
    """Nothing is lost on the recording itself; on a batch that is repeated the loss falls."""
    sizes = {**codec_tree(data / "cache")["model"], "decoder": HARMONIC}
    tree = tree_of("codec", data, model=sizes, weights={"mel": 0.0, "asr_features": 1.0})
    with pytest.raises(UsageError, match=r"data\.encoder"):
        family_of(tree)[0]
    tree["data"]["encoder"] = str(data / "encoder")
    family = family_of(tree)[0]
    torch.manual_seed(0)
    module = family.build()
    batch, values = family.batch(0), []
    assert family._ear(batch.wav, batch.wav) == 0
    optimiser = torch.optim.Adam(module.codec.decoder.parameters(), 3e-3)
    for _ in range(8):
        loss = next(family.losses(module, batch, 0))
        optimiser.zero_grad()
        loss.value.backward()
        optimiser.step()
        values.append(loss.metrics["asr_features"])
    assert values[-1] < values[0]


def test_the_pitch_of_a_cache_is_measured_once(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "cache", tmp_path / "cache")
    file = tmp_path / "cache" / feature_cache.PITCH
    file.write_bytes(b"cut short")  # by a kill: measured again
    cache = feature_cache.FeatureCache(tmp_path / "cache")
    f0, voiced = yin(torch.from_numpy(cache.wav(2))[None], feature_cache.FRAME)
    ours, ours_voiced = cache.pitch(2, 5, 20)
    np.testing.assert_allclose(ours, f0[0, 5:20], rtol=1e-3)  # kept in half precision
    np.testing.assert_array_equal(ours_voiced, voiced[0, 5:20])
    stamp = file.stat().st_mtime_ns
    feature_cache.FeatureCache(tmp_path / "cache").measure_pitch()
    assert file.stat().st_mtime_ns == stamp


def test_envelopes_are_learnt_without_rendering(data: Path, tmp_path: Path) -> None:
    sizes = {**codec_tree(data / "cache")["model"], "decoder": HARMONIC}
    run = go(tree_of("codec", data, model=sizes, weights={"mel": 0.0, "envelope": 1.0}), tmp_path)
    for row in story(run):
        if any(key.startswith("eval/") for key in row):
            assert row["eval/mel"] > 0 and row["eval/envelope"] > 0  # heard when it is judged
        else:
            assert row["envelope"] > 0 and "mel" not in row


def test_unusable_recipes_are_refused_by_name(data: Path, tmp_path: Path) -> None:
    for change, message in [
        (
            {"kind": "vocoder"},
            "recipe kind 'vocoder': choose one of codec, ctc, dpo, gpa, latent, speechop, text",
        ),
        ({"kind": None}, "recipe kind None"),
        ({"model": {"hidden_sizes": 3}}, r"model: unknown keys \['hidden_sizes'\]"),
        ({"train": {"steps": 0}}, "train.steps=0: at least 1"),
        ({"train": {"seed": -1}}, "train.seed=-1"),
    ]:
        with pytest.raises(UsageError, match=message):
            go({**tree_of("gpa", data), **change}, tmp_path)
    with pytest.raises(UsageError, match="data.max_ids=5"):
        go(tree_of("gpa", data), tmp_path, "data.max_ids=5")
    with pytest.raises(UsageError, match="`init`"):
        go({**tree_of("codec", data), "model": {}}, tmp_path)


def test_missing_inputs_name_the_command_that_makes_them(data: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no feature cache.*python -m gpa.data.feature_cache MANIFEST"):
        FeatureCache(tmp_path)
    with pytest.raises(CheckpointError, match="not prepared.*gpa prepare MANIFEST -o"):
        go({**tree_of("gpa", data), "data": {"tokens": str(tmp_path)}}, tmp_path / "none")
    with pytest.raises(CheckpointError, match="no codec export.*gpa train recipes/gpa/"):
        trained.load_network(tmp_path)
    with pytest.raises(CheckpointError, match="no codec, and no checkpoint with one"):
        go(tree_of("gpa", data, codec=str(tmp_path)), tmp_path / "gpa")
    with pytest.raises(CheckpointError, match="no codec export"):
        go(tree_of("codec", data, init=str(tmp_path), model={}), tmp_path / "codec")


def test_the_command_returns_the_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gpa.train", str(tmp_path / "absent.yaml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == UsageError.exit_code
    assert "no such recipe" in done.stderr and "Traceback" not in done.stderr


def test_learning_rate_warms_up_and_decays() -> None:
    args = OptimArgs(lr=1.0, lr_end=0.1, warmup=10)
    rates = [learning_rate(args, step, 100) for step in range(120)]
    assert rates[0] == 0.1 and rates[9] == 1.0 and rates[10] == pytest.approx(1.0)
    assert rates[10:101] == sorted(rates[10:101], reverse=True)
    assert rates[100] == rates[119] == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.55)


def test_only_matrices_are_decayed() -> None:
    module = nn.Linear(3, 2)
    groups = make_optimizer(list(module.parameters()), module, OptimArgs(weight_decay=0.3)).param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(1, 0.3), (1, 0.0)]


# The feature cache -----------------------------------------------------------------------------------------


def test_the_cache_holds_the_encoders_states_and_the_sound(data: Path) -> None:
    from gpa import audio
    from gpa.codec.feature_encoder import load_whisper_features

    cache, encoder = FeatureCache(data / "cache"), load_whisper_features(data / "encoder")
    assert len(cache) == 6 and list(cache.select(("dev",))) == [5]
    for i in (0, 4):
        wav = audio.load(data / cache.rows[i]["path"])
        held = cache.wav(i)
        assert len(held) % 640 == 0 and np.abs(held[: len(wav)] - wav).max() < 1e-4
        assert not held[len(wav) :].any()
        with torch.inference_mode():
            states = encoder(torch.from_numpy(np.pad(wav, (0, len(held) - len(wav))))[None])[0].T.numpy()
        np.testing.assert_allclose(cache.features(i), states, atol=2e-3)
        np.testing.assert_array_equal(cache.wav(i, 3, 5), held[960:1600])


@pytest.mark.parametrize("cut", ["features.f16", "audio.i16", "index.jsonl"])
def test_a_cut_cache_is_refused_and_finished_by_the_same_command(
    cut: str, data: Path, tmp_path: Path
) -> None:
    command = [str(data / "manifest.jsonl"), "--encoder", str(data / "encoder"), "-o", str(tmp_path)]
    whole = {
        name: (data / "cache" / name).read_bytes() for name in ("features.f16", "audio.i16", "index.jsonl")
    }
    lines = whole["index.jsonl"].splitlines(keepends=True)
    for name, content in whole.items():  # as a kill in the third clip leaves it
        (tmp_path / name).write_bytes(content[: 3 * len(content) // 4] if name != "index.jsonl" else content)
    (tmp_path / "index.jsonl").write_bytes(
        b"".join(lines[:2]) + (lines[2][:30] if cut == "index.jsonl" else b"")
    )
    with pytest.raises(CheckpointError, match="incomplete"):
        FeatureCache(tmp_path)
    feature_cache.main(command)
    assert {name: (tmp_path / name).read_bytes() for name in whole} == whole


def test_a_cache_of_another_manifest_is_refused(data: Path, tmp_path: Path) -> None:
    rows = (data / "manifest.jsonl").read_text().splitlines()
    other = data / "other.jsonl"
    other.write_text("\n".join(rows[::-1]) + "\n")
    for name in ("features.f16", "audio.i16", "index.jsonl"):
        (tmp_path / name).write_bytes((data / "cache" / name).read_bytes())
    with pytest.raises(CheckpointError, match="another manifest"):
        feature_cache.main([str(other), "--encoder", str(data / "encoder"), "-o", str(tmp_path)])


# The codec family ------------------------------------------------------------------------------------------


def test_a_refiner_joins_a_decoder_that_is_kept(data: Path, tmp_path: Path) -> None:
    """It begins as the identity and learns from what is rendered; run and export hold one network."""
    before = harmonic_codec(data, tmp_path / "first")
    changes = {"init": str(before), **SOUND, "weights": {"mel": 1.0}}
    module = codec_family(data, **changes).build()
    old, new = trained.load_network(before), module.codec  # type: ignore[union-attr]
    codes, speaker = torch.arange(12)[None] % 8, torch.zeros(1, old.config.speaker_encoder.token_num).long()
    torch.testing.assert_close(new.decode(codes, speaker), old.decode(codes, speaker))
    run = go(tree_of("codec", data, **changes), tmp_path / "then")
    exported = trained.load_network(run / "export")
    stored = trained.load_network(sorted((run / "checkpoints").glob("*.pt"))[-1])
    assert same(exported.state_dict(), stored.state_dict())
    assert isinstance(exported.decoder, HarmonicDecoder) and exported.decoder.refiner is not None
    assert exported.decoder.refiner.out.weight.abs().max() > 0
    assert not torch.equal(exported.decode(codes, speaker), old.decode(codes, speaker))


def test_sound_is_learnt_on_ids_that_stay(data: Path, tmp_path: Path) -> None:
    """Against discriminators on complex spectra: it comes nearer to the recording, no weight of ids or
    voices moves, and what the export streams is what it decodes.
    """
    before = harmonic_codec(data, tmp_path / "first")
    changes: dict[str, Any] = {"init": str(before), **SOUND}
    changes["data"] = {**codec_tree(data / "cache")["data"], "encoder": str(data / "encoder")}
    changes["weights"] = {"mel": 0.0, "stft": 1.0, "asr_features": 0.1, "adversarial_from": 5}
    changes["discriminators"] = {"spectra": "complex", "windows": [256, 512], "channels": 4}
    tree = tree_of("codec", data) | changes
    family, _ = family_of(tree)
    with torch.inference_mode():
        start = family.evaluate(family.build().eval())["stft"]
    steps = [f"train.{name}=40" for name in ("steps", "eval_every", "save_every")]
    run = go(tree, tmp_path / "then", *steps, "optim.lr=1e-2")
    rows = story(run)
    assert "discriminator" not in rows[0] and rows[-2]["discriminator"] > 0
    assert rows[-1]["eval/stft"] < 0.9 * start
    old, new = (load_file(path / "model.safetensors") for path in (before, run / "export"))
    moved = {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}
    assert moved == {"prenet", "decoder"}
    assert all(name.startswith("decoder.refiner.") for name in new.keys() - old.keys())
    codec = BiCodec.from_pretrained(run / "export")
    voice = Voice((0,) * codec.spec.n_global)
    stream, codes = codec.stream(voice), np.arange(70)[None] * 7 % codec.spec.codebook_size
    parts = [stream.push(AudioTokens(codes[:, n : n + 3])) for n in range(0, 70, 3)]
    assert np.array_equal(np.concatenate([*parts, stream.finish()]), codec.decode(codes, voice))


def test_second_stage_leaves_the_ids_alone(data: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    """`freeze_ids`: after steps with discriminators, everything that makes ids is bit-identical."""
    changes = {"init": str(runs["codec"] / "export"), "freeze_ids": True, "model": {}}
    changes["weights"] = {"adversarial_from": 1}
    changes["optim"] = {"name": "muon", "lr": 3e-3, "warmup": 2}  # discriminators have no matrices for it
    run = go(tree_of("codec", data, **changes), tmp_path)
    before, after = (load_file(path / "export" / "model.safetensors") for path in (runs["codec"], run))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and {name.split(".")[0] for name in moved} == {"prenet", "decoder"}
    assert len(moved) > 0.9 * sum(name.split(".")[0] in ("prenet", "decoder") for name in before)
    heads = [trained.read_heads(path / "export") for path in (runs["codec"], run)]
    assert same(*heads)
    rows = story(run)
    assert "discriminator" not in rows[0] and rows[1]["discriminator"] > 0  # they join at step 1
    codecs = [trained.load_network(path / "export") for path in (runs["codec"], run)]
    cache = FeatureCache(data / "cache")
    x = torch.from_numpy(cache.features(0)).T[None]
    assert torch.equal(codecs[0].encode_semantic(x), codecs[1].encode_semantic(x))
    wav = torch.from_numpy(cache.wav(0))[None, :16000]
    assert torch.equal(codecs[0].encode_global(wav), codecs[1].encode_global(wav))


def test_the_voice_path_meets_voices_of_nobody(data: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    """`--invented` appends training clips at other speeds, whose speaker is nobody."""
    cache = tmp_path / "cache"
    shutil.copytree(data / "cache", cache)
    command = [str(data / "manifest.jsonl"), "--encoder", str(data / "encoder"), "-o", str(cache)]
    for copies in ("1", "2"):
        feature_cache.main([*command, "--invented", copies])
    known, both = FeatureCache(data / "cache"), FeatureCache(cache)
    assert both.rows[:6] == known.rows and len(both) == 6 + 2 * 5
    for row in both.rows[6:]:
        assert (row["split"], row["speaker"]) == ("invented", "")
        assert 0.08 <= abs(math.log(row["resampled"])) <= 0.25
        plain = next(each for each in known.rows if each["path"] == row["path"])
        assert abs(row["frames"] - plain["frames"] / row["resampled"]) <= 3
    assert len({row["id"] for row in both.rows[6:]}) == 10
    changes = {"init": str(runs["codec"] / "export"), "model": {}}
    tree = tree_of("codec", data, **changes)
    tree["data"] |= {"cache": str(cache), "train": ["train", "train-notext", "invented"]}
    index = (cache / "index.jsonl").read_text()
    (cache / "index.jsonl").write_text(index.replace('"resampled": ', '"resampled": 1'))
    with pytest.raises(CheckpointError, match="another manifest"):
        feature_cache.main([*command, "--invented", "2"])
    with pytest.raises(UsageError, match="0 or more"):
        feature_cache.main([*command, "--invented", "-1"])
    (cache / "index.jsonl").write_text(index)
    run = go(tree, tmp_path / "run")
    before, after = (load_file(path / "export" / "model.safetensors") for path in (runs["codec"], run))
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved >= {"prenet", "decoder", "speaker_encoder"}
    heads = [trained.read_heads(path / "export") for path in (runs["codec"], run)]
    assert not same(heads[0]["speakers"], heads[1]["speakers"])  # as wide as before: nobody is no speaker
    average(runs["codec"] / "export", run / "export", 0.25, tmp_path / "mean")
    mean = trained.load_network(tmp_path / "mean").state_dict()
    for name, tensor in before.items():
        expected = tensor.lerp(after[name], 0.25) if tensor.is_floating_point() else after[name]
        assert torch.equal(mean[name], expected), name
    assert same(trained.read_heads(tmp_path / "mean")["speakers"], heads[0]["speakers"])


def harmonic_codec(data: Path, run: Path) -> Path:
    """Export of a codec whose decoder is the source-filter one."""
    sizes = {**codec_tree(data / "cache")["model"], "decoder": HARMONIC}
    return go(tree_of("codec", data, model=sizes), run) / "export"


def codec_family(data: Path, **changes: Any) -> CodecFamily:
    return CodecFamily(config.build(CodecRecipe, tree_of("codec", data, **changes)))


def test_what_codec_recipes_export_is_a_whole_codec(data: Path, tmp_path: Path) -> None:
    export = go(codec_tree(data / "cache"), tmp_path, "train.steps=1") / "export"
    codec = BiCodec.from_pretrained(export)
    clip = (FeatureCache(data / "cache").wav(0), codec.spec.sample_rate)
    by_hand = trained.load(export, data / "encoder").semantic_tokens(clip)
    assert len(by_hand) and codec.semantic_tokens(clip).tolist() == by_hand.tolist()


def test_a_codec_without_its_encoder_is_refused_before_training(data: Path, tmp_path: Path) -> None:
    cache = shutil.copytree(data / "cache", tmp_path / "cache")
    (cache / feature_cache.ENCODER).unlink()
    with pytest.raises(UsageError, match="data.encoder=DIR"):
        go(codec_tree(cache), tmp_path)
    assert not (tmp_path / "run" / "export").exists()


def test_codec_batches_pair_ids_with_their_sound(data: Path) -> None:
    family = codec_family(data)
    cache = family.cache
    batch = family.batch(3)
    again = codec_family(data).batch(3)
    assert all(torch.equal(getattr(batch, name), getattr(again, name)) for name in vars(batch))
    assert batch.crop.shape == (4, 8) and batch.wav.shape == (4, 8 * 640)
    for n in range(4):
        row = int(batch.crop_row[n])
        found = [i for i in family.rows if batch.frames[row] == cache.rows[i]["frames"]]
        begin = int(batch.crop[n, 0])
        sounds = [cache.wav(i, 2 * begin, 2 * begin + 16) for i in found]
        assert any(np.array_equal(batch.wav[n].numpy(), sound) for sound in sounds)


def test_clips_without_text_teach_no_letters(data: Path) -> None:
    family = codec_family(data)
    torch.manual_seed(0)
    module = family.build().eval()
    rng = np.random.default_rng(0)
    silent = [i for i in family.rows if not family.cache.rows[i]["text"]]
    spoken = [i for i in family.rows if family.cache.rows[i]["text"]][:2]
    assert len(silent) == 1
    _, alone, _ = family._reconstruct(module, family._collate(silent, rng))  # type: ignore[arg-type]
    assert alone["ctc"] == 0.0
    _, two, _ = family._reconstruct(module, family._collate(spoken, rng))  # type: ignore[arg-type]
    assert two["ctc"] > 0


def test_other_speakers_are_named(data: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    changes = {"init": str(runs["codec"] / "export"), "model": {}}
    tree = tree_of("codec", data, **changes)
    tree["data"]["train"] = ["dev"]
    with pytest.raises(CheckpointError, match="2 speakers, this recipe has 1; keep data.cache"):
        go(tree, tmp_path)


def test_bfloat16_that_is_only_emulated_is_said(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the keys that make steps faster, where a product in it takes twice as long; a GPU is not asked."""
    assert bfloat16_slowdown(64) > 0
    cpu, half = torch.device("cpu"), TrainArgs(precision="bf16")
    monkeypatch.setattr(launch, "bfloat16_slowdown", lambda: 24.0)
    said = launch.slow_bfloat16(half, "muon", cpu)
    assert said and "24 times" in said and "train.precision=fp32 optim.name=adamw" in said
    assert "precision" not in str(launch.slow_bfloat16(TrainArgs(), "muon", cpu))
    assert launch.slow_bfloat16(TrainArgs(), "adamw", cpu) is None
    assert launch.slow_bfloat16(half, "muon", torch.device("cuda")) is None
    recipe = write_recipe(tmp_path / "recipe.yaml", ctc_tree(data / "cache"))
    main([str(recipe), "--run", str(tmp_path / "run"), "train.precision=bf16", "train.steps=1"])
    assert "optim.name=adamw" not in caplog.text and "train.precision=fp32" in caplog.text
    monkeypatch.setattr(launch, "bfloat16_slowdown", lambda: 0.3)
    assert launch.slow_bfloat16(half, "muon", cpu) is None
