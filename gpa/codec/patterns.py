"""The pattern that lays the K codebooks of a codec into one stream of ids, and back.

It knows codes and its own ids 0..n_ids-1 only; the vocabulary adds the block's offset, the prompt the
delimiters, the engine the rule that ids come in rounds of K. Step l belongs to codebook l mod K, and codebook
k owns the ids k*C .. (k+1)*C - 1 (C values per codebook): an id alone says which codebook it is from.

    K codebooks   T frames   C values per codebook   l step of the stream
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpa.errors import VocabError


@dataclass(frozen=True)
class Flatten:
    """Frame after frame, the K codes of a frame side by side: length K*T, no padding.

    K = 3:   a0 b0 c0  a1 b1 c1  a2 b2 c2 ...
    """

    n_codebooks: int
    codebook_size: int

    @property
    def n_ids(self) -> int:
        """Size of the id space, K*C."""
        return self.n_codebooks * self.codebook_size

    def build(self, codes: np.ndarray) -> np.ndarray:
        """Stream (K*T,) int64 of codes (K, T); VocabError if a code or the shape does not fit."""
        codes = _checked_codes(codes, self.n_codebooks, self.codebook_size)
        return (codes + _offsets(self.n_codebooks, self.codebook_size)).T.reshape(-1)

    def parse(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Codes (K, T) of a complete stream, the inverse of `build`; VocabError names the first bad step."""
        return _codes_of(_grid(ids, self.n_codebooks), self.codebook_size)


def _offsets(n_codebooks: int, size: int) -> np.ndarray:
    return np.arange(n_codebooks, dtype=np.int64)[:, None] * size  # (K, 1)


def _checked_codes(codes: np.ndarray, n_codebooks: int, size: int) -> np.ndarray:
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.shape[0] != n_codebooks or not np.issubdtype(codes.dtype, np.integer):
        raise VocabError(
            f"codes must be integers of shape ({n_codebooks}, T), got {codes.dtype} {codes.shape}"
        )
    if codes.size and not (0 <= codes.min() and codes.max() < size):
        raise VocabError(f"codes run from {codes.min()} to {codes.max()}, outside 0..{size - 1}")
    return codes.astype(np.int64)


def _grid(ids: Sequence[int] | np.ndarray, n_codebooks: int) -> np.ndarray:
    """Stream (L,) as a grid (K, L/K)."""
    stream = np.asarray(ids, np.int64) if len(ids) == 0 else np.asarray(ids)
    if stream.ndim != 1 or not np.issubdtype(stream.dtype, np.integer):
        raise VocabError(f"a stream is a flat sequence of integers, got {stream.dtype} {stream.shape}")
    if stream.size % n_codebooks:
        raise VocabError(
            f"a stream of {stream.size} ids does not hold whole frames of {n_codebooks} codebooks"
        )
    return stream.astype(np.int64).reshape(-1, n_codebooks).T


def _codes_of(grid: np.ndarray, size: int) -> np.ndarray:
    """Ids (K, columns) to codes; every cell must hold an id of its own codebook."""
    codes = grid - _offsets(len(grid), size)
    if (bad := np.argwhere(((codes < 0) | (codes >= size)).T)).size:
        column, k = (int(i) for i in bad[0])
        raise VocabError(
            f"step {column * len(grid) + k}: id {grid[k, column]} is not one of codebook {k} "
            f"({k * size}..{(k + 1) * size - 1})"
        )
    return codes
