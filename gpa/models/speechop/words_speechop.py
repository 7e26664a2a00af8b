"""Text as the models were trained on it, checked; text from a recogniser, used only if it can be.

Knows texts and recognisers; no network, no codec.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from gpa import audio
from gpa.errors import AudioWarning, GenerationError, PromptError, UsageError
from gpa.text.normaliser import normalise_text

if TYPE_CHECKING:
    from gpa.models.speechop.configuration_speechop import SpeechOpConfig

Recogniser = Callable[[np.ndarray], str] | Any  # or an object with GPA's method `asr`

FASTEST = 40.0  # characters a second that nobody speaks
LEAST = 0.3  # seconds; less is not worth recognising
PHONEMES = 0.85  # of a letter in English, where a model counts phonemes: an estimate
_STRANGE = re.compile(r"[^a-z .,?!;:'-]")


def spoken(text: str, what: str = "the transcript", seconds: float | None = None) -> str:
    """Text in the form of the training data; PromptError if it cannot be spoken, or not in `seconds`."""
    if not isinstance(text, str):
        raise UsageError(f"{what} is {type(text).__name__}: give a string")
    words = normalise_text(text)
    if strange := sorted(set(_STRANGE.findall(words))):
        shown = " ".join(strange[:10])
        raise PromptError(
            f"{what} has letters the model was not trained on: {shown}. It reads English; write the words in "
            "Latin letters, or leave the transcript out"
        )
    if not re.search("[a-z]", words):
        raise PromptError(f"{what} has no words: {text!r:.60}")
    if seconds is not None and len(words) > FASTEST * seconds:
        raise PromptError(
            f"{what} has {len(words)} characters for {seconds:.1f} s, over {FASTEST:.0f} a second: does it "
            "belong to this recording?"
        )
    return words


def units(text: str, config: SpeechOpConfig) -> int:
    """How long a normalised text is in the model's unit; phonemes are estimated from letters."""
    if config.tts.unit == "characters":
        return len(text)
    return max(1, round(PHONEMES * sum(c.isalpha() for c in text)))


def recognised(recogniser: Recogniser, wav: np.ndarray, rate: int, where: str) -> str:
    """What is said in wav (S,), normalised; "" with an AudioWarning if nothing usable was recognised.

    A recogniser is a GPA model, or any function from float32 (S,) at 16 kHz to text.
    """
    seconds, found = len(wav) / rate, ""
    if seconds >= LEAST:
        heard = audio.load((wav, rate), audio.SAMPLE_RATE)
        try:
            asr = getattr(recogniser, "asr", None)
            found = recogniser(heard) if asr is None else asr((heard, audio.SAMPLE_RATE)).text
        except GenerationError:
            found = ""
        if not isinstance(found, str):
            raise UsageError(f"the recogniser returned {type(found).__name__}: it must return text")
    try:
        return spoken(found, "what was recognised", seconds)
    except PromptError as error:
        warnings.warn(f"no text for {where}: {error}", AudioWarning, stacklevel=3)
        return ""
