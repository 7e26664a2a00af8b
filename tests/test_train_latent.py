"""The latent family: what a batch holds, which losses count when, and what an export is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpa import config
from gpa.codec.kl import KLCodec
from gpa.data import feature_cache
from gpa.errors import UsageError
from gpa.train.families.latent import LatentFamily, LatentModule, LatentRecipe
from gpa.train.loop import train
from training import LATENT, latent_tree, write_encoder, write_manifest

ISTFT = {**LATENT, "bands": 0, "n_fft": 1280}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with encoder, manifest and feature cache."""
    root = tmp_path_factory.mktemp("data")
    manifest, encoder = write_manifest(root), write_encoder(root / "encoder")
    feature_cache.main([str(manifest), "--encoder", str(encoder), "-o", str(root / "cache")])
    return root


def family(folder: Path, **changes: Any) -> LatentFamily:
    return LatentFamily(config.build(LatentRecipe, latent_tree(folder / "cache", **changes)))


def module_of(made: LatentFamily) -> LatentModule:
    torch.manual_seed(0)
    module = made.build()
    assert isinstance(module, LatentModule)
    return module


def first_losses(made: LatentFamily, step: int = 0) -> tuple[list[str], dict[str, float]]:
    """Optimisers and metrics of a step."""
    losses = list(made.losses(module_of(made), made.batch(step), step))
    return [loss.optimizer for loss in losses], losses[0].metrics


def test_batches_are_crops_clean_and_spoilt(folder: Path) -> None:
    tree = latent_tree(folder / "cache")
    clean, mixed = (family(folder, data={**tree["data"], "noisy": share}) for share in (0.0, 0.5))
    cache, batch, again = clean.cache, mixed.batch(3), mixed.batch(3)
    assert batch.wav.shape == (4, 8 * 640) and batch.f0.shape == batch.voiced.shape == (4, 16)
    assert all(torch.equal(getattr(batch, name), getattr(again, name)) for name in vars(batch))
    assert not torch.equal(batch.wav, mixed.batch(4).wav)
    sounds = [cache.wav(i, at, at + 16) for i in clean.rows for at in range(cache.rows[i]["frames"] - 15)]

    def known(wavs: torch.Tensor) -> int:
        return sum(any(np.array_equal(wav.numpy(), sound) for sound in sounds) for wav in wavs)

    assert known(clean.batch(0).wav) == 4
    found = sum(known(mixed.batch(step).wav) for step in range(5))
    assert 3 < found < 17
    assert torch.equal(batch.first(2).wav, batch.wav[:2]) and len(batch.first(0).wav) == 4


def test_features_are_read_when_they_are_asked_for(folder: Path) -> None:
    lazy, whole = (feature_cache.FeatureCache(folder / "cache", sound_only=only) for only in (True, False))
    assert "_features" not in vars(lazy) and "_features" in vars(whole)
    np.testing.assert_array_equal(lazy.features(1), whole.features(1))


def test_losses_join_at_their_steps(folder: Path) -> None:
    late = {"render_from": 2, "rendered": 2, "adversarial_from": 4}
    made = family(folder, weights=late)
    assert first_losses(made, 0)[1].keys() == {"frames", "pitch", "envelope", "kl"}
    assert first_losses(made, 2)[1].keys() == {"frames", "pitch", "envelope", "kl", "mel"}
    names, found = first_losses(made, 4)
    assert names == ["generator", "discriminator"] and {"adversarial", "matching"} <= found.keys()
    istft = family(folder, model=ISTFT, weights=late)
    assert first_losses(istft, 0)[1].keys() == {"frames", "kl", "mel"}


def test_what_a_recogniser_hears_can_be_learnt_from(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"data\.encoder"):
        family(folder, weights={"asr_features": 1.0})
    tree = latent_tree(folder / "cache")["data"]
    made = family(folder, weights={"asr_features": 1.0}, data={**tree, "encoder": str(folder / "encoder")})
    assert first_losses(made)[1]["asr_features"] > 0
    wav = made.batch(0).wav
    assert made.asr_features(wav, wav) == 0 and made.asr_features.scale is not None


