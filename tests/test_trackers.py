"""Trackers: what reaches the real packages, and that no run is lost to one of them."""

import importlib.util
import json
import logging
import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from gpa.errors import MissingExtraError, UsageError
from gpa.train import command, metrics, samples, trackers
from gpa.train.arguments import TrainArgs
from gpa.train.samples import Sample
from training import lm_tree, write_recipe, write_tokens


def said(step: int) -> list[Sample]:
    wav = np.sin(np.arange(8000) * (0.1 + 0.01 * step)).astype(np.float32) / 2
    return [Sample("speech-0", wav, 16000, f"<said> at {step}", {"wer": 0.5})]


def tracked(name: str, run: Path, start: int = 0, steps: tuple[int, ...] = (3, 6)) -> None:
    """What a run that starts at a step tells its tracker at these: losses, then sound."""
    tracker = trackers.Tracker(name, run, start)
    log = metrics.MetricsLog(run / "metrics.jsonl", start, tracker=tracker)
    for step in steps:
        log.write(step, {"asr": 1.0 / step})
        tracker.media(step, samples.write(run, step, said(step)))
    assert tracker._backend is not None, "the tracker gave up"
    tracker.close()


def resumed(name: str, run: Path) -> None:
    """A run of six steps that resumes at its third and goes on to the ninth."""
    tracked(name, run)
    tracked(name, run, 3, (6, 9))


def test_tensorboard_reads_back_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    resumed("tensorboard", tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, round(e.value, 4)) for e in events.Scalars("asr")] == [
        (3, 0.3333),
        (6, 0.1667),
        (9, 0.1111),
    ]
    assert [e.step for e in events.Audio("speech-0")] == [3, 6, 9]
    assert events.Audio("speech-0")[0].sample_rate == 16000
    assert [e.step for e in events.Images("speech-0/spectrogram")] == [3, 6, 9]


def test_trackio_goes_on_in_its_run_offline(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    _in_a_process(tmp_path, "trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    with closing(sqlite3.connect(tmp_path / "trackio" / "gpa.db")) as database:
        rows = database.execute(
            "select run_name, step, cast(metrics as blob) from metrics order by step"
        ).fetchall()
    assert len({run for run, _, _ in rows}) == 1 and rows[0][0].startswith("run-")
    assert [step for _, step, told in rows if b'"asr"' in told] == [3, 6, 9]
    assert [step for _, step, told in rows if b'"speech-0"' in told] == [3, 6, 9]
    assert len(list((tmp_path / "trackio").rglob("*.wav"))) == 3


def test_wandb_goes_on_in_its_run_offline(tmp_path: Path) -> None:
    """A folder per start, of one id; `wandb sync` puts them together."""
    pytest.importorskip("wandb")
    _in_a_process(tmp_path, "wandb", WANDB_MODE="offline")
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1
    known = json.loads((tmp_path / "run" / trackers.STATE).read_text())["wandb"]
    assert files[0].name == f"run-{known['id']}.wandb" and known["step"] == 9
    sounds = sorted(path.name for path in (tmp_path / "run" / "wandb").glob("offline-run-*/**/*.wav"))
    assert [name.split("_")[1] for name in sounds] == ["3", "6", "9"]


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_dead_server_costs_no_run(name: str, tmp_path: Path) -> None:
    """The client's own patience is all that is lost; metrics.jsonl has every step."""
    pytest.importorskip(name)
    dead = "http://127.0.0.1:9"  # where nobody listens
    online = {"WANDB_MODE": "online", "WANDB_BASE_URL": dead, "WANDB_API_KEY": "0" * 40}
    online |= {"TRACKIO_SERVER_URL": f"{dead}?write_token=no", "TRACKIO_DIR": str(tmp_path / "trackio")}
    tree = lm_tree(write_tokens(tmp_path / "tokens"))
    tree["train"] |= {"tracker": name, "steps": 2, "save_every": 2}
    recipe = write_recipe(tmp_path / "lm.yaml", tree)
    done = subprocess.run(
        [sys.executable, "-m", "gpa.train", recipe, "--run", tmp_path / "run"],
        env=os.environ | online,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in metrics.read(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 2]
    assert (tmp_path / "run" / "export").is_dir()
    if name == "wandb":  # trackio keeps what it could not send, and says so itself
        assert done.stderr.count("train.tracker=wandb gave up, the run goes on without it") == 1


def test_a_tracker_is_told_what_it_missed(tmp_path: Path) -> None:
    """Steps while it was not there, or had given up; none twice, nor a line of a step it was told half of."""
    heard: list[tuple[int, set[str]]] = []

    class Heard:
        id = "heard"

        def __init__(self, *_: object) -> None: ...

        def scalars(self, step: int, values: Mapping[str, float]) -> None:
            heard.append((step, set(values)))

        def close(self) -> None: ...

    log = metrics.MetricsLog(tmp_path / "metrics.jsonl", 0)
    log.write(1, {"asr": 1.0})
    log.write(2, {"asr": 1.0})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(trackers._BACKENDS, "trackio", Heard)

        def opened(start: int) -> metrics.MetricsLog:
            tracker = trackers.Tracker("trackio", tmp_path, start)
            return metrics.MetricsLog(tmp_path / "metrics.jsonl", start, tracker=tracker)

        log = opened(2)
        log.write(3, {"asr": 1.0})  # and is killed as it evaluates
        log = opened(2)
        log.write(3, {"asr": 1.0})
        log.write(3, {"eval/asr": 1.0})
        assert heard == [(1, {"asr"}), (2, {"asr"}), (3, {"asr"}), (3, {"eval/asr"})]
        opened(0).write(1, {"asr": 1.0})  # from the start: another run
    assert heard[-1] == (1, {"asr"})


def _in_a_process(folder: Path, name: str, **env: str) -> None:
    """Packages that read the environment once get a process of their own."""
    code = f"from test_trackers import *; resumed({name!r}, Path({str(folder / 'run')!r}))"
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
        id = "broken"

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


@pytest.mark.usefixtures("threads_kept")
def test_a_run_outlives_a_tracker_that_cannot_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorboard")
    recipe = write_recipe(tmp_path / "lm.yaml", lm_tree(write_tokens(tmp_path / "tokens")))
    run = tmp_path / "run"
    run.mkdir()
    (run / "tensorboard").write_text("a file where the folder should be")
    command.main([str(recipe), "train.tracker=tensorboard", "train.steps=2", "--run", str(run)])
    said = [record.getMessage() for record in caplog.records]
    assert sum(text.startswith("train.tracker=tensorboard gave up") for text in said) == 1
    assert metrics.read(run / "metrics.jsonl")[-1]["step"] == 2


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
