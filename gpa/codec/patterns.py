"""Patterns that lay the K codebooks of a codec into one stream of ids, and back.

A pattern knows codes and its own ids 0..n_ids-1 only; the vocabulary adds the block's offset, the prompt the
delimiters. In both patterns column s is written codebook by codebook, so step l belongs to codebook l mod K,
and codebook k owns the ids k*C .. (k+1)*C - 1 (C values per codebook): an id alone says which codebook it is
from.

    K codebooks   T frames   C values per codebook   D largest delay   s column   l step of the stream
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
    def delays(self) -> tuple[int, ...]:
        """Frames by which each codebook lags: none."""
        return (0,) * self.n_codebooks

    @property
    def n_ids(self) -> int:
        """Size of the id space, K*C."""
        return self.n_codebooks * self.codebook_size

    def length(self, frames: int) -> int:
        """Stream length of a clip of T frames."""
        return self.n_codebooks * frames

    def codebook(self, step: int) -> int:
        """Codebook that step l belongs to."""
        return step % self.n_codebooks

    def frames(self, ids: Sequence[int] | np.ndarray) -> int | None:
        """Always None: a prefix never tells how many frames follow."""
        return None

    def legal(self, step: int, frames: int | None = None) -> range:
        """Ids that may stand at step l, empty past the end when the number of frames is given."""
        if frames is not None and step >= self.length(frames):
            return range(0)
        return _own_ids(self.codebook(step), self.codebook_size)

    def may_stop(self, step: int, frames: int | None = None) -> bool:
        """Whether a stream of `step` ids is complete: whole frames, at least one."""
        return step > 0 and step % self.n_codebooks == 0 and (frames is None or step == self.length(frames))

    def build(self, codes: np.ndarray) -> np.ndarray:
        """Stream (K*T,) int64 of codes (K, T); VocabError if a code or the shape does not fit."""
        codes = _checked_codes(codes, self.n_codebooks, self.codebook_size)
        return (codes + _offsets(self.n_codebooks, self.codebook_size)).T.reshape(-1)

    def parse(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Codes (K, T) of a complete stream, the inverse of `build`; VocabError names the first bad step."""
        grid = _grid(ids, self.n_codebooks)
        return _codes_of(grid, np.ones(grid.shape, bool), self.codebook_size)


