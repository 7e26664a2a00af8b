"""Instructions from wording to row: what is drawn, and what a row that asks for something looks like."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpa import config
from gpa.data.encoding import quietest
from gpa.data.rows import Row
from gpa.errors import PromptError, UsageError
from gpa.evals.instructed import MEASURES, Answer
from gpa.prompt.attributes import ATTRIBUTES, Attribute, written_as
from gpa.prompt.tasks import DEFAULT, IGNORE, TASKS
from gpa.text.normaliser import normalise_text
from gpa.train.families.lm import LMFamily, LMRecipe
from training import lm_tree, write_rows

pytest.importorskip("sentencepiece")

WORDS = ("one fox", "two foxes ran", "three foxes ran away", "four foxes ran far away", "no fox", "we ran")
FRAMES = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of one speaker, equally long, so that more letters are a higher rate; code 26 is silence."""
    draw, rows = np.random.default_rng(0), []
    for n, text in enumerate(WORDS):
        codes = draw.integers(0, 20, FRAMES)
        codes[4:9] = 26
        row: dict[str, Any] = {"id": str(n), "speaker": "a", "text": text, "semantic": codes.tolist()}
        row |= {"split": "dev" if n == 5 else "train", "silence": [4, 9], "global": [n, 1, 2, 3]}
        row["letters"] = np.linspace(10, FRAMES - 2, len(text)).astype(int).tolist()
        row["copies"] = draw.integers(20, 25, (2, FRAMES)).tolist()
        rows.append(row)
    return write_rows(tmp_path_factory.mktemp("instructed"), rows)


def family(folder: Path, **shares: float) -> LMFamily:
    return LMFamily(config.build(LMRecipe, lm_tree(folder, instructions=shares)))


def rows(family: LMFamily, task: str, each: int = 40) -> list[tuple[int, Row, Any]]:
    rng, made = np.random.default_rng(0), family.train_rows
    drawn = [(i, made.row(task, i, rng)) for i in range(len(made.clips)) for _ in range(each)]
    return [(i, row, made.fmt.parse(row.ids.tolist())) for i, row in drawn]


@pytest.mark.parametrize(
    ("draft", "form"),
    [
        ("the rein in spain stais", "the rain in spain stays"),
        ("THE REIN IN SPAIN STAIS", "THE RAIN IN SPAIN STAYS"),
        ("t h e, r e i n, i n, s p a i n, s t e y s", "t h e, r a i n, i n, s p a i n, s t a y s"),
        ("the rein in", "the rain in"),
        ("a word", None),
        ("T H E, R A I N, I N, S P A I N", None),
        ("", None),
    ],
)
def test_words_take_the_form_of_a_draft(draft: str, form: str | None) -> None:
    assert written_as(draft, "the rain in spain stays") == form


# The tables -------------------------------------------------------------------------------------------------


def test_there_are_enough_wordings_and_none_is_of_two_tasks() -> None:
    everything = [words for task in DEFAULT for words in (*TASKS[task].instructions, *TASKS[task].held_out)]
    assert len(everything) == len(set(everything))
    for task in DEFAULT:
        assert len(TASKS[task].instructions) >= 20 and len(TASKS[task].held_out) >= 5
    phrases = [p for attribute in ATTRIBUTES.values() for p in (*attribute.phrases, *attribute.held_out)]
    assert len(phrases) == len(set(phrases))
    assert all(normalise_text(words) == words for words in (*everything, *phrases))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tasks": ("sing",)}, "sing"),
        ({"phrases": ()}, "phrases"),
        ({"tasks": ("tts",), "written": str.upper}, "for tasks that write"),
        ({"tasks": ("asr",), "pause": (1.0, 2.0)}, "for tasks that speak"),
    ],
)
def test_an_attribute_that_contradicts_itself_is_refused(given: dict[str, Any], message: str) -> None:
    fit: dict[str, Any] = {"tasks": ("asr",), "phrases": ("nicely",), "held_out": (), "measure": "words"}
    with pytest.raises(PromptError, match=message):
        Attribute("nice", **(fit | given))


# Rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", DEFAULT)
def test_a_free_row_has_no_token_and_opens_its_output_itself(folder: Path, task: str) -> None:
    """All of its labels: the opening token, what is in the block, the stop; half of all rows are free."""
    made = family(folder, free=0.5, contrary=0.0)
    fmt, free = made.train_rows.fmt, 0
    found = rows(made, task)
    for _, row, parsed in found:
        first = int((row.labels != IGNORE).argmax())
        assert (row.labels[first:] == row.ids[first:]).all() and parsed.finished
        opened = fmt.opened(int(row.ids[first]))
        assert (opened is not None) == (parsed.tasks == ())
        if not parsed.tasks:
            free += 1
            assert opened == parsed.output == fmt.layouts[task].output
            assert row.ids[:first].tolist() == fmt.ask(parsed.instruction, dict(parsed.blocks))
            assert row.ids[first:].tolist() == fmt.answer(parsed.output, parsed.target)
    assert 0.4 < free / len(found) < 0.6


def test_blocks_do_not_tell_recognition_from_conversion(folder: Path) -> None:
    """Half of the free rows of recognition have a voice as well, as those of conversion do."""
    made = family(folder, free=1.0)
    conversion, recognition = ([p.global_ is not None for _, _, p in rows(made, t)] for t in ("vc", "asr"))
    assert all(conversion) and 0.4 < np.mean(recognition) < 0.6


def test_a_contrary_token_is_another_tasks(folder: Path) -> None:
    heads = [parsed.tasks for _, _, parsed in rows(family(folder, free=1.0, contrary=0.5), "asr")]
    assert set(heads) == {(), ("tts",), ("vc",)}
    assert 0.4 < np.mean([head != () for head in heads]) < 0.6


def test_held_out_wordings_are_never_drawn(folder: Path) -> None:
    made = family(folder, free=0.5, attributes=0.5)
    for task in DEFAULT:
        held = [*TASKS[task].held_out, *(p for a in ATTRIBUTES.values() for p in a.held_out)]
        drawn = {parsed.instruction for _, _, parsed in rows(made, task, 100)}
        assert set(TASKS[task].instructions) <= drawn
        assert not [words for words in drawn if words in held or any(words.endswith(f" {p}") for p in held)]


def asking(folder: Path, task: str, name: str) -> list[tuple[int, Row, Any]]:
    """Free rows of a task with one of an attribute's phrases."""
    found = rows(family(folder, free=1.0, attributes=1.0), task, 100)
    phrases = ATTRIBUTES[name].phrases
    mine = [row for row in found if any(row[2].instruction.endswith(f" {phrase}") for phrase in phrases)]
    assert mine
    return mine


def test_what_is_written_is_as_asked_and_otherwise_plain(folder: Path) -> None:
    for i, _, parsed in asking(folder, "asr", "capitals"):
        assert parsed.target_text == WORDS[i].upper()
    for i, _, parsed in asking(folder, "asr", "spelled"):
        assert parsed.target_text == ", ".join(" ".join(word) for word in WORDS[i].split())
    for i, _, parsed in asking(folder, "asr", "first words"):
        assert parsed.target_text == " ".join(WORDS[i].split()[:3])
    for i, _, parsed in rows(family(folder, free=1.0), "asr"):
        assert parsed.target_text == WORDS[i]


def test_fast_and_slow_clips_are_those_of_the_outer_quarters(folder: Path) -> None:
    """Of five training clips, by letters: the two fewest are slow, the two most fast (ranks 0, 1/4, .. 1)."""
    by_letters = np.argsort([len(text) for text in WORDS[:5]], kind="stable").tolist()
    assert {i for i, _, _ in asking(folder, "tts", "slow")} == set(by_letters[:2])
    assert {i for i, _, _ in asking(folder, "tts", "fast")} == set(by_letters[-2:])


@pytest.mark.parametrize("task", ["tts", "vc"])
def test_a_pause_is_silence_of_the_corpus_in_front(folder: Path, task: str) -> None:
    made = family(folder, free=1.0)
    for i, row, parsed in asking(folder, task, "pause"):
        own = made.train_rows.clips[i]["semantic"].tolist()
        spoken = parsed.target_semantic
        assert spoken[-FRAMES:] == own and set(spoken[:-FRAMES]) == {26}
        assert 0.6 * 25 <= len(spoken) - FRAMES <= 1.2 * 25
        first = int((row.labels != IGNORE).argmax())
        watched = row.look[first : first + len(spoken)].any(1)
        assert not watched[: len(spoken) - FRAMES].any() and watched[len(spoken) - FRAMES :].all()
    for _, _, parsed in rows(made, task):
        assert len(parsed.target_semantic) == FRAMES


