"""The engine over ids: its slow twins, one batch for every kind of request, sampling, rules, ends."""

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gpa.compose import Branch, Guided, Plan, Term, compose_logits, given
from gpa.engine.cache import Cache
from gpa.engine.drawing import PLAUSIBLE, Composition, Draw
from gpa.engine.linear import Kernel
from gpa.engine.network import Network
from gpa.engine.request import Beams, Completion, Guidance, Request, Rules, Sampling
from gpa.engine.sampler import Choices, LoopDetector, filtered, penalised
from gpa.engine.scheduler import Engine
from gpa.engine.search import Search
from gpa.errors import PromptError, UsageError
from gpa.models.gpa.checkpoint_gpa import SHIPPED
from networks import SIZE, network, reference

STOP, CLOSER = 55, 56
LEGAL = (range(10, 20), range(STOP, STOP + 1), range(CLOSER, CLOSER + 1))
RULES = Rules(max_new=30, stop=frozenset({STOP}), legal=LEGAL, closers=frozenset({CLOSER}))
OPEN = Rules(max_new=20, stop=frozenset({STOP}))
SHORT = Rules(max_new=3, stop=frozenset({STOP}), legal=(range(10, 13), range(STOP, STOP + 1)))
NEVER = Rules(max_new=20, stop=frozenset())
WARM = Sampling(temperature=1.5)
PENALISED = Sampling(0.9, 8, 0.9, 1.3)
PROMPT = [1, 2, 3, 40, 50]

BASE, WORDS, NULL = Branch("vc", given(source="s")), Branch("tts", given(text="w")), Branch("tts")
PROMPTS = {BASE: PROMPT, WORDS: [3, 4, 5, 6, 7, 8, 9, 21], NULL: [3, 22]}  # of three lengths
GUIDED = Rules(max_new=20, stop=frozenset({STOP}), legal=LEGAL[:2])


def guidance(gamma: float) -> Guidance:
    return Guidance(Plan(Guided("vc", BASE.given), (Term("tts", WORDS.given, gamma=gamma),)), PROMPTS)


def prior(state: str, token_id: int) -> tuple[float, str]:
    """Likes ids that grow, by how much the last one was; a state that matters."""
    return (0.5 if token_id > int(state or 0) else -0.5), str(token_id)


@pytest.fixture(scope="module")
def net() -> Network:
    return network()


def generate(net: Network, *args: Any, **more: Any) -> Completion:
    return Engine(net).generate([Request(*args, **more)])[0]


def slow(net: Network, request: Request) -> Completion:
    """The twin without a cache: every row from its start at every step."""
    decoder = Search(request, request.beams, net) if request.beams else Draw(request, net)
    sequences: list[Sequence[int]] = list(decoder.prompts)
    while True:
        rows = torch.stack([net.logits(ids)[-1] for ids in sequences])
        decoder.advance(rows[:, torch.from_numpy(decoder.choices.ids)].numpy())
        if decoder.done:
            return decoder.completion
        sequences = [[*sequences[parent], token_id] for token_id, parent in decoder.following]


REQUESTS = [
    *(Request(PROMPT[: 1 + n], OPEN, Sampling(), n) for n in range(3)),
    *(Request(PROMPT, RULES, WARM, seed) for seed in range(3)),
    *(Request([7] * (4 + seed), NEVER, PENALISED, seed) for seed in range(3)),
    *(Request(PROMPT, GUIDED, WARM, seed, guidance(gamma)) for seed, gamma in enumerate((0.0, 1.0, 2.5))),
    *(Request(PROMPT, rules, beams=Beams(width)) for rules in (RULES, OPEN) for width in (2, 5)),
    Request([5, 6], OPEN, beams=Beams(4, prior)),
]


# Twins ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", REQUESTS)
def test_cached_equals_uncached(net: Network, request_: Request) -> None:
    assert Engine(net).generate([request_])[0] == slow(net, request_)


