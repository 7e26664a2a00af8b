"""Trackers: what reaches the real packages, and that no run is lost to one of them."""

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpa.errors import MissingExtraError, UsageError
from gpa.train import metrics, samples, trackers
from gpa.train.arguments import TrainArgs
from gpa.train.samples import Sample
from training import lm_tree, write_recipe, write_tokens


def said(step: int) -> list[Sample]:
    wav = np.sin(np.arange(8000) * (0.1 + 0.01 * step)).astype(np.float32) / 2
    return [Sample("speech-0", wav, 16000, f"<said> at {step}", {"wer": 0.5})]


def tracked(name: str, run: Path) -> None:
    tracker = trackers.Tracker(name, run, 0)
    log = metrics.MetricsLog(run / "metrics.jsonl", 0, tracker=tracker)
    for step in (3, 6):
        log.write(step, {"asr": 1.0 / step})
        tracker.media(step, samples.write(run, step, said(step)))
    assert tracker._backend is not None, "the tracker gave up"
    tracker.close()


def test_tensorboard_reads_back_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracked("tensorboard", tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, round(e.value, 4)) for e in events.Scalars("asr")] == [(3, 0.3333), (6, 0.1667)]
    assert [e.step for e in events.Audio("speech-0")] == [3, 6]
    assert events.Audio("speech-0")[0].sample_rate == 16000
    assert [e.step for e in events.Images("speech-0/spectrogram")] == [3, 6]


def test_trackio_keeps_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio")
    _in_a_process(tmp_path, "trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    database = (tmp_path / "trackio" / "gpa.db").read_bytes()
    assert b"speech-0" in database and b"asr" in database
    assert len(list((tmp_path / "trackio").rglob("*.wav"))) == 2


def test_wandb_keeps_a_run_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    _in_a_process(tmp_path, "wandb", WANDB_MODE="offline")
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"speech-0" in file.read_bytes()
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*/**/*.wav"))) == 2


def _in_a_process(folder: Path, name: str, **env: str) -> None:
    """Packages that read the environment once get a process of their own."""
    code = f"from test_trackers import *; tracked({name!r}, Path({str(folder / 'run')!r}))"
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | env | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_an_unknown_or_absent_tracker_is_named_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="tracker='mlflow': choose one of none, tensorboard, trackio, wandb"):
        TrainArgs(tracker="mlflow")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, extra in trackers.EXTRAS.items():
        with pytest.raises(MissingExtraError, match=rf"{name} is not .*pip install 'gpa-audio\[{extra}\]'"):
            trackers.check(name)


def test_a_tracker_that_fails_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def scalars(self, *_: object) -> None:
            raise ConnectionError("no route to host\nand more")

    tracker = trackers.Tracker()
    tracker.name, tracker._backend = "wandb", Broken()  # type: ignore[assignment]
    log = metrics.MetricsLog(tmp_path / "metrics.jsonl", 0, tracker=tracker)
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            log.write(step, {"asr": 1.0})
        tracker.close()
    assert [record.getMessage() for record in caplog.records] == [
        "train.tracker=wandb gave up, the run goes on without it: no route to host"
    ]
    assert [row["step"] for row in metrics.read(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_run_outlives_a_tracker_that_cannot_start(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    recipe = write_recipe(tmp_path / "lm.yaml", lm_tree(write_tokens(tmp_path / "tokens")))
    run = tmp_path / "run"
    run.mkdir()
    (run / "tensorboard").write_text("a file where the folder should be")
    done = subprocess.run(
        [sys.executable, "-m", "gpa.train", recipe, "train.tracker=tensorboard", "--run", run],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("train.tracker=tensorboard gave up") == 1
    assert metrics.read(run / "metrics.jsonl")[-1]["step"] == 6


def test_the_page_plays_all_steps_and_escapes_what_was_said(tmp_path: Path) -> None:
    for step in (10, 9):
        samples.write(tmp_path, step, said(step))
    page = (tmp_path / "samples" / "index.html").read_text()
    assert page.index("<th>step 9</th>") < page.index("<th>step 10</th>")
    assert 'src="step-9/speech-0.wav"' in page and "&lt;said&gt; at 10" in page and "wer 0.5" in page
    assert "http" not in page
    assert (tmp_path / "samples" / "step-9" / "speech-0.png").stat().st_size > 200


def test_a_tone_is_where_it_sounds() -> None:
    tone = np.sin(2 * np.pi * 2000 * np.arange(16000) / 16000)
    found = samples.spectrogram(tone)
    assert abs(int(found[:, 60].argmax()) - 2000 * samples.FFT / 16000) <= 1
    assert found.max() == 0 and found.min() >= -80
