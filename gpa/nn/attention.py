"""Attention: the fused kernel, a readable twin that a test holds it to, and rotary positions.

B batch   H heads   L queries   N keys   Dh head width
q (B, H, L, Dh)   k, v (B, H, N, Dh)   mask bool, broadcast to (B, H, L, N): True where a key may be seen
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Angles = tuple[Tensor, Tensor]  # cosines and sines (B, 1, L, Dh / 2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k' / sqrt(Dh)) v over the visible keys (B, H, L, Dh); a query must see at least one key."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def attend_slowly(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """The twin of `attend`, written out."""
    scores = torch.einsum("bhld,bhnd->bhln", q, k) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    weight = (scores - scores.amax(-1, keepdim=True)).exp()
    return torch.einsum("bhln,bhnd->bhld", weight / weight.sum(-1, keepdim=True), v)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, H Dh) -> (B, H, L, Dh)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, L, Dh) -> (B, L, H Dh), the inverse of `split_heads`."""
    return x.transpose(1, 2).flatten(2)


def rotary_angles(positions: Tensor, width: int, base: float = 10000.0) -> Angles:
    """Angles of rotary positions: positions (B, L), head width `width`, even."""
    speed = base ** (
        -torch.arange(0, width, 2, device=positions.device).float() / width
    )  # (Dh / 2,), radians a position
    angle = (positions[..., None] * speed)[:, None]  # (B, 1, L, Dh / 2)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, angles: Angles) -> Tensor:
    """Each pair (x_i, x_{i + Dh/2}) turned by its position's angle: products then see differences only."""
    cos, sin = (part.to(x.dtype) for part in angles)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
