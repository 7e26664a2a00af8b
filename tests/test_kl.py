"""The latent codec: shapes and rates, statistics, files, what is refused, and that it can carry noise."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import speechlike
from gpa.codec import codec_kind, load_codec
from gpa.codec.base import LatentCodec
from gpa.codec.kl import KLCodec, LatentConfig, LatentModel, kl
from gpa.config import build
from gpa.errors import AudioError, CheckpointError, UsageError
from training import LATENT

DECODERS: dict[str, dict[str, Any]] = {"source-filter": {}, "istft": {"bands": 0, "n_fft": 1280}}


def make(**changes: Any) -> KLCodec:
    """A tiny codec with random weights and statistics that are not neutral."""
    torch.manual_seed(0)
    model = LatentModel(build(LatentConfig, {**LATENT, **changes}))
    torch.nn.init.normal_(model.mean)
    torch.nn.init.uniform_(model.spread, 0.5, 2.0)
    return KLCodec(model)


@pytest.fixture(params=DECODERS)
def codec(request: pytest.FixtureRequest) -> KLCodec:
    return make(**DECODERS[request.param])


@pytest.mark.parametrize("samples", [1, 640, 641, 16_000])
def test_a_frame_for_every_hop_begun(codec: KLCodec, samples: int) -> None:
    wav = torch.from_numpy(speechlike(1.0)[:samples])[None].repeat(2, 1)
    z = codec.encode(wav)
    assert z.shape == (2, codec.spec.channels, -(-samples // 640)) and z.dtype == torch.float32
    out = codec.decode(z)
    assert out.shape == (2, z.shape[2] * codec.spec.hop_length) and out.isfinite().all()
    assert not z.requires_grad and not out.requires_grad
    assert isinstance(codec, LatentCodec) and codec.spec.frame_rate == 25


def test_other_rates(codec: KLCodec) -> None:
    fast = make(bands=codec.config.bands, n_fft=codec.config.n_fft, hop_length=320)
    assert fast.encode(torch.zeros(1, 1600)).shape[2] == 5 and fast.spec.frame_rate == 50
    assert fast.decode(torch.zeros(1, 4, 5)).shape == (1, 1600)


def test_silence_and_wild_latents_give_finite_sound(codec: KLCodec) -> None:
    assert codec.encode(torch.zeros(1, 3200)).isfinite().all()
    torch.manual_seed(0)
    assert codec.decode(20 * torch.randn(1, 4, 12)).isfinite().all()


def test_rows_of_a_batch_do_not_meet(codec: KLCodec) -> None:
    wav = torch.from_numpy(np.stack([speechlike(0.4, seed=s) for s in range(3)]))
    alone = torch.cat([codec.encode(row[None]) for row in wav])
    torch.testing.assert_close(codec.encode(wav), alone, atol=1e-5, rtol=1e-4)


def test_statistics_make_channels_alike(codec: KLCodec) -> None:
    clips = [torch.from_numpy(speechlike(0.64, seed=s)) for s in range(4)]
    codec.model.measure(iter(clips))
    z = torch.cat([codec.encode(clip[None])[0] for clip in clips], 1)
    torch.testing.assert_close(z.mean(1), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std(1, unbiased=False), torch.ones(4), atol=1e-3, rtol=0)


def test_normalisation_does_not_reach_the_sound(codec: KLCodec) -> None:
    """Statistics are undone on the way back: what is decoded is the posterior's mean."""
    wav = torch.from_numpy(speechlike(0.64))[None]
    mean, _ = codec.model.posterior(wav)
    direct = codec.model.decoder.render(codec.model.frames(mean))
    torch.testing.assert_close(codec.decode(codec.encode(wav)), direct, atol=1e-4, rtol=1e-3)


def test_nats_of_known_gaussians() -> None:
    mean, log_variance = torch.full((2, 3, 5), 2.0), torch.zeros(2, 3, 5)
    assert kl(mean, log_variance) == pytest.approx(2.0)
    mean[:, 0] = 0  # N(0, 1) itself
    assert kl(mean, log_variance) == pytest.approx(4 / 3)
    assert kl(mean, log_variance, free_nats=0.6) == pytest.approx((0.6 + 4) / 3)
    free = mean.clone().requires_grad_()
    kl(free, log_variance, free_nats=9.0).backward()
    assert free.grad is not None and not free.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_saved_is_loaded(codec: KLCodec, dtype: torch.dtype, tmp_path: Path) -> None:
    codec.save_pretrained(tmp_path, dtype)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert codec_kind(tmp_path) == "latent"
    again = load_codec(tmp_path, "latent")
    assert isinstance(again, KLCodec) and again.config == codec.config
    wav = torch.from_numpy(speechlike(0.3))[None]
    close = 1e-6 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(again.encode(wav), codec.encode(wav), atol=close, rtol=close)
    assert (again.fingerprint() == codec.fingerprint()) == (dtype == torch.float32)
    again.save_pretrained(tmp_path / "again")
    assert load_codec(tmp_path / "again").fingerprint() == again.fingerprint()
    assert again.precision == dtype


def test_misfits_are_refused(codec: KLCodec, tmp_path: Path) -> None:
    codec.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    text = path.read_text()
    for change, message in [
        (('"channels": 4', '"channels": 5'), "weights do not fit"),
        (('"channels": 4', '"channel": 4'), r"unknown keys \['channel'\]"),
        (('"width": 16', '"width": "16"'), "width: expected int"),
        (('"model_type": "latent"', '"model_type": "mimi"'), "model_type 'mimi'"),
    ]:
        path.write_text(text.replace(*change))
        with pytest.raises(CheckpointError, match=message):
            KLCodec.from_pretrained(tmp_path)
    for wav in (torch.zeros(5), torch.zeros(1, 0), torch.zeros(1, 5, dtype=torch.int16)):
        with pytest.raises(AudioError, match=r"float wav \(B, S\)"):
            codec.encode(wav)
    with pytest.raises(AudioError, match="NaN"):
        codec.encode(torch.full((1, 640), torch.nan))
    for shape in ((1, 5, 3), (4, 3), (1, 4, 0)):
        with pytest.raises(UsageError, match=r"latents \(B, 4, T\)"):
            codec.decode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bands": 0}, "one of bands and n_fft"),
        ({"n_fft": 1280}, "one of bands and n_fft"),
        ({"hop_length": 500}, "hop_length is a multiple"),
        ({"frame": 100}, "frame is a multiple"),
        ({"channels": 0}, "channels: 0 is outside 1 to"),
        ({"sharpen": (0.5,)}, "sharpen"),
        ({"voiced_to": -1.0}, "voiced_to"),
    ],
)
def test_impossible_sizes_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(LatentConfig, {**LATENT, **change})
