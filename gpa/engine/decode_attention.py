"""Attention of single ids on what their rows hold, the same bits for a row in every batch.

A product, a softmax, a product: kernels made for attention divide their work by the size of the batch. What
torch promises of none of them, a probe finds out: how many queries of a key/value head stand together, and
whether keys beyond a row's own may be read and masked. Rows that may not be read together are read apart.

    R rows   P positions, padded   H heads   Hk key/value heads   G = H / Hk   Dh head width
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from gpa.engine.network import Sizes

BUCKET = 64  # positions to whose multiple a row's own are padded
PROBED = 8  # rows in the probe
WASTE = 2  # so many times its own positions are read of a row at most


def padded(length: int) -> int:
    """Positions that are read of a row with so many."""
    return -(-length // BUCKET) * BUCKET


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, queries: int) -> Tensor:
    """Scaled queries (R, H, Dh) on keys and values (R, Hk, P, Dh), true where masked (R, 1, 1, P): (R, H Dh).

    The queries of a key/value head are padded to `queries`.
    """
    rows, heads, width = q.shape
    q = q.reshape(rows, k.shape[1], -1, width)  # (R, Hk, G, Dh)
    group = q.shape[2]
    if group < queries:
        q = F.pad(q, (0, 0, 0, queries - group))
    scores = torch.matmul(q, k.transpose(-1, -2)).masked_fill_(mask, -torch.inf)
    return torch.matmul(scores.softmax(-1), v)[:, :, :group].reshape(rows, heads * width)


class Grouping(NamedTuple):
    """Which rows are read together: `queries` of a key/value head, any at all, those that are `longer`."""

    queries: int
    together: bool = True
    longer: bool = False

    def runs(self, rows: Sequence[int], lengths: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        """Runs of neighbours as (begin, end, P): those that may be read as one."""
        begin, size, least = 0, 0, 0
        for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            own = padded(length)
            if i and not (self.together and row == rows[i - 1] + 1 and self._fits(own, size, least)):
                yield begin, i, size
                begin, size, least = i, 0, own
            size, least = max(size, own), min(least or own, own)
        yield begin, len(rows), size

    def _fits(self, own: int, size: int, least: int) -> bool:
        return max(own, size) <= WASTE * min(own, least) if self.longer else own == size


def groups(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Grouping:
    """The grouping of a network; without a promise for devices other than the CPU."""
    group = sizes.num_attention_heads // sizes.num_key_value_heads
    if device.type != "cpu":
        return Grouping(group, longer=True)
    return exact_grouping(sizes.num_key_value_heads, group, sizes.head_dim, dtype, torch.get_num_threads())


@lru_cache(None)
def exact_grouping(heads: int, group: int, width: int, dtype: torch.dtype, threads: int) -> Grouping:
    """The widest grouping that gives a row the same bits in every batch, by a probe on random numbers.

    `threads` are those that torch computes with now: the choice is one of them as well.
    """
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(PROBED, heads * group, width, generator=generator).to(dtype) * width**-0.5
    k, v = (torch.randn(PROBED, heads, 6 * BUCKET, width, generator=generator).to(dtype) for _ in range(2))
    shifts = torch.arange(PROBED)[:, None, None, None]

    def found(begin: int, end: int, length: int, size: int, queries: int) -> Tensor:
        mask = torch.arange(size) >= length - shifts[begin:end]
        return attend(q[begin:end], k[begin:end, :, :size], v[begin:end, :, :size], mask, queries)

    def same(queries: int, more: int) -> bool:
        for length in (BUCKET, 3 * BUCKET, 5 * BUCKET):
            alone = torch.cat([found(i, i + 1, length, length, queries) for i in range(PROBED)])
            if not all(
                torch.equal(found(0, n, length, length + more, queries), alone[:n])
                for n in (1, 2, 3, 5, PROBED)
            ):
                return False
        return True

    with torch.inference_mode():
        exact = [n for n in sorted({group, -(-group // 4) * 4, -(-group // 8) * 8}) if same(n, 0)]
        if not exact:
            return Grouping(group, together=False)
        longer = [n for n in exact if same(n, BUCKET)]
    return Grouping((longer or exact)[0], longer=bool(longer))
