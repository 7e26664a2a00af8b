"""`gpa push` and `from_pretrained("owner/name")` against a hub on loopback, and the card of `gpa export`."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from evaluated import write_evaluation
from fake_hub import TOKEN, FakeHub, Repo, running
from gpa.cli import main
from gpa.errors import CheckpointError, UsageError
from gpa.evals import report_file
from gpa.train import metrics
from headers import ROOT
from tiny_model import write_tiny_model

REPO = "anna/tiny"
BLOCK = 10 << 20  # in which huggingface_hub writes what comes
LOAD = "import sys; from gpa import GPA; print(sorted(GPA.from_pretrained(sys.argv[1], device='cpu').voices))"
FIND = """
import logging, sys
from gpa import errors, hub
sys.exit(errors.exit_code(lambda: print(hub.resolve(sys.argv[1])), logging.getLogger()))
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with running() as found:
        yield found


class User:
    """Somebody's machine: a cache, perhaps a token, and the hub's address."""

    def __init__(self, home: Path, address: str, token: str = TOKEN) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
        mine = {
            "HF_HOME": str(home),
            "HF_ENDPOINT": address,
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": str(ROOT),
        }
        self.environment = {**kept, **mine, "OMP_NUM_THREADS": "1", **({"HF_TOKEN": token} if token else {})}

    def run(self, *argv: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {**self.environment, **more}
        line = [sys.executable, *argv]
        return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)

    def push(self, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "gpa", "push", str(folder), REPO, *more)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def carded(tiny: Path, tmp_path: Path) -> Path:
    """The model with a card."""
    folder = Path(shutil.copytree(tiny, tmp_path / "carded"))
    (folder / "README.md").write_text("---\nlicense: cc0-1.0\n---\n# tiny\n", encoding="utf-8")
    return folder


def test_a_pushed_model_is_loaded_by_name_and_then_without_network(
    hub: FakeHub, carded: Path, tmp_path: Path
) -> None:
    anna = User(tmp_path / "anna", hub.address)
    done = anna.push(carded, "--private", "-m", "the first")
    assert done.returncode == 0, done.stderr
    repo = hub.repos[REPO]
    assert repo.private and repo.commits == ["the first"] and repo.files == content(carded)
    assert done.stdout.strip() == f"{hub.address}/{REPO}/commit/{repo.sha}"

    loaded = anna.run("-c", LOAD, REPO)
    assert loaded.returncode == 0, loaded.stderr
    hub.seen.clear()
    again = anna.run("-c", LOAD, REPO, HF_HUB_OFFLINE="1")
    assert again.returncode == 0 and again.stdout == loaded.stdout and not hub.seen, again.stderr
    hub.refuse = 503
    again = anna.run("-c", FIND, REPO)
    assert again.returncode == 0, again.stderr  # what is whole in the cache is used

    stranger = User(tmp_path / "stranger", hub.address, token="")
    hub.refuse = 0
    refused = stranger.run("-c", FIND, REPO)
    assert refused.returncode == CheckpointError.exit_code and "HF_TOKEN" in refused.stderr, refused.stderr


def test_what_the_hub_has_is_not_sent_again(hub: FakeHub, carded: Path, tmp_path: Path) -> None:
    anna = User(tmp_path / "anna", hub.address)
    assert anna.push(carded).returncode == 0
    (carded / "README.md").write_text("---\nlicense: cc0-1.0\n---\n# tiny, better said\n", encoding="utf-8")
    hub.seen.clear()
    assert anna.push(carded).returncode == 0
    assert not [path for method, path, _ in hub.seen if method == "PUT"]
    assert hub.repos[REPO].files == content(carded) and len(hub.repos[REPO].commits) == 2
    public = anna.push(carded, "--private")
    assert public.returncode == CheckpointError.exit_code and "is public already" in public.stderr


