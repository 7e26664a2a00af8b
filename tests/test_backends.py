"""Engines that others wrote: their ids are ours where the margin allows, and what they cannot do is said."""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exchanges import asked, served, weights
from gpa.compose import Branch, Guided, Plan, Term, given
from gpa.engine.backends import find_engine
from gpa.engine.backends.dialects import VLLM, Asked, SGLang
from gpa.engine.backends.export_gguf import character, export_gguf
from gpa.engine.backends.remote import Ending, Remote, Server
from gpa.engine.base import Completer
from gpa.engine.network import Network
from gpa.engine.request import Beams, Completion, Guidance, Request, Rules, Sampling
from gpa.engine.scheduler import Engine
from gpa.errors import CheckpointError, GenerationError, GPAError, PromptError, UsageError
from gpa.models.gpa import GPA
from networks import network

STOP, CLOSER = 55, 56
LEGAL = (range(10, 20), range(STOP, CLOSER + 1))
RULES = Rules(max_new=20, stop=frozenset({STOP}), legal=LEGAL, closers=frozenset({CLOSER}))
FREE = Rules(max_new=20, stop=frozenset({STOP}))
ROUNDS = replace(RULES, closers=frozenset(), cycle=((range(10, 15), range(STOP, STOP + 1)), (range(15, 20),)))
WARM = Sampling(1.5, 8, 0.95)
PLAIN = [
    *(Request([1, 2, 3, 40 + n], RULES) for n in range(6)),
    *(Request([5, n], FREE) for n in range(3)),
    Request([7] * 40, replace(RULES, min_new=12)),
    Request([7, 8], replace(RULES, max_new=4, closed=True)),
    Request([9, 8, 7], replace(FREE, loop=6, stop=frozenset({59}))),
    Request([4, 4], replace(FREE, stop=frozenset({STOP, 20, 30}))),
]
WORDS, NULL = Branch("tts", given(text="w")), Branch("tts")
PLAN = Plan(Guided("tts", WORDS.given), (Term("tts", WORDS.given, gamma=1.5),))
LED = Guidance(PLAN, {WORDS: [1, 2, 3, 4, 5], NULL: [6, 7]})
OURS = [  # which take our own sampler, whoever computes the logits
    *(Request([1, 2, n], RULES, WARM, n) for n in range(3)),
    Request([1, 2, 3, 4, 5], replace(RULES, closers=frozenset()), Sampling(0.9), 3, LED),
    Request([3, 2, 1], RULES, beams=Beams(4)),
    Request([3, 2, 1, 0], ROUNDS, Sampling(0.9, 0, 1.0, 1.3)),
]
MARGIN = 0.02  # nats between two ids that float16 may exchange


