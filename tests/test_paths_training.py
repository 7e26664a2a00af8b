"""From recordings to a published model: every line of docs/training.md in its order, each in a process.

The hub is that of fake_hub.py. `gpa eval` needs judges that not every machine has: its report is made up.
Where TensorBoard is not installed, the runs do without.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from evaluated import write_evaluation
from fake_hub import TOKEN, FakeHub, running
from gpa.data import token_folder
from gpa.evals import report_file
from gpa.train import metrics
from headers import ROOT
from own_corpus import write_corpus

for package in ("datasets", "fastapi", "peft"):
    pytest.importorskip(package)

PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
LINES = re.findall(r"^(?:gpa|curl) .*$", PAGE, re.MULTILINE)
CLIPS = ("train/alloy/00", "train/alloy/02", "train/alloy/04", "dev/alloy/08", "dev/alloy/26")
STEPS, MORE = 24, 40
SHORT = f"train.eval_every={MORE} train.save_every=20 train.log_every=1 train.threads=1".split()
TRACKED = importlib.util.find_spec("tensorboard") is not None
SHORT += [] if TRACKED else ["train.tracker=none"]


class Reader:
    """Who reads the page: a folder, a hub, and what each line said."""

    def __init__(self, folder: Path, hub: FakeHub) -> None:
        self.folder, self.hub, self.said = folder, hub, dict[str, str]()
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
        mine = {"HF_HOME": str(folder / "home"), "HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN}
        quiet = {"HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.environment = {**kept, **mine, **quiet}

    def start(self, line: str, *more: str) -> subprocess.Popen[str]:
        """Begin a line of the page, or Python source."""
        words = ["-m", *shlex.split(line), *more] if line.startswith("gpa ") else ["-c", line]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            [sys.executable, *words], cwd=self.folder, env=self.environment, text=True, **pipes
        )

    def walk(self, line: str, *more: str, codes: tuple[int, ...] = (0,)) -> int:
        """Run a line to its end."""
        process = self.start(line, *more)
        out, err = process.communicate(timeout=600)
        assert process.returncode in codes and "Traceback" not in err, f"{line}\n{out}\n{err}"
        self.said[line] = out + err
        return process.returncode

    def stop(self, line: str, *more: str) -> None:
        """Begin a training, and end it by Ctrl-C when it has taken some steps."""
        process, log = self.start(line, *more), self.folder / "runs" / "own" / "metrics.jsonl"
        until = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < until:
            if log.is_file() and log.read_text(encoding="utf-8").count("\n") >= 3:
                process.send_signal(signal.SIGINT)
                break
            time.sleep(0.1)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 130 and "Traceback" not in err, err

    def files(self, pattern: str) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.glob(pattern))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Who has walked the page up to the model on the hub."""
    folder = tmp_path_factory.mktemp("training")
    assert 5 < write_corpus(folder / "corpus", CLIPS) < 40
    shutil.copytree(ROOT / "recipes" / "gpa", folder / "recipes" / "gpa")
    with running() as hub:
        reader = Reader(folder, hub)
        prepare, dry, train, longer, tune, _, export, push, *_ = LINES
        reader.walk(prepare)
        reader.walk(dry)
        reader.stop(train, *SHORT)
        reader.walk(train, *SHORT, f"train.steps={STEPS}")
        reader.walk(longer, *SHORT, f"train.steps={MORE}")
        reader.walk(tune, *SHORT, "train.steps=1")
        write_evaluation(folder / "report", report_file.folder_hash(folder / "runs/own/export") or "")
        reader.walk(export)
        reader.walk(push)
        yield reader


def test_the_page_leads_from_recordings_to_a_served_model() -> None:
    steps = ["prepare", "train", "train", "train", "train", "eval", "export", "push"]
    assert [line.split()[1] for line in LINES[:-1]] == [*steps, "verify", "tts", "serve"]
    assert LINES[-1].startswith("curl ")


def test_the_dry_run_shows_the_words(reader: Reader) -> None:
    said = reader.said[LINES[1]]
    assert "the first batch:" in said and "memory of a process" in said
    texts = [path.read_text().rstrip(".!?") for path in (reader.folder / "corpus" / "train").rglob("*.txt")]
    assert any(text in said for text in texts)


def test_the_stopped_run_went_on_and_was_heard(reader: Reader) -> None:
    rows = [row for row in metrics.read(reader.folder / "runs/own/metrics.jsonl") if "lr" in row]
    assert [row["step"] for row in rows] == list(range(1, MORE + 1))
    assert rows[-1]["tts"] < rows[0]["tts"] - 1
    assert bool(reader.files("runs/own/tensorboard/events.*")) == TRACKED
    assert {Path(name).name for name in reader.files("runs/own/samples/step-*")} == {
        f"step-{STEPS}",
        f"step-{MORE}",
    }
    assert (reader.folder / "runs/own/loss.png").is_file()


def test_the_adapter_is_a_model_again(reader: Reader) -> None:
    assert reader.files("runs/tuned/export/adapter/*") and reader.files("runs/tuned/export/gpa.json")


def test_the_hub_has_model_and_card(reader: Reader) -> None:
    repo = reader.hub.repos["owner/anna"]
    assert repo.private and repo.commits == ["the first"]
    card = repo.files["README.md"].decode()
    assert "CC0-1.0" in card and f"After {MORE} steps" in card and "| tts | 3 (1) |" in card
    assert {"gpa.json", "model.safetensors", "codec/model.safetensors", "voices/alloy.json"} <= set(
        repo.files
    )


def test_the_name_loads_and_speaks_as_the_folder_does(reader: Reader) -> None:
    verify, tts = LINES[8:10]
    reader.walk(verify)
    assert "All stages agree" in reader.said[verify]
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    reader.walk(block)
    assert reader.said[block].splitlines()[0] == "['alloy']"
    reader.hub.seen.clear()
    same = ("--seed", "1")
    code = reader.walk(tts, *same, "--offline", codes=(0, 6))  # so little training may end in silence
    assert not reader.hub.seen
    local = tts.replace("owner/anna", "anna").replace("morning.wav", "local.wav")
    assert reader.walk(local, *same, codes=(0, 6)) == code
    sounds = [
        path.read_bytes() for name in ("morning", "local") if (path := reader.folder / f"{name}.wav").exists()
    ]
    assert len(sounds) == (0 if code else 2) and len(set(sounds)) < 2


def test_the_name_is_served(reader: Reader) -> None:
    *_, serve, curl = LINES
    words = shlex.split(curl)
    body = json.loads(words[words.index("-d") + 1])
    process = reader.start(serve.replace("8000", "0"), "--speechop", "none", "--threads", "1", "--offline")
    try:
        assert process.stderr is not None
        line = next((line for line in process.stderr if "serving at" in line), "it ended")
        url = words[1].replace("http://127.0.0.1:8000", line.split("serving at ")[1].strip())
        text = (reader.folder / "corpus/train/alloy/00.txt").read_text()
        answer = httpx.post(url, json={**body, "input": text}, timeout=60)
        assert answer.status_code == 200 and answer.content[:4] == b"RIFF", answer.text
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_the_tokens_are_of_this_corpus(reader: Reader) -> None:
    assert token_folder.read_about(reader.folder / "tokens")["rows"] == len(CLIPS)
