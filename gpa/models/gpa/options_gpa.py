"""How a result is made: one typed group of options a task, for Python and the command line alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypedDict

SEEDS = 1 << 63  # beyond the largest seed, and from its negative on


class HubOptions(TypedDict, total=False):
    """Of `from_pretrained`: which `revision` of a repository; `offline` (False) downloads nothing."""

    revision: str | None
    offline: bool


class SamplingOptions(TypedDict, total=False):
    """How ids are drawn. What is left out, or None, is the checkpoint's own default for the task.

    `temperature` 0 is greedy, `top_k` 0 and `top_p` 1 keep every id, a `repetition_penalty` above 1
    discourages generated ids. `max_new_tokens` bounds each part of a long input. The same `seed` (0) gives
    the same result.
    """

    seed: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    max_new_tokens: int | None


class SpeechOptions(SamplingOptions, total=False):
    """Of `tts`. `pause` (0.2) are the seconds between two sentences that are spoken apart; a comma has half
    of it, a paragraph two and a half times as much.

    The text guides with strength `gamma`; 0 is off, and faster. `pronunciations` say how words sound,
    `{"tomato": "T AH0 M AA1 T OW0"}`, in the phones of the CMU Pronouncing Dictionary.

    `best_of` takes of each part are made, and the one is kept that says the text most clearly: by the letters
    that the codec hears, else to the model's own recognition. `verify` has that one read back: a part with
    more than 70 % of its words wrong is spoken once more, then fails. `lookahead` is how many frames of codes
    the decoder waits for before it draws a frame: less than the codec's own right context (None) begins
    sooner, and sounds slightly different.
    With `word_times` chunks of a stream have the `words` of the parts that they end.
    """

    pause: float
    best_of: int
    verify: bool
    lookahead: int | None
    word_times: bool
    gamma: float | None
    pronunciations: Mapping[str, str] | None


class TranscriptOptions(SamplingOptions, total=False):
    """Of `asr`. `beams` hypotheses are searched at temperature 0; 1 is greedy.

    The checkpoint's words and n-grams help, and so do `words`, names that may be said.
    """

    beams: int | None
    words: Iterable[str]


class ConversionOptions(SamplingOptions, total=False):
    """Of `vc`. `mode` "lm" generates the source anew; "codec" keeps its semantic codes and only swaps the
    speaker's: fast, exact in timing.

    The default is the checkpoint's own, `config.conversion`; options of generation imply "lm". A
    `transcript`, or "asr" for what the model itself recognises, guides mode "lm" with strength `gamma` (1):
    speech with these words, in the source's time.
    """

    mode: str | None
    transcript: str | None
    gamma: float | None
