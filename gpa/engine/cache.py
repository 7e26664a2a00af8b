"""The keys and values of everything that was read: the one owner of a cache outside training.

A row holds one sequence from its first id on. Rows are taken, extended, copied onto each other (hypotheses
of a search) and released; buffers grow with what is asked of them.

    R rows   L new positions   P positions so far   Hk key/value heads   Dh head width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gpa.engine.network import Network

GRAIN = 256  # positions by which the buffers grow


class Cache:
    """Rows of keys and values of one network, on its device and in its precision."""

    def __init__(self, network: Network) -> None:
        s = network.sizes
        shape = (s.num_hidden_layers, 0, s.num_key_value_heads, 0, s.head_dim)  # layers, R, Hk, P, Dh
        self.keys, self.values = (network.model.norm.weight.new_empty(shape) for _ in range(2))
        self.lengths: list[int] = []  # positions that each row holds
        self._free: list[int] = []

    @property
    def used(self) -> int:
        """How many rows are taken."""
        return len(self.lengths) - len(self._free)

    def take(self, count: int) -> list[int]:
        """Empty rows, the lowest ones: neighbours are read without a copy."""
        fresh = range(len(self.lengths), len(self.lengths) + max(0, count - len(self._free)))
        self.lengths += [0] * len(fresh)
        free = sorted([*self._free, *fresh])
        self._free = free[count:]
        return free[:count]

    def release(self, rows: Sequence[int]) -> None:
        """Give rows back."""
        self._free += rows
        for row in rows:
            self.lengths[row] = 0

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Let each target row hold what its source row held, all at once."""
        moved = [pair for pair in zip(sources, targets, strict=True) if pair[0] != pair[1]]
        if not moved:
            return
        old, new = (list(rows) for rows in zip(*moved, strict=True))
        lengths = [self.lengths[row] for row in old]
        for buffer in (self.keys, self.values):
            buffer[:, new, :, : max(lengths)] = buffer[:, old, :, : max(lengths)]
        for row, length in zip(new, lengths, strict=True):
            self.lengths[row] = length

    def extended(self, rows: Sequence[int], count: int) -> Reading:
        """The rows with `count` more positions each: a prompt of one row, or one id of several."""
        starts = [self.lengths[row] for row in rows]
        for row in rows:
            self.lengths[row] += count
        longest = max(starts) + count
        self._reserve(longest)
        device = self.keys.device
        first = torch.tensor(starts, device=device)[:, None]
        positions = first + torch.arange(count, device=device)  # (R, L)
        mask = None
        if min(starts) < max(starts):
            mask = (torch.arange(longest, device=device) <= first)[:, None, None]  # (R, 1, 1, P)
        return Reading(self, torch.tensor(rows, device=device)[:, None], positions, longest, mask, list(rows))

    def _reserve(self, positions: int) -> None:
        """Room for all rows that there are, and for so many positions of each."""
        layers, rows, heads, length, width = self.keys.shape
        if len(self.lengths) <= rows and positions <= length:
            return
        shape = (
            layers,
            max(rows, len(self.lengths)),
            heads,
            max(length, -(-positions // GRAIN) * GRAIN),
            width,
        )
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(shape)  # masked positions are read, too: they have to be numbers
            new[:, :rows, :, :length] = old
            setattr(self, name, new)


@dataclass
class Reading:
    """Rows of a cache while a network reads: see `gpa.engine.network.Past`."""

    cache: Cache
    index: Tensor  # (R, 1)
    positions: Tensor  # (R, L)
    longest: int  # P
    mask: Tensor | None
    rows: list[int]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """New keys and values (R, Hk, L, Dh) are written; all of them (R, Hk, P, Dh) are returned."""
        return self._extend(self.cache.keys[layer], k), self._extend(self.cache.values[layer], v)

    def _extend(self, buffer: Tensor, new: Tensor) -> Tensor:
        buffer[self.index, :, self.positions] = new.transpose(1, 2)  # (R, L, Hk, Dh)
        begin, end = self.rows[0], self.rows[-1] + 1
        neighbours = self.rows == list(range(begin, end))
        return (buffer[begin:end] if neighbours else buffer[self.index[:, 0]])[:, :, : self.longest]
