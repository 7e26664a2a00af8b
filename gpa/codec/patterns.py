"""The pattern that lays the K codebooks of a codec into one stream of ids, and back.

Frame after frame, the K codes of a frame side by side. Step l belongs to codebook l mod K, and codebook k
owns the ids k*C .. (k+1)*C - 1 (C values per codebook): an id alone says which codebook it is from. The
pattern knows its own ids 0 .. K*C - 1; the vocabulary adds the blocks' offsets, the engine what is legal at
a step.

    K codebooks   T frames   C values per codebook   L = K * T steps of the stream
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpa.errors import VocabError


@dataclass(frozen=True)
class Flatten:
    """K = 3: a0 b0 c0  a1 b1 c1  a2 b2 c2 ..., each letter with ids of its own."""

    n_codebooks: int
    codebook_size: int

    @property
    def n_ids(self) -> int:
        """Size of the id space, K*C."""
        return self.n_codebooks * self.codebook_size

    def build(self, codes: np.ndarray) -> np.ndarray:
        """Stream (L,) int64 of codes (K, T); VocabError if a code or the shape does not fit."""
        codes = np.asarray(codes)
        k, size = self.n_codebooks, self.codebook_size
        if codes.ndim != 2 or codes.shape[0] != k or not np.issubdtype(codes.dtype, np.integer):
            raise VocabError(f"codes must be integers of shape ({k}, T), got {codes.dtype} {codes.shape}")
        if codes.size and not (0 <= codes.min() and codes.max() < size):
            raise VocabError(f"codes run from {codes.min()} to {codes.max()}, outside 0..{size - 1}")
        return (codes.astype(np.int64) + self._offsets).T.reshape(-1)

    def parse(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Codes (K, T) of a stream of whole frames, the inverse of `build`; VocabError names the first bad
        step.
        """
        k, size = self.n_codebooks, self.codebook_size
        stream = np.asarray(ids, np.int64) if len(ids) == 0 else np.asarray(ids)
        if stream.ndim != 1 or not np.issubdtype(stream.dtype, np.integer):
            raise VocabError(f"a stream is a flat sequence of integers, got {stream.dtype} {stream.shape}")
        if stream.size % k:
            raise VocabError(f"a stream of {stream.size} ids does not hold whole columns of {k} codebooks")
        codes = stream.astype(np.int64).reshape(-1, k).T - self._offsets  # (K, T)
        if (bad := np.argwhere(((codes < 0) | (codes >= size)).T)).size:
            column, row = (int(i) for i in bad[0])
            raise VocabError(
                f"step {column * k + row}: id {stream[column * k + row]} is not one of codebook {row} "
                f"({row * size}..{(row + 1) * size - 1})"
            )
        return codes

    @property
    def _offsets(self) -> np.ndarray:  # (K, 1)
        return np.arange(self.n_codebooks, dtype=np.int64)[:, None] * self.codebook_size
