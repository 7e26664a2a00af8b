"""Speech and conversions that follow words: strength 0 is without, a transcript leads, what cannot guide."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from conftest import speechlike
from gpa.errors import PromptError, UsageError
from gpa.models.gpa import GPA, requests_gpa
from gpa.models.gpa.requests_gpa import anchored, spoken


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
    guided = GPA(model.network, model.codec, tiny, config=config, voices=model.voices)
    assert (guided.tts("hello there", voice="anna", seed=3).tokens == led.tokens).all()
    assert (guided.tts("hello there", voice="anna", seed=3, gamma=0.0).wav == plain.wav).all()


def test_a_strength_that_cannot_guide_speech_is_refused(model: GPA) -> None:
    with pytest.raises(UsageError, match="gamma nan"):
        model.tts("hello", voice="anna", gamma=float("nan"))
    published: Any = SimpleNamespace(name="published")
    with pytest.raises(UsageError, match="instruct format"):
        spoken(published, [1], [1], 1.0)


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
    """Where no words are found nothing guides."""
    heard = "Hello there"
    monkeypatch.setattr(requests_gpa, "heard", lambda *_: heard)
    plain, told = (model.vc(source, voice="anna", seed=3, transcript=t) for t in (None, "hello there"))
    assert (model.vc(source, voice="anna", seed=3, transcript="asr").tokens == told.tokens).all()
    for nothing in ("\ufffd", ""):
        heard = nothing  # from now on
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
        anchored(published, [1], "hello", [1])
