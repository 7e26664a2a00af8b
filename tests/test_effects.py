"""Degradations: exact ratios, lengths, neutral settings, silence, and what each should remove."""

from collections.abc import Callable

import numpy as np
import pytest

from conftest import RATE, speechlike
from gpa.data import effects
from gpa.errors import UsageError


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return speechlike(1.0)


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def db(ratio: float) -> float:
    return 10 * np.log10(ratio)


def band_power(wav: np.ndarray, low: float, high: float) -> float:
    """Power between two frequencies (Hz), over all."""
    spectrum = np.abs(np.fft.rfft(wav)) ** 2
    f = np.fft.rfftfreq(len(wav), 1 / RATE)
    return float(spectrum[(f >= low) & (f < high)].sum() / spectrum.sum())


Degradation = Callable[[np.ndarray], np.ndarray]
WORKING: dict[str, Degradation] = {
    "reverberate": lambda x: effects.reverberate(x, effects.room(rng(), 0.4, 3.0)),
    "through_rate": lambda x: effects.through_rate(x, 6000),
    "through_odd_rate": lambda x: effects.through_rate(x, 11025),
    "band_limit": lambda x: effects.band_limit(x, 300, 3400),
    "equalise": lambda x: effects.equalise(x, np.array([6.0, -6.0, 3.0, 0.0, -9.0])),
    "compress": lambda x: effects.compress(x, 4.0, -10.0),
    "clip": lambda x: effects.clip(x, 12.0),
    "quantise": lambda x: effects.quantise(x, 5),
    "drop_packets": lambda x: effects.drop_packets(x, rng(), 0.3),
}
NEUTRAL: dict[str, Degradation] = {
    "reverberate": lambda x: effects.reverberate(x, effects.room(rng(), 0.0, 3.0)),
    "delay": lambda x: effects.reverberate(x, np.array([0.0, 0.0, 0.5, 0.0], np.float32)),
    "through_rate": lambda x: effects.through_rate(x, RATE),
    "band_limit": lambda x: effects.band_limit(x, 0, RATE / 2),
    "equalise": lambda x: effects.equalise(x, np.zeros(7)),
    "compress": lambda x: effects.compress(x, 1.0, -10.0),
    "clip": lambda x: effects.clip(x, 0.0),
    "quantise": lambda x: effects.quantise(x, 16),
    "drop_packets": lambda x: effects.drop_packets(x, rng(), 0.0),
    "at_ratio": lambda x: x + effects.at_ratio(x, np.ones_like(x), np.inf),
}


@pytest.mark.parametrize("samples", [640, 15_999, 16_001])
@pytest.mark.parametrize("name", WORKING)
def test_length_and_type_are_kept_and_something_changes(name: str, samples: int, speech: np.ndarray) -> None:
    wav = np.resize(speech, samples) * 0.9
    before = wav.copy()
    out = WORKING[name](wav)
    assert out.shape == wav.shape and out.dtype == np.float32 and np.isfinite(out).all()
    assert np.array_equal(wav, before), "the input is left alone"
    if samples > 640:
        assert not np.allclose(out, wav, atol=1e-4)
    assert np.array_equal(WORKING[name](wav), out), "equal seeds, equal sounds"


@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_settings_change_nothing(name: str, speech: np.ndarray) -> None:
    assert np.array_equal(NEUTRAL[name](speech), speech)


@pytest.mark.parametrize("name", WORKING)
def test_silence_stays_silent(name: str) -> None:
    out = WORKING[name](np.zeros(8000, np.float32))
    assert out.shape == (8000,) and np.abs(out).max() < 1e-6


@pytest.mark.parametrize("ratio_db", [-10.0, 0.0, 12.3, 30.0])
def test_ratio_is_exact(ratio_db: float, speech: np.ndarray) -> None:
    noise = effects.at_ratio(speech, effects.coloured_noise(rng(), len(speech), -3.0), ratio_db)
    assert db(effects.power(speech) / effects.power(noise)) == pytest.approx(ratio_db, abs=0.01)


def test_a_ratio_to_silence_means_nothing(speech: np.ndarray) -> None:
    silence = np.zeros_like(speech)
    assert not effects.at_ratio(silence, speech, 0.0).any()
    assert not effects.at_ratio(speech, silence, 0.0).any()
    with pytest.raises(UsageError, match="cut them alike"):
        effects.at_ratio(speech, speech[:-1], 0.0)


