"""Letters of a recording by CTC (Graves et al. 2006): a small network on what the codec's encoder hears.

Ids of a codec are rounded for speech and recognition alike; the encoder's states are not. Recognition weighs
these letters together with the language model's (docs/recognition.md). Knows no language model.

    B clips   C feature channels   T frames of 20 ms   L letter frames   V letters and the blank
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpa import hub
from gpa.config import Layers, Size, Within, build_stored
from gpa.nn.convnext import VocosBackbone, sampling_stages

KIND = "ctc"  # model_type of its config.json
FOLDER = "ctc"  # of a codec that came with a network
BLANK_FIRST = 3.0  # bias of the blank: training starts on the all-blank plateau instead of sliding there


def letter_loss(log_probs: Tensor, frames: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """CTC loss in nats a letter, of log-probabilities (B, L, V); each clip has so many frames and targets.

    A clip whose letters do not fit into its frames counts as nothing.
    """
    losses = F.ctc_loss(
        log_probs.transpose(0, 1), targets, frames, counts, reduction="none", zero_infinity=True
    )
    return losses.sum() / counts.sum()


@dataclass(frozen=True)
class CTCConfig:
    """Sizes; `classes` are the letters and the blank, which is class 0."""

    input_channels: Size
    dim: Size
    hidden: Size
    layers: Layers
    classes: Size = 29
    ratio: Annotated[int, Within(1, 64)] = 2  # frames of features to one of letters

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str = "config.json") -> CTCConfig:
        """Typed; CheckpointError for a key or value that this code does not implement."""
        return build_stored(cls, {k: v for k, v in raw.items() if k != "model_type"}, where)


class CTCNetwork(nn.Module):
    """Features (B, C, T) to log-probabilities (B, L, V), L = T / ratio."""

    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(self, config: CTCConfig) -> None:
        super().__init__()
        c = self.config = config
        self.backbone = VocosBackbone(c.input_channels, c.dim, c.hidden, c.layers)
        self.downsample = sampling_stages(c.dim, c.hidden, down=[c.ratio] if c.ratio > 1 else [])
        self.project = nn.Linear(c.dim, c.classes)
        nn.init.constant_(self.project.bias[:1].detach(), BLANK_FIRST)
        self.register_buffer("feature_mean", torch.zeros(c.input_channels, 1))
        self.register_buffer("feature_scale", torch.ones(c.input_channels, 1))

    def forward(self, features: Tensor) -> Tensor:
        return self.read(self.standardised(features))

    def standardised(self, features: Tensor) -> Tensor:
        """Every channel centred and scaled by the statistics stored with the weights."""
        return (features - self.feature_mean) * self.feature_scale

    def read(self, x: Tensor) -> Tensor:
        """Log-probabilities (B, L, V) of standardised features (B, C, T)."""
        x = self.downsample(self.backbone(x))
        return self.project(x.transpose(1, 2)).float().log_softmax(-1)

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


def found(folder: Path, device: torch.device) -> CTCNetwork | None:
    """The network in a folder, for inference; None if there is no such folder."""
    if not folder.is_dir():
        return None
    return CTCNetwork.from_pretrained(folder).to(device).requires_grad_(False)
