"""A peak limiter with fixed look-ahead: sound above full scale is turned down smoothly, all else left alone.

Every sample asks for the gain that brings it to full scale. The least that is asked for nearby is held, then
smoothed, so the gain is there before the peak is and rests over a period of the lowest voice. It depends on
the samples alone: in chunks of any size the output is the same to the bit.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

SMOOTH = 0.0025  # s on either side over which the gain changes; sound comes out twice as late
HOLD = 0.02  # s for which a gain stays: a period at 50 Hz


class Limiter:
    """Waveforms (S,) float32 in, as many samples out in all, none above `ceiling`.

    Where nothing is above it within `HOLD`, samples pass bit for bit.
    """

    def __init__(self, sample_rate: int, ceiling: float = 1.0) -> None:
        self._ceiling = ceiling
        self._side, self._hold = round(SMOOTH * sample_rate), round(HOLD * sample_rate)
        window = np.hanning(2 * self._side + 3)[1:-1]
        self._window = window / window.sum()
        self._wav = np.zeros(0, np.float32)  # that waits for what is behind it
        self._asked = np.zeros(self._side + self._hold)  # reductions, 1 - gain, from before the first of them

    def push(self, wav: np.ndarray) -> np.ndarray:
        """The samples whose gain is known now."""
        level = np.abs(wav, dtype=np.float64)
        asked = 1 - self._ceiling / np.maximum(level, self._ceiling)
        return self._next(np.asarray(wav, np.float32), asked)

    def finish(self) -> np.ndarray:
        """The rest; as much silence as the limiter looks ahead follows it."""
        return self._next(np.zeros(0, np.float32), np.zeros(2 * self._side))

    def _next(self, wav: np.ndarray, asked: np.ndarray) -> np.ndarray:
        self._wav, self._asked = np.concatenate([self._wav, wav]), np.concatenate([self._asked, asked])
        n = max(0, len(self._asked) - 3 * self._side - self._hold)
        out, self._wav = self._wav[:n], self._wav[n:]
        known, self._asked = self._asked[: n + 3 * self._side + self._hold], self._asked[n:]
        if not n or not known.any():
            return out
        held = sliding_window_view(known, self._hold + self._side + 1).max(-1)
        # Tap by tap, so that no sum depends on where a chunk begins.
        reduction = sum(share * held[i : i + n] for i, share in enumerate(self._window))
        return np.clip(out * (1 - reduction), -self._ceiling, self._ceiling).astype(np.float32)


def limited(wav: np.ndarray, sample_rate: int, ceiling: float = 1.0) -> np.ndarray:
    """A whole waveform (S,), limited."""
    limiter = Limiter(sample_rate, ceiling)
    return np.concatenate([limiter.push(wav), limiter.finish()])
