"""The limiter: nothing above full scale, nothing changed far from it, the same in every chunking."""

import numpy as np
import pytest

from conftest import speechlike
from gpa.codec.limiter import HOLD, SMOOTH, Limiter, limited

RATE = 16000
REACH = round(SMOOTH * RATE) * 2 + round(HOLD * RATE)  # samples from a peak within which gains may change


def loud() -> np.ndarray:
    """Speech with three passages above full scale, the last at its end."""
    wav = speechlike(3.0)
    wav[8000:9000] *= 3
    wav[24000:24003] = [1.5, -2.0, 1.2]
    wav[-200:] *= 4
    return wav


def test_nothing_is_above_full_scale_and_no_sample_is_lost() -> None:
    wav = loud()
    out = limited(wav, RATE)
    assert np.abs(wav).max() > 1.5 and np.abs(out).max() <= 1.0
    assert out.shape == wav.shape and out.dtype == np.float32
    above = np.abs(wav) >= 1
    assert (np.abs(out[above]) > 0.4).all()  # turned down, not cut off


@pytest.mark.parametrize("gain", [0.5, 1 / 0.6])
def test_sound_below_full_scale_passes_bit_for_bit(gain: float) -> None:
    wav = (speechlike(1.0) * gain).clip(-1, 1)
    np.testing.assert_array_equal(limited(wav, RATE), wav)


def test_only_the_neighbourhood_of_a_peak_changes() -> None:
    wav = speechlike(1.0)
    wav[8000] = 2.0
    changed = np.flatnonzero(limited(wav, RATE) != wav)
    assert 8000 in changed and 8000 - REACH <= changed.min() and changed.max() <= 8000 + REACH


def test_the_gain_is_smooth() -> None:
    """A constant just below full scale shows the gain: one dip, without a corner."""
    wav = np.full(4000, 0.9, np.float32)
    wav[2000] = 1.8
    gain = np.delete(limited(wav, RATE), 2000) / 0.9
    assert gain.min() == pytest.approx(1 / 1.8, rel=1e-6) and np.abs(np.diff(gain)).max() < 0.02
    assert np.abs(np.diff(gain, 2)).max() < 1e-3


@pytest.mark.parametrize("size", [1, 7, 80, 640, 16000])
def test_chunks_change_no_bit(size: int) -> None:
    wav, limiter = loud(), Limiter(RATE)
    found = [limiter.push(wav[i : i + size]) for i in range(0, len(wav), size)] + [limiter.finish()]
    np.testing.assert_array_equal(np.concatenate(found), limited(wav, RATE))
    assert len(found[-1]) == 2 * round(SMOOTH * RATE)  # 5 ms of look-ahead


def test_clips_shorter_than_the_look_ahead() -> None:
    for n in (0, 1, 5, 79):
        wav = np.full(n, 1.5, np.float32)
        np.testing.assert_array_equal(limited(wav, RATE), np.ones(n, np.float32))
    assert np.abs(limited(np.array([np.finfo(np.float32).max], np.float32), RATE)) <= 1.0
