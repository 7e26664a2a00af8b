"""The keys and values of everything that was read: the one owner of a cache outside training.

A row holds one sequence from its first id on. Rows are taken, extended, copied onto each other (hypotheses
of a search) and released; buffers grow with what is asked of them, and give up what is not needed where they
would grow beyond a bound.

    R rows   L new positions   P positions so far, padded   H heads   Hk key/value heads   Dh head width
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from gpa.engine.decode_attention import Grouping, attend, groups

if TYPE_CHECKING:
    from gpa.engine.packed import Forward

GRAIN = 256  # positions by which the buffers grow, a multiple of attention's bucket


class Cache:
    """Rows of keys and values of one network, on its device and in its precision."""

    def __init__(self, network: Forward, most: int = 0) -> None:
        """Buffers have at most `most` positions, all rows together, unless more are needed at once."""
        s = self._sizes = network.sizes
        self._most = most
        self._shape = (s.num_key_value_heads, s.head_dim)
        empty = torch.empty(
            (0, s.num_key_value_heads, 0, s.head_dim), dtype=network.dtype, device=network.device
        )
        self.keys, self.values = ([empty] * s.num_hidden_layers for _ in range(2))  # each (R, Hk, P, Dh)
        self.lengths: list[int] = []  # positions that each row holds
        self.version = 0  # of the buffers, which are others after each time they grow
        self._free: list[int] = []

    @cached_property
    def grouped(self) -> Grouping:
        """Which rows torch's attention reads together."""
        return groups(self._sizes, self.keys[0].device, self.keys[0].dtype)

    @property
    def used(self) -> int:
        """How many rows are taken."""
        return len(self.lengths) - len(self._free)

    @staticmethod
    def bytes_per_position(network: Forward) -> int:
        """Memory of one position of one row."""
        s = network.sizes
        return 2 * s.num_hidden_layers * s.num_key_value_heads * s.head_dim * network.dtype.itemsize

    def take(self, count: int) -> list[int]:
        """Empty rows, the lowest ones: neighbours are read together."""
        fresh = range(len(self.lengths), len(self.lengths) + max(0, count - len(self._free)))
        self.lengths += [0] * len(fresh)
        free = sorted([*self._free, *fresh])
        self._free = free[count:]
        return free[:count]

    def release(self, rows: Sequence[int]) -> None:
        """Give rows back; the last ones are no longer there."""
        free = {*self._free, *rows}
        for row in rows:
            self.lengths[row] = 0
        while len(self.lengths) - 1 in free:
            free.remove(len(self.lengths) - 1)
            self.lengths.pop()
        self._free = sorted(free)

    def rows_with(self, count: int) -> int:
        """How many rows there are, free ones between others included, once so many more are taken."""
        return max(len(self.lengths), self.used + count)

    def copy(self, sources: Sequence[int], targets: Sequence[int], shared: int = 0) -> None:
        """Let each target row hold what its source row held, all at once.

        The first `shared` positions are the same in all of them that have so many: a prompt.
        """
        moved = [pair for pair in zip(sources, targets, strict=True) if pair[0] != pair[1]]
        if not moved:
            return
        old, new = (list(rows) for rows in zip(*moved, strict=True))
        lengths = [self.lengths[row] for row in old]
        changed = slice(shared if min(self.lengths[row] for row in new) >= shared else 0, max(lengths))
        for buffer in (*self.keys, *self.values):
            buffer[new, :, changed] = buffer[old, :, changed]
        for row, length in zip(new, lengths, strict=True):
            self.lengths[row] = length

    def begin(self, source: int, target: int, count: int) -> None:
        """Let an empty row begin with the first `count` positions of another."""
        self._reserve(count)
        for buffer in (*self.keys, *self.values):
            buffer[target, :, :count] = buffer[source, :, :count]
        self.lengths[target] = count

    def prompted(self, row: int, count: int) -> PromptPast:
        """A row that reads `count` positions of its prompt."""
        self._reserve(self.lengths[row] + count)
        self.lengths[row] += count
        return PromptPast(self, row, self.lengths[row] - count, count)

    def extended(self, rows: Sequence[int]) -> StepPast:
        """Rows that read one id each."""
        self._reserve(1 + max(self.lengths))
        for row in rows:
            self.lengths[row] += 1
        return StepPast(self, rows)

    def _reserve(self, positions: int) -> None:
        """Room for all rows that there are, and for so many positions of each."""
        rows, heads, length, width = self.keys[0].shape
        if len(self.lengths) <= rows and positions <= length:
            return
        count, longest = len(self.lengths), -(-max(positions, *self.lengths) // GRAIN) * GRAIN
        if max(rows, count) * max(length, longest) <= self._most:
            count, longest = max(rows, count), max(length, longest)
        self.version += 1
        kept, held = min(rows, count), min(length, longest)
        for buffers in (self.keys, self.values):
            for n, old in enumerate(buffers):
                # Masked positions are read, too: they have to be numbers.
                buffers[n] = old.new_zeros((count, heads, longest, width))
                buffers[n][:kept, :, :held] = old[:kept, :, :held]


class PromptPast:
    """One row of a cache while it reads a part of its prompt: see `gpa.engine.packed.Past`.

    What it computes depends on this row alone, so torch's own attention may choose its kernels.
    """

    def __init__(self, cache: Cache, row: int, start: int, count: int) -> None:
        self.cache, self.rows, self.lengths = cache, [row], [start + count]
        self._start = start

    @cached_property
    def positions(self) -> Tensor:
        """Where the new ids stand (L,)."""
        return torch.arange(self._start, self.lengths[0], device=self.cache.keys[0].device)

    @cached_property
    def _mask(self) -> Tensor:
        return self.positions[:, None] >= torch.arange(
            self.lengths[0], device=self.positions.device
        )  # (L, P)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Scaled queries (L, H, Dh) on this row's positions up to each of theirs: (L, H Dh)."""
        (row,), (length,) = self.rows, self.lengths
        keys, values = self.cache.keys[layer][row, :, :length], self.cache.values[layer][row, :, :length]
        keys[:, self._start :] = k.transpose(0, 1)
        values[:, self._start :] = v.transpose(0, 1)
        found = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            keys[None],
            values[None],
            attn_mask=self._mask,
            scale=1.0,
            enable_gqa=True,
        )
        return found[0].transpose(0, 1).reshape(len(q), -1)


