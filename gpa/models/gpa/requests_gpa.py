"""The three tasks in two pure halves: requests of ids from people's inputs, results from completions.

What runs between them, one engine or another's, is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from gpa.compose import GAMMA_LOGITS, Branch, Guided, Plan, Term, given
from gpa.engine.request import Beams, Completion, Guidance, Request
from gpa.errors import UsageError
from gpa.models.gpa.budgets_gpa import budget
from gpa.prompt.formats import Format, InstructFormat
from gpa.text.spelling import Heard

if TYPE_CHECKING:
    import numpy as np

    from gpa.codec.voice import Voice
    from gpa.engine.scheduler import Progress
    from gpa.models.gpa.options_gpa import SpeechOptions, TranscriptOptions
    from gpa.models.gpa.processing_gpa import GPAProcessor
    from gpa.text.pronunciations import Pronunciations

SEED_STEP = 1_000_003  # between the seeds of the parts of one input
_WORST = ("stop", "length", "loop")


def tts_request(
    processor: GPAProcessor, text: str, voice: Voice, known: Pronunciations, options: SpeechOptions
) -> Request:
    """A request to speak one part of a text by a dictionary, prompted by the voice alone."""
    sampling, seed, most = processor.sampling("tts", options)
    gamma = options.get("gamma")
    gamma = processor.config.gamma if gamma is None else gamma
    shortest, longest = processor.spoken_ids(text)
    rules = processor.rules("tts", budget(most, longest), shortest)
    ids = processor.build("tts", text=processor.pronounced(text, known), voice=voice.codes)
    guidance = spoken(processor.format, ids, voice.codes, gamma)
    return Request(ids, rules, sampling, seed, guidance)


def asr_requests(
    processor: GPAProcessor, options: TranscriptOptions
) -> Callable[[np.ndarray, int, np.ndarray, np.ndarray | None], Request]:
    """What makes the request of a part (S,) of a recording, by its number, codes and letters."""
    sampling, seed, most = processor.sampling("asr", options)
    beams = processor.search(options.get("beams"), options.get("words", ()))
    searched = beams if sampling.plain and beams.width > 1 else None

    def request(part: np.ndarray, number: int, codes: np.ndarray, letters: np.ndarray | None) -> Request:
        longest = processor.transcript_ids(len(part) / processor.codec.spec.sample_rate)
        rules = processor.rules("asr", budget(most, longest))
        ids = processor.build("asr", wav=part, codes=codes)
        beams = searched if searched is None or letters is None else _heard(processor, searched, letters)
        return Request(ids, rules, sampling, seed + number * SEED_STEP, beams=beams)

    return request


def _heard(processor: GPAProcessor, beams: Beams, letters: np.ndarray) -> Beams:
    """The same search, weighing letters (L, V) that the codec hears."""
    if not (weight := processor.config.beams.ctc):
        return beams
    prior = Heard(letters, weight, processor.text_tokenizer.spellings, beams.prior)
    return beams._replace(prior=prior)


def reading(
    processor: GPAProcessor, wav: np.ndarray, done: Callable[[str], None]
) -> Iterator[tuple[Request, Callable[[Progress], None]]]:
    """Requests to write down sound (S,) that was made, each with what takes its progress.

    `done` gets all the words, "" for none.
    """
    parts = processor.audio_parts(wav, "asr")
    request, said = asr_requests(processor, {}), dict[int, str]()

    def take(number: int, progress: Progress) -> None:
        if progress.completion:
            said[number] = heard(processor, progress.completion)
            if len(said) == len(parts):
                done(" ".join(filter(None, (said[n] for n in range(len(parts))))))

    for n, part in enumerate(parts):
        read = processor.codec.codes_and_letters((part, processor.codec.spec.sample_rate))
        yield request(part, n, *read), partial(take, n)


def heard(processor: GPAProcessor, done: Completion) -> str:
    """What a completion of recognition says, "" for no words."""
    return processor.text_tokenizer.decode(processor.text_ids(done)).strip()


def worst(done: Sequence[Completion]) -> str:
    """Why the parts ended, all together."""
    return max((each.finish_reason for each in done), key=_WORST.index)


# Guidance ---------------------------------------------------------------------------------------------------


def spoken(fmt: Format, prompt: Sequence[int], voice: Sequence[int], gamma: float) -> Guidance | None:
    """Speech (`prompt`) that follows its text with strength `gamma`; None at 0, where nothing guides.

    UsageError for a format without wordless speech, or a strength that is no number.
    """
    if gamma == 0:
        return None
    text = given(text="words")
    plan = Plan(Guided("tts", text), (Term("tts", text, gamma=gamma),))
    return Guidance(plan, {Branch("tts", text): prompt, Branch("tts"): _instructed(fmt).wordless(voice)})


def anchored(
    fmt: Format, prompt: Sequence[int], text: str, voice: Sequence[int], gamma: float | None = None
) -> Guidance:
    """A conversion (`prompt`) that follows a transcript with strength `gamma`, 1 unless given.

    UsageError for a format without wordless speech, or a strength that is no number.
    """
    fmt = _instructed(fmt)
    words = Term("tts", given(text="words"), gamma=GAMMA_LOGITS if gamma is None else gamma)
    prompts = {
        Branch("vc", given(source="source")): prompt,
        Branch("tts", given(text="words")): fmt.build("tts", text=text, global_=voice),
        Branch("tts"): fmt.wordless(voice),
    }
    return Guidance(Plan(Guided("vc", given(source="source")), (words,)), prompts)


def _instructed(fmt: Format) -> InstructFormat:
    if not isinstance(fmt, InstructFormat):
        raise UsageError(f"a text guides models of the instruct format; this one has {fmt.name}")
    return fmt
