"""Words as a prior on spelling: probabilities that sum to one, lists and their faults, added words."""

import math
from pathlib import Path

import pytest

from gpa.errors import CheckpointError, UsageError
from gpa.lab import word_list
from gpa.text.lexicon import END, Lexicon, words_of

LETTERS = "abcdefghijklmnopqrstuvwxyz'" + END
TEXT = "The cat sat; the cats sat on the mat. It's the cat's."


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return Lexicon.of_texts([TEXT, "then they left"])


@pytest.mark.parametrize("prefix", ["", "t", "th", "the", "ca", "cat", "catz", "q", "zzzz", "it'"])
def test_what_follows_sums_to_one(lexicon: Lexicon, prefix: str) -> None:
    """After any prefix, known or not; after none a word does not end, but its share is counted."""
    assert math.isclose(sum(math.exp(lexicon.log_prob(prefix, c)) for c in LETTERS), 1.0, rel_tol=1e-9)


def test_counts_rule(lexicon: Lexicon) -> None:
    """Witten and Bell by hand: four "the" and two longer words begin with "the", three things follow it."""
    alone = math.exp(lexicon.log_prob("the", END))
    assert lexicon.counts["the"] == 4 and lexicon.counts["then"] == 1
    near = Lexicon({"the": 4, "then": 1, "they": 1})
    assert alone == pytest.approx((4 + 3 * _near(lexicon, "he", END)) / (6 + 3), rel=1e-9)
    assert near.log_prob("the", END) > near.log_prob("the", "n") > near.log_prob("the", "x")


def _near(lexicon: Lexicon, suffix: str, letter: str) -> float:
    """Up to the last two letters, written out: orders 0, 1 and 2 interpolated."""
    share = 1 / len(LETTERS)
    for n in range(len(suffix) + 1):
        context = suffix[len(suffix) - n :]
        found = [
            spelt[i]
            for word, count in lexicon.counts.items()
            for spelt in [word + END]
            for i in range(n, len(spelt))
            if spelt[i - n : i] == context
            for _ in range(count)
        ]
        kinds = len(set(found))
        share = (found.count(letter) + kinds * share) / (len(found) + kinds)
    return share


def test_a_listed_word_is_likelier(lexicon: Lexicon) -> None:
    def total(word: str) -> float:
        return sum(lexicon.log_prob(word[:i], c) for i, c in enumerate(word + END))

    assert total("cats") > total("catz") > total("cxtz") > -math.inf


def test_a_known_word_is_likelier_than_an_unknown_one_and_less_than_a_counted_one(lexicon: Lexicon) -> None:
    more = Lexicon(lexicon.counts, ["catnip", "the"])

    def total(of: Lexicon, word: str) -> float:
        return sum(of.log_prob(word[:i], c) for i, c in enumerate(word + END))

    assert total(more, "catnip") > total(lexicon, "catnip")
    assert total(more, "cats") > total(more, "catnip") > total(more, "catnix")
    assert more.counts == lexicon.counts and total(more, "the") == pytest.approx(
        total(lexicon, "the"), abs=0.2
    )
    assert more.with_words(["dog"]).listed == more.listed
    for prefix in ("", "cat", "catn", "the", "zz"):
        assert sum(math.exp(more.log_prob(prefix, c)) for c in LETTERS) == pytest.approx(1.0)


def test_lists_come_back(lexicon: Lexicon) -> None:
    assert Lexicon.parse(lexicon.lines(), "x").counts == lexicon.counts
    assert lexicon.lines().splitlines()[0] == "the 4"
    assert not Lexicon.parse("", "x") and len(lexicon) == 11
    assert words_of("Don't stop-and") == ["don't", "stop", "and"]


@pytest.mark.parametrize(
    "line", ["the", "two words 3", "Upper 3", "the -1", "the 1.5", " the 3", "3", "", "the ²"]
)
def test_bad_lists(line: str) -> None:
    with pytest.raises(CheckpointError, match="words.txt, line 2"):
        Lexicon.parse(f"a 1\n{line}\nb 2\n", "words.txt")


def test_words_are_added(lexicon: Lexicon) -> None:
    """New ones become likely, known ones stay."""
    more = lexicon.with_words(["Quillan, zyx", "the"])
    assert more.counts["quillan"] == 1 and more.counts["the"] == 5 and len(more) == len(lexicon) + 2
    assert more.log_prob("qui", "l") > lexicon.log_prob("qui", "l")


def test_the_command(tmp_path: Path) -> None:
    """Training rows only, and none is an error."""
    rows = tmp_path / "m.jsonl"
    rows.write_text('{"text": "One two two", "split": "train"}\n{"text": "three", "split": "dev"}\n')
    word_list.main([str(rows), "-o", str(tmp_path / "words.txt")])
    assert (tmp_path / "words.txt").read_text() == "two 2\none 1\n"
    rows.write_text('{"text": "three", "split": "dev"}\n')
    with pytest.raises(UsageError, match="no training text"):
        word_list.main([str(rows), "-o", str(tmp_path / "none.txt")])
