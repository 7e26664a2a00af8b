"""How long input is cut and how long output may grow: plain arithmetic on text and waveforms.

Knows characters, samples and seconds; no ids, no model.
"""

from __future__ import annotations

import re

import numpy as np

_SENTENCE = re.compile(r"(?<=[.!?;])[\"')\]]*\s+|(?<=[。！？；…])\s*")
_CLAUSE = re.compile(r"(?<=[,:])\s+|(?<=[、，：—])\s*")
_WORD = re.compile(r"\s+")
_FRAME = 0.02  # seconds; energy is looked at in frames of this length
_TAIL = 0.5  # seconds; no piece is shorter
SECONDS_PER_CHAR, SECONDS_PER_GLYPH = 0.2, 0.6  # slow speech: Latin letters; ideographs and digits
FASTEST = 60.0  # characters per second that nobody reaches


def split_text(text: str, limit: int) -> list[str]:
    """Pieces of at most `limit` characters, cut after sentences, else after clauses, words or anywhere.

    Text that fits comes back as it is, verbatim; the pieces of a longer one are stripped.
    """
    if len(text) <= limit:
        return [text]
    return _pack(text, limit, [_SENTENCE, _CLAUSE, _WORD])


def _pack(text: str, limit: int, cuts: list[re.Pattern[str]]) -> list[str]:
    text = text.strip()
    if len(text) <= limit:
        return [text] if text else []
    if not cuts:
        return [text[i : i + limit] for i in range(0, len(text), limit)]
    pieces: list[str] = []
    start = 0
    ends = [m.end() for m in cuts[0].finditer(text)] + [len(text)]
    best = 0
    for end in ends:
        if len(text[start:end].strip()) > limit and best > start:
            pieces += _pack(text[start:best], limit, cuts[1:])
            start = best
        best = end
    return pieces + _pack(text[start:], limit, cuts[1:])


def split_audio(wav: np.ndarray, sample_rate: int, seconds: float) -> list[np.ndarray]:
    """Consecutive parts (S_i,) of at most `seconds`, cut where the sound is quietest; nothing is lost."""
    limit = int(seconds * sample_rate)
    tail = min(int(_TAIL * sample_rate), limit // 4)
    parts = []
    while len(wav) > limit:
        count = -(-len(wav) // limit)
        low = min(len(wav) // count, limit) * 3 // 5  # even parts, up to 40 % shorter where a pause is found
        cut = _quietest(wav, sample_rate, max(low, tail), min(limit, len(wav) - tail))
        parts.append(wav[:cut])
        wav = wav[cut:]
    return [*parts, wav]


def _quietest(wav: np.ndarray, sample_rate: int, low: int, high: int) -> int:
    """The sample between `low` and `high` around which 100 ms are quietest."""
    frame = max(1, int(_FRAME * sample_rate))
    span = wav[low:high]
    if len(span) < 8 * frame:
        return high
    energy = np.square(span[: len(span) // frame * frame]).reshape(-1, frame).mean(1)
    smooth = np.convolve(energy, np.ones(5) / 5, mode="same")
    smooth[:2] = smooth[-2:] = np.inf  # half-filled windows look quiet
    return low + int(smooth.argmin()) * frame + frame // 2


def speech_seconds(text: str) -> tuple[float, float]:
    """The least and the most seconds that speaking the text can take."""
    dense = sum(c.isdigit() or ord(c) > 0x2E7F for c in text)
    rest = sum(not c.isspace() for c in text) - dense
    return (rest + dense) / FASTEST, 2.0 + SECONDS_PER_CHAR * rest + SECONDS_PER_GLYPH * dense