@pytest.fixture(scope="module")
def net() -> Network:
    """Random weights in the shape that other engines' kernels expect: heads of 32."""
    sizes = {"hidden_size": 64, "head_dim": 32, "intermediate_size": 96, "initializer_range": 0.2}
    return network(**sizes, eos_token_id=STOP, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def llama(net: Network, tmp_path_factory: pytest.TempPathFactory) -> Completer:
    """The real llama.cpp on an f16 export."""
    pytest.importorskip("xllamacpp", reason="needs the extra llamacpp")
    pytest.importorskip("gguf", reason="needs the extra llamacpp")
    path = tmp_path_factory.mktemp("gguf") / "net.gguf"
    export_gguf(net, path, "f16")
    return find_engine(f"llamacpp:{path}", net)()


def differences(net: Network, requests: Sequence[Request], made: Sequence[Completion]) -> list[float]:
    """By how much our own engine prefers its id where a completion first takes another."""
    found = []
    for request, theirs in zip(requests, made, strict=True):
        ours = Engine(net).generate([request])[0]
        if theirs == ours:
            continue
        n = next(i for i, pair in enumerate(zip(ours.ids, theirs.ids, strict=False)) if pair[0] != pair[1])
        logits = net.logits([*request.prompt, *ours.ids[:n]])[-1]  # below 0 by an id that is not legal
        found.append(abs(float(logits[ours.ids[n]] - logits[theirs.ids[n]])))
    return found


# llama.cpp --------------------------------------------------------------------------------------------------


def test_greedy_ids_of_llama_cpp_are_ours_where_the_margin_allows(net: Network, llama: Completer) -> None:
    """Every rule at once, more requests than slots; an id that float16 exchanged is one of near-equals."""
    made = llama.generate(PLAIN)
    found = differences(net, PLAIN, made)
    assert all(margin < MARGIN for margin in found) and len(found) < 4, found
    assert {each.finish_reason for each in made} == {"stop", "length", "loop"}


def test_ids_in_rounds_are_a_grammar(net: Network, llama: Completer) -> None:
    requests = [Request([n, 3], replace(ROUNDS, min_new=4)) for n in range(4)]
    found = differences(net, requests, llama.generate(requests))
    assert all(margin < MARGIN for margin in found), found


def test_a_stop_that_the_file_does_not_know_comes_when_it_may(net: Network, llama: Completer) -> None:
    """The likeliest first id is made a stop: not before 6 ids, then with and without the file's own."""
    likeliest = int(net.logits([5, 6])[-1].argmax())
    for stop in ({likeliest}, {likeliest, STOP}):
        request = Request([5, 6], Rules(20, frozenset(stop), min_new=6))
        assert all(margin < MARGIN for margin in differences(net, [request], llama.generate([request])))


def test_the_files_own_end_is_no_end_where_the_request_has_another(llama: Completer) -> None:
    """llama.cpp lets it come wherever a grammar may end, unless it is told."""
    requests = [
        Request([n, 3], Rules(20, frozenset(), (range(10, 12), range(STOP, STOP + 1)))) for n in range(6)
    ]
    assert [len(each.ids) for each in llama.generate(requests)] == [20] * 6


def test_llama_cpp_draws_by_the_seed_what_is_legal(llama: Completer) -> None:
    requests = [Request([1, 2, 3], replace(RULES, min_new=5), WARM, seed) for seed in (0, 1, 2, 2**32 - 1)]
    made = llama.generate(requests)
    assert llama.generate(requests[::-1])[::-1] == made
    assert len({tuple(each.ids) for each in made}) > 1
    for each in made:
        assert all(any(i in run for run in LEGAL) for i in each.ids)
        assert STOP not in each.ids[:5]


def test_a_cancelled_request_leaves_the_others_alone(llama: Completer) -> None:
    """Cancelled at once, while it waits for a slot, and after its first ids."""
    endless = Request([2, 3], Rules(60, frozenset()))
    (alone,) = llama.generate([PLAIN[0]])
    handles = [llama.add(endless) for _ in range(9)]
    kept = llama.add(PLAIN[0])
    for handle in (handles[0], handles[8]):
        llama.cancel(handle)
    seen = {}
    while llama.busy:
        for each in llama.step():
            if each.handle in handles[1:8]:
                llama.cancel(each.handle)
                handles.remove(each.handle)
            if each.completion:
                seen[each.handle] = each.completion
    assert seen == {kept: alone}
    with pytest.raises(UsageError, match="not on its way"):
        llama.cancel(kept)


def test_cancelling_frees_the_slot_of_the_server(tmp_path: Path) -> None:
    """Five requests that would take minutes, one of which waits; nothing is computed once they are gone."""
    pytest.importorskip("xllamacpp", reason="needs the extra llamacpp")
    pytest.importorskip("gguf", reason="needs the extra llamacpp")
    net = network(hidden_size=64, head_dim=32, intermediate_size=96, max_position_embeddings=65536)
    export_gguf(net, tmp_path / "net.gguf", "f16")
    engine = find_engine(f"llamacpp:{tmp_path / 'net.gguf'}", net)()
    assert isinstance(engine, Remote)

    def slots() -> list[bool]:
        with urllib.request.urlopen(f"{engine.server.url}/slots") as answer:
            return [slot["is_processing"] for slot in json.load(answer)]

    handles = [engine.add(Request([2, 3], Rules(60000, frozenset()), seed=seed)) for seed in range(5)]
    told: set[int] = set()
    while len(told) < 4:
        told |= {each.handle for each in engine.step()}
    assert slots() == [True] * 4 and told == set(handles[:4])
    for handle in handles:
        engine.cancel(handle)
    end = time.monotonic() + 20
    while any(slots()) and time.monotonic() < end:
        time.sleep(0.05)
    assert slots() == [False] * 4 and not engine.busy


REFUSED = [
    (Request([1], RULES, guidance=LED), UsageError, "gamma=0"),
    (Request([1], RULES, beams=Beams(2)), UsageError, "beams=1"),
    (Request([1], RULES, Sampling(repetition_penalty=1.2)), UsageError, "repetition_penalty=1"),
    (Request([1], replace(RULES, stop=frozenset({1, 2}))), UsageError, "several stop ids"),
    (Request([1] * 64, RULES), PromptError, "context 64"),
    (Request([1], replace(RULES, legal=(range(50, 70),))), PromptError, "beyond the model's 60"),
]


@pytest.mark.parametrize("request_, error, word", REFUSED)
def test_what_llama_cpp_cannot_is_refused_when_it_is_added(
    llama: Completer, request_: Request, error: type[GPAError], word: str
) -> None:
    running = llama.add(PLAIN[0])
    with pytest.raises(error, match=word):
        llama.add(request_)
    assert {each.handle for each in llama.run()} == {running}
    with pytest.raises(error, match=word):
        llama.generate([PLAIN[0], request_])
    assert not llama.busy


@pytest.mark.parametrize("precision, bound", [("f32", 0.0), ("f16", 1e-3), ("q8_0", 0.01), ("q4_k", 0.1)])
def test_a_gguf_file_holds_the_weights(tmp_path: Path, precision: str, bound: float) -> None:
    """Read back by llama.cpp's own package; rows that are too short for a block take a finer one."""
    gguf = pytest.importorskip("gguf", reason="needs the extra llamacpp")
    if precision == "q4_k":
        pytest.importorskip("xllamacpp", reason="needs the extra llamacpp")
    net = network(hidden_size=256, intermediate_size=96, eos_token_id=STOP)
    export_gguf(net, tmp_path / "net.gguf", precision)
    reader = gguf.GGUFReader(tmp_path / "net.gguf")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 2)
    tensors = {each.name: each for each in reader.tensors}
    kinds = set()
    for name, weight in net.state_dict().items():
        found = tensors.pop(names.get_name(name, (".weight",)))
        values = gguf.dequantize(found.data, found.tensor_type).reshape(weight.shape)
        assert np.abs(values - weight.numpy()).max() <= bound * float(weight.abs().max()), name
        kinds.add(found.tensor_type.name.lower())
    assert precision in kinds and not tensors
    assert ("q8_0" in kinds) == precision.startswith("q") and ("f16" in kinds) == (precision != "f32")
    assert reader.get_field("tokenizer.ggml.eos_token_id").contents() == STOP
    assert reader.get_field("tokenizer.ggml.tokens").contents()[STOP] == character(STOP)


