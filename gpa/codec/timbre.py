"""A voice's timbre beyond its ids: how its bands differ from what a decoder draws for it.

The 16 ids of a voice name one of those that a small decoder has learnt; a new speaker gets the nearest. So
the reference is decoded once with its own ids, and every band of the result is brought to the mean and the
spread that the recording has there (moment matching, as for global variance: Toda and Tokuda 2007).

    K bands   T frames
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpa.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

STEP = 0.1  # nepers: what a timbre is rounded to
GAINS, SHIFTS = (-2, 5), (-15, 15)  # least and most steps of the spread's logarithm and of the level
CENTRE = -3.5  # nepers: about where speech is, so that a change of spread is no change of level
QUIET = 0.1  # share of frames that are left out: pauses say nothing about a voice
ENOUGH = 100  # louder frames, of 20 ms, from which statistics are taken at their word
AUDIBLE = 1.0  # nepers above the floor that something must reach, lest it be silence


@dataclass(frozen=True)
class Timbre:
    """Per band, in steps of `STEP`: the log-mel amplitude x (nepers), counted from `CENTRE`, becomes
    exp(gain) x + shift.

    `decoder` is the fingerprint of the codec that it corrects; of another one it says nothing.
    """

    gain: tuple[int, ...]
    shift: tuple[int, ...]
    decoder: str = ""

    @property
    def bits(self) -> float:
        """Its size, all values taken as equally likely."""
        return len(self.gain) * sum(math.log2(most - least + 1) for least, most in (GAINS, SHIFTS))

    def change(self, x: Tensor) -> Tensor:
        """What a log-mel (B, K, T) lacks, in nepers."""
        gain, shift = (x.new_tensor(steps)[:, None] * STEP for steps in (self.gain, self.shift))
        return (gain.exp() - 1) * (x - CENTRE) + shift

    def to_dict(self) -> dict[str, Any]:
        """Plain content for JSON; inverse of `from_dict`."""
        return {"decoder": self.decoder, "gain": list(self.gain), "shift": list(self.shift)}

    @classmethod
    def from_dict(cls, raw: Any, where: str = "timbre") -> Timbre:
        """Typed content of JSON; CheckpointError for anything but lists of equal length, in range."""
        raw = raw if isinstance(raw, dict) else {}
        gain, shift = raw.get("gain"), raw.get("shift")
        if not (_steps(gain, GAINS) and _steps(shift, SHIFTS) and len(gain) == len(shift)):
            raise CheckpointError(
                f"{where}: a timbre is two equal lists of whole numbers, gain from {GAINS[0]} to {GAINS[1]} "
                f"and shift from {SHIFTS[0]} to {SHIFTS[1]}"
            )
        return cls(tuple(gain), tuple(shift), str(raw.get("decoder", "")))


def _steps(values: Any, within: tuple[int, int]) -> bool:
    return isinstance(values, list) and all(type(v) is int and within[0] <= v <= within[1] for v in values)


def measure(
    real: Tensor, ours: Tensor, floor: float, decoder: str = "", before: Timbre | None = None
) -> Timbre:
    """What log-mels (K, T) of a decoded clip need to have the statistics of its recording's.

    `ours` was decoded with the timbre `before`, which the result takes the place of. Silence, at `floor`,
    asks for nothing, and short clips for less.
    """
    loudness = real.mean(0)
    loud = loudness >= loudness.quantile(QUIET)
    trust = min(1.0, int(loud.sum()) / ENOUGH) if real.max() > floor + AUDIBLE else 0.0
    (wanted, width), (found, own) = (
        (x[:, loud].mean(1) - CENTRE, x[:, loud].std(1, unbiased=False).clamp_min(1e-3)) for x in (real, ours)
    )
    known = before or Timbre((0,) * len(real), (0,) * len(real))
    had, at = (real.new_tensor(steps) * STEP for steps in (known.gain, known.shift))
    gain = ((had + trust * (width / own).log()) / STEP).round().clamp(*GAINS)
    more = (gain * STEP - had).exp()  # than before
    shift = found + trust * (wanted - found) - more * (found - at)
    return Timbre(_whole(gain), _whole((shift / STEP).round().clamp(*SHIFTS)), decoder)


def _whole(steps: Tensor) -> tuple[int, ...]:
    return tuple(int(step) for step in steps.tolist())
