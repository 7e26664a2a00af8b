"""Whisper's encoder (Radford et al. 2022, section 2.2): two convolutions, layers that attend to all frames.

Tensors have the names of transformers' `WhisperEncoder`, and a test holds every state to it bit by bit. It is
here because that library takes two seconds to import, with which every transcript would begin.

    B batch   M mel bands   T frames of 20 ms   D width
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpa.nn.attention import merge_heads, split_heads


@dataclass(frozen=True)
class WhisperConfig:
    """Sizes, by the names and defaults of transformers' config.json (tiny.en)."""

    d_model: int = 384
    encoder_layers: int = 4
    encoder_attention_heads: int = 6
    encoder_ffn_dim: int = 1536
    num_mel_bins: int = 80
    max_source_positions: int = 1500
    activation_function: Literal["gelu"] = "gelu"

    def to_dict(self) -> dict[str, Any]:
        """What transformers reads as well."""
        return {"model_type": "whisper", "architectures": ["WhisperEncoder"], **dataclasses.asdict(self)}


def sinusoids(length: int, width: int) -> Tensor:
    """Whisper's positions (length, width), by transformers' order of operations: they are in fingerprints."""
    speeds = torch.exp(-(math.log(10_000) / (width // 2 - 1)) * torch.arange(width // 2).float())
    angles = torch.arange(length).float().view(-1, 1) * speeds.view(1, -1)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class SelfAttention(nn.Module):
    """Every frame over all frames; keys have no bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Of (B, T, D), the same; where a mask (B, 1, T, T) is True a frame is heard."""
        scale = (x.shape[-1] // self.heads) ** -0.5  # applied before the product, as Whisper's own code does
        projected = (self.q_proj(x) * scale, self.k_proj(x), self.v_proj(x))
        # in rows of their own, as in transformers: the kernels then give the same bits
        q, k, v = (split_heads(each, self.heads).contiguous() for each in projected)
        return self.out_proj(merge_heads(F.scaled_dot_product_attention(q, k, v, mask, scale=1.0)))


class EncoderLayer(nn.Module):
    """Attention, then a feed-forward network, each on a normalised copy and added."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """One layer, shape kept."""
        x = x + self.self_attn(self.self_attn_layer_norm(x), mask)
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))


class WhisperEncoder(nn.Module):
    """Log-mel (B, M, 2T) to the states before the layers and after each, (B, T, D) of up to 1500 frames."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.config = config
        width, positions = config.d_model, config.max_source_positions
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(positions, width).requires_grad_(False)
        self.embed_positions.weight.data.copy_(sinusoids(positions, width))
        sizes = (width, config.encoder_attention_heads, config.encoder_ffn_dim)
        self.layers = nn.ModuleList(EncoderLayer(*sizes) for _ in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, mel: Tensor) -> list[Tensor]:
        """All states; the last is not yet normalised by `layer_norm`."""
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)
        states = [x + self.embed_positions.weight[: x.shape[1]]]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return states
