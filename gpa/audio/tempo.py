"""Speech faster or slower at the same pitch, as it comes.

WSOLA (Verhelst and Roelands 1993): windows are taken from the sound at `speed` times the pace at which they
are laid over one another, each from where it continues best what is there.
"""

from __future__ import annotations

import numpy as np

HOP, REACH = 0.016, 0.01  # seconds between windows twice as long; seconds around its place to search for one


class Tempo:
    """Takes sound and gives it at another speed, (S / speed,) altogether, however it was cut."""

    def __init__(self, speed: float, sample_rate: int) -> None:
        self._speed, self._hop, self._reach = speed, round(HOP * sample_rate), round(REACH * sample_rate)
        self._window = np.hanning(2 * self._hop + 1)[:-1]
        # Before the sound there is silence, so that the window in which it begins is complete.
        self._sound = np.zeros(self._reach + self._hop, np.float32)
        self._start = -len(self._sound)  # of what is kept, on the clock of the sound
        self._tail = np.zeros(self._hop)  # to which the next window is added
        self._taken, self._number, self._given = -2 * self._hop, 0, 0
        self._samples = 0

    def push(self, wav: np.ndarray) -> np.ndarray:
        """More sound (S,); what is ready."""
        self._samples += len(wav)
        return self._made(wav)

    def finish(self) -> np.ndarray:
        """The rest."""
        total = round(self._samples / self._speed)
        left, silence = [np.zeros(0, np.float32)], np.zeros(4 * self._hop + 2 * self._reach, np.float32)
        while self._given < total:
            left.append(self._made(silence))
        rest = np.concatenate(left)
        return rest[: len(rest) - (self._given - total)]

    def _made(self, wav: np.ndarray) -> np.ndarray:
        self._sound = np.concatenate([self._sound, wav])
        out = [np.zeros(0, np.float32)]
        while (place := self._next()) is not None:
            at = place - self._start
            frame = self._sound[at : at + 2 * self._hop] * self._window
            done, self._tail = self._tail + frame[: self._hop], frame[self._hop :]
            if self._number:  # the first is what comes before the sound
                out.append(done.astype(np.float32))
            self._taken, self._number = place, self._number + 1
        made = np.concatenate(out)
        self._given += len(made)
        keep = min(
            self._taken + self._hop, round(self._number * self._hop * self._speed) - self._hop - self._reach
        )
        if keep > self._start:
            self._sound, self._start = self._sound[keep - self._start :], keep
        return made

    def _next(self) -> int | None:
        """Where the next window is taken, None until there is enough sound to tell."""
        hop, reach = self._hop, self._reach
        aim = round(self._number * hop * self._speed) - hop
        follows = self._taken + hop
        if max(aim + reach, follows) + 2 * hop > self._start + len(self._sound):
            return None
        if not self._number:
            return aim
        template = self._sound[follows - self._start :][: 2 * hop].astype(np.float64)
        around = self._sound[aim - reach - self._start :][: 2 * (hop + reach)].astype(np.float64)
        power = np.cumsum(np.concatenate([[0.0], around**2]))
        energy = power[2 * hop :] - power[: -2 * hop]
        if energy[reach] < 1e-8 or not template.any():
            return aim
        return aim - reach + int(np.argmax(np.correlate(around, template, "valid") / np.sqrt(energy + 1e-9)))
