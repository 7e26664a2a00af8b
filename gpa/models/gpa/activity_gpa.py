"""Where speech is: sound of any length in stretches of at most some seconds, decided as it comes.

A frame of 20 ms is active where it stands out of the noise floor: by MARGIN dB on average over 16 bands of
the speech range, each with a floor of its own, the 10th percentile of the last 10 s and the next one. So
steady noise of any colour or level has no active frames, and a quiet talker in a quiet room has. Clicks are
too short. Everything is counted from the first sample: pushes of any size give the same stretches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

FRAME = 0.02  # seconds
BANDS = 16
LOWEST, HIGHEST = 150.0, 4000.0  # Hz; hum and rumble lie below
MARGIN = 7.0  # dB above the floor, the mean over bands; steady noise has 2 to 4
CEILING = 30.0  # dB of one band that count: a whistle is no speech
FAINTEST = -90.0  # dB of full scale in one band: what is below is silence, however it varies
PAST, NEXT, EVERY = 500, 50, 25  # frames: the floor of each half second
FLOOR = 0.1  # quantile
ACTIVE, BRIDGE = 5, 10  # frames: active ones that make a run, inactive ones that do not end it
PAUSE = 0.8  # seconds of a pause that ends a stretch
PAD = 15  # frames of it that are kept on either side
TAIL = 25  # frames; no stretch that is cut for its length leaves less
EARLIEST = 0.6  # of the longest stretch: it is cut there or later
BLOCK = 500  # frames that are looked at together
WINDOW, HOP = 0.032, 0.01  # seconds: of a spectrum for the pitch, and between two
SPAN = 2.0  # seconds that are judged together: speech after a tone is speech
LOUD = 25.0  # dB below the loudest frames of a span that still count
PERIODIC, PITCH = 0.6, (70.0, 400.0)  # least autocorrelation, and Hz
MOVE = 0.004  # octaves in 10 ms; a held tone moves less
STILL = 0.5  # share of periodic frames that hold their tone; speech has at most 0.4
VARIED = 1.5  # dB, the deviation of the level; speech has at least 3


@dataclass(frozen=True)
class Stretch:
    """Consecutive sound `wav` (S,) from sample `begin` on, with `speech` in it or without."""

    begin: int
    wav: np.ndarray
    speech: bool


class Activity:
    """Which frames are active, told `NEXT` frames late."""

    def __init__(self, sample_rate: int) -> None:
        self.frame = round(FRAME * sample_rate)
        self._window = np.hanning(self.frame + 1)[:-1].astype(np.float32)
        self._window /= np.sqrt(np.square(self._window).sum() * self.frame)
        mels = np.linspace(_mel(LOWEST), _mel(min(HIGHEST, sample_rate / 2)), BANDS + 1)
        hertz = 700 * (10 ** (mels / 2595) - 1)
        bins = np.round(hertz * FRAME).astype(int)
        self._bins = np.maximum.accumulate(np.maximum(bins, bins[0] + np.arange(BANDS + 1)))
        self._decibels = np.zeros((0, BANDS), np.float32)  # of the last PAST frames and all undecided ones
        self._past = 0  # how many of them are decided

    def push(self, frames: np.ndarray) -> np.ndarray:
        """Whole frames (N, F) in, decisions (M,) bool out."""
        self._decibels = np.concatenate([self._decibels, self._levels(frames)])
        found = [np.zeros(0, bool)]
        while len(self._decibels) >= self._past + EVERY + NEXT:
            found.append(self._decide(EVERY))
        return np.concatenate(found)

    def finish(self) -> np.ndarray:
        """The decisions that are left."""
        found = [np.zeros(0, bool)]
        while len(self._decibels) > self._past:
            found.append(self._decide(min(EVERY, len(self._decibels) - self._past)))
        return np.concatenate(found)

    def _decide(self, count: int) -> np.ndarray:
        here = self._decibels[self._past : self._past + count]
        window = self._decibels[: self._past + count + NEXT]
        rank = int(FLOOR * (len(window) - 1))
        floor = np.partition(window, rank, axis=0)[rank]
        score = np.clip(here - floor, 0, CEILING).mean(1)
        self._past += count
        if (spare := self._past - PAST) > 0:
            self._decibels, self._past = self._decibels[spare:], PAST
        return score > MARGIN

    def _levels(self, frames: np.ndarray) -> np.ndarray:
        """Decibels of full scale (N, BANDS)."""
        power = np.square(np.abs(np.fft.rfft(frames * self._window, axis=1)))
        bands = np.add.reduceat(power, self._bins[:-1], axis=1)
        bands[:, -1] = power[:, self._bins[-2] : self._bins[-1]].sum(1)
        return np.maximum(10 * np.log10(2 * bands + 1e-12), FAINTEST).astype(np.float32)


def may_be_speech(wav: np.ndarray, sample_rate: int) -> bool:
    """Whether active sound (S,) may be speech: somewhere its level varies, and its pitch is not held."""
    span = round(SPAN * sample_rate)
    begins = range(0, max(1, len(wav) - span // 2), span)
    return any(_lively(wav[begin : begin + span], sample_rate) for begin in begins)


def _lively(wav: np.ndarray, sample_rate: int) -> bool:
    """Neither a tone, a chord or a hum, nor a whistle or siren of one level."""
    size, hop = round(WINDOW * sample_rate), round(HOP * sample_rate)
    if len(wav) < size + 10 * hop:
        return True
    window = np.hanning(size)
    frames = np.lib.stride_tricks.sliding_window_view(wav, size)[::hop]
    power = np.square(np.abs(np.fft.rfft((frames - frames.mean(1, keepdims=True)) * window, 2 * size)))
    levels = 10 * np.log10(power.sum(1) + 1e-12)
    loud = levels > np.quantile(levels, 0.95) - LOUD
    if levels[loud].std() < VARIED:
        return False
    shape = np.fft.irfft(np.square(np.abs(np.fft.rfft(window, 2 * size))))[:size]
    lags = slice(round(sample_rate / PITCH[1]), min(size // 2, round(sample_rate / PITCH[0])))
    echo = np.fft.irfft(power)[:, :size]
    echo = echo[:, lags] / (echo[:, :1] + 1e-12) / (shape[lags] / shape[0])
    pitch = np.log2(lags.start + echo.argmax(1))
    periodic = loud & (echo.max(1) > PERIODIC)
    pairs = periodic[1:] & periodic[:-1]
    if pairs.sum() < loud.sum() / 4:  # noise or whisper, which has no pitch
        return True
    return bool((np.abs(np.diff(pitch))[pairs] < MOVE).mean() < STILL)


def _mel(hertz: float) -> float:
    return float(2595 * np.log10(1 + hertz / 700))


class Segmenter:
    """Sound into stretches of at most `seconds`, which follow one another from the first sample to the last.

    A stretch of speech ends in a pause of `pause` seconds, 0.3 s after its last word, or where it is quietest
    before it grows too long. A shorter pause is kept, so that an ordinary clip stays as it is. Stretches
    begin at multiples of `hop` samples. At most `seconds` and a few more are held, beside what is pushed.
    """

    def __init__(self, sample_rate: int, seconds: float, hop: int = 1, pause: float = PAUSE) -> None:
        self._activity, self._hop = Activity(sample_rate), hop
        self._pause = round(pause / FRAME)
        self._frame = self._activity.frame
        spare = max(0, hop - self._frame)  # samples that rounding may add
        self._longest = (int(seconds * sample_rate) - spare) // self._frame  # frames
        self._wav, self._first = np.zeros(0, np.float32), 0  # samples not told yet, the number of the first
        self._heard = self._decided = 0  # frames given to the activity, and told by it
        self._begin = 0  # frame at which the stretch now under way begins
        self._last: int | None = None  # frame after the last word of this stretch; None where nobody speaks
        self._run: tuple[int, int, int] | None = None  # first, last and number of active frames

    def push(self, wav: np.ndarray) -> list[Stretch]:
        """More samples (S,); the stretches that are decided now."""
        found: list[Stretch] = []
        for begin in range(0, len(wav), BLOCK * self._frame):
            self._wav = np.concatenate(
                [self._wav, wav[begin : begin + BLOCK * self._frame]], dtype=np.float32
            )
            end = (self._first + len(self._wav)) // self._frame
            frames = self._samples(self._heard * self._frame, end * self._frame).reshape(-1, self._frame)
            self._heard = end
            found += self._told(self._activity.push(frames))
        return found

    @property
    def speaking(self) -> int | None:
        """The sample at which the speech under way begins; None while nobody speaks."""
        return None if self._last is None else self._begin * self._frame

    def finish(self) -> list[Stretch]:
        """The stretches that are left; nothing may be pushed afterwards."""
        found = list(self._told(self._activity.finish()))
        total = self._first + len(self._wav)
        if self._run and self._run[2] >= ACTIVE:
            self._last = self._run[1] + 1
        while total - self._begin * self._frame > self._longest * self._frame:
            rest = (total - self._begin * self._frame) // self._frame - TAIL
            found.append(self._cut(min(self._longest, rest)))
        if total > self._first:
            found.append(self._take(total, self._last is not None))
        return found

    def _told(self, active: np.ndarray) -> Iterator[Stretch]:
        for each in active.tolist():
            yield from self._advance(each)
            self._decided += 1

    def _advance(self, active: bool) -> Iterator[Stretch]:
        """One frame's decision; what it ends."""
        now, run = self._decided, self._run
        if active:
            run = (run[0], now, run[2] + 1) if run else (now, now, 1)
        elif run and now - run[1] > BRIDGE:
            run = None
        self._run = run
        quiet_until = run[0] if run else now
        if self._last is not None and quiet_until - self._last >= self._pause:
            yield from self._close(self._last + PAD)
        if run and run[2] >= ACTIVE:
            if self._last is None and run[0] - self._begin >= self._pause:
                yield from self._close(run[0] - PAD)
            self._last = run[1] + 1
        if self._last is not None and now + 1 - self._begin >= self._longest + TAIL:
            yield self._cut(self._longest)
        elif self._last is None and quiet_until - PAD - self._begin >= self._longest:
            yield from self._close(self._begin + self._longest)

    def _close(self, end: int) -> Iterator[Stretch]:
        """End the stretch at a frame; nobody speaks after it for now."""
        if end > self._begin:
            yield self._take(end * self._frame, self._last is not None)
        self._begin, self._last = max(end, self._begin), None

    def _cut(self, most: int) -> Stretch:
        """End a stretch that grows too long, where 100 ms are quietest."""
        low = int(EARLIEST * most)
        span = self._samples((self._begin + low) * self._frame, (self._begin + most) * self._frame)
        power = np.square(span.reshape(-1, self._frame)).mean(1)
        quiet = np.convolve(power, np.ones(5) / 5, mode="valid")
        cut = self._begin + low + 2 + int(quiet.argmin()) if len(quiet) else self._begin + most
        speech = self._last is not None
        made = self._take(cut * self._frame, speech)
        self._begin = cut
        if self._last is not None and self._last <= cut:
            self._last = None
        return made

    def _take(self, end: int, speech: bool) -> Stretch:
        """The samples up to one, rounded down to whole hops unless they are the last."""
        if end < self._first + len(self._wav):
            end -= end % self._hop
        begin, wav = self._first, self._samples(self._first, end)
        self._wav, self._first = self._wav[end - begin :], end
        return Stretch(begin, wav.copy(), speech)

    def _samples(self, begin: int, end: int) -> np.ndarray:
        return self._wav[begin - self._first : end - self._first]


class Uncut:
    """In the place of a `Segmenter`: all that is pushed is one stretch, as one cut it before."""

    def __init__(self) -> None:
        self._blocks = [np.zeros(0, np.float32)]

    def push(self, wav: np.ndarray) -> list[Stretch]:
        """More samples (S,)."""
        self._blocks.append(wav)
        return []

    def finish(self) -> list[Stretch]:
        """The stretch."""
        return [Stretch(0, np.concatenate(self._blocks), True)]
