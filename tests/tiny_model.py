"""A tiny random model of our own kind, made by the public classes: what the command line is tested on."""

from pathlib import Path
from typing import Any

import torch
from transformers.models.whisper.configuration_whisper import WhisperConfig as LibraryConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from conftest import speechlike
from gpa.codec.bicodec import BiCodec, BiCodecConfig, BiCodecModel
from gpa.codec.feature_encoder import WhisperFeatures
from gpa.models.gpa import GPA
from gpa.models.gpa.configuration_gpa import GPAConfig
from gpa.models.gpa.modeling_gpa import inference_network, new_backbone
from gpa.models.gpa.verify_gpa import record
from gpa.nn.whisper_encoder import WhisperConfig
from gpa.prompt.vocab import Vocab
from gpa.text.normaliser import normalise_text
from gpa.text.tokenizer import build_tokenizer_json, train_sentencepiece

TEXTS = ("hello there, how are you?", "a quick brown fox jumps over the lazy dog.")


def backbone(inputs: int, **more: Any) -> dict[str, Any]:
    """Sizes of an encoder or prenet."""
    sizes = {"vocos_dim": 16, "vocos_intermediate_dim": 32, "vocos_num_layers": 1, "out_channels": 16}
    return {"input_channels": inputs, "sample_ratios": [2], **sizes, **more}


CODEC: dict[str, Any] = {
    "features": "whisper",
    "latent_hop_length": 640,
    "encoder": backbone(32),
    "quantizer": {"input_dim": 16, "codebook_size": 64, "codebook_dim": 3},
    "speaker_encoder": {
        "input_dim": 40,
        "out_dim": 16,
        "latent_dim": 16,
        "token_num": 4,
        "fsq_levels": [4, 4],
        "channels": 64,
    },
    "prenet": backbone(16, condition_dim=16),
    "decoder": {
        "input_channel": 16,
        "channels": 16,
        "hidden": 32,
        "layers": 1,
        "n_fft": 1280,
        "hop_length": 320,
    },
    "mel_params": {"num_mels": 40, "log": True},
}
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 48,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}


def random_features(**sizes: int) -> WhisperFeatures:
    """A small Whisper encoder as transformers starts one, which is quieter than torch's own start."""
    sizes = {"encoder_layers": 2, "encoder_attention_heads": 2, "num_mel_bins": 80, **sizes}
    start = WhisperEncoder(LibraryConfig(**sizes)).state_dict()
    features = WhisperFeatures(WhisperConfig(**sizes))
    features.encoder.load_state_dict(start)
    return features.eval()


def tiny_codec() -> BiCodec:
    """A codec of 25 ids/s and 64 semantic codes, four global codes of 16 values."""
    torch.manual_seed(0)
    model = BiCodecModel(BiCodecConfig.from_dict(CODEC))
    return BiCodec(model, random_features(d_model=16, encoder_ffn_dim=32))


def write_tiny_model(folder: Path) -> Path:
    """Write a whole checkpoint with two voices (anna, ben) and recorded outputs; returns its directory."""
    text = folder / "text"
    text.mkdir(parents=True)
    train_sentencepiece([normalise_text(t) for t in TEXTS] * 4, text / "spm.model", 292)
    build_tokenizer_json(text / "spm.model", 64, 16, text)
    torch.manual_seed(1)
    network = inference_network(new_backbone(SIZES, Vocab.from_file(text)))
    config = GPAConfig(name="tiny", format="instruct", about={"licence": "Apache-2.0"})
    model = GPA(network, tiny_codec(), text, config=config)
    for seed, name in enumerate(("anna", "ben"), 1):
        model.add_voice(name, model.voice((speechlike(3.0, seed=seed), 16000), name=name))
    out = model.save_pretrained(folder / "tiny")
    clips = [(speechlike(1.0, seed=seed), 16000) for seed in (3, 4)]
    record(GPA.from_pretrained(out, device="cpu"), out, clips, TEXTS)
    return out


def write_keen_model(tiny: Path, out: Path) -> Path:
    """The tiny model with larger weights where sound comes in: random ones give every clip the same codes."""
    made = GPA.from_pretrained(tiny, device="cpu")
    with torch.no_grad():
        for name, weight in made.codec.features.named_parameters():
            weight.mul_(40 if "conv" in name and weight.ndim > 1 else 1)
        for weight in made.codec.model.speaker_encoder.parameters():
            weight.mul_(3 if weight.ndim > 1 else 1)
    return GPA(made.network, made.codec, tiny, config=made.config).save_pretrained(out)
