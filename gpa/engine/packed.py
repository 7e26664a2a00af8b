"""A network made ready to decode: weights packed once, no work that the next id does not need.

The maths are those of `gpa.engine.network`, which stays its slow twin. Rows are positions, of one sequence
that is read or of many that each read an id; none depends on another but through what it attends to. Only
those rows of the head are computed whose ids may be generated.

    M rows   D width   H heads   Hk key/value heads   Dh head width   N ids that may be generated
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from gpa.engine.linear import Linear

if TYPE_CHECKING:
    import numpy as np

    from gpa.engine.cache import Cache
    from gpa.engine.network import Layer, Network, Norm, Sizes

HEADS = 16  # slices of the head that are kept
Rotation = tuple[Tensor, Tensor]  # cosines and signed sines (M, 1, Dh)
Head = Callable[[Tensor], Tensor]  # hidden states (R, D) to logits (R, N)


class Past(Protocol):
    """What rows of the network look at: the part of a cache that one pass reads and extends."""

    cache: Cache
    rows: list[int]  # of the cache
    lengths: list[int]  # of the rows, with what they read now

    @property
    def positions(self) -> Tensor:
        """Where the new ids stand (M,)."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Scaled queries (M, H, Dh) on all keys and values, the new (M, Hk, Dh) taken in: (M, H Dh)."""


class PackedLayer(NamedTuple):
    """Attention and MLP of one layer, the weights of norms multiplied into what follows them."""

    qkv: Linear
    scale: Tensor  # (H + Hk, Dh) of normalised queries and keys; theirs of the product is in it
    o: Linear
    gate: Linear
    up: Linear
    down: Linear

    @classmethod
    def of(cls, layer: Layer) -> PackedLayer:
        """From the modules of a network."""
        a, m = layer.self_attn, layer.mlp
        projections = (a.q_proj, a.k_proj, a.v_proj)
        weight = torch.cat([p.weight for p in projections]) * scaled(layer.input_layernorm)
        bias = None if a.q_proj.bias is None else torch.cat([p.bias for p in projections])
        heads, kv = (p.weight.shape[0] // a.q_norm.weight.shape[0] for p in projections[:2])
        after = scaled(layer.post_attention_layernorm)
        return cls(
            Linear(weight, bias),
            torch.cat([a.q_norm.weight.expand(heads, -1), scaled(a.k_norm).expand(kv, -1)]),
            Linear(a.o_proj.weight, a.o_proj.bias, "add"),
            Linear(m.gate_proj.weight * after, then="swish"),
            Linear(m.up_proj.weight * after, then="mul"),
            Linear(m.down_proj.weight, then="add"),
        )


def scaled(norm: Norm) -> Tensor:
    """The weight (D,) of a norm, by sqrt(D): see `unit`."""
    return norm.weight * norm.weight.shape[0] ** 0.5


class Forward(Protocol):
    """A network made ready to decode."""

    sizes: Sizes
    device: torch.device
    dtype: torch.dtype
    head: Heads

    @property
    def kernels(self) -> Sequence[str]:
        """What computes its layers, for people."""

    def __call__(self, ids: Tensor, past: Past) -> Tensor:
        """Hidden states (M, D) after ids (M,), normalised."""


class Heads:
    """The heads of a network: hidden states to logits of some ids (N,), in their order."""

    def __init__(self, make: Callable[[Tensor], Head]) -> None:
        self._make = make
        self._made: dict[bytes, Head] = {}

    def __call__(self, ids: np.ndarray) -> Head:
        """The head of these ids, which is kept for those who ask for the same ones."""
        key = ids.tobytes()
        found = self._made.pop(key) if key in self._made else self._make(torch.from_numpy(ids))
        self._made[key] = found  # the newest is the last
        if len(self._made) > HEADS:
            del self._made[next(iter(self._made))]
        return found


class PackedNetwork:
    """The forward pass of a `Network` for decoding, and its head for any choice of ids."""

    def __init__(self, network: Network) -> None:
        """Of a network, whose weights are copied into the form that kernels read fastest."""
        self.sizes, self.device, self.dtype = network.sizes, network.device, network.dtype
        self._embedding, self._norm = network.model.embed_tokens.weight, scaled(network.model.norm)
        self._unembedding = self._embedding if self.sizes.tie_word_embeddings else network.lm_head.weight
        self._layers = [PackedLayer.of(layer) for layer in network.model.layers]
        self.head = Heads(self._make_head)
        widths = torch.tensor([self.sizes.hidden_size, self.sizes.head_dim], device=self.device)
        self._eps = (widths * self.sizes.rms_norm_eps).sqrt()
        self._speeds = network.speeds.to(self.device)
        self._rotations = self._rotation_table(0)

    @property
    def kernels(self) -> list[str]:
        """The kernels that its layers take, for people."""
        linears = {linear for layer in self._layers for linear in layer if isinstance(linear, Linear)}
        return sorted({str(linear.kernel) for linear in linears})

    def __call__(self, ids: Tensor, past: Past) -> Tensor:
        """Hidden states (M, D) after ids (M,), normalised."""
        s, x = self.sizes, self._embedding[ids]
        if max(past.lengths) > len(self._rotations[0]):
            self._rotations = self._rotation_table(2 * max(past.lengths))
        cos, sin = (table[past.positions] for table in self._rotations)  # (M, 1, Dh)
        heads = s.num_attention_heads + s.num_key_value_heads
        eps, eps_head = self._eps
        for n, layer in enumerate(self._layers):
            qkv = layer.qkv(unit(x, eps)).view(len(ids), -1, s.head_dim)
            qk = unit(qkv[:, :heads], eps_head) * layer.scale
            qk = qk * cos + qk.roll(s.head_dim // 2, -1) * sin
            q, k = qk.split((s.num_attention_heads, s.num_key_value_heads), 1)
            x = layer.o(past.attend(n, q, k, qkv[:, heads:]), x)
            normal = unit(x, eps)
            x = layer.down(layer.up(normal, layer.gate(normal)), x)
        return unit(x, eps)

    def _make_head(self, ids: Tensor) -> Head:
        with torch.inference_mode():
            return Linear(self._unembedding[ids.to(self.device)] * self._norm)

    def _rotation_table(self, positions: int) -> Rotation:
        """Cosines and sines (P, 1, Dh) of positions; the first half of the sines turns the other way."""
        angles = torch.arange(positions, device=self.device)[:, None, None].float() * self._speeds
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((cos, cos), -1).to(self.dtype), torch.cat((-sin, sin), -1).to(self.dtype)


def unit(x: Tensor, eps: Tensor) -> Tensor:
    """Rows (..., D) by their root mean square, and by sqrt(D), which the weights make good: in float32.

    `eps` is the square root of D eps. RMSNorm without its weight (Zhang and Sennrich 2019).
    """
    y = x.float()
    return (y / torch.hypot(torch.linalg.vector_norm(y, dim=-1, keepdim=True), eps)).to(x.dtype)
