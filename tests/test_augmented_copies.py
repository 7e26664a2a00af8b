"""Degraded copies: functions of their number, and a second cache that the codec's encoder hears."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import speechlike
from gpa import config
from gpa.codec.feature_encoder import POSITIONS, load_whisper_features, restore_positions, save_features
from gpa.data import feature_cache as features
from gpa.data.augmented_copies import AugmentedCopies
from gpa.data.feature_cache import FeatureCache
from gpa.errors import CheckpointError, UsageError
from gpa.train.families.codec import CodecFamily, CodecRecipe
from training import codec_tree, write_encoder, write_manifest


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips with two caches, of what they are and of what others would hear."""
    root = tmp_path_factory.mktemp("data")
    command = [str(write_manifest(root)), "--encoder", str(write_encoder(root / "encoder"))]
    features.main([*command, "-o", str(root / "cache")])
    features.main([*command, "--degraded", "-o", str(root / "degraded")])
    return root


def family(data: Path, **more: object) -> CodecFamily:
    tree = codec_tree(data / "cache")
    tree["data"] |= more
    return CodecFamily(config.build(CodecRecipe, tree))


def test_a_reading_follows_from_its_number(data: Path) -> None:
    copy = AugmentedCopies(load_whisper_features(data / "encoder"))
    wav = speechlike(1.28)
    made = [copy(wav, number) for number in (1, 2, 1)]
    assert torch.equal(made[0], made[2]) and not torch.equal(made[0], made[1])
    assert made[0].shape == (copy.features.channels, len(wav) // 320) and made[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_positions_that_can_be_computed_are_not_stored(
    data: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    """Whisper's own sinusoids come back; others, be they trained or only rounded, are kept as they are."""
    features = load_whisper_features(data / "encoder")
    table = features.encoder.embed_positions.weight
    exact = table.clone()
    save_features(features, tmp_path / "plain", dtype)
    assert POSITIONS not in load_file(tmp_path / "plain" / "model.safetensors")
    assert torch.equal(load_whisper_features(tmp_path / "plain").encoder.embed_positions.weight, exact)
    for name, other in (
        ("rounded", exact.half().float()),
        ("trained", exact + 0.25 * torch.eye(*exact.shape)),
    ):
        table.data.copy_(other)
        save_features(features, tmp_path / name, dtype)
        again = load_whisper_features(tmp_path / name).encoder.embed_positions.weight
        assert torch.equal(again, other.to(dtype).float()) and not torch.equal(again, exact)
        restore_positions(features)
        assert torch.equal(table, exact) == (name == "rounded")


def test_a_spoilt_cache_has_other_features_of_the_same_sound(data: Path) -> None:
    clean, degraded = FeatureCache(data / "cache"), FeatureCache(data / "degraded")
    for i in range(len(clean)):
        assert (clean.wav(i) == degraded.wav(i)).all() and clean.rows[i] == degraded.rows[i]
        assert clean.features(i).shape == degraded.features(i).shape
    with pytest.raises(CheckpointError, match="other clips"):
        clean.rows[1] = clean.rows[1] | {"resampled": 1.1}
        clean.degraded(data / "degraded")
    assert any((clean.features(i) != degraded.features(i)).any() for i in range(len(clean)))


def test_the_encoder_hears_it_and_the_decoder_does_not(data: Path) -> None:
    plain = family(data)
    always = family(data, degraded=str(data / "degraded"), degraded_share=1.0)
    never = family(data, degraded=str(data / "degraded"), degraded_share=0.0)
    a, b, c = (one.batch(0) for one in (plain, always, never))
    assert torch.equal(a.features, c.features) and not torch.equal(a.features, b.features)
    assert a.features.shape == b.features.shape and torch.equal(a.frames, b.frames)
    rows, sound = plain.dev_rows, always._collate(plain.dev_rows, np.random.default_rng(0))
    held = plain._collate(rows, np.random.default_rng(0))
    assert torch.equal(sound.features, held.features) and torch.equal(sound.wav, held.wav)  # dev is as it is


def test_voices_of_nobody_need_no_degraded_copies(data: Path, tmp_path: Path) -> None:
    """Recorded clips are heard degraded, those invented as they are; a cache of half the recorded ones fits
    neither.
    """
    command = [str(data / "manifest.jsonl"), "--encoder", str(data / "encoder"), "-o", str(tmp_path)]
    features.main([*command, "--invented", "1"])
    tree = codec_tree(tmp_path)
    splits = sorted({row["split"] for row in FeatureCache(tmp_path).rows})
    tree["data"] |= {"train": splits, "degraded": str(data / "degraded"), "degraded_share": 1.0}
    both = CodecFamily(config.build(CodecRecipe, tree))
    assert both.degraded and len(both.degraded) < len(both.cache)
    recorded, invented = 0, len(both.degraded)
    heard = both._collate([recorded, invented], np.random.default_rng(0), both.degraded)
    for n, (i, cache) in enumerate([(recorded, both.degraded), (invented, both.cache)]):
        length = int(heard.frames[n])
        assert np.array_equal(heard.features[n, :, :length].T.numpy(), cache.features(i))


def test_a_cache_of_other_clips_is_refused(data: Path, tmp_path: Path) -> None:
    manifest = data / "fewer.jsonl"
    manifest.write_text("".join((data / "manifest.jsonl").read_text().splitlines(keepends=True)[:-1]))
    features.main([str(manifest), "--encoder", str(data / "encoder"), "-o", str(tmp_path)])
    with pytest.raises(CheckpointError, match="other clips"):
        family(data, degraded=str(tmp_path))
    with pytest.raises(UsageError, match="degraded_share"):
        family(data, degraded=str(data / "degraded"), degraded_share=2.0)
