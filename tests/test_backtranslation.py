"""Backtranslated speech: sentences of running text, rows that train."""

from pathlib import Path

import pytest
import torch

from gpa import config
from gpa.errors import UsageError
from gpa.lab import backtranslation as backtranslated
from gpa.train.families.lm import LMFamily, LMRecipe
from training import lm_tree, read_rows, write_tokens

pytest.importorskip("sentencepiece")
BOOK = """CHAPTER I.

The quick brown fox jumps. One two
three! "How are you?" asked the _lazy_ dog; hello there, fox.

It was 1813 then. Yes.
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def lm(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family = LMFamily(config.build(LMRecipe, lm_tree(folder)))
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("lm")
    family.export(family.build(), out)
    return out


def test_sentences_of_running_text() -> None:
    """Without headings, numbers and what is too short; across lines, and halved at semicolons."""
    found = list(backtranslated.sentences(BOOK))
    assert found[:2] == ["the quick brown fox jumps.", "one two three!"]
    assert any("asked the lazy dog" in text for text in found) and "hello there, fox." in found
    assert not any("chapter" in text or "1813" in text or text == "yes." for text in found)


def test_the_command_writes_rows_that_train(
    folder: Path,
    lm: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backtranslated, "PER_LETTER", (0.01, 3.0))  # untrained, it stops whenever it likes
    text, out = tmp_path / "book.txt", tmp_path / "out"
    text.write_text(BOOK * 3)
    command = [str(folder), "--lm", str(lm), "--text", str(text), "--batch", "3", "--temperature", "5"]
    backtranslated.main([*command, "-o", str(out)])
    rows = read_rows(out)
    assert rows and "sentences spoken" in capsys.readouterr().out
    known = {clip["text"] for clip in read_rows(folder)}
    for row in rows:
        assert row["task"] == "asr" and row["text"] and row["text"] not in known and row["semantic"]
    assert len({row["text"] for row in rows}) == len(rows)  # each sentence once
    again = tmp_path / "again"
    backtranslated.main([*command, "-o", str(again)])
    assert read_rows(again) == rows
    tree = lm_tree(folder, data={"tokens": str(folder), "replay": str(out), "batch_ids": 300})
    family = LMFamily(config.build(LMRecipe, tree))
    drawn = {task for task, i, _ in family.items if family.train_rows.clips[i]["speaker"] == "backtranslated"}
    assert drawn == {"asr"}


def test_nothing_to_speak_is_said(folder: Path, lm: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("CHAPTER I.\n")
    command = [str(folder), "--lm", str(lm), "--text", str(tmp_path / "empty.txt"), "-o", str(tmp_path / "o")]
    with pytest.raises(UsageError, match="0 new sentences"):
        backtranslated.main(command)
