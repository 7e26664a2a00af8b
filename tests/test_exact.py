"""What a request gets depends on nothing but the request: bit for bit, on a CPU, in float32."""

import random
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from gpa.engine import linear
from gpa.engine.cache import Cache
from gpa.engine.decode_attention import BUCKET, Grouping, attend, exact_grouping, padded
from gpa.engine.linear import KERNELS, ROW_BY_ROW, Kernel, Linear, Then, exact_kernel
from gpa.engine.network import Network
from gpa.engine.onnx_network import OnnxNetwork, is_exact
from gpa.engine.packed import Forward, PackedNetwork
from gpa.engine.request import Beams, Guidance, Request, Rules, Sampling
from gpa.engine.sampler import highest, noise
from gpa.engine.scheduler import Engine
from gpa.models.gpa.checkpoint_gpa import SHIPPED
from networks import SIZE, network
from test_engine import BASE, NULL, WORDS, guidance

THENS: tuple[Then, ...] = ("none", "swish", "mul", "add")
PLAIN = Kernel(False, 1)  # torch's own product, whose bits depend on the number of rows


@pytest.fixture(scope="module")
def shipped() -> Network:
    return Network.load(SHIPPED / "gpa-mini")[0]


@pytest.fixture(scope="module", params=[PackedNetwork, OnnxNetwork])
def forward(shipped: Network, request: pytest.FixtureRequest) -> Forward:
    """What decodes: torch's layers, and onnxruntime's graph."""
    return request.param(shipped)


# Layers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [*KERNELS, ROW_BY_ROW, None])
@pytest.mark.parametrize("then", THENS)
def test_every_kernel_computes_the_same(kernel: Kernel | None, then: Then) -> None:
    torch.manual_seed(0)
    weight, bias, x, other = (torch.randn(*shape) for shape in ((24, 18), (24,), (70, 18), (70, 24)))
    found = Linear(weight, bias, then, kernel)(x, other if then in ("mul", "add") else None)
    y = (x.double() @ weight.double().T + bias).float()
    expected = {"none": y, "swish": y * y.sigmoid(), "mul": y * other, "add": y + other}[then]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("then", THENS)
@pytest.mark.parametrize(("n", "k"), [(512, 256), (256, 768), (4097, 256), (24, 16), (33, 18), (64, 3072)])
def test_rows_do_not_depend_on_each_other(n: int, k: int, then: Then) -> None:
    """Any number of rows, at any place among others, other numbers than those that the probe tried."""
    torch.manual_seed(1)
    weight, bias, x, other = (torch.randn(*shape) for shape in ((n, k), (n,), (90, k), (90, n)))
    layer = Linear(weight, bias, then)
    also = other if then in ("mul", "add") else None
    alone = torch.cat([layer(x[i : i + 1], None if also is None else also[i : i + 1]) for i in range(90)])
    for begin, end in ((0, 90), (3, 9), (40, 46), (10, 21), (50, 79), (89, 90), (1, 34)):
        found = layer(x[begin:end], None if also is None else also[begin:end])
        assert torch.equal(found, alone[begin:end])


def test_the_probe_refuses_a_kernel_whose_rows_depend_on_their_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 256)
    assert not linear._is_exact(torch.randn(512, 256), "none", PLAIN, x, None)
    monkeypatch.setattr(linear, "KERNELS", (PLAIN,))
    exact_kernel.cache_clear()
    try:
        assert exact_kernel(512, 256, "none", torch.float32, 1) == ROW_BY_ROW
        assert str(ROW_BY_ROW) == "torch, row by row"
    finally:
        exact_kernel.cache_clear()