def test_every_kind_of_request_in_one_batch_is_what_each_is_alone(net: Network) -> None:
    alone = [Engine(net).generate([request])[0] for request in REQUESTS]
    assert Engine(net, rows=64).generate(REQUESTS) == alone
    assert Engine(net, rows=7).generate(REQUESTS[::-1]) == alone[::-1]  # some wait for others
    assert Engine(net, rows=1).generate(REQUESTS) == alone  # one at a time, wider ones nevertheless


def test_no_more_rows_run_than_the_engine_is_given(net: Network) -> None:
    engine = Engine(net, rows=7)
    first = [engine.add(request) for request in REQUESTS]
    used, order = [], []
    while engine.busy:
        order += [progress.handle for progress in engine.step() if progress.handle not in order]
        used.append(engine.cache.used)
    assert max(used) <= 7 and order == first  # whoever came first begins first


@pytest.mark.parametrize("seed", range(4))
def test_requests_join_and_leave_at_any_step(net: Network, seed: int) -> None:
    """Ids do not depend on who is there; those of every step, one after another, are the completion's."""
    alone = [Engine(net).generate([request])[0] for request in REQUESTS]
    engine, rng = Engine(net, rows=12), random.Random(seed)
    order = rng.sample(range(len(REQUESTS)), len(REQUESTS))
    handles: dict[int, int] = {}
    told: dict[int, list[int]] = {}
    done: dict[int, Completion] = {}
    cancelled = set()
    while order or engine.busy:
        if order and rng.random() < 0.5:
            n = order.pop()
            handles[engine.add(REQUESTS[n])] = n
        live = [handle for handle in handles if handle not in done and handle not in cancelled]
        if live and rng.random() < 0.1:
            gone = rng.choice(live)
            engine.cancel(gone)
            cancelled.add(gone)
            continue
        for progress in engine.step():
            told.setdefault(progress.handle, []).extend(progress.ids)
            if progress.completion:
                done[progress.handle] = progress.completion
    assert done.keys() | cancelled == handles.keys() and len(done) > 5
    for handle, completion in done.items():
        assert completion == alone[handles[handle]] and told[handle] == completion.ids
    assert engine.cache.used == 0


def test_a_cancelled_request_frees_its_rows(net: Network) -> None:
    engine = Engine(net)
    first, second = engine.add(REQUESTS[-1]), engine.add(Request(PROMPT, NEVER))
    engine.step()
    assert engine.cache.used == 5
    engine.cancel(first)
    assert engine.cache.used == 1
    assert [progress.handle for progress in engine.step()] == [second]
    waiting = engine.add(Request(PROMPT, NEVER))
    engine.cancel(waiting)
    for handle in (first, waiting, 99):
        with pytest.raises(UsageError, match="not on its way"):
            engine.cancel(handle)
    with pytest.raises(UsageError, match="on their way"):
        engine.generate([])


