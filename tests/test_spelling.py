"""Words as a prior on spellings: letter by letter, by the word before; a search that they decide."""

import math

import pytest

from gpa.engine.request import Beams, Request, Rules
from gpa.engine.scheduler import Engine
from gpa.errors import UsageError
from gpa.text.lexicon import Lexicon
from gpa.text.ngrams import NGrams, Wording
from gpa.text.spelling import Spelling, SpellingSearch
from networks import network

STOP, PROMPT = 55, [1, 2, 3, 40, 50]
LEGAL = (range(10, 13), range(STOP, STOP + 1))


def words(counts: dict[str, int], ngrams: dict[str, dict[str, float]] | None = None) -> Wording:
    return Wording(Lexicon(counts), NGrams.of_shares(ngrams or {}))


def searched(rules: Rules, width: int, prior: Spelling | None = None) -> list[int]:
    return Engine(network()).generate([Request(PROMPT, rules, beams=Beams(width, prior))])[0].ids


def test_a_prior_decides() -> None:
    """A strong prior for one spelling makes it win; a weight of nothing changes nothing."""
    pieces = {10: "a", 11: "b", 12: "z"}
    strong = Spelling(words({"bab": 9}), pieces, SpellingSearch(4, words=50.0))
    fixed = Rules(max_new=4, min_new=3, stop=frozenset({STOP}), legal=LEGAL)
    assert searched(fixed, 8, strong) == [11, 10, 11, STOP]
    none = Spelling(words({"bab": 9}), pieces, SpellingSearch(4, words=0.0))
    assert searched(fixed, 8, none) == searched(fixed, 8)


def test_spelling_scores_words() -> None:
    """Letter by letter through pieces of several letters; a space after a space ends no word."""
    wording = words({"ab": 3, "b": 1}, {"ab": {"b": 0.25}, "b ab": {"b": 0.5}})
    spelling = Spelling(
        wording, {1: "a", 2: "b", 3: " ab", 4: " "}, SpellingSearch(4, words=0.5, letter=0.25)
    )
    first, state = spelling("", 1)
    second, state = spelling(state, 2)
    third, state = spelling(state, 3)
    assert state == "ab ab"
    assert spelling("b ab ab", 99)[1] == "ab ab "  # two words are kept
    assert spelling("b ab ", 2)[0] == pytest.approx(0.5 * wording.log_prob("b ab", "", "b") + 0.25)
    spelt = [("", "", "a"), ("", "a", "b"), ("", "ab", " "), ("ab", "", "a"), ("ab", "a", "b")]
    assert first + second + third == pytest.approx(0.5 * sum(wording.log_prob(*s) for s in spelt) + 5 * 0.25)
    assert spelling("b ab", 99) == (pytest.approx(0.5 * wording.log_prob("b", "ab", " ")), "b ab ")
    assert spelling("ab ", 4) == (0.25, "ab ")
    assert spelling("", 4) == (0.25, " ")


def test_the_word_before_decides() -> None:
    """The same letters after another word: what mostly follows it wins."""
    pieces = {10: "a", 11: " a", 12: " b"}
    two = Rules(max_new=3, min_new=2, stop=frozenset({STOP}), legal=LEGAL)
    for follows, piece in (("a", 11), ("b", 12)):
        wording = words({"a": 5, "b": 5}, {"a": {follows: 0.9}, "b": {"ab": 0.9}})
        prior = Spelling(wording, pieces, SpellingSearch(8, words=40.0))
        assert searched(two, 40, prior)[1:] == [piece, STOP]


@pytest.mark.parametrize("bad", [{"width": 0}, {"width": 1.5}, {"words": -1.0}, {"letter": math.inf}])
def test_bad_settings(bad: dict) -> None:
    with pytest.raises(UsageError, match="width of at least 1"):
        SpellingSearch(**bad)
