"""The global path of BiCodec: reference mel -> ECAPA-TDNN -> perceiver -> FSQ -> speaker ids and vector.

Source: Spark-TTS, arXiv 2503.01710. Parameter names follow the published weights; knows no audio files and no
vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpa.nn.quantize import FSQ


class ConvReluBN(nn.Module):
    """conv -> ReLU -> BatchNorm, same length."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(c_in, c_out, kernel, padding=dilation * (kernel - 1) // 2, dilation=dilation)
        self.bn = nn.BatchNorm1d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(F.relu(self.conv(x)))


class Res2(nn.Module):
    """Res2 convolution: `scale` channel groups; each conv after the first also sees the previous output,
    the last group passes.
    """

    def __init__(self, channels: int, dilation: int, scale: int = 8) -> None:
        super().__init__()
        width = channels // scale
        self.convs = nn.ModuleList(
            nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation) for _ in range(scale - 1)
        )
        self.bns = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(scale - 1))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        groups = x.chunk(self.scale, 1)
        out: list[Tensor] = []
        for group, conv, bn in zip(groups, self.convs, self.bns, strict=False):
            group = group + out[-1] if out else group
            out.append(bn(F.relu(conv(group))))
        return torch.cat([*out, groups[-1]], 1)


class SqueezeExcite(nn.Module):
    """Channel gate from the time average."""

    def __init__(self, channels: int, bottleneck: int = 128) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, bottleneck)
        self.linear2 = nn.Linear(bottleneck, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.linear2(F.relu(self.linear1(x.mean(2)))))
        return x * gate[..., None]


class SERes2Block(nn.Module):
    """1x1, Res2, 1x1, squeeze-excite, residual."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        parts = (
            ConvReluBN(channels, channels),
            Res2(channels, dilation),
            ConvReluBN(channels, channels),
            SqueezeExcite(channels),
        )
        self.se_res2block = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.se_res2block(x)


class AttentivePooling(nn.Module):
    """Attention-weighted mean and deviation, the attention seeing the clip's global mean and deviation."""

    def __init__(self, channels: int, bottleneck: int = 128) -> None:
        super().__init__()
        self.linear1 = nn.Conv1d(3 * channels, bottleneck, 1)
        self.linear2 = nn.Conv1d(bottleneck, channels, 1)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, T) -> (B, 2C)
        mean = x.mean(-1, keepdim=True).expand_as(x)
        std = torch.sqrt(x.var(-1, keepdim=True) + 1e-7).expand_as(x)
        weight = torch.softmax(self.linear2(torch.tanh(self.linear1(torch.cat([x, mean, std], 1)))), -1)
        mean = (weight * x).sum(-1)
        variance = (weight * x * x).sum(-1) - mean * mean
        return torch.cat([mean, torch.sqrt(variance.clamp_min(1e-7))], 1)


class ECAPA(nn.Module):
    """ECAPA-TDNN: mel (B, M, T) -> frame features (B, 3 * channels, T), and of those an x-vector (B, D)."""

    def __init__(self, n_mels: int, dim: int, channels: int, x_vector: bool = True) -> None:
        super().__init__()
        wide = 3 * channels
        self.layer1 = ConvReluBN(n_mels, channels, 5)
        self.layer2 = SERes2Block(channels, 2)
        self.layer3 = SERes2Block(channels, 3)
        self.layer4 = SERes2Block(channels, 4)
        self.conv = nn.Conv1d(wide, wide, 1)
        if x_vector:
            self.pool = AttentivePooling(wide)
            self.bn = nn.BatchNorm1d(2 * wide)
            self.linear = nn.Linear(2 * wide, dim)

    def frames(self, mel: Tensor) -> Tensor:
        """Frame features, all that the speaker ids need."""
        first = self.layer2(self.layer1(mel))
        second = self.layer3(first)
        return F.relu(self.conv(torch.cat([first, second, self.layer4(second)], 1)))

    def x_vector(self, frames: Tensor) -> Tensor:
        """Utterance embedding of the frame features (training only in the published model)."""
        return self.linear(self.bn(self.pool(frames)))


