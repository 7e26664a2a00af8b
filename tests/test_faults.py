"""Faults that were planted in the code and that no other test noticed: each test here fails with its own."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import Qwen3Config, Qwen3ForCausalLM

from gpa import GPA, audio
from gpa.codec.bicodec import BiCodec
from gpa.codec.harmonic import FLOOR, HarmonicDecoder
from gpa.codec.kl import kl
from gpa.codec.timbre import CENTRE, Timbre, measure
from gpa.data.rows import Noise, RowBuilder
from gpa.engine.network import Network
from gpa.engine.request import Beams, Request, Rules, Sampling
from gpa.engine.sampler import filtered
from gpa.engine.scheduler import Engine
from gpa.errors import TrainingError
from gpa.models.gpa.modeling_gpa import inference_network
from gpa.nn.quantize import FactorizedVQ
from gpa.prompt.formats import InstructFormat
from gpa.prompt.tasks import TTS
from gpa.prompt.vocab import Vocab
from gpa.text.tokenizer import TextTokenizer
from gpa.train import checkpoint, metrics
from gpa.train.arguments import TrainArgs
from gpa.train.families.base import Loss
from gpa.train.loop import train
from gpa.train.optim import OptimArgs

MINI = Path(__file__).parents[1] / "gpa" / "assets" / "gpa-mini"
EVERY = {"save_every": 1, "eval_every": 99, "log_every": 1}


# The loop ---------------------------------------------------------------------------------------------------


class Family:
    """Two weights with an optimiser each, whose losses are noise times their sum; batch n is n.

    At `steep` the square root of a weight that is 0 has a finite value and an infinite slope; `dies` is a
    batch that is never made.
    """

    def __init__(self, steep: int = -1, dies: int = -1) -> None:
        self.steep, self.dies = steep, dies
        self.drawn: dict[int, list[float]] = {}
        self.trains = True

    def build(self) -> nn.Module:
        return nn.ParameterDict({name: nn.Parameter(torch.ones(2, 2)) for name in "ab"})

    def parameters(self, module: nn.Module) -> dict[str, list[nn.Parameter]]:
        return {name: [value] for name, value in module.named_parameters()}

    def batch(self, step: int) -> int:
        if step == self.dies:
            raise KeyboardInterrupt
        return step

    def losses(self, module: nn.Module, batch: int, step: int) -> Iterator[Loss]:
        self.drawn[batch], self.trains = [], self.trains and module.training
        for name, weight in module.named_parameters():
            noise = torch.rand(())
            self.drawn[batch].append(float(noise))
            value = noise * weight.sum()
            if batch == self.steep:
                value = value + (weight - weight.detach()).sum().sqrt()
            yield Loss(name, value, {f"noise_{name}": float(noise)})

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        return {"training": float(module.training)}

    def export(self, module: nn.Module, path: Path) -> None: ...


def go(family: Family, run: Path, optim: OptimArgs | None = None, **args: int) -> None:
    train(family, TrainArgs(**{**EVERY, **args}), optim or OptimArgs(), run, progress=False)  # type: ignore[arg-type]


def test_an_infinite_gradient_of_a_finite_loss_stops_the_run(tmp_path: Path) -> None:
    """Nothing of that step is kept: the newest checkpoint is of the step before, and it is finite."""
    with pytest.raises(TrainingError, match=r"step 3: the a loss is [\d.]+, its gradient inf"):
        go(Family(steep=2), tmp_path, steps=5)
    newest = checkpoint.found(tmp_path)[-1]
    state = torch.load(newest, weights_only=True)
    assert state["step"] == 2 and all(value.isfinite().all() for value in state["module"].values())


def test_every_step_has_its_own_rate_after_a_resume_too(tmp_path: Path) -> None:
    """The rate that each optimiser steps with, and the one that is logged: warm-up of two, then a cosine."""
    rates: list[float] = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: rates.extend({group["lr"] for group in optimizer.param_groups})
    )
    optim = OptimArgs(lr=0.1, lr_end=0.2, warmup=2)
    try:
        with pytest.raises(KeyboardInterrupt):
            go(Family(dies=3), tmp_path, optim, steps=6)
        go(Family(), tmp_path, optim, steps=6)
    finally:
        hook.remove()
    half = math.sqrt(0.5)
    cosine = [0.02 + 0.04 * (1 + c) for c in (1.0, half, 0.0, -half)]
    wanted = [0.05, 0.1, *cosine]
    assert rates == pytest.approx([rate for rate in wanted for _ in "ab"])
    logged = [row["lr"] for row in metrics.read(tmp_path / "metrics.jsonl") if "lr" in row]
    assert logged == pytest.approx(wanted, rel=1e-4)  # five digits are kept


def test_gradients_are_clipped_to_the_recipes_norm(tmp_path: Path) -> None:
    """What the optimiser sees; the log keeps the norm before."""
    norms: list[float] = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: norms.extend(
            float(p.grad.norm()) for group in optimizer.param_groups for p in group["params"]
        )
    )
    try:
        go(Family(), tmp_path, OptimArgs(clip=0.05), steps=4)
    finally:
        hook.remove()
    assert norms == pytest.approx([0.05] * 8, rel=1e-4)
    rows = metrics.read(tmp_path / "metrics.jsonl")
    logged = [(row["grad_norm/a"], row["noise_a"]) for row in rows if "lr" in row]
    assert len(logged) == 4 and all(norm == pytest.approx(2 * noise, rel=1e-4) for norm, noise in logged)


def test_weights_are_evaluated_at_rest_and_trained_awake(tmp_path: Path) -> None:
    """Dropout and batch statistics are training's, before and after an evaluation."""
    family = Family()
    go(family, tmp_path, steps=3, eval_every=1)
    rows = metrics.read(tmp_path / "metrics.jsonl")
    assert [row["eval/training"] for row in rows if "eval/training" in row] == [0.0] * 3 and family.trains


