"""A tiny random SpeechOp checkpoint, made by the public classes: what pipeline and commands are tested on."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpa.codec.kl import KLCodec, LatentConfig, LatentModel
from gpa.config import build
from gpa.models.speechop.asr_features_speechop import ASRFeatures
from gpa.models.speechop.configuration_speechop import SpeechOpConfig
from gpa.models.speechop.modeling_speechop import SpeechOpModel
from gpa.models.speechop.pipeline_speechop import SpeechOp
from training import LATENT

HOP = 640  # samples at 16 kHz: 25 frames a second


def tiny_codec() -> KLCodec:
    """A codec with random weights and statistics that are not neutral."""
    torch.manual_seed(0)
    model = LatentModel(build(LatentConfig, LATENT))
    nn.init.normal_(model.mean)
    nn.init.uniform_(model.spread, 0.5, 2.0)
    return KLCodec(model)


def tiny_speechop(given_features: ASRFeatures | None = None, **changes: Any) -> SpeechOp:
    """Two blocks of width 16, five steps; nothing is zero, so every path shows. `changes` are of sections."""
    stack = {"layers": 2, "width": 16, "heads": 2, "ffn": 24}
    raw: dict[str, Any] = {
        "latent": {"channels": 4, "sample_rate": 16000, "hop": HOP},
        "dit": dict(stack),
        "encoder": {**stack, "layers": 1},
        "text": {**stack, "kind": "bytes", "layers": 1, "positions": "both"},
        "sampler": {"steps": 5},
        "tts": {"default_rate": 14.0, "unit": "characters"},
    }
    for section, values in changes.items():
        raw[section] = raw.get(section, {}) | values
    torch.manual_seed(0)
    model = SpeechOpModel(build(SpeechOpConfig, raw))
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return SpeechOp(model.eval().requires_grad_(False), tiny_codec(), asr_features=given_features)


def write_tiny_speechop(folder: Path) -> Path:
    """Its checkpoint directory."""
    return tiny_speechop().save_pretrained(folder / "speechop")