def test_ids_are_those_of_the_shipped_network_alone() -> None:
    """Drawn from 4,664 ids by real weights: greedy, drawn and guided, of many lengths, side by side."""
    net, _ = Network.load(SHIPPED / "gpa-mini")
    rules = Rules(40, frozenset({301}), (range(400, 4664), range(301, 302)))
    prompts = [[(31 * i * i + n) % 4600 for i in range(20 + 13 * n)] for n in range(6)]
    requests = [Request(p, rules, Sampling(0.6, 20), n) for n, p in enumerate(prompts)]
    requests += [Request(p, rules) for p in prompts[:3]]
    led = Guidance(guidance(1.0).plan, {BASE: prompts[0], WORDS: prompts[1], NULL: prompts[2]})
    requests += [
        Request(prompts[0], rules, Sampling(0.6), 1, led),
        Request(prompts[1], rules, beams=Beams(4)),
    ]
    alone = [Engine(net).generate([request])[0] for request in requests]
    assert Engine(net).generate(requests) == alone


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_ids_are_those_of_transformers(net: Network, penalty: float) -> None:
    """The other slow twin: transformers' own loop, its cache and its logits processors."""
    lm, legal = reference(), [i for run in LEGAL[:2] for i in run]
    for prompt in (PROMPT, [9, 8], [3] * 30):
        processors = LogitsProcessorList()
        if penalty != 1:
            processors.append(RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=len(prompt)))
        theirs = lm.generate(
            torch.tensor([prompt]),
            max_new_tokens=20,
            do_sample=False,
            logits_processor=processors,
            prefix_allowed_tokens_fn=lambda *_: legal,
            eos_token_id=STOP,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        assert generate(net, prompt, GUIDED, Sampling(repetition_penalty=penalty)).ids == theirs


def test_what_is_drawn_from_is_what_transformers_draws_from() -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(SIZE)
    for temperature, top_k, top_p in ((0.7, 0, 1.0), (1.3, 5, 1.0), (1.0, 0, 0.8), (0.5, 12, 0.9)):
        warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
        warpers += [TopKLogitsWarper(top_k)] if top_k else []
        warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
        expected = warpers(torch.zeros(1, 0, dtype=torch.long), logits[None])[0]
        values, ids = filtered(logits.numpy(), Sampling(temperature, top_k, top_p))
        assert set(ids.tolist()) == set(expected.isfinite().nonzero()[:, 0].tolist())
        np.testing.assert_allclose(values, expected.numpy()[ids], rtol=1e-6)


# Sampling ---------------------------------------------------------------------------------------------------


def test_draws_follow_the_probabilities(net: Network) -> None:
    one = Rules(1, frozenset(), legal=(range(10, 13),))
    expected = net.logits(PROMPT)[-1, 10:13].softmax(-1)
    done = Engine(net, rows=500).generate([Request(PROMPT, one, Sampling(1.0), seed) for seed in range(500)])
    shares = torch.tensor([sum(each.ids == [i] for each in done) / 500 for i in range(10, 13)])
    torch.testing.assert_close(shares, expected, atol=0.07, rtol=0)


def test_seeds(net: Network) -> None:
    first = [generate(net, PROMPT, OPEN, WARM, seed).ids for seed in (1, 1, 2)]
    torch.rand(5)  # the global generator plays no part
    assert first[0] == first[1] == generate(net, PROMPT, OPEN, WARM, 1).ids
    assert first[0] != first[2]
    assert generate(net, PROMPT, OPEN, WARM, np.int64(1)).ids == first[0]
    with pytest.raises(UsageError, match="seed=1.5"):
        Request(PROMPT, OPEN, WARM, 1.5)  # type: ignore[arg-type]


def test_penalty_touches_recent_generated_ids_only(net: Network) -> None:
    logits, ids = np.array([2.0, -2.0, 1.0, 3.0]), np.array([5, 6, 8, 9])
    sampling = Sampling(repetition_penalty=2.0, penalty_window=2)
    assert penalised(logits, ids, [9, 5, 6], sampling).tolist() == [1.0, -4.0, 1.0, 3.0]
    assert penalised(logits, ids, [], sampling).tolist() == logits.tolist() == [2.0, -2.0, 1.0, 3.0]
    one = Rules(1, frozenset())
    prompt = [*PROMPT[:-1], *generate(net, PROMPT, one).ids, PROMPT[-1]]  # the favourite is in the prompt
    free, hard = (generate(net, prompt, one, Sampling(repetition_penalty=p)).ids for p in (1.0, 50.0))
    assert free == hard


def test_top_k_and_top_p() -> None:
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    assert filtered(logits, Sampling(1.0, top_p=0.01))[1].tolist() == [0]
    logits[0] = -math.inf
    assert filtered(logits, Sampling(1.0))[1].tolist() == [1, 2, 3]


def test_an_explicit_greedy_is_the_argmax() -> None:
    spoken = Sampling(temperature=0.2, repetition_penalty=1.2)
    assert spoken.updated(temperature=0) == Sampling() and Sampling().plain and not spoken.plain
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


# Rules ------------------------------------------------------------------------------------------------------


def obeys(done: Completion) -> None:
    """`RULES` hold: nothing illegal, nothing after a stop, nothing but a stop after a closer."""
    assert all(any(i in run for run in LEGAL) for i in done.ids)
    assert STOP not in done.ids[:-1]
    if CLOSER in done.ids:
        after = done.ids[done.ids.index(CLOSER) + 1 :]
        assert after == ([STOP] if done.finish_reason == "stop" else [])
    assert (done.finish_reason == "stop") == (done.ids[-1] == STOP)


def test_an_untrained_model_emits_nothing_illegal(net: Network) -> None:
    hot = [Request(PROMPT, RULES, Sampling(temperature=5.0), seed) for seed in range(20)]
    for done in Engine(net).generate([*hot, Request(PROMPT, RULES, beams=Beams(4))]):
        obeys(done)


def test_budget_and_minimum(net: Network) -> None:
    late = Rules(6, frozenset({STOP}), (range(10, 12), range(STOP, STOP + 1)), min_new=4)
    for seed in range(5):
        done = generate(net, PROMPT, late, WARM, seed)
        assert 4 < len(done.ids) <= 6 or done.finish_reason == "length"
        assert STOP not in done.ids[:4]
    done = generate(net, PROMPT, late, beams=Beams(4))
    assert len(done.ids) > 4 or STOP not in done.ids
    done = generate(net, PROMPT, Rules(3, frozenset()), WARM)
    assert (len(done.ids), done.finish_reason, done.kept) == (3, "length", 3)


@pytest.mark.parametrize("guided", [None, 2.0])
@pytest.mark.parametrize("closed", [False, True])
def test_ids_that_come_in_rounds(net: Network, closed: bool, guided: float | None) -> None:
    """Each step has ids of its own, and a stop comes between rounds alone, not before the least."""
    rounds = ((range(10, 13),), (range(13, 16),), (range(16, 18),))
    legal = (range(10, 18), range(STOP, STOP + 1))
    rules = Rules(12 + closed, frozenset({STOP}), legal, min_new=4, closed=closed, cycle=rounds)
    more: dict[str, Any] = {} if guided is None else {"guidance": guidance(guided)}
    hot, lengths = Sampling(temperature=20.0), set()
    for seed in range(30):
        ids = generate(net, PROMPT, rules, hot, seed, **more).ids
        body = ids[:-1] if ids[-1] == STOP else ids
        assert all(i in rounds[step % 3][0] for step, i in enumerate(body))
        assert len(body) % 3 == 0 and len(body) >= 6 and (ids[-1] == STOP or not closed)
        lengths.add(len(body))
    assert len(lengths) > 1
    if guided is None:
        found = generate(net, PROMPT, rules, beams=Beams(4)).ids
        assert all(i in rounds[step % 3][0] for step, i in enumerate(found) if i != STOP)


def test_a_closed_completion_ends_with_its_stop(net: Network) -> None:
    legal = (range(10, 12), range(STOP, STOP + 1))
    for most in (1, 2, 7):
        closed = Rules(most, frozenset({STOP}), legal, min_new=most // 2, closed=True)
        for seed in range(5):
            done = generate(net, PROMPT, closed, WARM, seed)
            assert most // 2 < len(done.ids) <= most
            assert (done.ids[-1], done.finish_reason) == (STOP, "stop") and STOP not in done.ids[:-1]


def test_context_is_never_exceeded(net: Network) -> None:
    done = generate(net, [1] * 60, Rules(100, frozenset()))
    assert (len(done.ids), done.finish_reason) == (4, "length")


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request([1] * 64, RULES), "64 ids, the model's context 64"),
        (Request([1] * 64, RULES, beams=Beams(2)), "shorten the input"),
        (Request([], RULES), "empty"),
        (Request([SIZE], RULES), "outside 0 .. 59"),
        (Request([-1], RULES), "outside 0 .. 59"),
        (Request(PROMPT, Rules(3, frozenset(), (range(50, SIZE + 1),))), "beyond"),
        (Request(PROMPT, Rules(0, frozenset({STOP}))), "no id may come"),
        (Request(PROMPT, Rules(3, frozenset(), (range(5, 5),))), "no id may come"),
        (Request(PROMPT, Rules(3, frozenset({STOP}), (range(STOP, STOP + 1),), min_new=1)), "no id may come"),
        (Request(PROMPT, Rules(3, frozenset(), closed=True)), "no id may come"),
        (Request(PROMPT, Rules(0, frozenset({STOP})), beams=Beams(2)), "no id may come"),
        (
            Request(PROMPT, GUIDED, guidance=Guidance(guidance(1.0).plan, {**PROMPTS, WORDS: [3] * 60})),
            "room for 4 ids, 20 may be needed",
        ),
    ],
)
def test_an_impossible_request_is_refused_when_it_is_added(
    net: Network, request_: Request, said: str
) -> None:
    engine = Engine(net)
    with pytest.raises(PromptError, match=said):
        engine.add(request_)
    with pytest.raises(PromptError, match=said):
        engine.generate([Request(PROMPT, RULES), request_])
    assert not engine.busy  # the possible one is not left behind


