"""Where an edit lies: its frames, the context that is kept around it, and the seams of the result.

Plain arithmetic on frames and samples; no network, no text.

    S samples   C latent channels
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gpa.audio import END_SLACK
from gpa.errors import PromptError, UsageError
from gpa.models.speechop.modeling_speechop import Latents


class Place(NamedTuple):
    """Frames of a recording: those replaced are [first, last), those heard as context [start, stop)."""

    start: int
    first: int
    last: int
    stop: int

    @property
    def left(self) -> int:
        """Frames of context before the edit."""
        return self.first - self.start

    @property
    def right(self) -> int:
        """Frames of context after the edit."""
        return self.stop - self.last


def place(span: Sequence[float], seconds: float, frames: int, rate: float, room: int) -> Place:
    """The frames of a span (begin, end) in seconds of a recording, and up to `room` frames of context.

    The context lies as evenly around the span as the recording allows. UsageError for a span that is reversed
    or outside; an empty one, begin equal to end, inserts.
    """
    numbers = [float(at) for at in span] if len(span) == 2 else []
    if not numbers or not all(map(math.isfinite, numbers)):
        raise UsageError(f"span {tuple(span)}: give two numbers, begin and end in seconds")
    begin, end = numbers
    if begin > end:
        raise UsageError(f"span {begin:g} to {end:g} s is reversed: give begin, then end")
    if not 0 <= begin <= end <= seconds + END_SLACK:
        raise UsageError(f"span {begin:g} to {end:g} s: the recording lasts {seconds:.2f} s")
    first = min(math.floor(begin * rate + 1e-6), frames)
    last = min(max(first, math.ceil(end * rate - 1e-6)), frames)
    left = min(first, max(room // 2, room - (frames - last)))
    right = min(frames - last, max(0, room - left))
    return Place(first - left, first, last, last + right)


def splice(wav: np.ndarray, made: np.ndarray, at: Place, new: int, hop: int) -> np.ndarray:
    """The recording (S,) with the edit of `new` frames in it, taken from the remade context `made`.

    Outside the edit the samples are the recording's own, but for a crossfade of up to one frame on each side.
    """
    first, last = at.first * hop, min(at.last * hop, len(wav))
    into, out = at.left * hop, (at.left + new) * hop
    before, middle, after = wav[:first].copy(), made[into:out], wav[last:].copy()
    rise = min(hop, into)
    if rise:
        weight = _ramp(rise)
        before[-rise:] = (1 - weight) * before[-rise:] + weight * made[into - rise : into]
    fall = min(hop, len(after), at.right * hop)
    if fall:
        weight = _ramp(fall)
        after[:fall] = (1 - weight) * made[out : out + fall] + weight * after[:fall]
    return np.concatenate([before, middle, after])


def _ramp(samples: int) -> np.ndarray:
    return ((np.arange(samples) + 0.5) / samples).astype(np.float32)


def room(new: int, window: float) -> int:
    """Frames of context around an edit of so many new ones; PromptError if it does not fit a window."""
    if new > window:
        raise PromptError(
            f"an edit of {new} frames does not fit the window of {window:.0f}: edit in shorter pieces, "
            "or give longer windows"
        )
    return max(round(window) - new, round(window / 4))


def known(latents: Tensor, at: Place, new: int) -> Latents:
    """The context's latents (1, C, left + new + right) with `new` unknown frames in their middle."""
    left, right = latents[..., at.start : at.first], latents[..., at.last : at.stop]
    gap = latents.new_zeros(1, latents.shape[1], new)
    real = torch.ones(1, at.left + new + at.right, dtype=torch.bool, device=latents.device)
    real[:, at.left : at.left + new] = False
    return Latents(torch.cat([left, gap, right], 2), real)