def test_what_a_gguf_file_cannot_hold_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs the extra llamacpp")
    net = network()
    with torch.no_grad():
        net.model.embed_tokens.weight[0, 0] = 1e6
    with pytest.raises(CheckpointError, match="embed_tokens.*float16"):
        export_gguf(net, tmp_path / "net.gguf", "f16")
    with pytest.raises(UsageError, match="q8_0"):
        export_gguf(net, tmp_path / "net.gguf", "q5")
    with pytest.raises(CheckpointError, match="biases"):
        export_gguf(network(attention_bias=True), tmp_path / "net.gguf")


# vLLM and SGLang --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mini() -> GPA:
    return GPA.from_pretrained("gpa-mini", device="cpu")


@pytest.fixture
def exchange(repo: Path) -> dict[str, Any]:
    """What vLLM 0.32 answered on a CPU, in float32: see exchanges.py."""
    return json.loads((repo / "tests" / "assets" / "vllm-exchange.json").read_text(encoding="utf-8"))


def test_vllm_is_asked_what_it_was_when_it_answered(mini: GPA, exchange: dict[str, Any]) -> None:
    """A field that changes is a question that was never answered: the replay refuses it."""
    requests = asked(mini)
    with served(exchange) as (url, _):
        made = Remote(Server.found(VLLM(), url), mini.network).generate(list(requests.values()))
    assert dict(zip(requests, map(vars, made), strict=True)) == exchange["completions"]


def test_vllm_chose_what_our_network_chooses(mini: GPA, exchange: dict[str, Any]) -> None:
    """Ids that were not drawn, at margins that kernels round."""
    if exchange["weights"] != weights(mini):
        pytest.skip("vLLM answered with other weights: record anew (tests/exchanges.py), with AVX-512")
    greedy = {name: request for name, request in asked(mini).items() if request.sampling.plain}
    made = [Completion(**exchange["completions"][name]) for name in greedy]
    assert all(margin < MARGIN for margin in differences(mini.network, list(greedy.values()), made))


