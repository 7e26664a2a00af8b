"""ConvNeXt blocks and the Vocos backbone, plain or conditioned on a speaker vector (AdaLN).

Shapes: x (B, C, T) between modules, (B, T, C) inside the norms; cond (B, D). Parameter names follow the
published BiCodec.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import init

EPS = 1e-6
Map = Callable[[Tensor], Tensor]


class AdaLayerNorm(nn.Module):
    """LayerNorm without affine, times scale(cond) plus shift(cond)."""

    def __init__(self, dim: int, cond_dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.scale = nn.Linear(cond_dim, dim)
        self.shift = nn.Linear(cond_dim, dim)
        init.normal_(self.scale.weight, std=1e-3)
        init.ones_(self.scale.bias)
        init.normal_(self.shift.weight, std=1e-3)
        init.zeros_(self.shift.bias)

    def given(self, cond: Tensor) -> Map:
        """The norm (B, T, C) of one speaker vector (B, D)."""
        scale, shift = self.scale(cond)[:, None], self.shift(cond)[:, None]
        return lambda x: F.layer_norm(x, (self.dim,), eps=EPS) * scale + shift

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:  # (B, T, C), (B, D)
        return self.given(cond)(x)


def _norm(dim: int, cond_dim: int | None) -> nn.Module:
    return nn.LayerNorm(dim, eps=EPS) if cond_dim is None else AdaLayerNorm(dim, cond_dim)


def _given(norm: nn.Module, cond: Tensor | None) -> Map:
    return norm.given(cond) if isinstance(norm, AdaLayerNorm) and cond is not None else norm


class ConvNeXtBlock(nn.Module):
    """Depthwise conv k7, norm, MLP with exact GELU, per-channel scale gamma, residual."""

    def __init__(self, dim: int, hidden: int, scale: float, cond_dim: int | None = None) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(dim, dim, 7, padding=3, groups=dim)
        self.norm = _norm(dim, cond_dim)
        self.pwconv1 = nn.Linear(dim, hidden)
        self.pwconv2 = nn.Linear(hidden, dim)
        self.gamma = nn.Parameter(scale * self.pwconv2.weight.new_ones(dim))

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:  # (B, C, T)
        return x + self.mixing(cond)(self.dwconv(x))

    def mixing(self, cond: Tensor | None = None) -> Map:  # (B, C, T) -> (B, C, T)
        """What follows the convolution, each frame by itself."""
        norm = _given(self.norm, cond)

        def mixed(x: Tensor) -> Tensor:
            y = norm(x.transpose(1, 2))
            y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
            return y.transpose(1, 2)

        return mixed


class VocosBackbone(nn.Module):
    """conv k7, norm, ConvNeXt blocks, final LayerNorm: (B, C_in, T) -> (B, C, T)."""

    def __init__(self, c_in: int, dim: int, hidden: int, layers: int, cond_dim: int | None = None) -> None:
        super().__init__()
        self.embed = nn.Conv1d(c_in, dim, 7, padding=3)
        self.norm = _norm(dim, cond_dim)
        self.convnext = nn.ModuleList(ConvNeXtBlock(dim, hidden, 1 / layers, cond_dim) for _ in range(layers))
        self.final_layer_norm = nn.LayerNorm(dim, eps=EPS)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        x = self.beginning(cond)(self.embed(x))
        for block in self.convnext:
            x = block(x, cond)
        return self.ended(x)

    def beginning(self, cond: Tensor | None = None) -> Map:  # (B, C, T) -> (B, C, T)
        """What follows the first convolution, each frame by itself."""
        norm = _given(self.norm, cond)
        return lambda x: norm(x.transpose(1, 2)).transpose(1, 2)

    def ended(self, x: Tensor) -> Tensor:  # (B, C, T)
        """What follows the last block, each frame by itself."""
        return self.final_layer_norm(x.transpose(1, 2)).transpose(1, 2)


class SamplingBlock(nn.Module):
    """Change the frame rate by `down` or `up`; three summed branches, so a ratio of 1 multiplies by 3 (as
    published).
    """

    def __init__(self, dim: int, down: int = 1, up: int = 1) -> None:
        super().__init__()
        self.down, self.up = down, up
        if up > 1:
            self.deconv = nn.ConvTranspose1d(
                dim, dim, 2 * up, up, padding=up // 2 + up % 2, output_padding=up % 2
            )
        if down > 1:
            self.conv = nn.Conv1d(dim, dim, 2 * down, down, padding=down // 2 + down % 2)

    def forward(self, x: Tensor) -> Tensor:
        merged = x
        if self.up > 1:
            merged = self.deconv(F.leaky_relu(x, 0.2))
            x = x.repeat_interleave(self.up, -1)
            merged = merged + x
        if self.down == 1:
            return merged + merged + x
        pooled = F.avg_pool1d(merged, self.down)
        conv = self.conv(F.leaky_relu(merged, 0.2))[..., : pooled.shape[-1]]
        return conv + pooled + F.avg_pool1d(x, self.down)


def sampling_stages(
    dim: int, hidden: int, down: list[int] | None = None, up: list[int] | None = None
) -> nn.Sequential:
    """One SamplingBlock plus a two-layer Vocos backbone per ratio, in order; give the `down` or the `up`
    ratios.
    """
    blocks = [SamplingBlock(dim, down=r) for r in down or []] + [SamplingBlock(dim, up=r) for r in up or []]
    return nn.Sequential(*(nn.Sequential(block, VocosBackbone(dim, dim, hidden, 2)) for block in blocks))
