"""Samples of a run: what is heard at every evaluation, and that training does not notice it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpa import audio
from training import lm_tree, story, write_manifest, write_recipe

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