@pytest.mark.parametrize("model", [LATENT, ISTFT], ids=["source-filter", "istft"])
def test_it_learns_clean_and_noisy(model: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    schedule = {"steps": 20, "eval_every": 20, "save_every": 20, "threads": 1}
    made = family(folder, model=model, train=schedule, optim={"lr": 1e-2, "warmup": 2})
    before = made.evaluate(module_of(made).eval())
    recipe = made.recipe
    torch.manual_seed(recipe.train.seed)
    module = train(made, recipe.train, recipe.optim, tmp_path, progress=False)
    after = made.evaluate(module.eval())
    assert {"mel_clean", "mel_noisy", "kl_clean", "used_channels"} <= after.keys()
    for name in ("mel_clean", "mel_noisy"):
        assert after[name] < 0.9 * before[name], name
    codec = KLCodec.from_pretrained(tmp_path / "export")
    crops = torch.cat([made.batch(step).wav for step in range(8)])
    z = codec.encode(crops).movedim(1, 0).flatten(1)
    torch.testing.assert_close(z.mean(1), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(z.std(1), torch.ones(4), atol=1e-2, rtol=0)


def test_training_goes_on_from_an_export(folder: Path, tmp_path: Path) -> None:
    first = family(folder)
    module = module_of(first)
    first.export(module, tmp_path)
    codec = KLCodec.from_pretrained(tmp_path)
    assert not module.codec.mean.any() and codec.model.mean.any(), "an export leaves the module alone"
    second = family(folder, model={}, init=str(tmp_path), weights={"adversarial_from": 0})
    again = module_of(second).codec.state_dict()
    assert all(torch.equal(t, again[name]) for name, t in codec.model.state_dict().items())
    assert second.config == codec.config


def test_frozen_latents_stay_what_a_model_of_them_knows(folder: Path, tmp_path: Path) -> None:
    first = family(folder)
    first.export(module_of(first), tmp_path / "before")
    schedule = {"steps": 3, "eval_every": 3, "save_every": 3, "threads": 1}
    changes = {"model": {}, "init": str(tmp_path / "before"), "train": schedule, "freeze_latents": True}
    made = family(folder, **changes, data={**latent_tree(folder / "cache")["data"], "jitter": 0.5})
    assert "kl" not in first_losses(made)[1]
    train(made, made.recipe.train, made.recipe.optim, tmp_path / "run", progress=False)
    before, after = (KLCodec.from_pretrained(tmp_path / name) for name in ("before", "run/export"))
    wav = made.batch(0).wav
    assert torch.equal(before.encode(wav), after.encode(wav))
    assert not torch.equal(before.decode(before.encode(wav)), after.decode(after.encode(wav)))


def test_jitter_is_a_share_of_the_spread(folder: Path) -> None:
    made = family(folder, data={**latent_tree(folder / "cache")["data"], "jitter": 0.5})
    codec = module_of(made).codec
    codec.spread.mul_(3)
    torch.manual_seed(0)
    mean, sure = torch.zeros(500, 4, 40), torch.full((500, 4, 40), -40.0)
    widths = made._drawn(codec, mean, sure).std((1, 2)) / 3
    assert 0 < widths.min() < 0.05 and 0.4 < widths.max() < 0.6


def test_unusable_recipes_are_refused(folder: Path) -> None:
    tree = latent_tree(folder / "cache")["data"]
    for change, message in [
        ({"model": {}}, "`init`"),
        ({"model": {**LATENT, "frame": 160, "hop_length": 640}}, "frame of 320"),
        ({"data": {**tree, "noisy": 2.0}}, "data.noisy"),
        ({"data": {**tree, "jitter": -1.0}}, "data.jitter"),
        ({"freeze_latents": True}, "freeze_latents"),
        ({"data": {**tree, "crop_latents": 999}}, "crop_latents"),
        ({"degrade": {"order": ["echo"]}}, "unknown degradations"),
        ({"model": {**LATENT, "widht": 3}}, r"model: unknown keys \['widht'\]"),
    ]:
        with pytest.raises(UsageError, match=message):
            family(folder, **change)