def test_a_server_that_draws_what_is_not_legal_is_found_out(mini: GPA, exchange: dict[str, Any]) -> None:
    """An old server ignores the fields that it does not know."""
    request = asked(mini)["cut"]
    turn = next(turn for turn in exchange["turns"] if turn[1]["max_tokens"] == 12)
    for said, heard in (('"token_ids":[5,', "drew id 5"), ('"token_ids":7,"x":[', "another form")):
        answer = turn[2]
        turn[2] = answer.replace('"token_ids":[', said, 1)
        with served(exchange) as (url, _):
            engine = Remote(Server.found(VLLM(), url), mini.network)
            with pytest.raises(GenerationError, match=heard):
                engine.generate([request])
            assert not engine.busy
        turn[2] = answer


def test_one_that_fails_stops_no_other(mini: GPA, exchange: dict[str, Any]) -> None:
    requests = asked(mini)
    with served(exchange) as (url, _):
        engine = Remote(Server.found(VLLM(), url, streams=1), mini.network)
        bad, good = engine.add(replace(requests["greedy"], seed=99)), engine.add(requests["greedy"])
        with pytest.raises(GenerationError, match="400.*not what was recorded"):
            list(engine.run())
        done = [each for each in engine.run() if each.completion]
        assert [each.handle for each in done] == [good] and bad != good
        assert vars(done[0].completion) == exchange["completions"]["greedy"]


def test_who_does_not_answer_is_named(mini: GPA) -> None:
    with pytest.raises(GenerationError, match="no vLLM answers at http://127.0.0.1:9"):
        find_engine("vllm:http://127.0.0.1:9", mini.network)
    for spec in ("vllm:", "vllm:localhost", "tensorrt:x", "llamacpp"):
        with pytest.raises(UsageError, match="vllm:http|http://127"):
            find_engine(spec, mini.network)
    with pytest.raises(CheckpointError, match="gpa export"):
        find_engine("llamacpp:nowhere.gguf", mini.network)


def test_sglang_is_asked_in_its_own_words() -> None:
    """By its documentation: not recorded, SGLang has no build for a CPU like ours."""
    body = SGLang().body(Asked(Request([1, 2], RULES, Sampling(0.5, 3), 9), 20, LEGAL, 60), "")
    sampling = body["sampling_params"]
    assert body["input_ids"] == [1, 2] and body["stream"] is True
    assert sampling["logit_bias"] == {str(i): 100.0 for run in LEGAL for i in run}
    assert (sampling["stop_token_ids"], sampling["max_new_tokens"], sampling["top_k"]) == ([STOP], 20, 3)
    every = {"output_ids": [4, 5, 6], "meta_info": {"completion_tokens": 3}}
    newest = {"output_ids": [6], "meta_info": {"completion_tokens": 3}}
    assert list(SGLang().ids(every, 2)) == list(SGLang().ids(newest, 2)) == [6]
    for last, ids in (([6, STOP], [6, STOP]), ([6], [6, STOP])):  # trimmed or not
        meta = {"completion_tokens": 9, "finish_reason": {"type": "stop", "matched": STOP}}
        assert list(SGLang().ids({"output_ids": last, "meta_info": meta}, 7)) == ids


def test_the_ends_are_those_of_our_engine(net: Network) -> None:
    """Fed with what our engine drew and then some, an ending stops where that engine stopped."""
    for request in PLAIN:
        whole = Engine(net).generate([request])[0]
        ending = Ending(request.rules, request.rules.max_new)
        closing = request.rules.closed or whole.ids[-2:-1] == [CLOSER]
        ending.take([*(whole.ids[:-1] if closing else whole.ids), 11, 12, 13])
        assert ending.done and ending.completion == whole


# The command ------------------------------------------------------------------------------------------------


def gpa(*words: object, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gpa", *map(str, words)], capture_output=True, text=True, timeout=100, **more
    )


def test_export_and_speak_by_llama_cpp(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="needs the extra llamacpp")
    pytest.importorskip("gguf", reason="needs the extra llamacpp")
    file = tmp_path / "tiny.gguf"
    run = gpa("export", tiny, file, "--gguf", "f16")
    assert run.returncode == 0 and run.stdout == f"{file}\n", run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]
    speak = ("tts", "hello there", "--voice", "anna", "--max-new-tokens", 12, "--model", tiny, "--engine")
    out = tmp_path / "a.wav"
    run = gpa(*speak, f"llamacpp:{file}", "-o", out)
    assert run.returncode == 2 and "repetition_penalty=1" in run.stderr and not out.exists()
    run = gpa(*speak, f"llamacpp:{file}", "--repetition-penalty", 1, "-o", out)
    assert run.returncode == 0 and out.stat().st_size > 1000, run.stderr
    run = gpa("export", tiny, file, "--gguf", "f16")
    assert run.returncode == 2 and "exists" in run.stderr
