"""When each letter is spoken: Viterbi alignment of a transcript to CTC posteriors, letters to text ids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpa.text.letters import letters_of

if TYPE_CHECKING:
    from gpa.text.pronunciations import Respelt

_BYTE = re.compile("<0x([0-9A-F]{2})>")


def align(log_probs: np.ndarray, targets: Sequence[int]) -> np.ndarray | None:
    """First frame of each target on the best CTC path, (L,) int; None if the clip is too short for them.

    `log_probs` (T, V) with the blank at 0. Of paths equally good, the one that moves on last.
    """
    if not len(targets):  # a transcript of marks alone
        return np.zeros(0, np.int64)
    if not len(log_probs):
        return None
    n_frames, states = len(log_probs), 2 * len(targets) + 1
    symbols = np.zeros(states, np.int64)
    symbols[1::2] = targets
    skip = np.zeros(states, bool)  # may be entered from two states back: a letter unlike the letter before
    skip[3::2] = symbols[3::2] != symbols[1:-2:2]
    score = np.full(states, -np.inf)
    score[:2] = log_probs[0, symbols[:2]]
    back = np.zeros((n_frames, states), np.int8)
    for t in range(1, n_frames):
        stay = score
        step = np.concatenate([[-np.inf], score[:-1]])
        jump = np.where(skip, np.concatenate([[-np.inf, -np.inf], score[:-2]]), -np.inf)
        moves = np.stack([stay, step, jump])
        back[t] = moves.argmax(0)
        score = moves.max(0) + log_probs[t, symbols]
    state = states - 1 if score[-1] >= score[-2] else states - 2
    if not np.isfinite(score[state]):
        return None
    first = np.zeros(len(targets), np.int64)
    for t in range(n_frames - 1, -1, -1):
        if state % 2:
            first[state // 2] = t
        state -= int(back[t, state])
    return first


def _spelling(piece: str) -> str:
    """The letters of a piece, in lower case; a byte piece such as <0x71> has that of its code."""
    if byte := _BYTE.fullmatch(piece):
        return chr(int(byte[1], 16)).lower()
    return piece.replace("\u2581", "").replace(" ", "").lower()


def respelt_letters(text: str, respelt: Respelt, first: Sequence[int]) -> tuple[str, list[int]]:
    """An alignment of a text as one of its respelling: what stands there for its letters, and the frames."""
    letters = letters_of(text)
    frames: dict[int, int] = {}
    for place, c in enumerate(text):
        n = len(frames)
        if n < len(letters) and (" " if c == "-" else c) == letters[n]:
            frames[place] = first[n]
    aligned = [(c, frames[at]) for c, at in zip(*respelt, strict=True) if at in frames]
    return "".join(c for c, _ in aligned), [frame for _, frame in aligned]


def piece_spans(pieces: Sequence[str], letters: str, first: Sequence[int], frames: int) -> np.ndarray:
    """Frames [begin, end) of each text piece, (N, 2): from its first letter to the next spelled piece's.

    `letters` is what was aligned, `first` its frames. A piece without any (punctuation) lies between its
    neighbours.
    """
    starts, at = np.full(len(pieces), -1), 0
    for n, piece in enumerate(pieces):
        for c in _spelling(piece):
            found = letters.find(c, at)
            if found >= 0:
                starts[n] = first[found] if starts[n] < 0 else starts[n]
                at = found + 1
    begins, following = np.zeros(len(pieces), np.int64), frames
    ends = np.zeros(len(pieces), np.int64)
    for n in range(len(pieces) - 1, -1, -1):
        ends[n] = following
        begins[n] = starts[n] if starts[n] >= 0 else max(0, following - 2)
        following = begins[n] if starts[n] >= 0 else following
    return np.stack([begins, np.maximum(ends, begins + 1)], 1)


def frames_to_pieces(spans: np.ndarray, frames: int) -> np.ndarray:
    """For each frame the pieces [first, last + 1) spoken within one frame before and two after it, (T, 2)."""
    t = np.arange(frames)
    first = np.searchsorted(spans[:, 1], t - 1, side="right").clip(max=len(spans) - 1)
    last = (np.searchsorted(spans[:, 0], t + 2, side="right") - 1).clip(min=0)
    return np.stack([np.minimum(first, last), last + 1], 1)
