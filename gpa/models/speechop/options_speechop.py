"""How SpeechOp makes a result: one typed group of options for each of its methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from gpa.audio import AudioLike
    from gpa.models.speechop.words_speechop import Recogniser


class RunOptions(TypedDict, total=False):
    """How every result is made: `steps` of the sampler, the model's own by default; the same `seed` (0) gives
    the same result.
    """

    steps: int | None
    seed: int


class SpeechOptions(RunOptions, total=False):
    """Of `tts`. `voice_text` is what the voice's sample says ("" unknown, None to recognise it), for which
    the `recogniser` is asked.
    """

    voice_text: str | None
    recogniser: Recogniser | None


class RestorationOptions(TypedDict, total=False):
    """Of `extract` and `separate`. `gamma` is how strongly the transcript guides, 0 not at all; its default
    depends on who wrote the text.

    `recogniser` writes transcripts that are asked for; `steps` and `seed` as in `RunOptions`. `filtered`
    gives the recording itself, turned down wherever the network draws less; False what it draws, None what
    the model's settings say.
    """

    steps: int | None
    seed: int
    gamma: float | None
    recogniser: Recogniser | None
    filtered: bool | None


class EnhancementOptions(RestorationOptions, total=False):
    """Of `enhance`. `voice` is a clean sample of the speaker, `voice_text` what it says ("" unknown, None to
    recognise it). A filtered recording is turned down where nobody speaks; `strong` does so within speech as
    well, which sounds cleaner and costs words.
    """

    voice: AudioLike | None
    voice_text: str | None
    strong: bool


class EditOptions(RunOptions, total=False):
    """Of `edit`. `before` and `after` are what is said before and after the span ("" for nothing, None to
    recognise it).
    """

    before: str | None
    after: str | None
    recogniser: Recogniser | None


class ComposeOptions(RunOptions, total=False):
    """Of `compose`: what the names of a plan stand for, and how long a result without a source lasts."""

    texts: Mapping[str, str] | None
    sources: Mapping[str, AudioLike] | None
    prompts: Mapping[str, AudioLike] | None
    seconds: float | None