def test_a_download_that_is_cut_goes_on(hub: FakeHub, tmp_path: Path) -> None:
    """Within a fetch from its last whole block; after one that failed, without the files that it brought."""
    large = np.random.default_rng(0).bytes(2 * BLOCK + 5)
    hub.repos[REPO] = Repo(False, {"config.json": b"{}", "model.safetensors": large})
    anna, file = User(tmp_path / "anna", hub.address), f"{hub.page(REPO)}/model.safetensors"
    hub.cut["model.safetensors"] = [BLOCK + 7]  # and then nothing
    found = anna.run("-c", FIND, REPO)
    assert found.returncode == CheckpointError.exit_code, found.stderr
    assert REPO in found.stderr and "Traceback" not in found.stderr
    assert hub.fetched()[-1] == (file, f"bytes={BLOCK}-")
    offline = anna.run("-c", FIND, REPO, HF_HUB_OFFLINE="1")
    assert (
        offline.returncode == CheckpointError.exit_code
        and "not, or not whole, in the local cache" in offline.stderr
    )

    hub.cut["model.safetensors"] = [2 * BLOCK + 1, len(large)]  # breaks once more
    hub.seen.clear()
    found = anna.run("-c", FIND, REPO)
    assert found.returncode == 0, found.stderr
    assert content(Path(found.stdout.strip())) == hub.repos[REPO].files
    assert hub.fetched() == [(file, ""), (file, f"bytes={2 * BLOCK}-")]


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(401, "hf auth login"), (403, "token"), (404, "owner, name"), (500, "try again later"), (503, "later")],
)
def test_a_hub_that_refuses_says_why_and_what_to_do(
    status: int, remedy: str, hub: FakeHub, carded: Path, tmp_path: Path
) -> None:
    anna = User(tmp_path / "anna", hub.address)
    hub.refuse = status
    for done in (anna.push(carded), anna.run("-c", FIND, REPO)):
        assert done.returncode == CheckpointError.exit_code, done.stderr
        assert REPO in done.stderr and str(status) in done.stderr and remedy in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


def test_a_hub_that_is_gone(carded: Path, tmp_path: Path) -> None:
    anna = User(tmp_path / "anna", "http://127.0.0.1:9")
    for done in (anna.push(carded), anna.run("-c", FIND, REPO)):
        assert done.returncode == CheckpointError.exit_code, done.stderr
        assert "connection" in done.stderr and "Traceback" not in done.stderr


def test_what_is_no_checkpoint_with_a_card_is_not_pushed(hub: FakeHub, tiny: Path, tmp_path: Path) -> None:
    anna = User(tmp_path / "anna", hub.address)
    for folder, why in ((tmp_path, "no gpa.json"), (tiny, "a model without a card is not published")):
        done = anna.push(folder)
        assert done.returncode == CheckpointError.exit_code and why in done.stderr
    assert not hub.seen


def test_export_writes_a_card_with_what_eval_measured(tiny: Path, tmp_path: Path) -> None:
    report = write_evaluation(tmp_path / "report", report_file.folder_hash(tiny) or "")
    out = tmp_path / "out"
    assert main.main(["export", str(tiny), str(out), "--report", str(report)]) == 0
    card = (out / "README.md").read_text(encoding="utf-8")
    suites = report_file.read(report)["suites"]
    wer = suites["tts"]["wer"]
    assert (
        f"| tts | 3 (1) | {100 * wer['value']:.1f} [{100 * wer['low']:.1f}, {100 * wer['high']:.1f}]" in card
    )
    assert card.startswith("---\nlicense:") and "words by a judge" in card and len(card.splitlines()) < 70
    assert main.main(["export", str(out), str(tmp_path / "again")]) == 0  # a card comes along
    assert (tmp_path / "again" / "README.md").read_text(encoding="utf-8") == card
    newer = write_evaluation(tmp_path / "newer", report_file.folder_hash(out) or "")
    assert main.main(["export", str(out), str(tmp_path / "newer" / "out"), "--report", str(newer)]) == 0
    told = (tmp_path / "newer" / "out" / "README.md").read_text(encoding="utf-8")
    assert told.count("| tts |") == 1 and told.count("## ") == card.count("## ")  # in the place of the older
    assert main.main(["export", str(out), str(out)]) == UsageError.exit_code
    other = write_evaluation(tmp_path / "other", "0" * 64)
    assert main.main(["export", str(tiny), str(tmp_path / "no"), "--report", str(other)]) == 2
    assert not (tmp_path / "no").exists()


def test_the_export_of_a_run_carries_its_log(tiny: Path, tmp_path: Path) -> None:
    """Every held-out line, some hundred of training, the first and the last among them, and a picture."""
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(tiny, run / "export")
    rows = [{"step": step, "tts": 9.0 / step, "lr": 1e-3} for step in range(1, 2001)]
    held_out = [{"step": step, "eval/tts": 9.5 / step} for step in range(100, 2001, 100)]
    told = sorted(rows + held_out, key=lambda row: (row["step"], "eval/tts" in row))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    assert main.main(["export", str(run / "export"), str(out)]) == 0
    kept = metrics.read(out / "training.jsonl")
    assert [row for row in kept if "eval/tts" in row] == held_out
    training = [row for row in kept if "lr" in row]
    assert training[0] == rows[0] and training[-1] == rows[-1] and 200 <= len(training) <= 301
    assert (out / "training.png").stat().st_size > 1000
    assert "(training.png)" in (out / "README.md").read_text(encoding="utf-8")
    assert main.main(["plot", str(run), "-o", str(tmp_path / "history")]) == 0
    assert (tmp_path / "history" / "run.jsonl").read_bytes() == (out / "training.jsonl").read_bytes()
    assert (tmp_path / "history" / "run.png").is_file() and not (run / "loss.png").exists()
