"""Samples of a run: what is heard at every evaluation, and that training does not notice it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpa import audio
from gpa.data import feature_cache
from gpa.train import command, metrics
from gpa.train.families import speech_samples
from ranks import ranks
from training import codec_tree, lm_tree, story, write_encoder, write_manifest, write_recipe

pytestmark = pytest.mark.usefixtures("threads_kept")

SEEN = ("--seen-speakers", "dev", "--max-rejected", "0.5")


def gpa(*words: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gpa", *map(str, words)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    root = tmp_path_factory.mktemp("data")
    gpa("prepare", write_manifest(root), "-o", root / "tokens", "--model", tiny, "--licence", "PD", *SEEN)
    changes = {"export": "whole", "weights": {"alignment": 0.0}, "validate": {"samples": 1}}
    return write_recipe(root / "lm.yaml", lm_tree(root / "tokens", **changes))


def files(run: Path) -> dict[str, bytes]:
    found = sorted((run / "samples").rglob("*.*"))
    return {str(path.relative_to(run)): path.read_bytes() for path in found if path.suffix != ".html"}


def test_a_run_is_heard_and_does_not_notice(recipe: Path, tmp_path: Path) -> None:
    heard, silent, halves = tmp_path / "heard", tmp_path / "silent", tmp_path / "halves"
    gpa("train", recipe, "--run", heard)
    for step in (3, 6):
        folder = heard / "samples" / f"step-{step}"
        facts = json.loads((folder / "samples.json").read_text())
        assert facts.keys() == {"tts-0", "asr-0", "vc-0"} and facts["asr-0"]["scores"].keys() == {
            "wer",
            "stopped",
        }
        for name in facts:
            wav = audio.load(folder / f"{name}.wav")
            assert wav.size and np.isfinite(wav).all()
            assert (folder / f"{name}.png").is_file()
    assert "step-6/asr-0.wav" in (heard / "samples" / "index.html").read_text()
    gpa("train", recipe, "validate.samples=0", "--run", silent)
    assert not (silent / "samples").exists() and story(silent) == story(heard)
    shutil.copytree(heard, halves)
    max((halves / "checkpoints").glob("step-*.pt")).unlink()
    shutil.rmtree(halves / "samples" / "step-6")
    gpa("train", recipe, "--run", halves)
    assert story(halves) == story(heard) and files(halves) == files(heard)
    ours, theirs = (run / "export" / "model.safetensors" for run in (halves, heard))
    assert ours.read_bytes() == theirs.read_bytes()


def test_samples_without_a_codec_are_refused(recipe: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gpa", "train", recipe, "export=network", "--run", tmp_path / "r"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and "validate.samples needs a codec" in done.stderr


def said(caplog: pytest.LogCaptureFixture, start: str) -> list[str]:
    return [text for record in caplog.records if (text := record.getMessage()).startswith(start)]


def test_samples_that_fail_cost_no_run(
    recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A codec that raises, a folder that cannot be written: the weights are as without samples."""
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "samples").write_text("a file where the folder should be")
    command.main([str(recipe), "--run", str(tmp_path / "blocked")])
    assert len(said(caplog, "step 3: no samples, the run goes on: ")) == 1
    caplog.clear()

    def broken(*_: object) -> np.ndarray:
        raise torch.OutOfMemoryError("CUDA out of memory\nand more")

    with monkeypatch.context() as patch:
        patch.setattr(speech_samples, "_sound", broken)  # the export needs a codec that works
        command.main([str(recipe), "--run", str(tmp_path / "broken")])
    why = "no samples, the run goes on: OutOfMemoryError: CUDA out of memory"
    assert said(caplog, "step") and [text for text in said(caplog, "step") if "no samples" in text] == [
        f"step 3: {why}",
        f"step 6: {why}",
    ]
    command.main([str(recipe), "validate.samples=0", "--run", str(tmp_path / "silent")])
    for name in ("blocked", "broken"):
        rows = metrics.read(tmp_path / name / "metrics.jsonl")
        assert [row["step"] for row in rows if "samples_failed" in row] == [3, 6]
        assert [row for row in story(tmp_path / name) if "samples_failed" not in row] == story(
            tmp_path / "silent"
        )
        ours, theirs = (tmp_path / run / "export" / "model.safetensors" for run in (name, "silent"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_two_ranks_make_samples_once_and_go_on(recipe: Path, tmp_path: Path) -> None:
    """Rank zero makes them, or fails to, and the other waits: both end with the same weights."""
    (tmp_path / "fails").mkdir()
    (tmp_path / "fails" / "samples").write_text("a file where the folder should be")
    plan = {name: {"argv": [str(recipe), "--run", str(tmp_path / name)]} for name in ("heard", "fails")}
    done = ranks(tmp_path / "plan", plan)
    assert done.returncode == 0, done.stderr[-6000:]
    one, two = (json.loads((tmp_path / "plan" / f"told-{rank}.json").read_text()) for rank in (0, 1))
    assert one == two and one["heard"] == one["fails"] and "refused" not in one["heard"]
    assert files(tmp_path / "heard") and done.stderr.count("no samples, the run goes on") == 2
    assert story(tmp_path / "heard") == [
        row for row in story(tmp_path / "fails") if "samples_failed" not in row
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_codecs_run_is_heard(tmp_path: Path, precision: str) -> None:
    manifest, encoder = write_manifest(tmp_path), write_encoder(tmp_path / "encoder")
    feature_cache.main([str(manifest), "--encoder", str(encoder), "-o", str(tmp_path / "cache")])
    recipe = write_recipe(tmp_path / "codec.yaml", codec_tree(tmp_path / "cache"))
    for name, more in (("heard", ()), ("silent", ("validate.samples=0",))):
        command.main([str(recipe), *more, f"train.precision={precision}", "--run", str(tmp_path / name)])
    folder = tmp_path / "heard" / "samples" / "step-6"
    facts = json.loads((folder / "samples.json").read_text())
    assert facts.keys() == {"clip-0", "resynthesis-0"} and facts["resynthesis-0"]["scores"]["mel"] > 0
    clip, again = (audio.load(folder / f"{name}.wav") for name in facts)
    cache = feature_cache.FeatureCache(tmp_path / "cache")
    (held_out,) = cache.select(("dev",))
    assert np.abs(clip - cache.wav(held_out)).max() < 1e-3 and facts["clip-0"]["caption"]
    assert abs(len(again) - len(clip)) <= 640 and again.any() and np.isfinite(again).all()
    assert "step-6/resynthesis-0.wav" in (tmp_path / "heard" / "samples" / "index.html").read_text()
    assert not (tmp_path / "silent" / "samples").exists() and story(tmp_path / "silent") == story(
        tmp_path / "heard"
    )
    rows = metrics.read(tmp_path / "heard" / "metrics.jsonl")
    assert rows[0]["frames_per_s"] > 0 and 0 <= rows[0]["padding"] < 1
