"""Letters of a recording by CTC (Graves et al. 2006): a small network beside the codec, on what its encoder hears.

Ids of a codec are rounded for speech and recognition alike; the encoder's states are not. Recognition weighs
these letters together with the language model's (docs/models/gpa.md). Knows no language model.

    B clips   C feature channels   T frames of 20 ms   L letter frames   V letters and the blank
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpa import hub
from gpa.codec.bicodec_config import BackboneConfig
from gpa.codec.bicodec_model import Encoder
from gpa.config import build
from gpa.errors import CheckpointError, UsageError

KIND = "ctc"  # model_type of its config.json
CTC = "ctc"  # folder of a codec that came with one
BLANK_FIRST = 3.0  # bias of the blank: training starts on the all-blank plateau instead of sliding there


@dataclass(frozen=True)
class CTCConfig:
    """Sizes: `out_channels` are the letters and the blank, which is class 0."""

    encoder: BackboneConfig

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str = "CTC config") -> CTCConfig:
        """Typed; CheckpointError for a key or value that this code does not implement."""
        try:
            return build(cls, {k: v for k, v in raw.items() if k != "model_type"}, "CTC config")
        except UsageError as error:
            raise CheckpointError(f"{where}: {error}") from error

    @property
    def ratio(self) -> int:
        """Frames of features to one of letters."""
        return math.prod(self.encoder.sample_ratios)


class CTCNetwork(nn.Module):
    """Features (B, C, T) to log-probabilities (B, L, V), L = T / ratio."""

    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(self, config: CTCConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder)
        nn.init.constant_(self.encoder.project.bias[:1].detach(), BLANK_FIRST)
        self.register_buffer("feature_mean", torch.zeros(config.encoder.input_channels, 1))
        self.register_buffer("feature_scale", torch.ones(config.encoder.input_channels, 1))

    def forward(self, features: Tensor) -> Tensor:
        return self.read(self.standardised(features))

    def standardised(self, features: Tensor) -> Tensor:
        """Every channel centred and scaled by the statistics stored with the weights."""
        return (features - self.feature_mean) * self.feature_scale

    def read(self, x: Tensor) -> Tensor:
        """Log-probabilities (B, L, V) of standardised features (B, C, T)."""
        return self.encoder(x).transpose(1, 2).float().log_softmax(-1)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> CTCNetwork:
        """Of a folder that `save_pretrained` wrote; CheckpointError for another."""
        folder = Path(folder)
        config = CTCConfig.from_dict(hub.read_json(folder / "config.json"), str(folder / "config.json"))
        return hub.build_strict(partial(cls, config), hub.read_state(folder), where=str(folder)).eval()

    def save_pretrained(self, folder: str | os.PathLike, dtype: torch.dtype = torch.float32) -> None:
        """Write config.json and model.safetensors."""
        state = {name: tensor.to(dtype) for name, tensor in self.state_dict().items()}
        hub.write_model(Path(folder), state, {"model_type": KIND, **dataclasses.asdict(self.config)})
