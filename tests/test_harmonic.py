"""The source-filter decoder and the pitch tracker it is trained with."""

import math

import pytest
import torch

from gpa.codec.bicodec_config import WaveConfig
from gpa.codec.harmonic import CENTRE, HarmonicDecoder, _centres
from gpa.codec.pitch import yin
from gpa.codec.source_filter import Excitation, interpolated
from gpa.nn.incremental import Series

RATE, HOP = 16_000, 320


@pytest.fixture(scope="module")
def decoder() -> HarmonicDecoder:
    torch.manual_seed(0)
    return HarmonicDecoder(WaveConfig(8, 16, hidden=32, layers=1, bands=20, hop_length=HOP), RATE).eval()


def tone(hz: float, seconds: float = 0.8) -> torch.Tensor:
    t = torch.arange(int(seconds * RATE)) / RATE
    return sum(torch.sin(2 * math.pi * hz * k * t) / k for k in range(1, 8))[None]  # type: ignore[return-value]


def pulses_of(decoder: HarmonicDecoder, f0: torch.Tensor) -> torch.Tensor:
    """Pulses (1, T * HOP) of voiced pitch (1, T)."""
    source = Series(interpolated(HOP), Excitation(decoder.noise, RATE))
    return source.push(torch.stack([f0, torch.ones_like(f0)], 1).double(), True)[:, 0]


@pytest.mark.parametrize("hz", [75, 110, 180, 300, 400])
def test_yin_finds_the_pitch_of_a_harmonic_tone(hz):
    f0, voiced = yin(tone(hz), HOP)
    assert f0.shape == voiced.shape == (1, 40)
    assert voiced[0, 3:-3].all()
    assert torch.allclose(f0[0, 3:-3], torch.tensor(float(hz)), rtol=0.02)


def test_yin_calls_noise_and_silence_unvoiced():
    generator = torch.Generator().manual_seed(0)
    _, noise = yin(torch.randn(1, RATE, generator=generator), HOP)
    _, silence = yin(torch.zeros(1, RATE), HOP)
    assert noise.mean() < 0.05 and not silence.any()


def test_unvoiced_frames_repeat_the_last_pitch():
    f0, voiced = yin(torch.cat([tone(200), torch.zeros(1, 12_800)], 1), HOP)
    assert not voiced[0, 45:].any()
    assert torch.allclose(f0[0, 45:], torch.tensor(200.0), rtol=0.02)


def test_render_gives_exactly_hop_samples_per_frame_and_is_a_function(decoder):
    x = torch.randn(2, 8, 13)
    wav = decoder.render(decoder(x))
    assert wav.shape == (2, 13 * HOP) and wav.isfinite().all()
    assert torch.equal(wav, decoder.render(decoder(x)))