def test_stretch_repeats_and_starts_where_it_is_told() -> None:
    ramp = np.arange(10, dtype=np.float32)
    assert effects.stretch(ramp, 4, 0.5).tolist() == [5, 6, 7, 8]
    assert effects.stretch(ramp, 12, 0.8).tolist() == [8, 9, *range(10)]
    assert effects.stretch(ramp[:0], 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("slope", [-6.0, -3.0, 0.0])
def test_noise_has_its_colour(slope: float) -> None:
    noise = effects.coloured_noise(rng(), 1 << 17, slope)
    assert effects.power(noise) == pytest.approx(1.0, abs=1e-3)
    density = [band_power(noise, f, 2 * f) / f for f in (500, 1000, 2000, 4000)]
    assert np.diff([db(d) for d in density]) == pytest.approx([slope] * 3, abs=0.4)


@pytest.mark.parametrize(("t60", "direct_db"), [(0.2, 6.0), (0.6, -3.0)])
def test_a_room_decays_and_holds_the_energy_it_is_told(t60: float, direct_db: float) -> None:
    response = effects.room(rng(), t60, direct_db)
    assert response[0] == 1 and len(response) == round(t60 * RATE)
    tail = np.square(response[1:], dtype=np.float64)
    assert -db(float(tail.sum())) == pytest.approx(direct_db, abs=0.01)
    left = 10 * np.log10(np.cumsum(tail[::-1])[::-1] / tail.sum())  # Schroeder's integral
    late, later = (int(np.argmax(left < level)) for level in (-10, -30))
    assert 3 * (later - late) / RATE == pytest.approx(t60, rel=0.15)


def test_reverberation_keeps_level_and_time(speech: np.ndarray) -> None:
    response = np.concatenate(
        [np.zeros(500, np.float32), effects.room(rng(), 0.3, 6.0)]
    )  # a late direct sound
    wet = effects.reverberate(speech, response)
    assert effects.power(wet) == pytest.approx(effects.power(speech), rel=1e-4)
    lags = np.fft.irfft(np.fft.rfft(wet, 1 << 15) * np.conj(np.fft.rfft(speech, 1 << 15)))
    assert int(np.argmax(lags)) == 0
    with pytest.raises(UsageError, match="no room"):
        effects.reverberate(speech, np.zeros(10, np.float32))


def test_band_limits_remove_what_is_outside() -> None:
    white = effects.coloured_noise(rng(), 32_000)
    telephone = effects.band_limit(white, 300, 3400)
    assert band_power(telephone, 0, 230) < 1e-3 and band_power(telephone, 4200, 8001) < 1e-3
    assert band_power(telephone, 250, 4000) > 0.98
    for rate in (4000, 8000, 11025):
        narrow = effects.through_rate(white, rate)
        assert band_power(narrow, 1.05 * rate / 2, 8001) < 1e-3
        inside = band_power(white, 100, 0.8 * rate / 2) * effects.power(white)
        kept = band_power(narrow, 100, 0.8 * rate / 2) * effects.power(narrow)
        assert kept == pytest.approx(inside, rel=0.02)


def test_an_equaliser_gives_the_gains_it_is_told() -> None:
    gains = np.array([6.0, -12.0, 0.0, 9.0])  # at 1, 2, 4 and 8 kHz
    for f, gain in ((1000, 6.0), (2000, -12.0), (4000, 0.0)):
        tone = np.sin(2 * np.pi * f * np.arange(RATE) / RATE).astype(np.float32)
        out = effects.equalise(tone, gains)[4000:12_000]
        assert db(effects.power(out) / 0.5) == pytest.approx(gain, abs=0.2)


def test_a_compressor_brings_loud_and_quiet_nearer() -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE).astype(np.float32)
    tone[:8000] *= 0.1
    out = effects.compress(tone, 4.0, -20.0)
    steps = [db(effects.power(x[12_000:]) / effects.power(x[2000:6000])) for x in (tone, out)]
    assert steps[0] == pytest.approx(20.0, abs=0.1) and steps[1] == pytest.approx(6.0, abs=1.5)
    assert effects.power(out) == pytest.approx(effects.power(tone), rel=1e-4)
    with pytest.raises(UsageError, match="below 1"):
        effects.compress(tone, 0.5)


def test_clipping_and_rounding(speech: np.ndarray) -> None:
    out = effects.clip(speech, 6.0)
    assert np.abs(out).max() == pytest.approx(np.abs(speech).max() * 10 ** (-6 / 20), rel=1e-5)
    assert len(np.unique(effects.quantise(speech, 4))) <= 15
    fine, coarse = (effects.power(effects.quantise(speech, bits) - speech) for bits in (8, 4))
    assert db(effects.power(speech) / fine) > 30 > 20 > db(effects.power(speech) / coarse) > 5
    loud = effects.quantise(3 * speech, 8)
    assert np.abs(loud - 3 * speech).max() < 0.1


@pytest.mark.parametrize(("share", "burst"), [(0.1, 1.0), (0.3, 3.0)])
def test_packets_are_lost_as_often_and_as_long_as_told(share: float, burst: float) -> None:
    out = effects.drop_packets(np.ones(320 * 20_000, np.float32), rng(), share, burst).reshape(-1, 320)
    assert np.array_equal(out.min(1), out.max(1)), "whole packets"
    lost = out[:, 0] == 0
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], lost, [0]]))))[::2]
    assert lost.mean() == pytest.approx(share, abs=0.02) and runs.mean() == pytest.approx(burst, rel=0.15)
    for wrong in ((1.0, 2.0), (0.1, 0.5)):
        with pytest.raises(UsageError, match="impossible"):
            effects.drop_packets(out[0], rng(), *wrong)
