"""Long audio in windows: where they lie, which words fall into each, how loud a recording is.

Plain arithmetic on numbers, text and waveforms; no network, no codec, no ids.

    S samples   T latent frames
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpa.errors import UsageError

LEVEL = 0.06  # RMS of the standard level, -24 dB: the middle of the corpora the models were trained on
_GAINS = (0.01, 100.0)
_BELOW = 1e-4  # of the power of the loudest 20 ms: quieter frames are pauses (-40 dB)
_FRAME = 0.02  # seconds
_SENTENCE = re.compile(r"(?<=[.!?;]) ")
_CLAUSE = re.compile(r"(?<=[,:]) | (?=- )")

Cut = tuple[int, int]  # first frame, last frame plus one


@dataclass(frozen=True)
class Windows:
    """Audio longer than `seconds` is made in windows of equal length that share `overlap` seconds or more.

    A window is given the already made frames of its overlap as known, so both agree there exactly.
    """

    seconds: float = 8.0
    overlap: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.overlap <= self.seconds / 2 < np.inf or not self.seconds >= 1:
            raise UsageError(
                f"windows of {self.seconds} s that overlap by {self.overlap} s: give at least 1 s, and an "
                "overlap from 0 to half a window"
            )

    def cut(self, frames: int, rate: float) -> list[Cut]:
        """Windows (start, stop) over so many frames at `rate` per second, of one length and evenly spaced."""
        longest, overlap = max(2, round(self.seconds * rate)), round(self.overlap * rate)
        if frames <= longest:
            return [(0, frames)]
        count = -(-(frames - overlap) // (longest - overlap))
        length = -(-(frames + (count - 1) * overlap) // count)
        starts = [i * (frames - length) // (count - 1) for i in range(count)]
        return [(start, start + length) for start in starts]


# Sound ------------------------------------------------------------------------------------------------------


def _powers(wav: np.ndarray, rate: float) -> np.ndarray:
    """Mean square of every 20 ms of wav (S,), the last ones perhaps shorter."""
    step = max(1, round(_FRAME * rate))
    starts = np.arange(0, len(wav), step)
    sums = np.add.reduceat(np.square(wav, dtype=np.float64), starts)
    return sums / np.diff(np.append(starts, len(wav)))


def standard_gain(wav: np.ndarray, rate: float) -> float:
    """What wav (S,) is multiplied by before it is encoded.

    The RMS of what is no more than 40 dB below its loudest 20 ms becomes LEVEL, unless the peak would pass
    full scale, which limits the sources of training too; 1 for digital silence.
    """
    powers, peak = _powers(wav, rate), float(np.abs(wav).max(initial=0.0))
    if peak == 0:
        return 1.0
    level = float(np.sqrt(powers[powers >= powers.max() * _BELOW].mean()))
    return float(np.clip(min(LEVEL / level, 1.0 / peak), *_GAINS))


def quietest(wav: np.ndarray, rate: float, low: float, high: float) -> int:
    """The sample of wav between two times in seconds where 20 ms are quietest; the end of a shorter one."""
    if len(wav) <= high * rate:
        return len(wav)
    first = int(low * rate)
    powers = _powers(wav[first : int(high * rate)], rate)
    return first + int(powers.argmin()) * max(1, round(_FRAME * rate))


# Words ------------------------------------------------------------------------------------------------------


def share(text: str, spans: Sequence[tuple[float, float]], wav: np.ndarray, rate: float) -> list[str]:
    """The words of `text` that fall into each span (begin, end in seconds) of wav (S,), shared out by time.

    A word's place is its share of the letters, counted in time without pauses; a word on an edge belongs to
    the side of its middle. Spans that overlap both get the words of their overlap.
    """
    powers = _powers(wav, rate)
    spoken = np.cumsum(powers >= max(powers.max() * _BELOW, 1e-12))
    heard = np.concatenate([[0.0], spoken / max(1, spoken[-1])])  # at every 20 ms, 0 to 1
    times = np.minimum(np.arange(len(heard)) * _FRAME, len(wav) / rate)
    words = text.split()
    sizes = np.array([len(word) + 1 for word in words], float)
    middles = (np.cumsum(sizes) - sizes / 2) / sizes.sum()
    found = []
    for begin, end in spans:
        low, high = np.interp([begin, end], times, heard)
        low, high = (-1.0 if begin <= 0 else low), (2.0 if end >= len(wav) / rate else high)
        found.append(" ".join(w for w, at in zip(words, middles, strict=True) if low <= at < high))
    return found


def join_words(parts: Sequence[str]) -> str:
    """Texts of overlapping windows as one: words that end one and begin the next are said once."""
    words: list[str] = []
    for part in parts:
        new = part.split()
        most = min(len(words), len(new), 8)
        same = next((n for n in range(most, 0, -1) if words[-n:] == new[:n]), 0)
        words += new[same:]
    return " ".join(words)


def pieces(text: str, limit: int) -> list[str]:
    """Normalised text in pieces of at most `limit` characters: whole sentences, else clauses, else words."""
    return _pack(text, limit, [_SENTENCE, _CLAUSE, re.compile(" ")])


def _pack(text: str, limit: int, cuts: Sequence[re.Pattern[str]]) -> list[str]:
    if len(text) <= limit or not cuts:
        return [text]
    packed: list[str] = []
    for part in cuts[0].split(text):
        if packed and len(packed[-1]) + 1 + len(part) <= limit:
            packed[-1] += f" {part}"
        else:
            packed += _pack(part, limit, cuts[1:])
    return packed