@dataclass(frozen=True)
class Delay:
    """Codebook k lags d_k frames, so a step sees the coarser codes of its own frame (MusicGen).

    Cell (k, s) of a grid of K rows and T + D columns holds the code of frame s - d_k, or the pad id K*C where
    that frame does not exist: before the clip (s < d_k) and after it (s - d_k >= T). The stream is the grid
    read column by column, length K*(T + D). K = 3, delays (0, 1, 2), T = 2, `.` the pad:

        a0 .  .   a1 b0 .   .  b1 c0   .  .  c1

    The first codebook with delay 0 leads: its first pad fixes T, and every later cell follows from that.
    Without any delay there is no pad and the stream is that of `Flatten`. Source: arXiv 2306.05284, section
    2.2.
    """

    n_codebooks: int
    codebook_size: int
    delays: tuple[int, ...] = ()  # one per codebook, the smallest 0; default 0, 1, .., K-1

    def __post_init__(self) -> None:
        delays = tuple(self.delays) or tuple(range(self.n_codebooks))
        if len(delays) != self.n_codebooks or min(delays) != 0:
            raise VocabError(
                f"delays {delays}: need {self.n_codebooks} of them, none negative, the smallest 0"
            )
        object.__setattr__(self, "delays", delays)

    @property
    def pad(self) -> int:
        """Id of an empty cell: the one after all codes."""
        return self.n_codebooks * self.codebook_size

    @property
    def n_ids(self) -> int:
        """Size of the id space, K*C + 1."""
        return self.pad + 1

    @property
    def lead(self) -> int:
        """Codebook whose first pad ends the clip."""
        return self.delays.index(0)

    def length(self, frames: int) -> int:
        """Stream length of a clip of T frames."""
        return self.n_codebooks * (frames + max(self.delays)) if frames else 0

    def codebook(self, step: int) -> int:
        """Codebook that step l belongs to."""
        return step % self.n_codebooks

    def frames(self, ids: Sequence[int] | np.ndarray) -> int | None:
        """Frames T as soon as a prefix of the stream fixes it (the leading codebook's pad), else None."""
        column = np.flatnonzero(np.asarray(ids)[self.lead :: self.n_codebooks] == self.pad)
        return int(column[0]) if column.size else None

    def legal(self, step: int, frames: int | None = None) -> range:
        """Ids that may stand at step l; empty past the end.

        `frames` is T if it is known, be it given beforehand or found by `frames()` in what was generated.
        While it is unknown, the leading codebook may also choose the pad: see `may_end`.
        """
        k, frame = self._cell(step)
        if frames is not None and step >= self.length(frames):
            return range(0)
        if frame < 0 or (frames is not None and frame >= frames):
            return range(self.pad, self.pad + 1)
        return _own_ids(k, self.codebook_size)

    def may_end(self, step: int, frames: int | None = None) -> bool:
        """Whether the pad is legal at step l besides `legal(step)`: the leading codebook may end."""
        k, frame = self._cell(step)
        return frames is None and k == self.lead and frame > 0 and max(self.delays) > 0

    def may_stop(self, step: int, frames: int | None = None) -> bool:
        """Whether a stream of `step` ids is complete; with delays that needs T (from `frames()`)."""
        if max(self.delays) == 0 and frames is None:
            return step > 0 and step % self.n_codebooks == 0
        return bool(frames) and step == self.length(frames or 0)

    def build(self, codes: np.ndarray) -> np.ndarray:
        """Stream (K*(T+D),) int64 of codes (K, T); VocabError if a code or the shape does not fit."""
        codes = _checked_codes(codes, self.n_codebooks, self.codebook_size)
        n_frames = codes.shape[1]
        if n_frames == 0:
            return np.zeros(0, np.int64)
        grid = np.full((self.n_codebooks, n_frames + max(self.delays)), self.pad, np.int64)  # (K, T + D)
        codes = codes + _offsets(self.n_codebooks, self.codebook_size)
        for k, delay in enumerate(self.delays):
            grid[k, delay : delay + n_frames] = codes[k]
        return grid.T.reshape(-1)

    def parse(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Codes (K, T) of a complete stream, the inverse of `build`; VocabError names the first bad step."""
        grid = _grid(ids, self.n_codebooks)
        n_columns = grid.shape[1]
        if n_columns == 0:
            return grid
        n_frames = n_columns - max(self.delays)
        if n_frames < 1:
            raise VocabError(f"a stream of {grid.size} ids is too short for delays {self.delays}")
        frame = np.arange(n_columns) - np.asarray(self.delays)[:, None]  # (K, T + D)
        filled = (frame >= 0) & (frame < n_frames)
        if (bad := np.argwhere((~filled & (grid != self.pad)).T)).size:
            step = int(bad[0] @ (self.n_codebooks, 1))
            raise VocabError(f"step {step}: expected the pad {self.pad}, found id {np.asarray(ids)[step]}")
        local = _codes_of(grid, filled, self.codebook_size)
        return np.stack([local[k, d : d + n_frames] for k, d in enumerate(self.delays)])

    def _cell(self, step: int) -> tuple[int, int]:
        """Codebook and frame of step l; the frame is negative before the codebook starts."""
        k = step % self.n_codebooks
        return k, step // self.n_codebooks - self.delays[k]


Pattern = Flatten | Delay


def legal_mask(pattern: Pattern, step: int, frames: int | None = None) -> np.ndarray:
    """Boolean (n_ids,): True where an id may stand at step l of the pattern's stream."""
    mask = np.zeros(pattern.n_ids, bool)
    mask[pattern.legal(step, frames)] = True
    if isinstance(pattern, Delay) and pattern.may_end(step, frames):
        mask[pattern.pad] = True
    return mask


def _own_ids(k: int, size: int) -> range:
    return range(k * size, (k + 1) * size)


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
            f"a stream of {stream.size} ids does not hold whole columns of {n_codebooks} codebooks"
        )
    return stream.astype(np.int64).reshape(-1, n_codebooks).T


def _codes_of(grid: np.ndarray, filled: np.ndarray, size: int) -> np.ndarray:
    """Ids (K, columns) to codes; every filled cell must hold an id of its own codebook."""
    codes = grid - _offsets(len(grid), size)
    if (bad := np.argwhere((filled & ((codes < 0) | (codes >= size))).T)).size:
        column, k = (int(i) for i in bad[0])
        raise VocabError(
            f"step {column * len(grid) + k}: id {grid[k, column]} is not one of codebook {k} "
            f"({k * size}..{(k + 1) * size - 1})"
        )
    return codes