def test_pulses_are_in_phase_after_a_minute(decoder):
    at = 60 * RATE
    pitch = torch.full((1, at // HOP), 150.0001)
    wav = pulses_of(decoder, pitch)[0, -RATE // 100 :]
    turns = torch.arange(at - RATE // 100 + 1, at + 1, dtype=torch.float64) * float(pitch[0, 0]) / RATE
    n = math.floor(RATE / 2 / 150.0001)
    expected = sum(torch.cos(2 * math.pi * k * turns) for k in range(1, n + 1)) / math.sqrt(n)
    torch.testing.assert_close(wav.double(), expected, atol=1e-3, rtol=0)


def test_the_rendered_pitch_is_the_predicted_one(decoder):
    frames = torch.zeros(1, 2 * 20 + 2, 60)
    frames[:, 20:40] = -20  # no noise
    frames[:, -2] = math.log(220) - CENTRE
    frames[:, -1] = 5.0
    f0, voiced = yin(decoder.render(frames), HOP)
    assert voiced[0, 5:-5].all()
    assert torch.allclose(f0[0, 5:-5], torch.tensor(220.0), rtol=0.02)
    frames[:, -1] = -5.0  # unvoiced: nothing but the noise that was turned off
    assert decoder.render(frames).abs().max() < 1e-3


def test_pulses_equal_the_sum_of_cosines(decoder):
    f0 = torch.full((1, 10), 150.0)
    pulses = pulses_of(decoder, f0)[0]
    phase = (torch.full((3200,), 150.0).double() / RATE).cumsum(0) * 2 * math.pi
    count = math.floor(RATE / 2 / 150)
    slow = sum(torch.cos(k * phase) for k in range(1, count + 1)) / math.sqrt(count)
    assert torch.allclose(pulses.double(), slow, atol=1e-4)


def test_gradients_reach_every_parameter(decoder):
    frames = decoder(torch.randn(1, 8, 12))
    f0, voiced = torch.full((1, 12), 120.0), torch.ones(1, 12)
    log_f0, logit = decoder.pitch(frames)
    (decoder.render(frames, f0, voiced).square().sum() + log_f0.sum() + logit.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())
    decoder.zero_grad()


@pytest.mark.parametrize("source", ["noise", "pulses"])
def test_the_envelope_distance_is_least_at_what_is_rendered(decoder, source):
    """Its slow twin is rendering: the sound of the frames, measured, has the level that they stand for."""
    torch.manual_seed(0)
    frames = torch.full((1, 2 * 20 + 2, 120), -20.0)
    bands = slice(20, 40) if source == "noise" else slice(0, 20)
    shape = torch.randn(1, 20, 1) + torch.sin(torch.arange(120) / 9.0)
    frames[:, bands] = 2.0 + 0.5 * shape
    f0, voiced = torch.full((1, 120), 110.0), torch.full((1, 120), float(source == "pulses"))
    sound = decoder.render(frames, f0, voiced)

    def distance(shift: float) -> float:
        moved = frames.clone()
        moved[:, bands] += shift
        return float(decoder.envelope_distance(moved, voiced, sound))

    here = distance(0.0)
    assert here < 0.3 and here < min(distance(-0.25), distance(0.25))
    assert distance(1.0) == pytest.approx(1.0, abs=0.15) and distance(-1.0) == pytest.approx(1.0, abs=0.15)


def test_pulses_count_only_where_the_voice_sounds(decoder):
    frames = torch.full((1, 2 * 20 + 2, 40), -20.0)
    frames[:, :20] = 2.0
    silence = torch.zeros(1, 40 * HOP)
    assert decoder.envelope_distance(frames, torch.zeros(1, 40), silence) == 0
    assert decoder.envelope_distance(frames, torch.ones(1, 40), silence) > 1


def test_sharpening_lifts_what_stands_out_and_leaves_pitch(decoder):
    sharp = HarmonicDecoder(
        WaveConfig(8, 16, hidden=32, layers=1, bands=20, hop_length=HOP, sharpen=(0.5, 0.5)), RATE
    )
    flat = torch.zeros(2, 2 * 20 + 2, 30)
    assert torch.equal(sharp.sharpener().push(flat, True), flat)
    frames = flat.clone()
    frames[0, 7, 12] = 1.0  # a harmonic band
    frames[1, 27, 12] = 1.0  # a noise band
    frames[:, -2:] = torch.randn(2, 2, 30)
    out = sharp.sharpener().push(frames, True)
    assert torch.equal(out[:, -2:], frames[:, -2:])
    assert torch.equal(decoder.sharpener().push(frames, True), frames)
    peak = (1 + 0.5 * (1 - 1 / 5)) * (1 + 0.5 * (1 - 1 / 13))
    assert float(out[0, 7, 12]) == pytest.approx(peak) and float(out[1, 27, 12]) == pytest.approx(peak)
    assert out[0, 7, 11] < 0 and out[0, 8, 12] < 0  # its neighbours give way
    assert not out[0, 20:40].any() and not out[1, :20].any()  # sources do not mix
    assert not torch.equal(sharp.render(frames), decoder.render(frames))
    f0, voiced = torch.full((2, 30), 120.0), torch.ones(2, 30)
    assert torch.equal(
        sharp.render(frames, f0, voiced), decoder.render(frames, f0, voiced)
    )  # training does not


def test_voiced_sound_is_pulses_alone_up_to_a_frequency(decoder):
    """Noise becomes pulses of the same power there; above it, and where nothing is voiced, all stays."""
    torch.manual_seed(0)
    pure = HarmonicDecoder(
        WaveConfig(8, 16, hidden=32, layers=1, bands=20, hop_length=HOP, voiced_to=3000.0), RATE
    )
    frames, voiced = torch.randn(1, 42, 6), torch.tensor([[1.0, 1, 1, 0, 0, 0]])
    (h, n), (h2, n2) = decoder._sources(frames, voiced), pure._sources(frames, voiced)
    low = _centres(20, RATE) < 1000
    high = _centres(20, RATE) > 6000
    assert low.any() and high.any()
    assert (n2[0, low, :3] < n[0, low, :3] - 2).all() and (h2[0, low, :3] > h[0, low, :3]).all()
    torch.testing.assert_close(h2[0, high], h[0, high], atol=1e-2, rtol=0)
    torch.testing.assert_close(n2[..., 3:], n[..., 3:])
    torch.testing.assert_close(h2[..., 3:], h[..., 3:])
    power = [(2 * a).exp() / 2 + (2 * b).exp() for a, b in ((h, n), (h2, n2))]
    torch.testing.assert_close(power[0], power[1])


def test_a_hoarse_voice_is_cleared(decoder):
    """A low voice half of noise: what is left beside its harmonics is a small part of what was."""
    pure = HarmonicDecoder(
        WaveConfig(8, 16, hidden=32, layers=1, bands=20, hop_length=HOP, voiced_to=3000.0), RATE
    )
    frames = torch.zeros(1, 42, 60)
    frames[:, 12:20] = frames[:, 32:40] = -20  # nothing above 2 kHz
    frames[:, -2], frames[:, -1] = math.log(200) - CENTRE, 5.0
    beside = []
    for one in (decoder, pure):
        spectrum = torch.fft.rfft(one.render(frames)[0, 4800:12_800]).abs().square()  # 2 Hz a bin
        harmonics = torch.zeros(len(spectrum), dtype=torch.bool)
        for k in range(1, 11):
            harmonics[100 * k - 5 : 100 * k + 6] = True
        beside.append(float(spectrum[:1100][~harmonics[:1100]].sum() / spectrum[:1100].sum()))
    assert beside[0] > 0.2 and beside[1] < 0.1 * beside[0]