class StepPast:
    """Rows of a cache that read one id each, neighbours of like length together."""

    def __init__(self, cache: Cache, rows: Sequence[int]) -> None:
        self.cache, self.rows = cache, list(rows)
        self.lengths = [cache.lengths[row] for row in rows]

    @cached_property
    def positions(self) -> Tensor:
        """Where the new ids stand (R,)."""
        return torch.tensor(self.lengths, device=self.cache.keys[0].device) - 1

    @cached_property
    def _places(self) -> Tensor:
        return torch.tensor(self.rows, device=self.positions.device)

    @cached_property
    def _runs(self) -> list[tuple[int, int, slice, int, Tensor]]:
        """Of rows that are read together: from, to, in the cache, positions, mask (R, 1, 1, P)."""
        found = []
        for begin, end, size in self.cache.grouped.runs(self.rows, self.lengths):
            held = slice(self.rows[begin], self.rows[begin] + end - begin)
            last = self.positions[begin:end, None]
            mask = torch.arange(size, device=last.device) > last
            found.append((begin, end, held, size, mask[:, None, None]))
        return found

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Scaled queries (R, H, Dh) on all positions of their rows: (R, H Dh)."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self._places, :, self.positions] = k
        values[self._places, :, self.positions] = v
        queries = self.cache.grouped.queries
        made = [
            attend(q[begin:end], keys[held, :, :size], values[held, :, :size], mask, queries)
            for begin, end, held, size, mask in self._runs
        ]
        return made[0] if len(made) == 1 else torch.cat(made)
