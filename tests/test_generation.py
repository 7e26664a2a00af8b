"""The loop over ids: twins, masks, sampling, penalty, budgets, ends. No audio, no text."""

import math
from collections.abc import Callable

import pytest
import torch
from gpa.models.gpa.generation_gpa import (
    Completion,
    LoopDetector,
    Rules,
    Sampling,
    decode_one,
    filtered,
    generate,
    logits_of,
    penalised,
    prefill,
    stream,
)
from transformers import Qwen3Config, Qwen3ForCausalLM

from gpa.errors import PromptError, UsageError

SIZE, STOP, CLOSER = 60, 55, 56
LEGAL = (range(10, 20), range(STOP, STOP + 1), range(CLOSER, CLOSER + 1))
RULES = Rules(max_new=30, stop=frozenset({STOP}), legal=LEGAL, closers=frozenset({CLOSER}))
WARM = Sampling(temperature=1.5)
PROMPT = [1, 2, 3, 40, 50]


@pytest.fixture(scope="module")
def lm() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=SIZE,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=24,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    return Qwen3ForCausalLM(config).eval()


@pytest.mark.parametrize("sampling", [Sampling(), WARM, Sampling(0.9, 8, 0.9, 1.3)])
def test_cached_equals_uncached(lm: Qwen3ForCausalLM, sampling: Sampling) -> None:
    rules = Rules(max_new=20, stop=frozenset({STOP}))
    cached, slow = (generate(lm, PROMPT, rules, sampling, seed=3, cached=flag) for flag in (True, False))
    assert cached == slow
    logits, cache = prefill(lm, PROMPT)
    for token_id in (7, 8):
        logits = decode_one(lm, token_id, cache)
    assert torch.allclose(logits, logits_of(lm, [*PROMPT, 7, 8])[-1], atol=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_an_untrained_model_emits_nothing_illegal(lm: Qwen3ForCausalLM, seed: int) -> None:
    done = generate(lm, PROMPT, RULES, Sampling(temperature=5.0), seed=seed)
    assert all(any(i in run for run in LEGAL) for i in done.ids)
    assert STOP not in done.ids[:-1]
    if CLOSER in done.ids:  # nothing but the stop follows
        after = done.ids[done.ids.index(CLOSER) + 1 :]
        assert after == ([STOP] if done.finish_reason == "stop" else [])
    assert (done.finish_reason == "stop") == (done.ids[-1] == STOP)


def test_seeds(lm: Qwen3ForCausalLM) -> None:
    rules = Rules(max_new=20, stop=frozenset({STOP}))
    first = [generate(lm, PROMPT, rules, WARM, seed=seed).ids for seed in (1, 1, 2)]
    torch.rand(5)  # the global generator plays no part
    assert first[0] == first[1] == generate(lm, PROMPT, rules, WARM, seed=1).ids
    assert first[0] != first[2]


def test_streams_do_not_disturb_each_other(lm: Qwen3ForCausalLM) -> None:
    rules = Rules(max_new=12, stop=frozenset({STOP}))
    alone = [generate(lm, PROMPT, rules, WARM, seed=seed).ids for seed in (1, 2)]
    one, two = (stream(lm, PROMPT, rules, WARM, seed=seed) for seed in (1, 2))
    pairs = [(next(one, None), next(two, None)) for _ in range(12)]
    assert [[i for i in ids if i is not None] for ids in zip(*pairs, strict=True)] == alone


def test_penalty_touches_recent_generated_ids_only(lm: Qwen3ForCausalLM) -> None:
    logits = torch.tensor([2.0, -2.0, 1.0, 3.0])
    sampling = Sampling(repetition_penalty=2.0, penalty_window=2)
    assert penalised(logits, [3, 0, 1], sampling).tolist() == [1.0, -4.0, 1.0, 3.0]
    assert penalised(logits, [], sampling).tolist() == logits.tolist()
    plain = generate(lm, PROMPT, Rules(1, frozenset()), Sampling()).ids
    prompt = [*PROMPT[:-1], *plain, PROMPT[-1]]  # the favourite stands in the prompt now
    free, hard = (
        generate(lm, prompt, Rules(1, frozenset()), Sampling(repetition_penalty=p)).ids for p in (1.0, 50.0)
    )
    assert free == hard


def test_top_k_and_top_p() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    assert filtered(logits, Sampling(1.0, top_k=2))[1].tolist() == [0, 1]
    assert filtered(logits, Sampling(1.0, top_p=0.6))[1].tolist() == [0, 1]
    assert filtered(logits, Sampling(1.0, top_p=0.01))[1].tolist() == [0]
    logits[0] = -math.inf
    assert filtered(logits, Sampling(1.0))[1].tolist() == [1, 2, 3]


def test_an_explicit_greedy_is_the_argmax() -> None:
    spoken = Sampling(temperature=0.2, repetition_penalty=1.2)
    assert spoken.updated(temperature=0) == Sampling()
    assert spoken.updated(temperature=0, repetition_penalty=1.1).repetition_penalty == 1.1
    assert spoken.updated(top_k=5) == Sampling(0.2, 5, 1.0, 1.2)
    assert spoken.updated(temperature=None) == spoken


@pytest.mark.parametrize(
    "bad",
    [{"temperature": -1}, {"temperature": math.nan}, {"top_p": 0}, {"top_k": -1}, {"repetition_penalty": 0}],
)
def test_sampling_out_of_range(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(bad))):
        Sampling().updated(**bad)


