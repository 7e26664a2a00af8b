"""The lean forward pass is that of transformers: same weights, logits and files; others are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM

from golden import draw_weights
from gpa.engine.cache import GRAIN, Cache
from gpa.engine.network import Network
from gpa.engine.onnx_network import OnnxNetwork
from gpa.engine.packed import Forward, PackedNetwork, Past
from gpa.errors import CheckpointError
from gpa.models.gpa.checkpoint_gpa import SHIPPED, save_network
from networks import CONTEXT, SIZE, network, reference
from published import DIRECTORY, read_cases, unpack

Form = type[PackedNetwork] | type[OnnxNetwork]
forms = pytest.mark.parametrize("form", [PackedNetwork, OnnxNetwork])
IDS = [(7 * i * i + 3 * i) % SIZE for i in range(40)]


def theirs(lm: Qwen3ForCausalLM, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return lm(torch.tensor([ids])).logits[0].float()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"attention_bias": True, "num_attention_heads": 4, "num_key_value_heads": 4},
        {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "rms_norm_eps": 0.1},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
    ],
)
def test_logits_are_those_of_transformers(changes: dict[str, Any]) -> None:
    lm = reference(**changes)
    with torch.no_grad():
        for name, weight in lm.named_parameters():  # so that norms and biases matter
            if weight.ndim == 1:
                weight.add_(torch.linspace(-0.5, 0.5, len(weight)), alpha=1 + len(name) % 3)
    ours = Network.of(lm.config.to_dict(), lm.state_dict())
    torch.testing.assert_close(ours.logits(IDS), theirs(lm, IDS), atol=1e-5, rtol=1e-5)
    assert ours.state_dict().keys() <= lm.state_dict().keys()


def test_logits_are_the_recorded_ones_of_the_published_replica(tmp_path: Path) -> None:
    """With the config of an older transformers, which has rope_theta outside of rope_parameters."""
    import numpy as np

    files = unpack(DIRECTORY / "files.json.xz")
    for name in ("config.json", "weights_spec.json"):
        (tmp_path / name).write_text(files[name])
    assert json.loads(files["config.json"])["rope_theta"] == 1e6
    save_file(draw_weights(tmp_path / "weights_spec.json"), tmp_path / "model.safetensors")
    ours, stored = Network.load(tmp_path)
    assert stored == torch.float32
    with np.load(DIRECTORY / "golden.npz") as recorded:
        for case in read_cases()["cases"]:
            expected = torch.from_numpy(recorded[f"logits_{case['name']}"])
            found = ours.logits(case["prompt"])[-1]
            assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    lm = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(ours.logits(range(90)), theirs(lm, list(range(90))), atol=1e-5, rtol=1e-5)


def test_the_shipped_network_is_transformers() -> None:
    folder = SHIPPED / "gpa-mini"
    (ours, stored), ids = Network.load(folder), [(97 * i) % 4664 for i in range(200)]
    assert (stored, ours.dtype, ours.sizes.max_position_embeddings) == (torch.float16, torch.float32, 4096)
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.testing.assert_close(ours.logits(ids), theirs(lm, ids), atol=1e-5, rtol=1e-5)
    half = Network.load(folder)[0].to("cpu", torch.bfloat16)
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    torch.testing.assert_close(half.logits(ids), theirs(lm, ids), atol=1e-2, rtol=1e-2)


def logits(forward: Forward, ids: list[int], past: Past) -> torch.Tensor:
    """Of all ids, after those given, by a network that is made ready to decode."""
    return forward.head(np.arange(SIZE))(forward(torch.tensor(ids), past))


@forms
def test_a_cached_pass_is_a_pass_over_everything(form: Form) -> None:
    """Prompts of three lengths in three rows, one id each at a time, a row copied on the way."""
    ours = network(head_dim=16)
    ready = form(ours)
    cache, sequences = Cache(ready), [IDS[:5], IDS[3:4], IDS[10:22]]
    rows = cache.take(3)
    with torch.inference_mode():
        for row, ids in zip(rows, sequences, strict=True):
            for part in (ids[:3], ids[3:]):  # a prompt may be read bit by bit
                if part:
                    last = logits(ready, part, cache.prompted(row, len(part)))
            torch.testing.assert_close(last[-1], ours.logits(ids)[-1], atol=1e-5, rtol=1e-5)
        cache.copy([rows[2], rows[0]], [rows[0], rows[1]])  # at once: row 1 gets what row 0 had before
        sequences = [sequences[2], sequences[0], sequences[2]]
        for new in ([1, 2, 3], [4, 5, 6], [7, 8, 9]):
            sequences = [[*ids, i] for ids, i in zip(sequences, new, strict=True)]
            for row, ids in zip(logits(ready, new, cache.extended(rows)), sequences, strict=True):
                torch.testing.assert_close(row, ours.logits(ids)[-1], atol=1e-5, rtol=1e-5)
        found = logits(ready, [11, 12], cache.extended([rows[0], rows[2]]))  # no neighbours
        torch.testing.assert_close(found[1], ours.logits([*sequences[2], 12])[-1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("read", [1, 2])
def test_rows_that_share_a_prompt_exchange_what_follows_it(read: int) -> None:
    """So many rows have read it and go on each in its own way; the others begin with a copy."""
    ours = network(head_dim=16)
    ready, prompt = PackedNetwork(ours), IDS[:7]
    cache = Cache(ready)
    rows = cache.take(3)
    with torch.inference_mode():
        for row in rows[:read]:
            logits(ready, prompt, cache.prompted(row, len(prompt)))
        cache.copy([rows[0]] * 2, rows[1:], len(prompt))
        sequences = [[*prompt, i] for i in (1, 2, 3)]
        logits(ready, [1, 2, 3], cache.extended(rows))
        cache.copy([rows[2], rows[0], rows[2]], rows, len(prompt))
        sequences = [[*sequences[n], i] for n, i in ((2, 4), (0, 5), (2, 6))]
        for row, ids in zip(logits(ready, [4, 5, 6], cache.extended(rows)), sequences, strict=True):
            torch.testing.assert_close(row, ours.logits(ids)[-1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": True, "rms_norm_eps": 0.1},
        {"attention_bias": True, "num_attention_heads": 4, "num_key_value_heads": 4},
        {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10},
        {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16, "rope_theta": 100.0},
    ],
)
@pytest.mark.parametrize(
    ("form", "dtype"),
    [(PackedNetwork, torch.float32), (PackedNetwork, torch.bfloat16), (OnnxNetwork, torch.float32)],
)
def test_the_packed_network_is_the_network(changes: dict[str, Any], form: Form, dtype: torch.dtype) -> None:
    if form is OnnxNetwork:
        changes = {"head_dim": 16, **changes}
        if changes["head_dim"] % 16:
            pytest.skip("onnxruntime's attention takes heads of 16 numbers, or a multiple")
    lm = reference(**changes)
    with torch.no_grad():
        for name, weight in lm.named_parameters():  # so that norms and biases matter
            if weight.ndim == 1:
                weight.add_(torch.linspace(-0.5, 0.5, len(weight)), alpha=1 + len(name) % 3)
    ours = Network.of(lm.config.to_dict(), lm.state_dict()).to("cpu", dtype)
    ready = form(ours)
    cache = Cache(ready)
    with torch.inference_mode():
        found = logits(ready, IDS, cache.prompted(cache.take(1)[0], len(IDS)))
        one = logits(ready, [9], cache.extended([0]))
    expected = ours.logits([*IDS, 9])
    error = (torch.cat([found, one]).float() - expected).norm() / expected.norm()
    assert error < (1e-5 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize(("width", "form"), [(8, PackedNetwork), (16, OnnxNetwork)])
def test_the_packed_network_follows_the_weights(width: int, form: Form) -> None:
    ours = network(head_dim=width)
    packed = ours.packed
    assert ours.packed is packed and type(packed) is form
    with torch.no_grad():
        ours.model.norm.weight.mul_(2)
    assert ours.packed is not packed
    cache = Cache(ours.packed)
    with torch.inference_mode():
        found = logits(ours.packed, IDS, cache.prompted(cache.take(1)[0], len(IDS)))
    torch.testing.assert_close(found, ours.logits(IDS), atol=1e-4, rtol=1e-4)


@forms
def test_rows_of_the_cache_are_used_again(form: Form) -> None:
    ours = network(head_dim=16)
    ready = form(ours)
    cache = Cache(ready)
    with torch.inference_mode():
        for n in (3, 40, 7):
            rows = cache.take(2)
            assert rows == [0, 1] and cache.used == 2
            found = logits(ready, IDS[:n], cache.prompted(rows[1], n))
            torch.testing.assert_close(found, ours.logits(IDS[:n]), atol=1e-5, rtol=1e-5)
            cache.release(rows)
    assert [k.shape for k in cache.keys] == [(2, 1, GRAIN, 16)] * 2 and cache.used == 0


def test_the_cache_stays_within_its_bound_whatever_came_before() -> None:
    """One long row, then many short ones, then a long one: three times the same memory, not its square."""
    packed = network(max_position_embeddings=4 * GRAIN).packed
    for most, shapes in ((4 * GRAIN, [(1, 4), (4, 1), (1, 3)]), (16 * GRAIN, [(1, 4), (4, 4), (4, 4)])):
        cache = Cache(packed, most)
        for (count, length), shape in zip([(1, 4 * GRAIN), (4, 5), (1, 3 * GRAIN)], shapes, strict=True):
            rows = cache.take(count)
            for row in rows:
                cache.prompted(row, length)
            assert cache.keys[0].shape == (shape[0], 1, shape[1] * GRAIN, 8)
            cache.release(rows)


@forms
def test_what_is_held_survives_new_buffers(form: Form) -> None:
    ours = network(max_position_embeddings=4 * GRAIN, head_dim=16)
    ready = form(ours)
    ids = (IDS * 40)[: 2 * GRAIN]
    cache = Cache(ready, 2 * GRAIN)
    with torch.inference_mode():
        first = cache.take(1)
        logits(ready, ids, cache.prompted(first[0], len(ids)))
        more = cache.take(2)
        cache.release(first)
        assert cache.rows_with(1) == 3  # the free one is used again
        for row in more:
            logits(ready, IDS[:7], cache.prompted(row, 7))
        logits(ready, ids, cache.prompted(cache.take(1)[0], len(ids)))
        for row in logits(ready, [3, 3], cache.extended(more)):
            torch.testing.assert_close(row, ours.logits([*IDS[:7], 3])[-1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "llama"),
        ("model_type", None),
        ("hidden_act", "gelu"),
        ("use_sliding_window", True),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
    ],
)
def test_another_architecture_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    config = {**network().config, "rope_parameters": None, key: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"config.json: .* is not implemented, only"):
        Network.load(tmp_path)


def test_files_that_do_not_fit_are_refused() -> None:
    ours = network(tie_word_embeddings=True)
    state, config = ours.state_dict(), ours.config
    with pytest.raises(CheckpointError, match="vocab_size"):
        Network.of({k: v for k, v in config.items() if k != "vocab_size"}, state, "here")
    with pytest.raises(CheckpointError, match="missing"):
        Network.of(config, {k: v for k, v in state.items() if "norm" not in k}, "here")
    head = state["model.embed_tokens.weight"].clone()
    Network.of(config, {**state, "lm_head.weight": head}, "here")
    head[0, 0] += 1
    with pytest.raises(CheckpointError, match="config.json ties them"):
        Network.of(config, {**state, "lm_head.weight": head}, "here")


@pytest.mark.parametrize("tied", [True, False])
def test_written_files_are_those_of_transformers(tied: bool, tmp_path: Path) -> None:
    """The same tensors and the same settings, whoever writes; loaded by both."""
    lm = reference(tie_word_embeddings=tied, eos_token_id=3, pad_token_id=2)
    lm.save_pretrained(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    save_network(Network.load(tmp_path / "theirs")[0], tmp_path / "ours", torch.float32)
    states = [load_file(tmp_path / who / "model.safetensors") for who in ("theirs", "ours")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    one, two = (json.loads((tmp_path / who / "config.json").read_text()) for who in ("theirs", "ours"))
    assert one == two
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert again.generation_config.eos_token_id == 3 and again.generation_config.pad_token_id == 2
    assert torch.equal(theirs(again, IDS), theirs(lm, IDS))


def test_training_weights_are_shared_not_copied() -> None:
    lm = reference()
    ours = Network.of(lm.config.to_dict(), lm.state_dict())
    before = ours.logits(IDS[:CONTEXT])
    with torch.no_grad():
        lm.model.norm.weight.mul_(2)
    assert not torch.equal(ours.logits(IDS[:CONTEXT]), before)
    assert all(weight.requires_grad for weight in lm.parameters())
    assert not any(weight.requires_grad for weight in ours.parameters())