@pytest.mark.parametrize("bad", [math.nan, RuntimeError("the prior is out of its mind")])
def test_a_request_that_fails_is_forgotten_and_no_other_notices(bad: Any) -> None:
    """A prior that raises in the third step, and logits of one head that are no numbers."""
    net = network()
    requests = [Request(PROMPT, replace(NEVER, max_new=n), WARM, seed=n) for n in (3, 4, 20)]
    expected = Engine(net).generate(requests)
    engine, steps = Engine(net, rows=8), itertools.count()

    def failing(state: str, token_id: int) -> tuple[float, str]:
        if len(state) == 2:
            raise bad
        return 0.0, state + "."

    if isinstance(bad, float):
        failed = Request(PROMPT, SHORT)
    else:
        failed = Request(PROMPT, NEVER, beams=Beams(2, failing))
    handles = [engine.add(each) for each in (requests[0], failed, *requests[1:])]
    if isinstance(bad, float):
        head = net.packed.head(Choices.build(SHORT, SIZE).ids)
        head.weight, head.kernel = torch.full((4, 16), math.nan), Kernel(False, 1)
    found, ids, errors = {}, dict[int, list[int]](), []
    while engine.busy and next(steps) < 50:
        for each in engine.step():
            ids.setdefault(each.handle, []).extend(each.ids)
            if each.completion:
                found[each.handle] = each.completion
            if each.error:
                assert str(each.error).startswith(f"request {each.handle} failed: the ")
                errors.append(each.handle)
    assert engine.cache.used == 0 and errors == [handles[1]]
    assert [found[handle] for handle in (handles[0], *handles[2:])] == expected
    assert all(ids[handle] == done.ids for handle, done in found.items())


