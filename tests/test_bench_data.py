"""`gpa bench data`: corpora of two sizes are written and trained from; memory does not follow the rows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gpa.bench import corpus_scale, figures
from gpa.cli import main
from gpa.data.token_folder import TokenSet
from gpa.errors import UsageError

pytest.importorskip("datasets")
SMALL = ["--rows", "1000", "50000", "--shard-rows", "500", "--shuffle-shards", "2", "--steps", "3"]


def test_the_command_measures_each_size(tmp_path: Path, tiny: Path) -> None:
    words = ["bench", "data", *SMALL, "--model", str(tiny), "--threads", "1", "--json"]
    done = subprocess.run([sys.executable, "-m", "gpa", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    small, large = found["sizes"]
    assert (small["rows"], small["shards"]) == (1000, 2) and (large["rows"], large["shards"]) == (50000, 100)
    for size in (small, large):
        assert 0 < size["opened"] < size["first_step"] and size["step"] > 0
        assert size["peak"] > size["anonymous"] > 0
    assert large["disk"] > 5 * small["disk"]
    assert large["anonymous"] < small["anonymous"] + 20_000_000
    assert "50,000 rows: training from them" in done.stderr and not list(tmp_path.iterdir())


def test_rows_can_be_read_and_differ(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "SAY_EVERY", 0.0)
    said: list[str] = []
    settings = corpus_scale.Settings(model=str(tiny), shard_rows=400)
    corpus_scale.write(tmp_path / "tokens", 1000, settings, said.append)
    assert said == [f"writing 1,000 rows: shard {n} of 3" for n in (1, 2, 3)]
    tokens = TokenSet.open(tmp_path / "tokens")
    assert len(tokens) == 1000 and len(tokens.shards) == 3 and len(tokens.held_out()) == 1
    assert len({(row["text"], bytes(row["semantic"])) for row in tokens}) == 1000
    assert all(25 <= len(row["semantic"]) <= 125 and row["text"] for row in tokens)


def test_the_table(tmp_path: Path) -> None:
    found = [corpus_scale.Found(1_000_000, 1000, 4 * 10**8, 60.0, 2.0, 3.5, 0.25, 7 * 10**8, 3 * 10**8)]
    *_, head, row = corpus_scale.lines(corpus_scale.Settings(), found)
    assert head.split()[:2] == ["rows", "shards"]
    assert "1,000,000" in row and "400 MB" in row and "3.5 s" in row and "700 MB" in row


@pytest.mark.parametrize("words", [("--rows", "0"), ("--steps", "0"), ("--shard-rows", "-1")])
def test_wrong_counts_are_refused(words: tuple[str, str]) -> None:
    assert main.main(["bench", "data", *words]) == UsageError.exit_code
