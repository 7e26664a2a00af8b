"""Generation by several prompts: the batch equals its branches alone, strength 0 the base; conversions."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gpa.models.gpa.generation_gpa import Cached, Rules, Sampling, generate, logits_of
from gpa.models.gpa.guided_gpa import PLAUSIBLE, Composed, anchored, spoken
from transformers import Qwen3ForCausalLM

from conftest import speechlike
from gpa.compose import Branch, Guided, Plan, Term, compose_logits, given
from gpa.errors import PromptError, UsageError
from gpa.models.gpa import GPA
from gpa.models.gpa.outputs_gpa import Transcript
from test_generation import LEGAL, PROMPT, SIZE, STOP
from test_generation import lm as lm  # the tiny network, a fixture

BASE, WORDS, NULL = Branch("vc", given(source="s")), Branch("tts", given(text="w")), Branch("tts")
PROMPTS = {BASE: PROMPT, WORDS: [3, 4, 5, 6, 7, 8, 9, 21], NULL: [3, 22]}  # of three lengths
RULES = Rules(max_new=20, stop=frozenset({STOP}), legal=LEGAL[:2])
WARM = Sampling(temperature=1.5)


def plan(gamma: float) -> Plan:
    return Plan(Guided("vc", BASE.given), (Term("tts", WORDS.given, gamma=gamma),))


def test_the_batch_equals_its_branches_alone(lm: Qwen3ForCausalLM) -> None:
    """The slow twin: every branch from the start, by itself, composed afterwards."""
    source, ids = Composed(lm, plan(1.3), PROMPTS, RULES), [12, 17, 11]
    legal = torch.tensor([*LEGAL[0], STOP])
    for n in range(len(ids) + 1):
        made = source(ids[:n])
        alone = {branch: logits_of(lm, [*prompt, *ids[:n]])[-1][legal] for branch, prompt in PROMPTS.items()}
        expected = compose_logits(plan(1.3), alone, eos=len(legal) - 1, plausibility=PLAUSIBLE)
        torch.testing.assert_close(made[legal], expected, atol=1e-5, rtol=1e-5)
        assert made.isfinite().sum() == len(legal) and made.shape == (SIZE,)


@pytest.mark.parametrize("seed", range(5))
def test_strength_0_is_the_base_bit_for_bit_and_asks_for_nothing_else(
    lm: Qwen3ForCausalLM, seed: int
) -> None:
    source = Composed(lm, plan(0.0), PROMPTS, RULES)
    assert source.branches == (BASE,)
    made = generate(lm, PROMPT, RULES, WARM, seed=seed, logits=source)
    assert made == generate(lm, PROMPT, RULES, WARM, seed=seed)
    legal = torch.tensor([*LEGAL[0], STOP])
    assert torch.equal(Composed(lm, plan(0.0), PROMPTS, RULES)([])[legal], Cached(lm, PROMPT)([])[legal])


def test_words_change_what_comes_and_not_when_it_may_stop(lm: Qwen3ForCausalLM) -> None:
    legal = torch.tensor([*LEGAL[0], STOP])
    base = Cached(lm, PROMPT)([])[legal].softmax(-1)
    made = Composed(lm, plan(2.0), PROMPTS, RULES)([])[legal].softmax(-1)
    torch.testing.assert_close(made[-1], base[-1])
    assert (made - base).abs().max() > 0.01


def test_a_transcript_that_leaves_no_room_is_refused(lm: Qwen3ForCausalLM) -> None:
    with pytest.raises(PromptError, match="room for 4 ids, 20 may be needed"):
        Composed(lm, plan(1.0), {**PROMPTS, WORDS: [3] * 60}, RULES)


# Speech ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tiny: Path) -> GPA:
    return GPA.from_pretrained(tiny, device="cpu")


def test_speech_follows_its_text(model: GPA, tiny: Path) -> None:
    """Strength 0 is the prompt alone; a checkpoint says its own strength, and a call may say another."""
    plain = model.tts("hello there", voice="anna", seed=3)
    assert model.config.gamma == 0
    led = model.tts("hello there", voice="anna", seed=3, gamma=8.0)
    again = model.tts("hello there", voice="anna", seed=3, gamma=8.0)
    assert led.tokens.tolist() == again.tokens.tolist() != plain.tokens.tolist()
    config = replace(model.config, gamma=8.0)
    guided = GPA(model.lm, model.codec, tiny, config=config, voices=model.voices)
    assert (guided.tts("hello there", voice="anna", seed=3).tokens == led.tokens).all()
    assert (guided.tts("hello there", voice="anna", seed=3, gamma=0.0).wav == plain.wav).all()


def test_a_strength_that_cannot_guide_speech_is_refused(model: GPA) -> None:
    with pytest.raises(UsageError, match="gamma nan"):
        model.tts("hello", voice="anna", gamma=float("nan"))
    published: Any = SimpleNamespace(name="published")
    with pytest.raises(UsageError, match="instruct format"):
        spoken(model.lm, published, [1], [1], RULES, 1.0)


# Conversions ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source() -> tuple[np.ndarray, int]:
    return speechlike(1.2), 16_000


def test_a_conversion_follows_a_transcript(model: GPA, source: tuple[np.ndarray, int]) -> None:
    plain = model.vc(source, voice="anna", seed=3)
    same = model.vc(source, voice="anna", seed=3, transcript="hello there", gamma=0.0)
    assert (plain.tokens == same.tokens).all() and (plain.wav == same.wav).all()
    led = model.vc(source, voice="anna", seed=3, transcript="hello there", gamma=8.0)
    again = model.vc(source, voice="anna", seed=3, transcript="hello there", gamma=8.0)
    assert led.tokens.tolist() == again.tokens.tolist() != plain.tokens.tolist()


def test_a_conversion_follows_what_the_model_itself_hears(
    model: GPA, source: tuple[np.ndarray, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Untrained, it hears no words; then nothing guides."""
    plain, told = (model.vc(source, voice="anna", seed=3, transcript=t) for t in (None, "hello there"))
    monkeypatch.setattr(model, "asr", lambda sound: Transcript("Hello there", np.zeros(0), "stop"))
    assert (model.vc(source, voice="anna", seed=3, transcript="asr").tokens == told.tokens).all()
    monkeypatch.setattr(model, "asr", lambda sound: Transcript("\ufffd", np.zeros(0), "stop"))
    assert (model.vc(source, voice="anna", seed=3, transcript="asr").tokens == plain.tokens).all()


def test_transcripts_that_cannot_guide_are_refused(model: GPA, source: tuple[np.ndarray, int]) -> None:
    with pytest.raises(UsageError, match="option of mode lm"):
        model.vc(source, voice="anna", mode="codec", transcript="hello")
    with pytest.raises(UsageError, match="gamma nan"):
        model.vc(source, voice="anna", transcript="hello", gamma=float("nan"))
    with pytest.raises(PromptError):
        model.vc(source, voice="anna", transcript="  ")
    with pytest.raises(PromptError, match="room"):
        model.vc(source, voice="anna", transcript="hello there " * 400)
    long = np.tile(source[0], 40), source[1]
    with pytest.raises(UsageError, match="parts"):
        model.vc(long, voice="anna", transcript="hello")
    published: Any = SimpleNamespace(name="published")
    with pytest.raises(UsageError, match="instruct format"):
        anchored(model.lm, published, [1], "hello", [1], RULES)