def test_there_is_at_least_one_beam() -> None:
    with pytest.raises(UsageError, match="0 beams"):
        Request(PROMPT, RULES, beams=Beams(0))


@pytest.mark.parametrize("more", [{"sampling": WARM}, {"guidance": guidance(1.0)}])
def test_beams_draw_nothing(more: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="beams are searched"):
        replace(Request(PROMPT, GUIDED, beams=Beams(2)), **more)


def test_a_loop_ends_the_completion(net: Network) -> None:
    one = Rules(50, frozenset({STOP}), legal=(range(10, 11),), loop=12)
    assert generate(net, PROMPT, one) == Completion([10] * 12, "loop", 1)
    two = Rules(24, frozenset({STOP}), legal=(range(10, 12),), loop=8)
    done = generate(net, PROMPT, two, beams=Beams(3))
    assert done.finish_reason == "loop" and done.kept < len(done.ids) == 24


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


# Search -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", [RULES, OPEN, SHORT])
def test_one_beam_is_greedy(net: Network, rules: Rules) -> None:
    assert generate(net, PROMPT, rules, beams=Beams(1)).ids == generate(net, PROMPT, rules).ids


def test_wide_beams_find_the_best(net: Network) -> None:
    """Of all completions of at most three ids that stop, the likeliest, found by trying every one."""
    legal = [10, 11, 12, STOP]

    def score(ids: Sequence[int]) -> float:
        rows = net.logits([*PROMPT, *ids])[len(PROMPT) - 1 : -1][:, legal].log_softmax(-1)
        return sum(float(row[legal.index(i)]) for row, i in zip(rows, ids, strict=True))

    every = [(*head, STOP) for n in range(3) for head in itertools.product((10, 11, 12), repeat=n)]
    found = generate(net, PROMPT, SHORT, beams=Beams(40))
    assert found.ids == list(max(every, key=score)) and found.finish_reason == "stop"


