"""Whisper's encoder is that of transformers, bit by bit, in the weights that both read."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers.models.whisper import modeling_whisper
from transformers.models.whisper.configuration_whisper import WhisperConfig as LibraryConfig

from gpa.codec.feature_encoder import WhisperFeatures, load_whisper_features, save_features
from gpa.errors import CheckpointError
from gpa.models.gpa import GPA
from gpa.nn.whisper_encoder import WhisperConfig, WhisperEncoder

SIZES = {
    "d_model": 24,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "num_mel_bins": 8,
}


def library_states(encoder: modeling_whisper.WhisperEncoder, mel: torch.Tensor) -> list[torch.Tensor]:
    """What transformers' own layers make of a clip that is not padded to 30 s."""
    x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel)))).transpose(1, 2)
    states = [x + encoder.embed_positions.weight[: x.shape[1]]]
    for layer in encoder.layers:
        out = layer(states[-1], None)
        states.append(out[0] if isinstance(out, tuple) else out)
    return states


@pytest.mark.parametrize("frames", [1, 7, 90])
def test_every_state_is_that_of_transformers(frames: int) -> None:
    torch.manual_seed(0)
    library = modeling_whisper.WhisperEncoder(LibraryConfig(**SIZES)).eval()
    for parameter in library.parameters():  # biases of zeros would hide a missing one
        parameter.data += 0.3 * torch.randn_like(parameter)
    ours = WhisperEncoder(WhisperConfig(**SIZES)).eval()
    ours.load_state_dict(library.state_dict())
    mel = torch.randn(2, SIZES["num_mel_bins"], 2 * frames)
    with torch.no_grad():
        for mine, theirs in zip(ours(mel), library_states(library, mel), strict=True):
            assert torch.equal(mine, theirs)


def test_a_clip_of_full_length_is_what_transformers_makes_of_it() -> None:
    """Their `forward`, not only their layers: 1500 frames of the encoder that is shipped."""
    folder = GPA.from_pretrained("gpa-mini", device="cpu").path / "codec" / "features"
    ours = load_whisper_features(folder).encoder
    library = modeling_whisper.WhisperEncoder(LibraryConfig(**ours.config.to_dict())).eval()
    library.load_state_dict(ours.state_dict())
    mel = torch.randn(1, 80, 3000)
    with torch.no_grad():
        assert torch.equal(ours.layer_norm(ours(mel)[-1]), library(mel).last_hidden_state)


def test_what_is_saved_is_read_by_both(tmp_path: Path) -> None:
    modeling_whisper.WhisperEncoder(LibraryConfig(**SIZES)).save_pretrained(tmp_path / "library")
    features = load_whisper_features(tmp_path / "library")
    features.encoder.embed_positions.weight.data[0, 0] += 1  # positions that are no sinusoids are written
    save_features(features, tmp_path / "ours", torch.float32)
    again = modeling_whisper.WhisperEncoder.from_pretrained(tmp_path / "ours")
    assert all(
        torch.equal(again.state_dict()[name], tensor)
        for name, tensor in features.encoder.state_dict().items()
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"encoder_attention_heads": 5},
        {"d_model": 7},
        {"activation_function": "relu"},
        {"num_mel_bins": 0},
        {"model_type": "wav2vec2"},
    ],
)
def test_sizes_that_no_encoder_has_are_refused(wrong: dict, tmp_path: Path) -> None:
    modeling_whisper.WhisperEncoder(LibraryConfig(**SIZES)).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **wrong}))
    with pytest.raises(CheckpointError, match=next(iter(wrong))):
        load_whisper_features(tmp_path)


def test_sound_longer_than_its_positions_is_heard_in_windows() -> None:
    features = WhisperFeatures(WhisperConfig(**SIZES, max_source_positions=50)).eval()
    wav = torch.randn(1, 3 * 16_000)
    with torch.no_grad():
        heard = features(wav)
        assert heard.shape == (1, 2 * SIZES["d_model"], 150)
        assert torch.equal(heard[..., 50:100], features(wav[:, 16_000:32_000]))
