"""Sentences read by a synthesiser: which are chosen, which are never spoken, and what lies in the folder."""

import json
import shutil
import zlib
from pathlib import Path

import pytest

from gpa import audio
from gpa.errors import GenerationError, UsageError
from gpa.lab import synthesis
from gpa.lab.word_list import texts_in

needs_flite = pytest.mark.skipif(not shutil.which("flite"), reason="flite is not installed")
LIST = """a-1\tThe quick brown fox, as ever.
a-2\tIn 1813 it was not so.
a-3\tOne two.
a-4\tSix short words are read here.
"""
BOOK = """CHAPTER I.

The quick brown fox jumps. One two
three! "How are you?" asked the _lazy_ dog; hello there, fox.

It was 1813 then. Yes.
"""


def test_lists_and_running_text(tmp_path: Path) -> None:
    """The last column of a list, without what has digits; of running text its sentences."""
    (tmp_path / "list.tsv").write_text(LIST)
    (tmp_path / "book.txt").write_text("One two three. Yes.")
    assert list(synthesis.listed(tmp_path / "list.tsv"))[:2] == ["the quick brown fox, as ever.", "one two."]
    assert list(synthesis.listed(tmp_path / "book.txt")) == ["one two three."]


def test_sentences_of_running_text() -> None:
    """Without headings, numbers and what is too short; across lines, and halved at semicolons."""
    found = list(synthesis.sentences(BOOK))
    assert found[:2] == ["the quick brown fox jumps.", "one two three!"]
    assert any("asked the lazy dog" in text for text in found) and "hello there, fox." in found
    assert not any("chapter" in text or "1813" in text or text == "yes." for text in found)


def test_what_is_held_back_is_not_chosen(tmp_path: Path) -> None:
    """Held-out rows of a manifest and items of an evaluation, however spelt; and every tenth sentence."""
    lines = [
        {"text": "ONE TWO THREE FOUR", "split": "dev"},
        {"text": "FIVE SIX SEVEN EIGHT", "split": "train"},
        {"reference": "Nine, ten; eleven twelve!"},
    ]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    held = texts_in([tmp_path / "held.jsonl"], training=False)
    texts = ["one two three four.", "five six seven eight.", "nine ten eleven twelve", "one two"]
    assert synthesis.choose([*texts, "five six seven eight!"], (3, 5), held) == ["five six seven eight."]
    many = [f"the word {chr(97 + i)}{chr(97 + j)} is spoken" for i in range(20) for j in range(20)]
    kept = synthesis.choose(many, (3, 5), set())
    assert 340 < len(kept) < 380
    assert all(zlib.crc32(synthesis.letters(text).encode()) % synthesis.HELD for text in kept)


def test_words_are_covered() -> None:
    """Sentences are kept while they have a word that was said too seldom, by them or before."""
    texts = ["a b c", "a b d", "a b e", "a b c"]
    assert len(synthesis.covering(texts, 1, [], seed=0)) == 3
    assert sorted(synthesis.covering(texts, 1, ["a b c"], seed=0)) == ["a b d", "a b e"]
    assert len(synthesis.covering(texts, 2, [], seed=0)) == 4


@needs_flite
def test_the_folder(tmp_path: Path) -> None:
    """A manifest of real sound at 16 kHz, the same again; sound that is there is not made again."""
    (tmp_path / "list.tsv").write_text(LIST)
    out = tmp_path / "out"
    command = [str(tmp_path / "list.tsv"), "-o", str(out)]
    synthesis.main(command)
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert rows and all(row["split"] == "train-synthetic" and row["duration"] > 1 for row in rows)
    samples = len(audio.load(out / rows[0]["path"], 16000))
    assert abs(samples / 16000 - rows[0]["duration"]) < 1e-3
    kept = (out / rows[0]["path"]).stat().st_mtime_ns
    synthesis.main(command)
    assert (out / rows[0]["path"]).stat().st_mtime_ns == kept
    assert [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()] == rows


@needs_flite
def test_bad_requests(tmp_path: Path) -> None:
    """Nothing to speak, or a voice that is none: a typed error before a manifest is written."""
    (tmp_path / "list.tsv").write_text("a-1\tOne.\n")
    with pytest.raises(UsageError, match="no sentence"):
        synthesis.main([str(tmp_path / "list.tsv"), "-o", str(tmp_path / "out")])
    with pytest.raises(GenerationError, match="flite"):
        synthesis.speak("one two three", "nobody-there", 1.0, tmp_path / "missing" / "x.wav")