@pytest.mark.parametrize(("heads", "group", "width"), [(2, 2, 64), (1, 2, 8), (2, 3, 16), (8, 2, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_of_a_row_is_its_own(heads: int, group: int, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    chosen = exact_grouping(heads, group, width, dtype, torch.get_num_threads())
    lengths = [1, 64, 65, 100, 128, 129, 190, 400, 401, 402]
    q = torch.randn(10, heads * group, width).to(dtype) * width**-0.5
    k, v = (torch.randn(10, heads, 512, width).to(dtype) for _ in range(2))

    def run(rows: list[int]) -> list[torch.Tensor]:
        found = []
        for begin, end, size in chosen.runs(rows, [lengths[row] for row in rows]):
            span = slice(rows[begin], rows[end - 1] + 1)
            mask = torch.arange(size) >= torch.tensor(lengths[span])[:, None, None, None]
            found += attend(q[span], k[span, :, :size], v[span, :, :size], mask, chosen.queries)
        return found

    alone = [run([row])[0] for row in range(10)]
    for row, one in enumerate(alone):
        keys, values = (x[row, :, : lengths[row]].double().repeat_interleave(group, 0) for x in (k, v))
        weights = (q[row].double()[:, None] @ keys.mT).softmax(-1)
        accuracy = 1e-5 if dtype == torch.float32 else 0.03
        torch.testing.assert_close(one.double(), (weights @ values).flatten(), atol=accuracy, rtol=accuracy)
    for rows in (list(range(10)), [2, 3, 4], [7, 8, 9], [0, 2, 4, 6], [5, 6, 9]):
        assert all(torch.equal(a, alone[row]) for a, row in zip(run(rows), rows, strict=True))


def test_rows_are_read_together_where_that_is_exact() -> None:
    rows, lengths = [0, 1, 2, 4, 5, 6], [64, 60, 65, 130, 100, 500]
    assert list(Grouping(2).runs(rows, lengths)) == [
        (0, 2, 64),
        (2, 3, 128),
        (3, 4, 192),
        (4, 5, 128),
        (5, 6, 512),
    ]
    assert list(Grouping(2, longer=True).runs(rows, lengths)) == [(0, 3, 128), (3, 5, 192), (5, 6, 512)]
    assert [end - begin for begin, end, _ in Grouping(2, together=False).runs(rows, lengths)] == [1] * 6
    assert [padded(n) for n in (1, BUCKET, BUCKET + 1)] == [BUCKET, BUCKET, 2 * BUCKET]


# Noise ------------------------------------------------------------------------------------------------------


def test_noise_is_even_and_its_own_for_every_seed_and_step() -> None:
    seen = np.array([[noise(seed, step) for step in range(100)] for seed in range(-50, 50)])
    assert len(np.unique(seen)) == seen.size and 0 <= seen.min() and seen.max() < 1
    counts = np.histogram(seen, 20, (0, 1))[0]
    assert abs(counts - 500).max() < 100
    for one, other in ((seen[:-1], seen[1:]), (seen[:, :-1], seen[:, 1:])):  # neighbours
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.05
    assert noise(7, 3) == noise(7 + (1 << 64), 3) == 0.9579187413704255


def test_the_highest_are_those_of_a_stable_sort() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 3, 10, 50, 99):
        values = rng.integers(0, 8, 50).astype(np.float32)
        values[rng.integers(0, 50, 5)] = -np.inf
        expected = [i for i in (-values).argsort(kind="stable") if values[i] > -np.inf][:count]
        assert highest(values, count).tolist() == expected
    few = np.array([-np.inf, 1, -np.inf], np.float32)
    assert highest(few, 2).tolist() == [1]


# Engine -----------------------------------------------------------------------------------------------------


def mixed(count: int) -> list[Request]:
    """Requests of every kind on real weights, of lengths that cross buckets and blocks."""
    speech = Rules(40, frozenset({301}), (range(568, 4664), range(301, 302)))
    words = Rules(30, frozenset({301}), (range(300), range(301, 302)))
    prompts = [[(31 * i * i + 7 * n) % 4600 for i in range(5 + 29 * n % 230)] for n in range(count)]
    led = [{BASE: p, WORDS: prompts[0], NULL: p[:3]} for p in prompts]
    kinds = [
        lambda n: Request(prompts[n], speech, Sampling(0.6, 20), n),
        lambda n: Request(prompts[n], words),
        lambda n: Request(prompts[n], words, beams=Beams(4)),
        lambda n: Request(
            prompts[n], speech, Sampling(0.8, 0, 0.9, 1.2), n, Guidance(guidance(1.0).plan, led[n])
        ),
    ]
    return [kinds[n % 4](n) for n in range(count)]


def test_the_same_alone_and_among_32_and_under_churn(shipped: Network, forward: Forward) -> None:
    requests, rng, make = mixed(16), random.Random(5), partial(Engine, shipped, forward=forward)
    alone = [make().generate([request])[0] for request in requests]
    assert make().generate(requests) == alone
    assert make(rows=64).generate(requests[::-1]) == alone[::-1]
    engine, who, done, gone = make(rows=20, read=1), {}, {}, set()
    order = rng.sample(range(16), 16) + rng.sample(range(16), 16)
    while order or engine.busy:
        if order and rng.random() < 0.3:
            handle = engine.add(requests[order[-1]], priority=rng.randrange(3))
            who[handle] = order.pop()
        live = [handle for handle in who if handle not in done and handle not in gone]
        if live and rng.random() < 0.03:
            gone.add(rng.choice(live))
            engine.cancel(max(gone & set(live)))
        for progress in engine.step() if engine.busy else []:
            if progress.completion:
                done[progress.handle] = progress.completion
    assert len(done) > 20 and len(gone) > 3 and engine.cache.used == 0
    assert all(done[handle] == alone[who[handle]] for handle in done)


@pytest.mark.parametrize("read", [1, 3, 100])
def test_prompts_are_read_alike_however_many_blocks_a_step(
    shipped: Network, forward: Forward, read: int
) -> None:
    requests, make = mixed(8), partial(Engine, shipped, forward=forward)
    assert make(read=read).generate(requests) == make().generate(requests)


def test_a_prompt_that_somebody_has_read_is_not_read_again(
    shipped: Network, forward: Forward, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Takes of one text, beams and the wordless prompt of other texts: the same ids, fewer blocks read."""
    speech = Rules(20, frozenset({301}), (range(568, 4664), range(301, 302)))
    prompts = [[*range(600 + n, 690 + n)] for n in range(3)]
    led = [Guidance(guidance(1.0).plan, {BASE: p, WORDS: p, NULL: prompts[0]}) for p in prompts]
    requests = [
        *(Request(prompts[0], speech, Sampling(0.8), seed) for seed in range(3)),
        Request(prompts[0], speech, beams=Beams(3)),
        *(Request(p, speech, Sampling(0.8), 7, each) for p, each in zip(prompts, led, strict=True)),
    ]
    alone = [Engine(shipped, forward=forward).generate([request])[0] for request in requests]
    read, prompted = [], Cache.prompted
    monkeypatch.setattr(
        Cache, "prompted", lambda self, row, count: read.append(count) or prompted(self, row, count)
    )
    assert Engine(shipped, forward=forward).generate(requests) == alone
    assert sum(read) == sum(map(len, prompts))


def test_both_that_decode_make_the_same_ids(shipped: Network) -> None:
    """Greedy, drawn, searched and guided: what one rounds otherwise decides nothing here."""
    requests = mixed(16)
    made = [
        Engine(shipped, forward=form(shipped)).generate(requests) for form in (PackedNetwork, OnnxNetwork)
    ]
    assert made[0] == made[1]


def test_a_graph_whose_rows_depend_on_each_other_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: rows that read with others get a last bit more."""
    assert type(network(head_dim=16).packed) is OnnxNetwork
    run = OnnxNetwork._run

    def together(self: OnnxNetwork, ids: np.ndarray, *where: Any) -> np.ndarray:
        return np.nextafter(run(self, ids, *where), np.float32(2 * (len(ids) > 2)))

    monkeypatch.setattr(OnnxNetwork, "_run", together)
    is_exact.cache_clear()
    try:
        assert type(network(head_dim=16).packed) is PackedNetwork
    finally:
        is_exact.cache_clear()


def test_a_batch_that_is_not_exact_is_seen(shipped: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: with torch's own products these very requests do depend on each other."""

    def states(count: int) -> torch.Tensor:
        packed = PackedNetwork(Network.load(SHIPPED / "gpa-mini")[0])
        cache = prompted(packed, count)
        with torch.inference_mode():
            return packed(torch.arange(600, 600 + count), cache.extended(list(range(count))))

    assert torch.equal(states(7)[0], states(1)[0])
    monkeypatch.setattr(linear, "exact_kernel", lambda *_: PLAIN)
    assert not torch.equal(states(7)[0], states(1)[0])


def prompted(packed: PackedNetwork, count: int) -> Cache:
    """Rows that hold prompts of different lengths."""
    cache = Cache(packed)
    with torch.inference_mode():
        for row in cache.take(count):
            packed(torch.arange(570, 580 + row), cache.prompted(row, 10 + row))
    return cache


# Scheduling -------------------------------------------------------------------------------------------------


def test_higher_priorities_begin_first() -> None:
    engine, rules = Engine(network(), rows=1), Rules(3, frozenset())
    low, high, later = (engine.add(Request([1], rules), priority) for priority in (0, 5, 0))
    order = [progress.handle for progress in engine.run() if progress.completion]
    assert order == [high, low, later]


def test_memory_is_bounded_and_who_does_not_fit_waits() -> None:
    net, rules = network(), Rules(40, frozenset())
    requests = [Request([n % SIZE] * 20, rules, Sampling(1.0), n) for n in range(12)]
    alone = [Engine(net).generate([request])[0] for request in requests]
    engine = Engine(net, memory=3 * 60 * 2 * 2 * 8 * 4)  # three rows of 60 positions: 2 layers, 1 head of 8
    handles, most = [engine.add(request) for request in requests], 0
    done = {}
    while engine.busy:
        done.update({each.handle: each.completion for each in engine.step() if each.completion})
        most = max(most, engine.cache.used)
    assert most == 3 and [done[handle] for handle in handles] == alone
    tiny = Engine(net, memory=1)
    assert tiny.generate(requests[:2]) == alone[:2]  # one at a time, yet both


def test_a_long_prompt_does_not_keep_others_waiting() -> None:
    """One block of it a step, and an id of everybody else in between."""
    net = network(max_position_embeddings=2000)
    engine = Engine(net, read=1)
    short = engine.add(Request([1], Rules(30, frozenset())))
    engine.step()
    long = engine.add(Request([n % SIZE for n in range(1000)], Rules(2, frozenset())))
    told = []
    while engine.busy:
        told.append({progress.handle: len(progress.ids) for progress in engine.step()})
    assert all(step.get(short) == 1 and long not in step for step in told[:15])  # 16 blocks of 64
    assert long in told[15]


def test_a_thousand_requests_leave_nothing_behind() -> None:
    net, rng = network(), random.Random(0)
    engine, live, done = Engine(net, rows=16), set(), 0
    kinds: list[dict[str, Any]] = [
        {},
        {"beams": Beams(3)},
        {"sampling": Sampling(1.0)},
        {"guidance": guidance(1.0)},
    ]
    stop = Rules(8, frozenset({55}), (range(10, 20), range(55, 56)))
    for n in range(1000):
        live.add(engine.add(Request([1, 2, 3], stop, seed=n, **kinds[n % 4]), n % 3))
        if rng.random() < 0.2:
            handle = rng.choice(sorted(live))
            engine.cancel(handle)
            live.discard(handle)
        finished = {each.handle for each in engine.step() if each.completion}
        done, live = done + len(finished), live - finished
    done += sum(each.completion is not None for each in engine.run())
    assert engine.cache.used == 0 and len(engine.cache.lengths) <= 16 and not engine.waiting
    assert 600 < done < 1000 and engine.cache.keys[0].shape[0] <= 16
