"""The path from recordings of a new voice to speech in it, as its user walks it: commands and files."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gpa import GPA, audio
from gpa.codec.voice import Voice

pytest.importorskip("datasets")

MODEL = "gpa-mini"
FASTER = 1.12  # a shipped voice played faster is nobody's
TEXTS = (
    "the boat came back in the evening.",
    "we have seen the old house.",
    "she gave him a letter.",
    "they will walk to the river.",
    "it was a long and cold winter.",
    "he read the book again.",
    "the children are at the window.",
    "nobody knows where it came from.",
)


def command(*args: str | Path) -> list[str]:
    return [sys.executable, "-m", "gpa", *map(str, args)]


def gpa(*args: str | Path, where: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*args), cwd=where, env=alone(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def alone() -> dict[str, str]:
    """One thread, no network."""
    root = str(Path(__file__).parents[1])
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": root}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recordings/zoe: eight sentences with their texts."""
    folder = tmp_path_factory.mktemp("path")
    model = GPA.from_pretrained(MODEL, device="cpu", offline=True)
    for n, text in enumerate(TEXTS):
        wav = model.tts(text, voice="kore", seed=n).wav
        at = np.arange(0, len(wav) - 1, FASTER)
        path = folder / "recordings" / "zoe" / f"{n}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        audio.save(path, np.interp(at, np.arange(len(wav)), wav).astype(np.float32), 16_000)
        path.with_suffix(".txt").write_text(text, encoding="utf-8")
    return folder


LEARN = ("finetune", "--voice", "recordings/zoe", "-o", "zoe", "--voice-steps", "10", "--items", "2")
HOW = ("--judge", "own", "--threads", "1", "--device", "cpu", "--licence", "CC0-1.0")


def test_the_plan_is_told_at_once_and_touches_nothing(place: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = gpa(*LEARN, *HOW, "--plan", where=place)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert not (place / "zoe").exists() and sorted(p.name for p in place.iterdir()) == ["recordings"]
    lines = {line.split()[1]: line for line in done.stderr.splitlines()}
    assert "0.2 min in 8 clips" in lines["voice"] or "0.3 min in 8 clips" in lines["voice"]
    assert "10 of the voice" in lines["steps"] and "min on this machine" in lines["time"]
    spent = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    assert spent < 10, "processor seconds: under ten of the clock on a machine with nothing else to do"


def test_a_voice_is_learnt_through_a_kill_and_speaks(place: Path) -> None:
    with open(place / "first.log", "w") as log:
        first = subprocess.Popen(command(*LEARN, *HOW), cwd=place, env=alone(), stdout=log, stderr=log)
        wanted, deadline = place / "zoe" / "run-voice" / "checkpoints", time.monotonic() + 300
        while not list(wanted.glob("step-*.pt")) and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert list(wanted.glob("step-*.pt")), (place / "first.log").read_text()
    assert not (place / "zoe" / "voice.json").exists(), "it was killed before its end"
    done = gpa(*LEARN, *HOW, where=place)
    assert "resumed from a checkpoint" in done.stderr and "were predicted" in done.stderr
    assert "| tts | zoe |" in done.stdout and done.stdout.splitlines()[-1] == "zoe/model"
    table = (place / "zoe" / "comparison.md").read_text()
    assert "DNSMOS" in table and not (place / "zoe" / "replay").exists()
    rows = [json.loads(line) for line in (place / "zoe/run-voice/metrics.jsonl").read_text().splitlines()]
    held = [row["eval/loss"] for row in rows if "eval/loss" in row]
    assert min(held) < held[0]
    voice = Voice.load(place / "zoe" / "voice.json")
    assert voice.adaptation is not None and voice.timbre is not None


def test_the_voice_speaks_from_its_model_and_from_its_file(place: Path) -> None:
    """The last two commands of the page: with the fine-tuned model, and with the base and the file alone."""
    said = "We have seen the old house."
    gpa("tts", said, "--model", "zoe/model", "--voice", "zoe", "-o", "model.wav", where=place)
    gpa("tts", said, "--voice", "zoe/voice.json", "-o", "file.wav", where=place)
    assert (place / "model.wav").read_bytes() == (place / "file.wav").read_bytes()
    assert audio.seconds(place / "model.wav") > 0.5
    source = place / "recordings" / "zoe" / "0.wav"
    gpa("vc", source, "--mode", "codec", "--voice", "zoe/voice.json", "-o", "vc.wav", where=place)
    gpa("vc", source, "--mode", "codec", "--voice", "zoe/start.json", "-o", "plain.wav", where=place)
    assert (place / "vc.wav").read_bytes() != (place / "plain.wav").read_bytes()
    for model in (MODEL, "zoe/model"):
        out = f"old-{Path(model).name}.wav"
        gpa("vc", source, "--mode", "codec", "--model", model, "--voice", "onyx", "-o", out, where=place)
    assert (place / f"old-{MODEL}.wav").read_bytes() == (place / "old-model.wav").read_bytes()
