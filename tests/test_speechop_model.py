"""The SpeechOp network: sizes, padding, nulls, prompts, and plans run on it. All weights are random."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gpa import compose
from gpa.compose import Above, Branch, Guided, Plan, given
from gpa.config import build
from gpa.errors import CheckpointError, UsageError
from gpa.models.speechop import diffusion_speechop
from gpa.models.speechop.configuration_speechop import Sampler, SpeechOpConfig
from gpa.models.speechop.layers_speechop import Text, frames_of
from gpa.models.speechop.modeling_speechop import Conditions, Latents, SpeechOpModel
from gpa.models.speechop.run_speechop import Evaluator, Inputs, join, sample
from gpa.models.speechop.sizes_speechop import SIZES
from gpa.models.speechop.text_speechop import (
    ByT5Encoder,
    speaking_rate,
    target_frames,
    text_ids,
)

C = 4


def tiny(**changes: Any) -> SpeechOpConfig:
    """Two blocks of width 16; `changes` are laid over sections."""
    stack = {"layers": 2, "width": 16, "heads": 2, "ffn": 24}
    raw: dict[str, Any] = {
        "latent": {"channels": C, "sample_rate": 16000, "hop": 320},
        "dit": dict(stack),
        "encoder": {**stack, "layers": 1},
        "text": {**stack, "kind": "bytes", "layers": 1, "positions": "both"},
    }
    for section, values in changes.items():
        raw[section] = raw.get(section, {}) | values
    return build(SpeechOpConfig, raw)


def make(**changes: Any) -> SpeechOpModel:
    """A random network in which nothing is zero, so that every path shows in the output."""
    torch.manual_seed(0)
    model = SpeechOpModel(tiny(**changes)).eval()
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return model


def latents(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ragged(*lengths: int) -> Tensor:
    """A right-padded mask."""
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


@pytest.fixture(scope="module")
def model() -> SpeechOpModel:
    return make()


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


# Configuration ---------------------------------------------------------------------------------------------


def test_config_survives_its_file(tmp_path: Path) -> None:
    for size in SIZES:
        config = SpeechOpConfig.of_size(size)
        config.write(tmp_path)
        assert SpeechOpConfig.read(tmp_path) == config
    assert len({str(SpeechOpConfig.of_size(size)) for size in SIZES}) == 4
    changed = tiny(null={"source": "learned"}, sampler={"lambda_range": [-10.0, 8.0]}, about={"licence": "x"})
    assert SpeechOpConfig.from_dict(json.loads(json.dumps(changed.to_dict()))) == changed
    assert changed.sampler.lambda_range == (-10.0, 8.0)


@pytest.mark.parametrize(
    "raw, message",
    [
        ({"loss": {"biass": 1.0}}, "loss: unknown keys"),
        ({"losses": {}}, "unknown keys"),
        ({"dit": {"layers": "many"}}, "dit.layers"),
        ({"dit": {"width": 10, "heads": 4}}, "not 4 heads"),
        ({"dit": {"adaln": "all"}}, "ffn, both"),
        ({"text": {"kind": "words"}}, "bytes, byt5"),
        ({"loss": {"space": "score"}}, "v, eps, x"),
        ({"drop": {"text": 1.5}}, "drop.text: 1.5 is outside 0 to 1"),
        ({"inpaint": {"concentration": 2.0}}, "above 2"),
        ({"schedule": {"shift": 0.0}}, "positive"),
        ({"sampler": {"lambda_range": [3.0, -3.0]}}, "rising"),
        ({"sampler": {"name": "euler"}}, "choose one of"),
        ({"null": {"source": "mean"}}, "zero, learned"),
        ({"compose": {"gamma": float("nan")}}, "compose.gamma"),
        ({"tasks": {"weights": {"denoise": 1.0}}}, "denoise"),
        ({"tasks": {"weights": {"enhance": -1.0}}}, "not all numbers"),
        ({"tasks": {"names": ["enhance"], "weights": {}}}, "no tts"),
        ({"tts": {"unit": "words"}}, "phonemes, characters"),
    ],
)
def test_settings_that_cannot_be_are_typed_errors(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        SpeechOpConfig.from_dict({"version": 1, **raw})
    with pytest.raises(UsageError, match=message):
        build(SpeechOpConfig, raw)


def test_unreadable_configs_are_typed_errors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="speechop.json"):
        SpeechOpConfig.read(tmp_path)
    with pytest.raises(CheckpointError, match="version 99"):
        SpeechOpConfig.from_dict({"version": 99})
    with pytest.raises(UsageError, match="toy, mini, small, paper"):
        SpeechOpConfig.of_size("huge")


def test_a_recipe_that_sets_one_size_keeps_the_others() -> None:
    config = build(SpeechOpConfig, {"encoder": {"layers": 3}})
    assert (config.encoder.layers, config.encoder.width, config.encoder.gate) == (3, 768, False)
    assert config.dit == SpeechOpConfig().dit and config.latent.frame_rate == 40.0


# Sizes -----------------------------------------------------------------------------------------------------


def millions(module: nn.Module | None) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6 if module is not None else 0.0


def on_meta(config: SpeechOpConfig) -> SpeechOpModel:
    with torch.device("meta"):
        return SpeechOpModel(config)


def test_the_papers_size_has_its_parameters() -> None:
    model = on_meta(SpeechOpConfig())
    assert millions(model.blocks) == pytest.approx(419.4, rel=1e-3)  # 20 layers of 20 d^2
    assert millions(model.encoder) == pytest.approx(70.8, rel=2e-3)
    assert millions(model) - millions(model.encoder) == pytest.approx(419, rel=0.02)


def test_other_readings_of_adaptive_norm_miss_the_reported_size() -> None:
    config = SpeechOpConfig()
    both = dataclasses.replace(config, dit=dataclasses.replace(config.dit, adaln="both"))
    assert millions(on_meta(both).blocks) == pytest.approx(482, rel=2e-3)
    gated = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, gate=True))
    assert millions(on_meta(gated).encoder) == pytest.approx(75.5, rel=2e-3)


def test_smaller_sizes_are_about_as_estimated() -> None:
    """Sizes of the blocks."""
    small, mini = (on_meta(SpeechOpConfig.of_size(name)) for name in ("small", "mini"))
    parts = [millions(small.blocks), millions(small.encoder), millions(small.text_encoder)]
    assert parts == pytest.approx([19.5, 3.7, 3.1], rel=0.05)
    assert millions(mini) == pytest.approx(6.97, rel=0.05)
    assert millions(on_meta(SpeechOpConfig.of_size("toy"))) == pytest.approx(0.367, rel=0.05)


# Padding ---------------------------------------------------------------------------------------------------

TEXTS = ["a b", None, "hello there"]
FRAMES, PROMPTS = (9, 5, 12), (3, 0, 5)


def batch(positions: str = "both") -> tuple[SpeechOpModel, Tensor, Tensor, Conditions, Tensor]:
    """Three utterances that differ in everything, with rubbish where padding is."""
    model = make(text={"positions": positions})
    mask, prompt_mask = ragged(*FRAMES), ragged(*PROMPTS)
    rubbish = 50.0
    z = torch.where(mask[:, None], latents(3, C, 12), rubbish)
    source = torch.where(mask[:, None], latents(3, C, 12, seed=2), -rubbish)
    prompt = torch.where(prompt_mask[:, None], latents(3, C, 5, seed=3), rubbish)
    text = text_ids(TEXTS)
    text = Text(torch.where(text.mask, text.values, 77), text.mask)
    clean = mask & (torch.arange(12) < torch.tensor([2, 0, 4])[:, None])
    conditions = Conditions(
        task=torch.tensor([1, 0, 4]),
        mask=mask,
        text=text,
        source=source,
        has_source=torch.tensor([True, False, True]),
        prompt=Latents(prompt, prompt_mask),
    )
    return model, z, torch.tensor([-3.0, 0.0, 2.0]), conditions, clean


def alone(i: int, z: Tensor, lam: Tensor, all_: Conditions, clean: Tensor, model: SpeechOpModel) -> Tensor:
    """Row i by itself, without any padding, nulls left out."""
    n, p = FRAMES[i], PROMPTS[i]
    assert all_.source is not None and all_.prompt is not None and all_.has_source is not None
    conditions = Conditions(
        task=all_.task[i : i + 1],
        mask=torch.ones(1, n, dtype=torch.bool),
        text=text_ids([TEXTS[i]]) if TEXTS[i] else None,
        source=all_.source[i : i + 1, :, :n] if all_.has_source[i] else None,
        prompt=Latents(all_.prompt.values[i : i + 1, :, :p], torch.ones(1, p, dtype=torch.bool))
        if p
        else None,
    )
    return model(z[i : i + 1, :, :n], lam[i : i + 1], conditions, clean[i : i + 1, :n])


@pytest.mark.parametrize("positions", ["none", "keys", "both"])
def test_a_padded_batch_equals_its_rows_alone(positions: str) -> None:
    model, z, lam, conditions, clean = batch(positions)
    together = model(z, lam, conditions, clean)
    for i, n in enumerate(FRAMES):
        row = alone(i, z, lam, conditions, clean, model)
        close(together[i : i + 1, :, :n], row)
        assert row.abs().max() > 0.05
        assert not together[i, :, n:].any()  # zero at padding


def test_a_row_without_frames_sees_its_padding_rather_than_nothing() -> None:
    frames = frames_of(torch.tensor([[False, False], [False, True]]), 4)
    assert frames.visible[:, 0, 0].tolist() == [[True, True], [False, True]]
    assert frames.relative[1, 1] == 0.5


def test_prompt_padding_may_stand_on_either_side(model: SpeechOpModel) -> None:
    z, lam, prompt = latents(1, C, 6), torch.tensor([0.5]), latents(1, C, 3, seed=5)
    mask, task, gap = torch.ones(1, 6, dtype=torch.bool), torch.tensor([1]), torch.full((1, C, 2), 9.0)
    known, none = torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.bool)

    def run(values: Tensor, real: Tensor) -> Tensor:
        return model(
            z, lam, Conditions(task, mask, source=latents(1, C, 6, seed=2), prompt=Latents(values, real))
        )

    plain = run(prompt, known)
    close(run(torch.cat([prompt, gap], 2), torch.cat([known, none], 1)), plain)
    close(run(torch.cat([gap, prompt], 2), torch.cat([none, known], 1)), plain)


def test_a_prompt_is_clean_frames_before_both_sequences(model: SpeechOpModel) -> None:
    z, source, prompt = latents(2, C, 6), latents(2, C, 6, seed=2), latents(2, C, 3, seed=3)
    lam, task, text = torch.tensor([0.5, -2.0]), torch.tensor([1, 4]), text_ids(["one", "two"])
    mask, known = torch.ones(2, 6, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)
    prompted = model(z, lam, Conditions(task, mask, text, source, prompt=Latents(prompt, known)))
    longer = Conditions(task, torch.cat([known, mask], 1), text, torch.cat([prompt, source], 2))
    clean = torch.cat([known, ~mask], 1)
    close(prompted, model(torch.cat([prompt, z], 2), lam, longer, clean)[:, :, 3:])


# Nulls and influences --------------------------------------------------------------------------------------


def run(model: SpeechOpModel, lam: float = 0.5, task: int = 1, **conditions: Any) -> Tensor:
    """Velocity of one fixed z under conditions."""
    clean = conditions.pop("clean", None)
    mask = torch.ones(1, 6, dtype=torch.bool)
    given_ = Conditions(torch.tensor([task]), mask, **conditions)
    return model(latents(1, C, 6), torch.tensor([lam]), given_, clean)


def test_null_conditions_are_the_absent_ones_whatever_stands_behind_them(model: SpeechOpModel) -> None:
    nothing = run(model)
    unread = Text(torch.tensor([[40, 41, 42]]), torch.zeros(1, 3, dtype=torch.bool))
    close(run(model, text=unread), nothing)
    close(run(model, text=text_ids([""])), nothing)
    lost = torch.tensor([False])
    assert torch.equal(run(model, source=latents(1, C, 6, seed=2), has_source=lost), nothing)
    unseen = Latents(latents(1, C, 4, seed=3), torch.zeros(1, 4, dtype=torch.bool))
    close(run(model, prompt=unseen), nothing)


def test_every_condition_has_an_influence(model: SpeechOpModel) -> None:
    prompt = Latents(latents(1, C, 4, seed=3), torch.ones(1, 4, dtype=torch.bool))
    clean = torch.tensor([[True, True, False, False, False, False]])
    outs = [
        run(model),
        run(model, text=text_ids(["yes"])),
        run(model, text=text_ids(["yet"])),
        run(model, text=text_ids(["sey"])),
        run(model, source=latents(1, C, 6, seed=2)),
        run(model, source=torch.zeros(1, C, 6)),
        run(model, source=latents(1, C, 6, seed=2), task=2),
        run(model, prompt=prompt),
        run(model, task=0),
        run(model, lam=-4.0),
        run(model, clean=clean),
    ]
    for i, a in enumerate(outs):
        for b in outs[i + 1 :]:
            assert (a - b).abs().max() > 1e-4


def test_the_null_source_is_zero_or_a_learned_vector() -> None:
    learned, zero = make(null={"source": "learned"}), make()
    assert zero.null_source is None and learned.null_source is not None
    shown = run(learned)
    learned.null_source.add_(1.0)
    assert (run(learned) - shown).abs().max() > 1e-3
    mask = torch.ones(1, 6, dtype=torch.bool)
    assert not zero.condition(Conditions(torch.tensor([0]), mask)).source.any()


def test_positions_let_text_order_count_where_the_encoder_has_none() -> None:
    for positions, matters in (("none", False), ("keys", True), ("both", True)):
        flat = make(text={"layers": 0, "positions": positions})
        ids = text_ids(["abcd"])
        turned = Text(ids.values.flip(1), ids.mask)
        assert ((run(flat, text=ids) - run(flat, text=turned)).abs().max() > 1e-4) == matters


def test_frames_can_know_their_relative_position() -> None:
    both, keys = make(text={"positions": "both"}), make(text={"positions": "keys"})
    keys.load_state_dict(both.state_dict())
    ids = text_ids(["abcd"])
    assert (run(both, text=ids) - run(keys, text=ids)).abs().max() > 1e-4


def test_a_new_network_predicts_zero_and_adaptive_norms_do_something() -> None:
    torch.manual_seed(0)
    fresh = SpeechOpModel(tiny()).eval()
    assert not run(fresh, text=text_ids(["yes"])).any()
    ffn, both = make(), make(dit={"adaln": "both"})
    assert sum("attention.gate" in name for name in both.state_dict()) == 4  # weight and bias of two blocks
    assert not any("attention.gate" in name for name in ffn.state_dict())
    assert (run(both, task=0) - run(both, task=3)).abs().max() > 1e-4


def test_one_batch_can_be_learnt_and_every_parameter_takes_part() -> None:
    torch.manual_seed(0)
    model = SpeechOpModel(tiny(dit={"dropout": 0.0}, encoder={"dropout": 0.0}, null={"source": "learned"}))
    x, source, eps = latents(4, C, 8), latents(4, C, 8, seed=2), latents(4, C, 8, seed=3)
    frames, lam = ragged(8, 8, 5, 7), torch.tensor([-2.0, -1.0, 0.0, 1.0])
    conditions = Conditions(
        torch.tensor([0, 1, 2, 4]),
        frames,
        text_ids(["one", None, "two", "three"]),
        source,
        torch.tensor([False, True, True, True]),
    )
    z = diffusion_speechop.diffuse(x, eps, lam)
    clean = torch.zeros_like(frames)
    clean[1, :3] = True
    losses = []
    with torch.enable_grad():
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(40):
            v = model(diffusion_speechop.inpaint(z, x, clean), lam, conditions, clean)
            loss = diffusion_speechop.diffusion_loss(v, x, eps, lam, frames & ~clean, model.config)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == [] and losses[-1] < 0.5 * losses[0]


# Text ------------------------------------------------------------------------------------------------------


def test_ids_are_those_of_byt5() -> None:
    from transformers import ByT5Tokenizer

    texts = ["Hello, World", "naïve café", "a"]
    expected = ByT5Tokenizer()([text.lower() for text in texts], padding=True)
    ids = text_ids(texts)
    assert ids.values.tolist() == expected["input_ids"]
    assert ids.mask.long().tolist() == expected["attention_mask"]


def test_null_texts_have_no_real_position() -> None:
    assert text_ids([None, "", "ab"]).mask.tolist() == [[False] * 3, [False] * 3, [True] * 3]
    assert text_ids([None]).mask.tolist() == [[False]]


def test_byt5_is_frozen_and_its_states_condition_the_model() -> None:
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    sizes = T5Config(
        vocab_size=259, d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    encoder = ByT5Encoder(T5EncoderModel(sizes))
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not encoder.train().encoder.training  # it stays as it is while the model trains
    states = encoder(text_ids(["ab", "longer text"]))
    assert states.values.shape == (2, 12, 12)
    close(states.values[:1, :3], encoder(text_ids(["ab"])).values)
    model = make(text={"kind": "byt5", "width": 12})
    assert model.text_encoder is None
    spoken = run(model, text=encoder(text_ids(["ab"])))
    assert (spoken - run(model)).abs().max() > 1e-4
    with pytest.raises(UsageError, match="ByT5Encoder"):
        run(model, text=text_ids(["ab"]))


def test_byt5_loads_from_a_directory(tmp_path: Path) -> None:
    from transformers import T5Config, T5EncoderModel

    sizes = T5Config(vocab_size=259, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    original = T5EncoderModel(sizes)
    original.save_pretrained(tmp_path)
    ids = text_ids(["ab"])
    loaded = ByT5Encoder.from_pretrained(tmp_path)
    close(loaded(ids).values, ByT5Encoder(original)(ids).values)


def test_speech_lasts_as_its_reference_speaks() -> None:
    config = SpeechOpConfig()  # 40 frames a second
    rate = speaking_rate(30, 100, config)
    assert rate == 12.0 and target_frames(24, config, rate) == 80
    assert target_frames(24, config) == round(40 * 24 / config.tts.default_rate)
    assert target_frames(0, config) == 1
    with pytest.raises(UsageError, match="no speaking rate"):
        speaking_rate(10, 0, config)


# Plans on the network --------------------------------------------------------------------------------------

FAST = Sampler(steps=6, lambda_range=(-6.0, 6.0), final=False)
ENHANCE = Guided("enhance", given(source="noisy"))


def inputs(rows: slice = slice(None)) -> Inputs:
    """Two utterances of 8 and 5 frames, with a transcript, a noisy source and two voice samples each."""
    mask, voice_mask, text = ragged(8, 5)[rows], ragged(4, 3)[rows], text_ids(["hello", "yes"])
    longest = int(mask.sum(1).max())
    source, voice = latents(2, C, 8, seed=2)[rows], latents(2, C, 4, seed=3)[rows]
    longer, longer_mask = latents(2, C, 6, seed=4)[rows], ragged(6, 5)[rows]
    return Inputs(
        mask=mask[:, :longest],
        texts={"gold": Text(text.values[rows], text.mask[rows])},
        sources={"noisy": source[:, :, :longest]},
        prompts={"voice": Latents(voice, voice_mask), "longer": Latents(longer, longer_mask)},
    )


class Watch:
    """Counts calls and rows of a module's method."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.rows: list[int] = []
        inner = getattr(owner, name)

        def watched(first: Any, *others: Any) -> Any:
            self.rows.append(len(first[0] if isinstance(first, tuple) else first))
            return inner(first, *others)

        monkeypatch.setattr(owner, name, watched)


