"""Where speech is: steady noise has none, pushes of any size give the same stretches, nothing is lost."""

import time

import numpy as np
import pytest

from conftest import speechlike
from gpa.models.gpa.activity_gpa import Segmenter, Stretch, may_be_speech

RATE = 16_000


def stretches(
    wav: np.ndarray, push: int = 1 << 30, seconds: float = 8.0, pause: float = 0.8
) -> list[Stretch]:
    segmenter = Segmenter(RATE, seconds, hop=640, pause=pause)
    found = [each for i in range(0, len(wav), push) for each in segmenter.push(wav[i : i + push])]
    return found + segmenter.finish()


def quiet(seconds: float, level: float = 0.0) -> np.ndarray:
    noise = np.random.default_rng(7).standard_normal(int(seconds * RATE)) * level
    return noise.astype(np.float32)


def spans(found: list[Stretch]) -> list[tuple[float, float]]:
    return [(s.begin / RATE, (s.begin + len(s.wav)) / RATE) for s in found if s.speech]


@pytest.mark.parametrize("seed", range(3))
def test_stretches_depend_on_the_sound_and_not_on_how_it_is_pushed(seed: int) -> None:
    """Pieces of speech, pauses and noise of random lengths."""
    g = np.random.default_rng(seed)
    parts = [
        piece
        for n in range(6)
        for piece in (speechlike(g.uniform(0.3, 9.0), seed=n), quiet(g.uniform(0.1, 4.0), 1e-3))
    ]
    wav = np.concatenate(parts)
    whole = stretches(wav)
    np.testing.assert_array_equal(np.concatenate([each.wav for each in whole]), wav)
    assert [each.begin for each in whole] == np.cumsum([0] + [len(each.wav) for each in whole])[:-1].tolist()
    assert all(each.begin % 640 == 0 and len(each.wav) <= 8 * RATE for each in whole)
    assert any(each.speech for each in whole) and not all(each.speech for each in whole)
    for push in (160, 1001, 50_000):
        pushed = stretches(wav, push)
        assert [(e.begin, e.speech, len(e.wav)) for e in pushed] == [
            (e.begin, e.speech, len(e.wav)) for e in whole
        ]


def test_an_ordinary_clip_stays_whole() -> None:
    wav = np.concatenate([quiet(0.4), speechlike(2.0), quiet(0.5), speechlike(2.0, seed=2), quiet(0.4)])
    assert [each.speech for each in stretches(wav)] == [True]
    assert len(stretches(wav[: RATE // 25])) == 1


def test_a_pause_ends_a_stretch_and_is_skipped_but_for_its_ends() -> None:
    wav = np.concatenate([speechlike(2.0), quiet(3.0, 1e-4), speechlike(2.0, seed=2)])
    (a, b), (c, d) = spans(stretches(wav))
    assert a == 0 and d == 7.0 and 2.0 <= b <= 2.5 and 4.5 <= c <= 5.0
    assert len(spans(stretches(wav, pause=4.0))) == 1
    assert sum(b - a for a, b in spans(stretches(wav, pause=4.0))) == 7.0


def test_long_speech_is_cut_where_it_is_quietest() -> None:
    wav = np.concatenate([speechlike(6.0), quiet(0.3), speechlike(6.0, seed=2)])
    (_, cut), (again, _) = spans(stretches(wav))
    assert cut == again and 6.0 < cut < 6.3
    assert all(len(each.wav) <= 2 * RATE for each in stretches(speechlike(11.0), seconds=2.0))
    assert min(len(each.wav) for each in stretches(speechlike(2.02), seconds=2.0)) >= 0.4 * RATE


def hum() -> np.ndarray:
    t = np.arange(20 * RATE) / RATE
    return sum(0.05 / k * np.sin(2 * np.pi * 50 * k * t + k) for k in range(1, 9)).astype(np.float32)


def fan() -> np.ndarray:
    t = np.arange(20 * RATE) / RATE
    return (quiet(20.0, 0.05) * (1 + 0.2 * np.sin(2 * np.pi * 11 * t))).astype(np.float32)


def clicks() -> np.ndarray:
    wav = quiet(20.0, 1e-4)
    wav[:: RATE // 2] += 0.5
    return wav


NOISES = {
    "digital silence": quiet(20.0),
    "dither": quiet(20.0, 3e-5),
    "hiss": quiet(20.0, 0.01),
    "loud": quiet(20.0, 0.3),
    "hum": hum(),
    "fan": fan(),
    "brown": np.cumsum(quiet(20.0, 1e-3)).astype(np.float32),
    "clicks": clicks(),
}


@pytest.mark.parametrize("name", NOISES)
def test_silence_and_steady_noise_hold_no_speech(name: str) -> None:
    assert not any(each.speech for each in stretches(NOISES[name]))


@pytest.mark.parametrize("level", [1.0, 0.1, 0.01])
def test_speech_is_found_at_any_level_and_in_noise(level: float) -> None:
    said = speechlike(2.0) * level
    wav = np.concatenate([quiet(4.0), said, quiet(4.0)]) + quiet(10.0, 0.05 * level)
    ((a, b),) = spans(stretches(wav.astype(np.float32)))
    assert 3.0 <= a <= 4.1 and 5.9 <= b <= 7.0


def test_an_hour_of_silence_takes_seconds_and_little_memory() -> None:
    segmenter, began, held = Segmenter(RATE, 8.0), time.perf_counter(), 0
    block, total = quiet(60.0), 0
    for _ in range(60):
        total += sum(len(each.wav) for each in segmenter.push(block))
        held = max(held, len(segmenter._wav))
    total += sum(len(each.wav) for each in segmenter.finish())
    assert total == 3600 * RATE and held < 15 * RATE
    assert time.perf_counter() - began < 40


def test_a_held_tone_is_not_like_speech_and_speech_after_it_is() -> None:
    t = np.arange(4 * RATE) / RATE
    swelling = 0.3 * np.sin(2 * np.pi * 330 * t) * (0.2 + (t % 1))
    siren = 0.3 * np.sin(2 * np.pi * (600 * t + 40 * np.sin(2 * np.pi * t)))
    for rate in (RATE, 24_000):
        assert may_be_speech(speechlike(2.0), rate)
    assert not may_be_speech(swelling, RATE) and not may_be_speech(siren, RATE)
    assert may_be_speech(np.concatenate([swelling, speechlike(2.0)]), RATE)
