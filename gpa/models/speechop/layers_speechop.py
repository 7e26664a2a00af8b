"""Blocks of the DiT, of the audio encoder and of the byte encoder: one class, three uses.

SpeechOp, arXiv 2509.14298. Padding is given by masks and positions are counted over the real frames, so
padding may stand anywhere in a row and changes nothing.

    B batch   L frames of a sequence   N text positions   D width   H heads   Dh head width
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpa.nn.attention import Angles, attend, merge_heads, rotary_angles, rotate, split_heads
from gpa.nn.convnext import AdaLayerNorm

if TYPE_CHECKING:
    from gpa.models.speechop.configuration_speechop import Stack

EPS = 1e-6


class Frames(NamedTuple):
    """Which frames of a sequence are real, and where each stands among the real ones."""

    visible: Tensor  # (B, 1, 1, L) bool
    angles: Angles
    relative: Tensor  # (B, L), position as a fraction of the sequence, in (0, 1)


def frames_of(mask: Tensor, head_width: int) -> Frames:
    """From a mask (B, L) bool. A row without any real frame sees its padding: finite, and used by nobody."""
    visible = mask | ~mask.any(1, keepdim=True)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    angles = rotary_angles(positions, head_width)
    return Frames(visible[:, None, None], angles, relative_positions(mask))


def relative_positions(mask: Tensor) -> Tensor:
    """(n + 1/2) / N of the n-th of N real positions; mask and result (B, N)."""
    count = mask.sum(1, keepdim=True).clamp(min=1)
    return ((mask.cumsum(1) - 0.5) / count).clamp(0, 1)


class SelfAttention(nn.Module):
    """Full attention over a sequence, with rotary positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, frames: Frames) -> Tensor:  # (B, L, D)
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, -1))
        y = attend(rotate(q, frames.angles), rotate(k, frames.angles), v, frames.visible)
        return self.out(merge_heads(y))


class Text(NamedTuple):
    """Text of a batch: ids (B, N) int64 or encoder states (B, N, Dt), and which positions are real (B, N).

    A row without real positions is the null text.
    """

    values: Tensor
    mask: Tensor


class TextKeys(NamedTuple):
    """Keys and values of one layer for the text, (B, H, 1 + N, Dh): constant over the steps of sampling."""

    key: Tensor
    value: Tensor


class CrossAttention(nn.Module):
    """Attention from frames to text and to one learned slot, always there: the null text is that slot."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.slot = nn.Parameter(torch.randn(2, width) * 0.02)  # key and value of the null text

    def keys(self, text: Tensor, place: Tensor | None) -> TextKeys:
        """From text states (B, N, D) and, for the keys alone, embedded positions (B, N, D)."""
        key = self.key(text if place is None else text + place)
        rows = (self._with_slot(i, part) for i, part in enumerate((key, self.value(text))))
        return TextKeys(*rows)

    def _with_slot(self, i: int, x: Tensor) -> Tensor:  # (B, N, D) -> (B, H, 1 + N, Dh)
        return split_heads(torch.cat([self.slot[i].expand(len(x), 1, -1), x], 1), self.heads)

    def scores(self, x: Tensor, place: Tensor | None, text: TextKeys, mask: Tensor) -> Tensor:
        """Logits (B, L, 1 + N) of the first head's attention, computed once more: for supervising it."""
        width = text.key.shape[-1]
        q = F.linear(x if place is None else x + place, self.query.weight[:width])
        found = q @ text.key[:, 0].transpose(1, 2) / math.sqrt(width)
        return found.masked_fill(~mask[:, None], -math.inf)

    def forward(self, x: Tensor, place: Tensor | None, text: TextKeys, mask: Tensor) -> Tensor:
        """x, place (B, L, D); mask (B, 1 + N) bool, True at the slot."""
        q = split_heads(self.query(x if place is None else x + place), self.heads)
        return self.out(merge_heads(attend(q, text.key, text.value, mask[:, None, None])))