@pytest.mark.parametrize(
    "plan",
    [
        compose.enhancement("noisy", "gold", gamma=0.0),
        compose.enhancement("noisy", None),
        compose.enhancement("noisy", "gold", gate=Above(100.0)),
        compose.tc_avg(ENHANCE, "gold", 0.0),
    ],
    ids=["gamma 0", "no text", "closed", "share 0"],
)
def test_what_is_off_changes_no_bit_on_the_network(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    base = sample(model, Plan(ENHANCE), inputs(), [1, 2], FAST)
    text, rows = Watch(monkeypatch, model.text_encoder, "forward"), Watch(monkeypatch, model, "denoise")
    assert torch.equal(sample(model, plan, inputs(), [1, 2], FAST), base)
    assert rows.rows == [2] * 6 and text.rows == []
    guided = sample(model, compose.enhancement("noisy", "gold"), inputs(), [1, 2], FAST)
    assert (guided - base).abs().max() > 1e-3


def test_branches_run_as_one_batch_and_encoders_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    audio = Watch(monkeypatch, model.encoder, "forward")
    text, rows = Watch(monkeypatch, model.text_encoder, "forward"), Watch(monkeypatch, model, "denoise")
    plan = compose.enhancement("noisy", "gold", "voice", guidance=1.5, gate=Above(-1.0))
    sample(model, plan, inputs(), [1, 2], FAST)
    assert rows.rows == [4, 4, 4, 8, 8, 8]  # two utterances, two branches, then four
    assert audio.rows == [2] and text.rows == [2]


def test_a_branch_carries_its_own_task_and_nulls(model: SpeechOpModel) -> None:
    evaluator = Evaluator(model, inputs())
    mute, spoken = (
        evaluator._context((branch,)) for branch in (Branch("tts"), Branch("tts", given(text="gold")))
    )
    assert torch.equal(mute.task, model.task.weight[[0, 0]]) and torch.equal(mute.task, spoken.task)
    assert not mute.source.any() and mute.text_mask.tolist() == [[True], [True]]
    noisy = evaluator._context((Branch("enhance", given(source="noisy")),))
    assert torch.equal(noisy.task, model.task.weight[[1, 1]]) and noisy.source.any()


def test_branches_together_equal_branches_alone(model: SpeechOpModel) -> None:
    wanted = [
        Branch("enhance", given(source="noisy", prompt="voice")),
        Branch("tts", given(text="gold")),
        Branch("tts"),
        Branch("spk_sep", given(source="noisy", prompt="longer", text="gold")),
    ]
    z = latents(2, C, 8)
    together = Evaluator(model, inputs())(wanted, z, 0.5)
    for branch, out in zip(wanted, together, strict=True):
        close(out, Evaluator(model, inputs())([branch], z, 0.5)[0])
    kept = Evaluator(model, inputs())
    pair = (wanted[0], wanted[2])
    assert kept._context(pair) is kept._context(pair)  # joined once, not at every step
    assert join([kept._context(pair)]) is kept._context(pair) and len(kept._context(pair).mask) == 4


@pytest.mark.parametrize("name", ["sde_dpmpp_2m", "ode_dpmpp_2m", "ddim"])
def test_an_utterance_is_sampled_alike_alone_and_in_a_batch(model: SpeechOpModel, name: str) -> None:
    settings = dataclasses.replace(FAST, name=name)
    plan = compose.enhancement("noisy", "gold", "voice", guidance=1.2, gate=Above(-1.0))
    together = sample(model, plan, inputs(), [11, 12], settings)
    assert together.shape == (2, C, 8) and not together[1, :, 5:].any()
    for i, n in enumerate((8, 5)):
        single = sample(model, plan, inputs(slice(i, i + 1)), [11 + i], settings)
        torch.testing.assert_close(together[i : i + 1, :, :n], single, rtol=1e-3, atol=1e-3)
    other = sample(model, plan, inputs(), [11, 13], settings)
    assert not torch.allclose(other[1], together[1], atol=1e-2)


def test_editing_keeps_what_is_known(model: SpeechOpModel) -> None:
    known = Latents(latents(2, C, 8, seed=7), ragged(8, 5) & (torch.arange(8) != 3))
    edited = dataclasses.replace(inputs(), known=known)
    out = sample(model, Plan(Guided("tts", given(text="gold"), scale=2.0)), edited, [1, 2], FAST)
    kept = known.mask[:, None].expand_as(out)
    assert torch.equal(out[kept], known.values[kept])
    assert (out[:, :, 3] - known.values[:, :, 3]).abs().min() > 0
    branch, z = Branch("tts", given(text="gold")), latents(2, C, 8)
    marked = Conditions(torch.tensor([0, 0]), edited.mask, edited.texts["gold"])
    level = torch.full((2,), 0.5)
    for found in Evaluator(model, edited)([branch, branch], z, 0.5):
        close(found, model(z, level, marked, known.mask))
    moved = dataclasses.replace(edited, known=Latents(known.values + 1, known.mask))
    again = sample(model, Plan(Guided("tts", given(text="gold"), scale=2.0)), moved, [1, 2], FAST)
    assert (again - out)[:, :, 3].abs().max() > 1e-3  # its context counts


@pytest.mark.parametrize(
    "branch, message",
    [
        (Branch("enhance", given(source="clean")), "source 'clean'.*noisy"),
        (Branch("enhance", given(sound="noisy")), "no slots.*sound"),
        (Branch("denoise", given(source="noisy")), "'denoise'.*enhance"),
    ],
)
def test_plans_that_name_what_is_not_there_are_errors(
    branch: Branch, message: str, model: SpeechOpModel
) -> None:
    with pytest.raises(UsageError, match=message):
        sample(model, Plan(Guided(branch.task, branch.given)), inputs(), [1, 2], FAST)
