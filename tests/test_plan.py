"""Plans: the arithmetic against counted operations, real optimiser states and the published size."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3Config, Qwen3ForCausalLM

from gpa import config
from gpa.cli import main
from gpa.engine.cache import Cache
from gpa.engine.scheduler import MEMORY, ROWS
from gpa.errors import UsageError
from gpa.models.gpa.modeling_gpa import meta_backbone
from gpa.train.planning import GPUS, Budget, Rates, Shape, plan, serving

RECIPES = Path(__file__).parent.parent / "recipes" / "gpa"
TINY = {
    "vocab_size": 300,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 96,
    "tie_word_embeddings": True,
}


def shape_of(name: str) -> Shape:
    return Shape.of(meta_backbone(config.load_yaml(RECIPES / f"{name}.yaml")["model"]))


def test_the_published_shape_and_three_billion_build_on_meta() -> None:
    assert shape_of("gpa_0_3b").parameters == 312_625_152  # the published checkpoint's
    assert 2.8e9 < shape_of("gpa_3b").parameters < 3.3e9
    model = meta_backbone(config.load_yaml(RECIPES / "gpa_3b.yaml")["model"])
    assert all(p.device.type == "meta" for p in model.parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_operations_are_those_that_torch_counts(tied: bool) -> None:
    """Forward and backward pass counted on real tensors; torch counts the whole attention square, we half."""
    model = Qwen3ForCausalLM(Qwen3Config(**{**TINY, "tie_word_embeddings": tied}))
    shape, length = Shape.of(model), 128
    model.set_attn_implementation("eager")
    ids = torch.randint(300, (2, length))
    with FlopCounterMode(display=False) as counter:
        model(ids, use_cache=False).logits.sum().backward()
    square = 6.0 * shape.layers * shape.inner * length  # the half that causality spares
    counted = counter.get_total_flops() / ids.numel()
    assert counted == pytest.approx(shape.flops_per_id(length) + square, rel=0.02)


def test_state_is_what_adamw_holds() -> None:
    model = Qwen3ForCausalLM(Qwen3Config(**TINY))
    shape = Shape.of(model)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 2, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    held = sum(t.numel() * 4 for s in optimizer.state.values() for t in s.values() if t.ndim)  # moments
    held += 4 * shape.parameters  # float32 copy of the weights
    assert shape.state_bytes(0, 1) == held + 2 * 2 * shape.parameters  # bf16 weights and gradients
    ranks = 8
    stages = [shape.state_bytes(stage, ranks) for stage in range(4)]
    assert stages == sorted(stages, reverse=True) and stages[3] == pytest.approx(stages[0] / ranks)


@pytest.mark.parametrize("sizes", [{}, {"num_hidden_layers": 6, "hidden_size": 96, "intermediate_size": 256}])
def test_activations_are_what_a_real_step_keeps(sizes: dict) -> None:
    """Bytes that autograd holds between forward and backward pass, bf16 products, weights not counted."""
    model = Qwen3ForCausalLM(Qwen3Config(**{**TINY, **sizes})).to(torch.bfloat16)
    model.set_attn_implementation("sdpa")
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(300, (4, 128))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(ids, use_cache=False).logits.float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
    counted = sum(kept.values())
    loss.backward()
    planned = Shape.of(model).activation_bytes(ids.numel(), checkpointing=False)
    gradients = 4 * ids.numel() * model.config.vocab_size  # of the logits: held in the backward pass
    assert counted + gradients == pytest.approx(planned, rel=0.06)


def test_time_and_cost_scale_as_they_should() -> None:
    shape = shape_of("gpa_0_3b")
    one = plan(shape, Budget(hours=1000), GPUS["h100"], 8)
    more = plan(shape, Budget(hours=2000), GPUS["h100"], 16)
    assert more.days == pytest.approx(one.days) and more.cost == pytest.approx(2 * one.cost)
    assert one.ids == 1000 * Rates().ids_per_hour()
    checked = plan(shape, Budget(hours=1000, checkpointing=False), GPUS["h100"], 8)
    assert checked.memory[2] > one.memory[2]


def test_the_command_prints_and_refuses(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = str(RECIPES / "gpa_0_3b.yaml")
    assert main.main(["plan", recipe, "--gpus", "64", "--hours", "1000000"]) == 0
    out = capsys.readouterr().out
    assert "312,625,152 parameters" in out and "ZeRO-3" in out and "days" in out
    assert main.main(["plan", recipe, "--gpu", "abacus"]) == UsageError.exit_code
    assert main.main(["plan", recipe, "--memory", "0"]) == UsageError.exit_code
    assert main.main(["plan", recipe, "--memory", "2"]) == 0
    assert "it does not fit" in capsys.readouterr().out
    assert main.main(["plan", str(RECIPES / "codec.yaml")]) == UsageError.exit_code
    assert "model.vocab_size is missing" in capsys.readouterr().err


def test_rows_take_what_the_cache_takes() -> None:
    """Keys and values of a position by the engine's own count; weights as torch holds them."""
    model = Qwen3ForCausalLM(Qwen3Config(**TINY))
    shape = Shape.of(model)
    for cpu, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        network = SimpleNamespace(sizes=model.config, dtype=dtype)
        found = serving(shape, 4 * 2**30, cpu, seconds=10)
        assert found.second == Rates.tts * Cache.bytes_per_position(network)  # type: ignore[arg-type]
        held = sum(p.numel() * dtype.itemsize for p in model.parameters())
        assert found.weights == held * (2 if cpu else 1) and found.dtype == str(dtype).split(".")[1]
        room = 0.9 * 4 * 2**30 - 2**30 - found.weights
        assert found.fits * found.second * 10 <= room < (found.fits + 1) * found.second * 10
    assert serving(shape, 1e15, True).fits * found.second < MEMORY, "the engine's bound"
    assert serving(shape, 2**30, True).fits == 0


def test_the_page_shows_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = (RECIPES.parent.parent / "docs/serving.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\$ gpa (plan .*)\n((?:(?!\$ |```).*\n)+)", page, re.MULTILINE)
    assert len(shown) == 2
    assert f"at most {ROWS} rows" in page and f"at most {MEMORY >> 30} GiB" in page
    for words, lines in shown:
        root = RECIPES.parent.parent
        given = [str(root / word) if word.startswith("recipes/") else word for word in words.split()]
        assert main.main(given) == 0
        assert capsys.readouterr().out.endswith(lines), words
