"""From a run's export to the directory that ships: half precision, settings, one codec fingerprint."""

from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import speechlike
from gpa import SpeechOp
from gpa.codec.kl import KLCodec
from gpa.errors import UsageError
from gpa.hub import read_state
from gpa.lab import export_speechop
from tiny_speechop import write_tiny_speechop


def test_a_shipped_model_is_the_trained_one_in_half_precision(tmp_path: Path) -> None:
    run = write_tiny_speechop(tmp_path)
    settings = tmp_path / "settings.yaml"
    settings.write_text("sampler: {steps: 3, lambda_range: [-8.0, 8.0]}\nabout: {name: tiny}\n")
    export_speechop.main([str(run), "--settings", str(settings), "-o", str(tmp_path / "out")])
    for part in (tmp_path / "out", tmp_path / "out" / "latent"):
        state = read_state(part)
        assert {t.dtype for name, t in state.items() if t.ndim > 1 and "embed" not in name} >= {torch.float16}
        before = read_state(run / part.relative_to(tmp_path / "out"))
        assert all(torch.allclose(state[n].float(), t, atol=2e-2, rtol=2e-3) for n, t in before.items())
    old, new = (SpeechOp.from_pretrained(path, device="cpu") for path in (run, tmp_path / "out"))
    assert new.config.sampler.steps == 3 and new.config.sampler.name == old.config.sampler.name
    assert new.config.about == {"name": "tiny", "codec": new.codec.fingerprint()}
    assert (new.config.dit, new.config.compose) == (old.config.dit, old.config.compose)
    sound = speechlike(0.5), 16_000
    made, same = new.enhance(sound), old.enhance(sound, steps=3)
    assert made.wav.shape == same.wav.shape and np.isfinite(made.wav).all()


def test_settings_of_the_network_are_refused(tmp_path: Path) -> None:
    run = write_tiny_speechop(tmp_path)
    with pytest.raises(UsageError, match="dit"):
        export_speechop.ship(run, tmp_path / "out", {"dit": {"layers": 1}}, torch.float16)
    with pytest.raises(UsageError, match="steps"):
        export_speechop.ship(run, tmp_path / "out", {"sampler": {"steps": 0}}, torch.float16)
    assert not (tmp_path / "out").exists()


def test_a_card_beside_the_weights_survives_an_overwrite(tmp_path: Path) -> None:
    run = write_tiny_speechop(tmp_path)
    out = export_speechop.ship(run, tmp_path / "out", {}, torch.float16)
    (out / "README.md").write_text("# card")
    with pytest.raises(UsageError, match="not empty"):
        export_speechop.ship(run, out, {}, torch.float16)
    export_speechop.ship(run, out, {}, torch.float16, overwrite=True)
    assert (out / "README.md").read_text() == "# card"


def test_another_decoder_of_the_same_latents_can_ship(tmp_path: Path) -> None:
    run = write_tiny_speechop(tmp_path)
    codec, stranger = (KLCodec.from_pretrained(run / "latent") for _ in range(2))
    codec.model.prenet.linear.bias.add_(0.5)
    codec.save_pretrained(tmp_path / "decoder")
    out = export_speechop.ship(run, tmp_path / "out", {}, torch.float32, codec=tmp_path / "decoder")
    shipped = SpeechOp.from_pretrained(out, device="cpu")
    assert shipped.codec.fingerprint() == codec.fingerprint() == shipped.config.about["codec"]
    stranger.model.encoder.project.bias.add_(0.5)
    stranger.save_pretrained(tmp_path / "stranger")
    with pytest.raises(UsageError, match="freeze_latents"):
        export_speechop.ship(run, tmp_path / "none", {}, torch.float32, codec=tmp_path / "stranger")
    assert not (tmp_path / "none").exists()