class RMSScale(nn.Module):
    """L2-normalise, times sqrt(D), times gamma."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * math.sqrt(x.shape[-1]) * self.gamma


class PerceiverAttention(nn.Module):
    """Latents attend to themselves and the context; 8 heads of 64, no biases."""

    def __init__(self, dim: int, heads: int = 8, head_dim: int = 64) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, heads * head_dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, dim, bias=False)

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:  # (B, G, D), (B, T, D)
        keys, values = self.to_kv(torch.cat([latents, context], 1)).chunk(2, -1)
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.to_q(latents), keys, values)
        )
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    """First half of the channels times GELU of the second half."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, -1)
        return value * F.gelu(gate)


class Perceiver(nn.Module):
    """Learned latents read the frame features: (B, T, C) -> (B, G, D).

    The published one has no norm but its last, and its gradient explodes in training (docs/log.md);
    `pre_norm` scales the context and what enters every layer.
    """

    def __init__(
        self, context_dim: int, dim: int, latents: int, depth: int = 2, pre_norm: bool = False
    ) -> None:
        super().__init__()
        inner = int(dim * 4 * 2 / 3)
        self.proj_context = nn.Linear(context_dim, dim)
        self.latents = nn.Parameter(torch.randn(latents, dim))
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(dim),
                    nn.Sequential(nn.Linear(dim, 2 * inner), GEGLU(), nn.Linear(inner, dim)),
                ]
            )
            for _ in range(depth)
        )
        self.norm = RMSScale(dim)
        names = ("context", *(str(n) for n in range(2 * depth))) if pre_norm else ()
        self.pre_norms = nn.ModuleDict({name: RMSScale(dim) for name in names})

    def _scaled(self, name: str, x: Tensor) -> Tensor:
        return self.pre_norms[name](x) if self.pre_norms else x

    def forward(self, context: Tensor) -> Tensor:
        context = self._scaled("context", self.proj_context(context))
        x = self.latents.expand(len(context), -1, -1)
        for n, layer in enumerate(self.layers):
            attention, feed_forward = layer.children()
            x = attention(self._scaled(str(2 * n), x), context) + x
            x = feed_forward(self._scaled(str(2 * n + 1), x)) + x
        return self.norm(x)


class SpeakerEncoder(nn.Module):
    """mel (B, M, T) -> ids (B, G); ids -> speaker vector (B, D)."""

    def __init__(
        self,
        *,
        n_mels: int,
        out_dim: int,
        latent_dim: int,
        token_num: int,
        levels: list[int],
        channels: int = 512,
        normalise: bool = False,
        x_vector: bool = True,
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        self.speaker_encoder = ECAPA(n_mels, out_dim, channels, x_vector)
        self.perceiver_sampler = Perceiver(3 * channels, latent_dim, token_num, pre_norm=pre_norm)
        self.quantizer = FSQ(latent_dim, levels, normalise=token_num if normalise else 0)
        self.project = nn.Linear(latent_dim * token_num, out_dim)

    def latents(self, mel: Tensor) -> Tensor:
        """What is quantised (B, G, latent), of mel (B, M, T)."""
        return self.perceiver_sampler(self.speaker_encoder.frames(mel).transpose(1, 2))

    def _vector(self, quantised: Tensor) -> Tensor:
        return self.project(quantised.transpose(1, 2).flatten(1))  # channel-major

    def encode(self, mel: Tensor) -> Tensor:
        """Speaker ids (B, G)."""
        return self.quantizer.encode(self.latents(mel))

    def decode(self, ids: Tensor) -> Tensor:
        """Speaker vector (B, D) of ids (B, G)."""
        return self._vector(self.quantizer.decode(ids))

    def forward(self, mel: Tensor) -> Tensor:
        """Training pass: the speaker vector (B, D) with a straight-through gradient."""
        return self._vector(self.quantizer(self.latents(mel)))