class SwiGLU(nn.Module):
    """Feed-forward network (silu(a x) * b x) c of three matrices without biases."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.rise = nn.Linear(width, 2 * hidden, bias=False)
        self.fall = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.rise(x).chunk(2, -1)
        return self.fall(F.silu(gate) * value)


class Sublayer(nn.Module):
    """x + gate(cond) * dropout(inner(norm(x, cond), ...)); a plain pre-norm residual unless `adaptive`.

    The gate starts at zero, so an adaptive sublayer starts as the identity.
    """

    def __init__(self, inner: nn.Module, sizes: Stack, adaptive: bool) -> None:
        super().__init__()
        width = sizes.width
        self.inner, self.adaptive = inner, adaptive
        self.norm = AdaLayerNorm(width, width) if adaptive else nn.RMSNorm(width, eps=EPS)
        self.gate = nn.Linear(width, width) if adaptive and sizes.gate else None
        self.dropout = nn.Dropout(sizes.dropout)
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)

    def forward(self, x: Tensor, cond: Tensor | None, *inputs: Any) -> Tensor:  # (B, L, D), (B, D)
        normed = self.norm(x, cond) if self.adaptive else self.norm(x)
        y = self.dropout(self.inner(normed, *inputs))
        return x + (y if self.gate is None else self.gate(cond)[:, None] * y)


class Block(nn.Module):
    """Self-attention, cross-attention if `text`, feed-forward; modulated by a condition if `adaptive`."""

    def __init__(self, sizes: Stack, adaptive: bool = True, text: bool = False) -> None:
        super().__init__()
        both = adaptive and sizes.adaln == "both"
        self.attention = Sublayer(SelfAttention(sizes.width, sizes.heads), sizes, both)
        self.cross = Sublayer(CrossAttention(sizes.width, sizes.heads), sizes, False) if text else None
        self.ffn = Sublayer(SwiGLU(sizes.width, sizes.ffn), sizes, adaptive)

    def forward(
        self,
        x: Tensor,
        frames: Frames,
        cond: Tensor | None = None,
        text: TextKeys | None = None,
        text_mask: Tensor | None = None,
        place: Tensor | None = None,
    ) -> Tensor:
        """x and place (B, L, D), cond (B, D), text_mask (B, 1 + N); the last three for `CrossAttention`."""
        x = self.attention(x, cond, frames)
        if self.cross is not None:
            x = self.cross(x, cond, place, text, text_mask)
        return self.ffn(x, cond)


def text_keys(block: nn.Module, text: Tensor, place: Tensor | None) -> TextKeys:
    """Keys and values of a block's cross-attention (arguments as `CrossAttention.keys`)."""
    cross = block.get_submodule("cross.inner")
    assert isinstance(cross, CrossAttention)
    return cross.keys(text, place)


def waves(x: Tensor, speeds: Tensor) -> Tensor:
    """Sines and cosines of x at the given angular speeds: (...) and (F,) -> (..., 2 F)."""
    angle = x[..., None] * speeds
    return torch.cat([angle.sin(), angle.cos()], -1)


class LevelEmbedding(nn.Module):
    """Log-SNR (B,) to (B, D): sinusoids of its place within +-limit, and an MLP."""

    def __init__(self, width: int, limit: float, features: int = 256) -> None:
        super().__init__()
        self.limit, self.features = limit, features
        self.into, self.out = nn.Linear(features, width), nn.Linear(width, width)

    def forward(self, lam: Tensor) -> Tensor:
        half = self.features // 2
        speeds = torch.exp(-math.log(1e4) * torch.arange(half, device=lam.device).float() / half)
        place = 500 * (1 + lam.clamp(-self.limit, self.limit) / self.limit)  # 0 to 1000, the habit of DiTs
        return self.out(F.silu(self.into(waves(place, speeds).to(self.into.weight.dtype))))


class PlaceEmbedding(nn.Module):
    """Relative positions in (0, 1) to (..., D): Fourier features and an MLP (after SESD)."""

    def __init__(self, width: int, features: int = 16) -> None:
        super().__init__()
        self.features = features
        self.into, self.out = nn.Linear(features, width), nn.Linear(width, width)

    def forward(self, relative: Tensor) -> Tensor:
        speeds = math.pi * 2.0 ** torch.arange(self.features // 2, device=relative.device).float()
        return self.out(F.silu(self.into(waves(relative, speeds).to(self.into.weight.dtype))))
