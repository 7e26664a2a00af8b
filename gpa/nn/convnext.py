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
CENTRED = 3  # frames on either side of a centred convolution
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


class FrameConv(nn.Conv1d):
    """A convolution over 7 frames, `ahead` of them in the future: 3 where it is centred, as published."""

    def __init__(self, c_in: int, c_out: int, ahead: int = CENTRED, groups: int = 1) -> None:
        centred = CENTRED if ahead == CENTRED else 0  # then one kernel pads and convolves
        super().__init__(c_in, c_out, 2 * CENTRED + 1, padding=centred, groups=groups)
        self.sides = (2 * CENTRED - ahead, ahead)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.padding[0] else F.pad(x, self.sides))


class ConvNeXtBlock(nn.Module):
    """Depthwise conv k7, norm, MLP with exact GELU, per-channel scale gamma, residual."""

    def __init__(
        self, dim: int, hidden: int, scale: float, cond_dim: int | None = None, ahead: int = CENTRED
    ) -> None:
        super().__init__()
        self.dwconv = FrameConv(dim, dim, ahead, groups=dim)
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
    """conv k7, norm, ConvNeXt blocks, final LayerNorm: (B, C_in, T) -> (B, C, T).

    With `lookahead` it hears so many frames of the future, its first convolutions up to 3 each; without, all
    are centred.
    """

    def __init__(
        self,
        c_in: int,
        dim: int,
        hidden: int,
        layers: int,
        cond_dim: int | None = None,
        lookahead: int | None = None,
    ) -> None:
        super().__init__()
        far = CENTRED * (layers + 1) if lookahead is None else lookahead
        ahead = [min(CENTRED, max(0, far - CENTRED * n)) for n in range(layers + 1)]
        self.embed = FrameConv(c_in, dim, ahead[0])
        self.norm = _norm(dim, cond_dim)
        self.convnext = nn.ModuleList(ConvNeXtBlock(dim, hidden, 1 / layers, cond_dim, n) for n in ahead[1:])
        self.final_layer_norm = nn.LayerNorm(dim, eps=EPS)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        x = self.beginning(cond)(self.embed(x))
        for block in self.convnext:
            x = block(x, cond)
        return self.ended(x)

    def reach(self) -> tuple[int, int]:
        """Frames behind and ahead that a frame of the output hears."""
        layers = [self.embed, *(block.get_submodule("dwconv") for block in self.convnext)]
        behind, ahead = zip(*(conv.sides for conv in layers if isinstance(conv, FrameConv)), strict=True)
        return sum(behind), sum(ahead)

    def beginning(self, cond: Tensor | None = None) -> Map:  # (B, C, T) -> (B, C, T)
        """What follows the first convolution, each frame by itself."""
        norm = _given(self.norm, cond)
        return lambda x: norm(x.transpose(1, 2)).transpose(1, 2)

    def ended(self, x: Tensor) -> Tensor:  # (B, C, T)
        """What follows the last block, each frame by itself."""
        return self.final_layer_norm(x.transpose(1, 2)).transpose(1, 2)


class SamplingBlock(nn.Module):
    """Change the frame rate by `down` or `up`; three summed branches, so a ratio of 1 multiplies by 3 (as
    published). One that is `causal` hears no frame ahead on its way up.
    """

    def __init__(self, dim: int, down: int = 1, up: int = 1, causal: bool = False) -> None:
        super().__init__()
        self.down, self.up, self.causal = down, up, causal
        if up > 1:
            padding, more = (0, 0) if causal else (up // 2 + up % 2, up % 2)
            self.deconv = nn.ConvTranspose1d(dim, dim, 2 * up, up, padding, output_padding=more)
        if down > 1:
            self.conv = nn.Conv1d(dim, dim, 2 * down, down, padding=down // 2 + down % 2)

    def forward(self, x: Tensor) -> Tensor:
        merged = x
        if self.up > 1:
            merged = self.deconv(F.leaky_relu(x, 0.2))[..., : x.shape[-1] * self.up]
            x = x.repeat_interleave(self.up, -1)
            merged = merged + x
        if self.down == 1:
            return merged + merged + x
        pooled = F.avg_pool1d(merged, self.down)
        conv = self.conv(F.leaky_relu(merged, 0.2))[..., : pooled.shape[-1]]
        return conv + pooled + F.avg_pool1d(x, self.down)


def sampling_stages(
    dim: int,
    hidden: int,
    down: list[int] | None = None,
    up: list[int] | None = None,
    causal: bool = False,
) -> nn.Sequential:
    """One SamplingBlock plus a two-layer Vocos backbone per ratio, in order; give the `down` or the `up`
    ratios. `causal` ones, which go up, hear no frame ahead.
    """
    blocks = [SamplingBlock(dim, down=r) for r in down or []]
    blocks += [SamplingBlock(dim, up=r, causal=causal) for r in up or []]
    far = 0 if causal else None
    return nn.Sequential(
        *(nn.Sequential(block, VocosBackbone(dim, dim, hidden, 2, lookahead=far)) for block in blocks)
    )
