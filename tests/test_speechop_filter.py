"""A recording filtered by what the network makes of it: limits, exactness, lengths, when it is asked for."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from conftest import speechlike
from gpa.config import build
from gpa.errors import AudioWarning, UsageError
from gpa.models.speechop.configuration_speechop import Filter
from gpa.models.speechop.filter_speechop import filtered
from gpa.models.speechop.pipeline_speechop import SpeechOp
from tiny_speechop import tiny_speechop

RATE = 16000
SPEECH = speechlike(1.3, seed=0)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AudioWarning)
        yield


def hiss(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


@pytest.mark.parametrize("samples", [1, 2, 159, 160, 641, 20001])
@pytest.mark.parametrize("rate", [16000, 24000, 44100])
def test_what_is_all_wanted_stays(samples: int, rate: int) -> None:
    wav = hiss(samples)
    same = filtered(wav, wav, rate, Filter())
    assert same.shape == wav.shape and same.dtype == np.float32
    np.testing.assert_allclose(same, wav, atol=1e-5)
    np.testing.assert_allclose(filtered(wav, 3 * wav, rate, Filter()), wav, atol=1e-5)  # nothing is raised


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("floor", [-10.0, -20.0, -40.0])
def test_what_is_not_wanted_is_left_at_the_floor(floor: float, power: float) -> None:
    wav = hiss(20000)
    rest = filtered(wav, np.zeros_like(wav), RATE, Filter(floor=floor, power=power))
    np.testing.assert_allclose(rest, wav * 10 ** (floor / 20), atol=1e-5)


def test_noise_goes_and_speech_stays() -> None:
    """With the true speech as what was made, the error falls by 6 dB, and by more with a lower floor."""
    noise = 0.5 * hiss(len(SPEECH))
    mixture = SPEECH + noise

    def error(**settings: Any) -> float:
        return float(np.square(filtered(mixture, SPEECH, RATE, Filter(**settings)) - SPEECH).sum())

    before = float(np.square(noise).sum())
    assert error() < before / 4 and error(floor=-6.0) < before / 2 and error() < error(floor=-6.0)


def test_the_usual_filter_acts_in_pauses_alone() -> None:
    """Where the result speaks the recording stays, however quiet the result; further off it does not."""
    noise = hiss(3 * RATE)
    made = np.zeros_like(noise)
    made[RATE : 2 * RATE] = 0.05 * noise[RATE : 2 * RATE]
    kept, whole = (filtered(noise, made, RATE, Filter(), strong) for strong in (False, True))
    inside, outside = slice(RATE + 800, 2 * RATE - 800), slice(0, RATE // 2)
    np.testing.assert_allclose(kept[inside], noise[inside], atol=1e-5)
    np.testing.assert_allclose(kept[outside], 0.1 * noise[outside], atol=1e-5)
    assert np.abs(whole[inside]).max() < 0.3 * np.abs(noise[inside]).max()


def test_the_gain_is_the_amplitudes_ratio_to_the_power() -> None:
    wav = hiss(20000)
    for power in (1.0, 2.0):
        found = filtered(wav, 0.5 * wav, RATE, Filter(power=power))
        np.testing.assert_allclose(found, wav * 0.5**power, atol=1e-5)


def test_silence_and_extremes_are_finite() -> None:
    silence = np.zeros(3000, np.float32)
    assert not filtered(silence, silence, RATE, Filter()).any()
    assert not filtered(silence, hiss(3000), RATE, Filter()).any()
    assert np.isfinite(filtered(hiss(3000), 1e6 * hiss(3000, 1), RATE, Filter(frames=7, power=2.0))).all()


@pytest.fixture(scope="module")
def op() -> SpeechOp:
    return tiny_speechop(filter={"tasks": ["enhance"], "floor": -30.0})


def test_tasks_are_filtered_where_settings_say_so(op: SpeechOp) -> None:
    noisy, voice = (SPEECH, RATE), (speechlike(2.2, seed=3), RATE)

    def made(which: bool | None) -> dict[str, np.ndarray]:
        parts = op.separate(noisy, filtered=which)
        return {
            "enhance": op.enhance(noisy, filtered=which).wav,
            "extract": op.extract(noisy, voice, filtered=which).wav,
            "speech": parts.speech.wav,
            "background": parts.background.wav,
        }

    usual, yes, no = made(None), made(True), made(False)
    for task, wav in usual.items():
        assert np.array_equal(wav, (yes if task == "enhance" else no)[task])
        assert not np.allclose(yes[task], no[task], atol=1e-3)
        whole = filtered(SPEECH, no[task], RATE, op.config.filter, strong=task != "enhance")
        np.testing.assert_allclose(yes[task], whole, atol=1e-4)
    strong = op.enhance(noisy, strong=True).wav
    np.testing.assert_allclose(
        strong, filtered(SPEECH, no["enhance"], RATE, op.config.filter, strong=True), atol=1e-4
    )
    assert not np.allclose(strong, usual["enhance"], atol=1e-3)
    assert np.array_equal(op.enhance(noisy, "Some words.", gamma=0).wav, usual["enhance"])


@pytest.mark.parametrize(
    "wrong", [{"bands": 1}, {"frames": 2}, {"frames": 0}, {"floor": 3.0}, {"power": 0.0}, {"tasks": ["tts"]}]
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        build(Filter, wrong)
