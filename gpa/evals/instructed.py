"""The suite of instructions: whether a wording alone selects the task, and what its attributes change.

All wordings are held out. For each clip every task is asked for and every attribute once with and once
without, so that each number has a counterpart on the same clip; `MEASURES` say what is looked at.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpa.errors import GPAError
from gpa.evals.measurement import SAMPLE_RATE, Bench, Case, Made
from gpa.prompt.attributes import ATTRIBUTES, Attribute
from gpa.prompt.tasks import ASR, TTS, VC, Task

QUIET_DB = -35.0  # of silence, against a result's loud frames
FRAME = 0.01  # seconds of a frame whose level is looked at
HOP = 160  # samples of a frame whose pitch is
TASKS = (TTS, ASR, VC)
RATE = "speech rate"  # the measure whose ratio to a plain wording is given as well


class Answer(NamedTuple):
    """What came out: text, or sound (S,) at SAMPLE_RATE that says `said`, beside the source's (S,)."""

    text: str | None
    wav: np.ndarray | None
    said: str
    source: np.ndarray


def follow(bench: Bench, case: Case, wav: np.ndarray) -> Made:
    """Ask for every task and every attribute; the plain transcript is what is read for errors."""
    asking = _Asking(bench, case, wav)
    chosen = {f"chosen: {task.name}": asking.chosen(task) for task in TASKS}
    for task, other in ((ASR, VC), (VC, ASR)):
        beside = f"{other.name}'s token"
        chosen[f"chosen: {task.name} beside {beside}"] = asking.chosen(task, other)
        chosen[f"chosen: {other.name} by {beside} alone"] = asking.chosen(other, other, wording="")
    plain = {task.name: asking.answer(task) for task in TASKS}
    values: dict[str, float] = {}
    for attribute in ATTRIBUTES.values():
        task = next(task for task in TASKS if task.name == attribute.tasks[0])
        pair = {"asked": asking.answer(task, attribute), "unasked": plain[task.name]}
        found = {key: MEASURES[attribute.measure](made) for key, made in pair.items() if made is not None}
        known = {key: value for key, value in found.items() if value is not None}
        values |= {f"{attribute.name}: {key}": round(value, 4) for key, value in known.items()}
        if attribute.measure == RATE and len(known) == 2 and known["unasked"]:
            values[f"{attribute.name}: ratio"] = round(known["asked"] / known["unasked"], 4)
    read = plain[ASR.name]
    return Made(text=(read.text or "") if read else "", values=values, shares=chosen)


class _Asking:
    """One clip and a voice, about which a model is asked."""

    def __init__(self, bench: Bench, case: Case, wav: np.ndarray) -> None:
        self.model, self.seed, self.number = bench.need_model(), bench.seed, zlib.crc32(case.id.encode())
        self.wav, self.text, self.voice = wav, case.text, case.voice

    def _given(self, task: Task) -> dict[str, Any]:
        about = {"audio": (self.wav, SAMPLE_RATE)} if task.reads_speech else {"text": self.text}
        return {**about, "voice": self.voice}

    def _one(self, wordings: Sequence[str]) -> str:
        """Of several, the one that the clip's id picks."""
        return wordings[self.number % len(wordings)]

    def chosen(self, task: Task, token: Task | None = None, wording: str | None = None) -> bool:
        """Whether a wording of a task, beside the token of one, makes the model open the task's output."""
        words = self._one(task.held_out) if wording is None else wording
        tasks = (token.name,) if token else ()
        try:
            opened = self.model.opens(words, **self._given(task), tasks=tasks)
        except GPAError:
            return False
        return bool(opened == ("content" if task.writes else "semantic"))

    def answer(self, task: Task, attribute: Attribute | None = None) -> Answer | None:
        """What comes of a wording, perhaps with an attribute; None for nothing."""
        words = self._one(task.held_out)
        if attribute:
            words = attribute.instruction(words, self._one(attribute.held_out))
        try:
            made = self.model.run(words, **self._given(task), seed=self.seed)
        except GPAError:
            return None
        if hasattr(made, "text"):
            return Answer(made.text, None, self.text, self.wav)
        return Answer(None, resampled(made.wav, made.sample_rate), self.text, self.wav)


def resampled(wav: np.ndarray, rate: int) -> np.ndarray:
    """Sound (S,) at SAMPLE_RATE."""
    from gpa import audio

    return wav if rate == SAMPLE_RATE else audio.load((wav, rate), SAMPLE_RATE)


# Measures: of an answer, None where there is nothing to look at ---------------------------------------------


def capital_letters(made: Answer) -> float | None:
    """The share of letters that are capital; 0 of what is no text."""
    letters = [letter for letter in made.text or "" if letter.isalpha()]
    return float(np.mean([letter.isupper() for letter in letters])) if letters else 0.0


def single_letters(made: Answer) -> float | None:
    """The share of words that are a single letter; 0 of what is no text."""
    words = (made.text or "").replace(",", " ").split()
    return float(np.mean([len(word) == 1 for word in words])) if words else 0.0


def words(made: Answer) -> float | None:
    """The number of words that are written."""
    return None if made.text is None else float(len(made.text.split()))


def speech_rate(made: Answer) -> float | None:
    """Letters a second between the first and the last sound, the answer saying all of its text."""
    loud = _loud(made.wav)
    if not len(loud):
        return None
    return sum(map(str.isalpha, made.said)) / ((loud[-1] + 1 - loud[0]) * FRAME)


def leading_silence(made: Answer) -> float | None:
    """Seconds before the first sound."""
    loud = _loud(made.wav)
    return float(loud[0] * FRAME) if len(loud) else None


def pitch_correlation(made: Answer) -> float | None:
    """Correlation of the logarithms of pitch, source and answer stretched to one length, both voiced."""
    if made.wav is None or min(len(made.wav), len(made.source)) < 2 * HOP:
        return None
    (source, heard), (also, voiced) = _pitch(made.source), _pitch(made.wav)
    at = np.linspace(0, len(also) - 1, len(source)).round().astype(int)
    both = (heard > 0) & (voiced[at] > 0)
    pairs = np.log(source[both]), np.log(also[at][both])
    if both.sum() < 10 or min(np.std(each) for each in pairs) < 1e-6:
        return None
    return float(np.corrcoef(*pairs)[0, 1])


def _loud(wav: np.ndarray | None) -> np.ndarray:
    """Numbers of the frames that are no silence (N,)."""
    size = round(FRAME * SAMPLE_RATE)
    if wav is None or len(wav) < size:
        return np.zeros(0, int)
    power = np.square(wav[: len(wav) // size * size]).reshape(-1, size).mean(1)
    return np.flatnonzero(power > max(1e-9, 10 ** (QUIET_DB / 10) * np.quantile(power, 0.9)))


def _pitch(wav: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hz (T,) and whether voiced (T,)."""
    import torch

    from gpa.codec.pitch import yin

    f0, voiced = yin(torch.from_numpy(wav)[None], HOP, SAMPLE_RATE)
    return f0[0].numpy(), voiced[0].numpy()


MEASURES: dict[str, Callable[[Answer], float | None]] = {
    "capital letters": capital_letters,
    "single letters": single_letters,
    "words": words,
    RATE: speech_rate,
    "leading silence": leading_silence,
    "pitch correlation": pitch_correlation,
}
