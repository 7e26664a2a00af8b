"""Beam search over ids: its twins, one beam is greedy, many are best, rules, a prior that changes minds."""

import itertools
import math

import pytest
from gpa.models.gpa.beam_gpa import Beams, Search, Spelling, beam_search
from gpa.models.gpa.generation_gpa import Rules, Sampling, generate, logits_of
from transformers import Qwen3ForCausalLM

from gpa.errors import PromptError, UsageError
from gpa.models.gpa import beam_gpa as beam
from gpa.text.bigrams import Bigrams, Wording
from gpa.text.lexicon import Lexicon
from test_generation import CLOSER, LEGAL, PROMPT, RULES, STOP, lm

__all__ = ["lm"]
SHORT = Rules(max_new=3, stop=frozenset({STOP}), legal=(range(10, 13), range(STOP, STOP + 1)))
OPEN = Rules(max_new=20, stop=frozenset({STOP}))


def words(counts: dict[str, int], bigrams: dict[str, dict[str, float]] | None = None) -> Wording:
    return Wording(Lexicon(counts), Bigrams.of_shares(bigrams or {}))


def score(lm: Qwen3ForCausalLM, ids: list[int], legal: list[int]) -> float:
    """Log-probability of new ids among legal ones, by the uncached network."""
    rows = logits_of(lm, [*PROMPT, *ids])[len(PROMPT) - 1 : -1][:, legal].log_softmax(-1)
    return sum(float(row[legal.index(i)]) for row, i in zip(rows, ids, strict=True))


@pytest.mark.parametrize("width", [2, 5])
@pytest.mark.parametrize("rules", [RULES, OPEN])
def test_cached_equals_uncached(lm: Qwen3ForCausalLM, rules: Rules, width: int) -> None:
    assert beam_search(lm, PROMPT, rules, width) == beam_search(lm, PROMPT, rules, width, cached=False)


@pytest.mark.parametrize("rules", [RULES, OPEN, SHORT])
def test_one_beam_is_greedy(lm: Qwen3ForCausalLM, rules: Rules) -> None:
    assert beam_search(lm, PROMPT, rules, 1).ids == generate(lm, PROMPT, rules, Sampling()).ids


def test_wide_beams_find_the_best(lm: Qwen3ForCausalLM) -> None:
    """Of all completions of at most three ids that stop, the likeliest, found by trying every one."""
    legal = [10, 11, 12, STOP]
    every = [(*head, STOP) for n in range(3) for head in itertools.product((10, 11, 12), repeat=n)]
    best = max(every, key=lambda ids: score(lm, list(ids), legal))
    found = beam_search(lm, PROMPT, SHORT, 40)
    assert found.ids == list(best) and found.finish_reason == "stop"


def test_rules_hold(lm: Qwen3ForCausalLM) -> None:
    """Nothing illegal, nothing but a stop after a closer, no stop too early."""
    done = beam_search(lm, PROMPT, RULES, 4)
    assert all(any(i in run for run in LEGAL) for i in done.ids)
    if CLOSER in done.ids:
        assert done.ids[done.ids.index(CLOSER) + 1 :] == [STOP]
    late = Rules(max_new=9, min_new=6, stop=frozenset({STOP}), legal=SHORT.legal)
    assert len(beam_search(lm, PROMPT, late, 4).ids) > 6 or STOP not in beam_search(lm, PROMPT, late, 4).ids
    with pytest.raises(PromptError, match="shorten the input"):
        beam_search(lm, list(range(1, 55)) * 2, RULES, 2)


def test_a_prior_decides(lm: Qwen3ForCausalLM) -> None:
    """A strong prior for one spelling makes it win; a weight of nothing changes nothing."""
    pieces = {10: "a", 11: "b", 12: "z"}
    strong = Spelling(words({"bab": 9}), pieces, Beams(4, words=50.0))
    fixed = Rules(max_new=4, min_new=3, stop=frozenset({STOP}), legal=SHORT.legal)
    assert beam_search(lm, PROMPT, fixed, 8, strong).ids == [11, 10, 11, STOP]
    none = Spelling(words({"bab": 9}), pieces, Beams(4, words=0.0))
    assert beam_search(lm, PROMPT, fixed, 8, none) == beam_search(lm, PROMPT, fixed, 8)


def test_spelling_scores_words() -> None:
    """Letter by letter through pieces of several letters; a space after a space ends no word."""
    wording = words({"ab": 3, "b": 1}, {"ab": {"b": 0.25}})
    spelling = Spelling(wording, {1: "a", 2: "b", 3: " ab", 4: " "}, Beams(4, words=0.5, letter=0.25))
    first, state = spelling("", 1)
    second, state = spelling(state, 2)
    third, state = spelling(state, 3)
    assert state == "ab ab"
    spelt = [("", "", "a"), ("", "a", "b"), ("", "ab", " "), ("ab", "", "a"), ("ab", "a", "b")]
    assert first + second + third == pytest.approx(0.5 * sum(wording.log_prob(*s) for s in spelt) + 5 * 0.25)
    assert spelling("b ab", 99) == (pytest.approx(0.5 * wording.log_prob("b", "ab", " ")), "ab ")
    assert spelling("ab ", 4) == (0.25, "ab ")
    assert spelling("", 4) == (0.25, " ")


def test_the_word_before_decides(lm: Qwen3ForCausalLM) -> None:
    """The same letters after another word: what mostly follows it wins."""
    pieces = {10: "a", 11: " a", 12: " b"}
    two = Rules(max_new=3, min_new=2, stop=frozenset({STOP}), legal=SHORT.legal)
    for follows, piece in (("a", 11), ("b", 12)):
        wording = words({"a": 5, "b": 5}, {"a": {follows: 0.9}, "b": {"ab": 0.9}})
        prior = Spelling(wording, pieces, Beams(8, words=40.0))
        assert beam_search(lm, PROMPT, two, 40, prior).ids[1:] == [piece, STOP]


def test_loops_are_counted_off(lm: Qwen3ForCausalLM) -> None:
    """What never stops ends by length, or as a loop whose repetitions are no part of it."""
    endless = Rules(max_new=24, stop=frozenset({STOP}), legal=(range(10, 12),), loop=8)
    done = beam_search(lm, PROMPT, endless, 3)
    assert done.finish_reason == "loop" and done.kept < len(done.ids) == 24


def test_who_searches(lm: Qwen3ForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing and penalties are those of `generate`; beams are searched otherwise."""
    calls = []
    monkeypatch.setattr(beam, "beam_search", lambda *_: calls.append("beam"))
    for sampling, width in [(Sampling(), 1), (Sampling(0.5), 4), (Sampling(repetition_penalty=1.1), 4)]:
        assert beam.transcribe(lm, PROMPT, SHORT, sampling, Search(width), seed=0).ids
    beam.transcribe(lm, PROMPT, SHORT, Sampling(), Search(4), seed=0)
    assert calls == ["beam"]


@pytest.mark.parametrize("bad", [{"width": 0}, {"width": 1.5}, {"words": -1.0}, {"letter": math.inf}])
def test_bad_settings(bad: dict) -> None:
    with pytest.raises(UsageError, match="width of at least 1"):
        Beams(**bad)