def test_each_micro_batch_has_its_own_random_numbers(tmp_path: Path) -> None:
    """Two losses of two micro-batches take turns, yet each draws as it does when it is alone."""
    alone, together = Family(), Family()
    go(alone, tmp_path / "alone", steps=4)
    go(together, tmp_path / "together", steps=2, accumulate=2)
    assert alone.drawn == together.drawn
    assert len({number for drawn in alone.drawn.values() for number in drawn}) == 8


# Generation -------------------------------------------------------------------------------------------------


SIZE, STOP, OTHER = 20, 15, 7


@pytest.fixture(scope="module")
def eager() -> Network:
    """A network that would stop at once, and likes id OTHER next best, whatever it reads."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    config = Qwen3Config(
        vocab_size=SIZE, head_dim=8, intermediate_size=8, max_position_embeddings=32, **sizes
    )
    lm = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        lm.model.embed_tokens.weight.fill_(1.0)
        lm.lm_head.weight.zero_()
        lm.lm_head.weight[STOP], lm.lm_head.weight[OTHER] = 1.0, 0.5
    return inference_network(lm)


@pytest.mark.parametrize("least", [0, 1, 4])
def test_a_stop_is_legal_after_exactly_the_least_ids(least: int, eager: Network) -> None:
    rules = Rules(max_new=9, stop=frozenset({STOP}), min_new=least)
    wanted = [OTHER] * least + [STOP]
    requests = [Request([1, 2], rules), Request([1, 2], rules, beams=Beams(2))]
    assert [done.ids for done in Engine(eager).generate(requests)] == [wanted, wanted]


def test_temperature_divides() -> None:
    """Above 1 it brings ids closer together, and top-p then keeps more of them."""
    logits = np.log([0.6, 0.3, 0.1])
    assert np.allclose(filtered(logits, Sampling(2.0))[0], logits / 2)
    kept = [len(filtered(logits, Sampling(t, top_p=0.55))[0]) for t in (0.5, 1.0, 2.0)]
    assert kept == [1, 1, 2]


# Prompt -----------------------------------------------------------------------------------------------------


def test_speech_without_words_keeps_its_instruction(format: InstructFormat) -> None:
    """Given, it stands in the prompt; rows whose text is dropped have every wording that others have."""
    voice = [0] * 16
    said = {format.parse(format.wordless(voice, words)).instruction for words in TTS.instructions}
    assert said == set(TTS.instructions)
    clip = {"semantic": [1, 2, 3], "global": voice, "speaker": "a", "text": "hello there."}
    rows = RowBuilder([clip], format, Noise(drop_text=1.0))
    drawn = (format.parse(rows.row("tts", 0, np.random.default_rng(n)).ids.tolist()) for n in range(400))
    assert {parsed.instruction for parsed in drawn} == set(TTS.instructions)


# Codecs -----------------------------------------------------------------------------------------------------


def test_usage_of_a_code_book_is_a_slow_average() -> None:
    """decay times what it was, plus the rest times the counts of this batch."""
    torch.manual_seed(0)
    vq = FactorizedVQ(6, 4, 3, decay=0.9).train()
    vq.cluster_size.fill_(2.0)
    codes = vq(torch.randn(2, 6, 10))[1]
    counts = torch.bincount(codes.flatten(), minlength=4)
    assert torch.allclose(vq.cluster_size, 0.9 * 2.0 + 0.1 * counts) and counts.unique().numel() > 1


def test_free_nats_are_of_a_channel_not_of_a_moment() -> None:
    """A channel that says much now and then is not raised where it says nothing."""
    mean = torch.zeros(2, 2, 10)
    mean[:, 0, 0] = 4.0  # 8 nats in one frame of ten
    assert kl(mean, torch.zeros_like(mean), 0.5).item() == pytest.approx((0.8 + 0.5) / 2)


# Timbre -----------------------------------------------------------------------------------------------------


def test_the_quietest_tenth_says_nothing_about_a_voice() -> None:
    """Whatever stands in the pauses of either clip, the timbre is that of the rest."""
    generator = torch.Generator().manual_seed(0)
    real = CENTRE + 0.4 * torch.randn(20, 400, generator=generator)
    ours = 0.7 * (real - CENTRE) + CENTRE - 0.5
    wanted = measure(real, ours, math.log(FLOOR) / 2)
    assert any(wanted.gain) and any(wanted.shift)
    pauses = torch.arange(400) % 10 == 3
    kept = measure(real[:, ~pauses], ours[:, ~pauses], math.log(FLOOR) / 2)
    for level in (0.0, 3.0):
        held, drawn = real.clone(), ours.clone()
        held[:, pauses], drawn[:, pauses] = CENTRE - 3, CENTRE - 5 + level
        assert measure(held, drawn, math.log(FLOOR) / 2) == kept


@pytest.fixture(scope="module")
def format() -> InstructFormat:
    """The instruct format over the shipped tokenizer."""
    if not MINI.is_dir():
        pytest.skip("no shipped model")
    return InstructFormat(Vocab.from_file(MINI), TextTokenizer.from_file(MINI))


@pytest.fixture(scope="module")
def codec() -> BiCodec:
    if not MINI.is_dir():
        pytest.skip("no shipped model")
    found = GPA.from_pretrained(MINI, offline=True).codec
    assert isinstance(found, BiCodec)
    return found


def through_a_filter(name: str) -> np.ndarray:
    """A shipped recording with a voice that no ids have."""
    wav = audio.load(MINI / "golden" / name)
    return np.convolve(wav, [1.0, 0.0, 0.0, 0.7, 0.0, -0.5], "same").astype(np.float32) / 2


def test_a_timbre_is_measured_again_with_what_the_first_has_left(codec: BiCodec) -> None:
    wav, decoder = through_a_filter("audio_0.wav"), codec.model.decoder
    assert isinstance(decoder, HarmonicDecoder)
    tokens = codec.encode((wav, 16_000))

    def measured(before: Timbre | None) -> Timbre:
        ours = codec.decode(replace(tokens, timbre=before))
        real = np.pad(wav, (0, len(ours) - len(wav)))
        real = real * np.sqrt(np.square(ours).mean() / np.square(real).mean())
        mels: Tensor = decoder.log_mel(torch.from_numpy(np.stack([real, ours]).astype(np.float32)))
        return measure(mels[0], mels[1], math.log(FLOOR) / 2, codec.decoder_fingerprint(), before)

    once = measured(None)
    assert once != tokens.timbre and tokens.timbre == measured(once)


def test_a_voice_is_that_of_the_reference_s_first_seconds(codec: BiCodec) -> None:
    """What comes after the part that speaker ids are taken from plays no part in the timbre either."""
    seconds = codec.config.ref_segment_duration
    first = np.tile(through_a_filter("audio_0.wav"), 4)[: int(seconds * 16_000)]
    more = np.concatenate([first, audio.load(MINI / "golden" / "audio_1.wav")])
    (ids, timbre), (same, again) = (codec.voice_tokens((wav, 16_000)) for wav in (first, more))
    np.testing.assert_array_equal(ids, same)
    assert timbre == again