def test_budget_and_minimum(lm: Qwen3ForCausalLM) -> None:
    only_stop = Rules(
        max_new=6, stop=frozenset({STOP}), legal=(range(10, 12), range(STOP, STOP + 1)), min_new=4
    )
    for seed in range(5):
        done = generate(lm, PROMPT, only_stop, WARM, seed=seed)
        assert 4 < len(done.ids) <= 6 or done.finish_reason == "length"
        assert STOP not in done.ids[:4]
    done = generate(lm, PROMPT, Rules(3, frozenset()), WARM)
    assert (len(done.ids), done.finish_reason) == (3, "length")


def test_a_closed_completion_ends_with_its_stop(lm: Qwen3ForCausalLM) -> None:
    legal = (range(10, 12), range(STOP, STOP + 1))
    for most in (1, 2, 7):
        closed = Rules(max_new=most, stop=frozenset({STOP}), legal=legal, min_new=most // 2, closed=True)
        for seed in range(5):
            done = generate(lm, PROMPT, closed, WARM, seed=seed)
            assert most // 2 < len(done.ids) <= most
            assert (done.ids[-1], done.finish_reason) == (STOP, "stop") and STOP not in done.ids[:-1]


def test_context_is_never_exceeded(lm: Qwen3ForCausalLM) -> None:
    done = generate(lm, [1] * 60, Rules(100, frozenset()), Sampling())
    assert (len(done.ids), done.finish_reason) == (4, "length")
    with pytest.raises(PromptError, match="64 ids, the model's context 64"):
        generate(lm, [1] * 64, RULES, Sampling())
    for bad in ([], [SIZE], [-1]):
        with pytest.raises(PromptError):
            generate(lm, bad, RULES, Sampling())
    with pytest.raises(PromptError, match="beyond"):
        generate(lm, PROMPT, Rules(3, frozenset(), legal=(range(50, SIZE + 1),)), Sampling())


def test_a_loop_ends_the_completion(lm: Qwen3ForCausalLM) -> None:
    one = Rules(max_new=50, stop=frozenset({STOP}), legal=(range(10, 11),), loop=12)
    done = generate(lm, PROMPT, one, Sampling())
    assert done == Completion([10] * 12, "loop", 1)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda i: 5, True),
        (lambda i: (1, 2, 3, 4, 5)[i % 5], True),
        (lambda i: (7 * i * i + 3 * i) % 3, True),  # no cycle, but three values only
        (lambda i: i, False),
        (lambda i: i % 17, False),  # longer than any cycle that counts
    ],
)
def test_what_counts_as_a_loop(make: Callable[[int], int], found: bool) -> None:
    detector = LoopDetector(40)
    at = next((i for i in range(200) if detector.add(make(i))), None)
    assert (at is not None) == found
    if at is not None:
        assert at >= 39
        assert 0 < detector.excess < 40
    never = LoopDetector(None)
    assert not any(never.add(1) for _ in range(500))
