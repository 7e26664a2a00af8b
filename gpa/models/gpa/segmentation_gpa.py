"""How long input is cut and how long output may grow: plain arithmetic on text and waveforms.

Knows characters, samples and seconds; no ids, no model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

_SENTENCE = re.compile(r"(?<=[.!?;])[\"')\]]*\s+|(?<=[。！？；…])\s*")
_CLAUSE = re.compile(r"(?<=[,:])\s+|(?<=[、，：—])\s*")
_WORD = re.compile(r"\s+")
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
# What follows a part that ends so, as a share of the pause after a sentence.
PAUSES = {**dict.fromkeys(".!?…。！？", 1.0), **dict.fromkeys(",;:-、，；：—", 0.5)}
PARAGRAPH_PAUSE = 2.5
JOINED = 0.5  # short sentences are spoken together up to this share of what one pass can say
_FRAME = 0.02  # seconds; energy is looked at in frames of this length
_TAIL = 0.5  # seconds; no piece is shorter
SECONDS_PER_CHAR, SECONDS_PER_GLYPH = 0.2, 0.6  # slow speech: Latin letters; ideographs and digits
FASTEST = 60.0  # characters per second that nobody reaches
TRIES = 2  # of speech that fails
FASTEST_AUDIBLE = 40.0  # per second without pauses; gpa-mini says 14 to 25
SILENCE, QUIET = 1e-3, 0.03  # root mean square: of full scale; of the loudest frame


@dataclass(frozen=True)
class Passage:
    """A part of a text that is spoken in one go; `pause` follows it, 1 being that after a sentence.

    `done` is the share of the text that ends with it. `before` and `after` are seconds of silence that the
    text asks for; they take the place of the pause.
    """

    text: str
    pause: float
    done: float
    before: float | None = None
    after: float = 0.0


def passages(text: str, limit: int, spoken: Callable[[str], str] = str) -> Iterator[Passage]:
    """Parts of at most `limit` characters, one after another, made as they are asked for.

    `spoken` gives a paragraph the form in which it is said. A text that fits is one part. A longer one has a
    part for each sentence, short ones together, and no part reaches into the next paragraph (a blank line).
    """
    begin = 0
    for end, after in _paragraphs(text):
        said = spoken(text[begin:end])
        parts = [part for part in _sentences(said, limit) if part.strip()]
        total, told = sum(map(len, parts)), 0
        for part in parts:
            told += len(part)
            pause = pause_after(part) if told < total else PARAGRAPH_PAUSE
            yield Passage(part, pause, (begin + (after - begin) * told / total) / len(text))
        begin = after


def with_rests(
    said: Sequence[str], rests: Sequence[float], plan: Callable[[str], Iterator[Passage]]
) -> Iterator[Passage]:
    """Passages of n + 1 texts with n silences, in seconds, between: each is before the next passage.

    What comes last, and what has no passage between, adds up.
    """
    total, told = sum(map(len, said)) or 1, 0
    silence: float | None = None
    held: Passage | None = None
    for text, rest in zip(said, [*rests, None], strict=True):
        for passage in plan(text):
            if held:
                yield held
            held = replace(passage, before=silence, done=(told + passage.done * len(text)) / total)
            silence = None
        told += len(text)
        silence = silence if rest is None else (silence or 0.0) + rest
    if held:
        yield replace(held, after=silence or 0.0, done=1.0)


def pause_after(text: str) -> float:
    """How long a reader rests after a text, by its last mark; 0 where it was cut between words."""
    return PAUSES.get(text.rstrip(" \"')]")[-1:], 0.0)


def _paragraphs(text: str) -> Iterator[tuple[int, int]]:
    """Where each paragraph ends, and where the next one begins."""
    yield from (match.span() for match in _PARAGRAPH.finditer(text))
    yield len(text), len(text)


def _sentences(text: str, limit: int) -> list[str]:
    """The text as it is if it fits, else its sentences: the short ones joined, the long ones cut."""
    if len(text) <= limit:
        return [text]
    ends = [match.end() for match in _SENTENCE.finditer(text)]
    joined: list[str] = []
    for begin, end in zip([0, *ends], [*ends, len(text)], strict=True):
        if joined and len(joined[-1]) + end - begin <= limit * JOINED:
            joined[-1] += text[begin:end]
        else:
            joined.append(text[begin:end])
    return [part for each in joined for part in _pack(each, limit, [_CLAUSE, _WORD])]


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


def audible_seconds(wav: np.ndarray, sample_rate: int) -> float:
    """How much of a waveform (S,) is neither silent nor far below its loudest parts."""
    return float(_audible(wav, sample_rate).sum()) * _FRAME


def audible_range(wav: np.ndarray, sample_rate: int) -> tuple[float, float]:
    """The seconds at which that begins and ends in a waveform (S,); all of it where nothing is."""
    heard = np.flatnonzero(_audible(wav, sample_rate))
    if not len(heard):
        return 0.0, len(wav) / sample_rate
    return float(heard[0]) * _FRAME, float(heard[-1] + 1) * _FRAME


def _audible(wav: np.ndarray, sample_rate: int) -> np.ndarray:
    frame = int(_FRAME * sample_rate)
    power = np.square(wav[: len(wav) // frame * frame]).reshape(-1, frame).mean(1)
    floor = max(SILENCE**2, QUIET**2 * float(power.max(initial=0.0)))
    return power > floor


def least_seconds(text: str) -> float:
    """The least seconds of audible sound in which anybody says a text."""
    return sum(not c.isspace() for c in text) / FASTEST_AUDIBLE


def unspoken(reason: str | None, wav: np.ndarray, sample_rate: int, text: str, cut: bool = False) -> str:
    """Why sound (S,) that ended for a reason is no speech of a text, "" if it may be; `cut` where
    its length was given.
    """
    if not len(wav):
        return "nothing was said"
    if reason == "loop":
        return "it repeats itself without end"
    if cut:
        return ""
    if reason == "length":
        return "it does not come to an end"
    sound, least = audible_seconds(wav, sample_rate), least_seconds(text)
    return "" if sound >= least else f"{sound:.1f} s of sound, at least {least:.1f} are needed"


def speech_seconds(text: str) -> tuple[float, float]:
    """The least and the most seconds that speaking the text can take."""
    dense = sum(c.isdigit() or ord(c) > 0x2E7F for c in text)
    rest = sum(not c.isspace() for c in text) - dense
    return (rest + dense) / FASTEST, 2.0 + SECONDS_PER_CHAR * rest + SECONDS_PER_GLYPH * dense