def test_the_pitch_that_is_kept_is_that_of_the_clip_itself(folder: Path) -> None:
    for _, _, parsed in asking(folder, "vc", "pitch"):
        assert parsed.semantic == parsed.target_semantic
    plainly = [parsed for _, _, parsed in rows(family(folder, free=1.0), "vc")]
    assert 0.6 < np.mean([parsed.semantic != parsed.target_semantic for parsed in plainly]) < 0.9


def test_letters_are_watched_behind_the_opening_token(folder: Path) -> None:
    """Free or not, and in capitals too, a row's ids watch the same places of the prompt's last block."""
    made = family(folder)
    for task in ("asr", "tts"):
        for free in (0.0, 1.0):
            for _, row, parsed in rows(family(folder, free=free, contrary=0.0), task, 3):
                opener = made.vocab.control[f"start_{parsed.blocks[-1][0]}"]
                content = int((row.ids == opener).argmax()) + 1
                first = int((row.labels != IGNORE).argmax()) + int(free)
                assert row.look[first - 1].any() and not row.look[: first - 1].any()
                watched = row.look[row.look.any(1), 0]
                ending = 2 if task == "asr" else 1  # end_content and the stop come from nowhere
                assert (watched >= content).all() and len(watched) == len(row.ids) - first - ending
    capital = [row for _, row, _ in asking(folder, "asr", "capitals")]
    assert all(len({tuple(span) for span in row.look.tolist() if any(span)}) > 4 for row in capital)


@pytest.mark.parametrize("task", DEFAULT)
def test_lengths_suffice_for_every_instruction(folder: Path, task: str) -> None:
    made = family(folder, free=0.5, attributes=0.5)
    for i, row, _ in rows(made, task, 100):
        assert len(row.ids) <= made.train_rows.length(task, i)


def test_equal_draws_give_equal_rows(folder: Path) -> None:
    one, other = (family(folder, free=0.5, attributes=0.5) for _ in range(2))
    for step in (0, 5):
        assert (one.batch(step).ids == other.batch(step).ids).all()


def test_shares_that_make_no_sense_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"instructions.free=2.0"):
        family(folder, free=2.0)


# Silence ----------------------------------------------------------------------------------------------------


def test_silence_is_found_where_it_is() -> None:
    """Ten frames of 100 samples: loud but for 3 .. 8, whose edges are left out; none where all is loud."""
    wav = np.random.default_rng(0).normal(0, 0.3, 1000).astype(np.float32)
    assert quietest(wav, 10) == []
    wav[300:800] *= 0.003
    assert quietest(wav, 10) == [4, 7]
    wav[800:] = 0
    assert quietest(wav, 10) == [4, 10]  # the end has no edge
    assert quietest(np.zeros(0, np.float32), 0) == []


# Measures ---------------------------------------------------------------------------------------------------


def test_every_attribute_has_a_measure_of_its_kind() -> None:
    """What is written is looked at as text, what is spoken as sound, and each says what it should."""
    said = "two foxes ran away"
    tone = 0.3 * np.sin(2 * np.pi * np.cumsum(120 + 30 * np.sin(np.arange(16_000) / 2000)) / 16_000)
    source = tone.astype(np.float32)

    def measured(name: str, text: str | None = None, wav: np.ndarray | None = None) -> float | None:
        return MEASURES[ATTRIBUTES[name].measure](Answer(text, wav, said, source))

    assert (measured("capitals", said.upper()), measured("capitals", said)) == (1.0, 0.0)
    assert measured("spelled", "t w o, f o x") == 1.0 and measured("spelled", said) == 0.0
    assert measured("first words", "two foxes ran") == 3.0
    late = np.pad(source, (8000, 1600))
    assert (
        measured("pause", wav=late) == pytest.approx(0.5, abs=0.02) and measured("pause", wav=source) == 0.0
    )
    assert measured("fast", wav=late) == pytest.approx(15.0, rel=0.03)
    assert measured("slow", wav=np.repeat(source, 2)) == pytest.approx(7.5, rel=0.03)
    assert measured("pitch", wav=source) == pytest.approx(1.0, abs=0.02)
    assert measured("pitch", wav=source[::-1].copy()) < 0.5  # type: ignore[operator]
    assert measured("pitch", wav=np.zeros(8000, np.float32)) is None
    assert measured("capitals", wav=source) == 0.0 and measured("pause", text=said) is None