def test_a_search_tells_early_what_it_will_not_take_back(net: Network) -> None:
    engine, told, early = Engine(net), {}, 0
    for width in (1, 2, 5):
        engine.add(Request(PROMPT, OPEN, beams=Beams(width)))
    for progress in engine.run():
        known = told.setdefault(progress.handle, [])
        known += progress.ids
        early += bool(progress.ids and not progress.completion)
        if progress.completion:
            assert known == progress.completion.ids
    assert early > 10


def test_a_prior_decides(net: Network) -> None:
    """A strong one makes its ids win, by a state that goes with each hypothesis."""
    fixed = Rules(4, frozenset({STOP}), SHORT.legal, min_new=3)

    def strong(state: str, token_id: int) -> tuple[float, str]:
        return (50.0 if [11, 10, 12][len(state)] == token_id else 0.0) if len(state) < 3 else 0.0, state + "."

    assert generate(net, PROMPT, fixed, beams=Beams(8, strong)).ids == [11, 10, 12, STOP]
    nothing = Beams(8, lambda state, token_id: (0.0, state))
    assert generate(net, PROMPT, fixed, beams=nothing) == generate(net, PROMPT, fixed, beams=Beams(8))


# Guidance ---------------------------------------------------------------------------------------------------


def composed(net: Network, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """The base's logits after the prompt and the composed ones, legal ids alone, the stop last."""
    composition, choices = Composition(guidance(gamma), GUIDED, net), Choices.build(GUIDED, SIZE)
    assert choices.ids.tolist() == [*LEGAL[0], STOP]
    rows = torch.stack([net.logits(prompt)[-1] for prompt in composition.prompts]).numpy()[:, choices.ids]
    return rows[composition.branches.index(BASE)], composition(rows, choices.legal[0], choices.stop)


def test_composed_logits_are_those_of_the_plan(net: Network) -> None:
    legal = [*LEGAL[0], STOP]
    alone = {branch: net.logits(prompt)[-1][legal].numpy() for branch, prompt in PROMPTS.items()}
    expected = compose_logits(guidance(1.3).plan, alone, eos=len(legal) - 1, plausibility=PLAUSIBLE)
    assert np.array_equal(composed(net, 1.3)[1], expected)


def test_strength_0_is_the_base_bit_for_bit_and_asks_for_nothing_else(net: Network) -> None:
    assert Composition(guidance(0.0), GUIDED, net).branches == (BASE,)
    assert np.array_equal(*composed(net, 0.0))
    for seed in range(5):
        plain = generate(net, PROMPT, GUIDED, WARM, seed)
        assert generate(net, PROMPT, GUIDED, WARM, seed, guidance(0.0)) == plain


def test_words_change_what_comes_and_not_when_it_may_stop(net: Network) -> None:
    base, made = (np.exp(logits) / np.exp(logits).sum() for logits in composed(net, 2.0))
    np.testing.assert_allclose(made[-1], base[-1], rtol=1e-5)
    assert np.abs(made - base).max() > 0.01


def test_a_step_that_cannot_be_computed_fails_its_requests_and_no_later_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Memory that ends, say: in a prompt that is read, then in a step of those who generate."""
    net, rules = network(), Rules(6, frozenset())
    good = Request([1, 2], rules)
    expected = Engine(net).generate([good])
    for broken in (Cache.prompted, Cache.extended):
        engine = Engine(net)
        handles = [engine.add(replace(good, seed=n)) for n in range(2)]
        with monkeypatch.context() as patch:
            patch.setattr(Cache, broken.__name__, lambda *_: torch.empty(-1))
            found = engine.step() + engine.step()
        failed = [each.handle for each in found if each.error]
        assert sorted(failed) == handles and not engine.busy and engine.cache.used == 0
        assert "negative dimension" in str(next(each.error for each in found if each.error))
        assert engine.generate([good]) == expected
