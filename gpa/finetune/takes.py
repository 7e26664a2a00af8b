"""Several takes of each text, judged by the words that come through: pairs for preference training.

A take is better whose transcript has fewer wrong words (round trip: text, speech, text), and one that comes
to its end before any that does not. Requests are those of `GPA.tts`: a model learns from what it says itself.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tqdm import tqdm

from gpa import audio
from gpa.data.preferences import Pair, Rejected, TakeArgs
from gpa.errors import PromptError, UsageError
from gpa.models.gpa.requests_gpa import SEED_STEP, tts_request
from gpa.text.edit_distance import edits, words

if TYPE_CHECKING:
    from gpa.codec.voice import Voice
    from gpa.engine.request import Completion, Request
    from gpa.evals.judges.all_judges import Judges
    from gpa.models.gpa.options_gpa import SpeechOptions
    from gpa.models.gpa.pipeline_gpa import GPA

JUDGED_RATE = 16_000  # Hz
HELD = 10  # every tenth text, by its checksum, is held out
ROWS = 32  # requests that are decoded together


class Take(NamedTuple):
    """Ids of one attempt, whether it came to its end, what was heard of it and how many words are wrong."""

    ids: list[int]
    stopped: bool
    heard: str
    wrong: int


class _Part(NamedTuple):
    """A part of a text that one pass speaks, and in whose voice."""

    id: str
    number: int  # among all parts
    text: str
    speaker: str
    voice: Voice
    request: Request


def pairs(
    model: GPA,
    judges: Judges,
    texts: Sequence[str],
    args: TakeArgs,
    options: SpeechOptions,
    known: Collection[str] = (),
) -> Iterator[Pair | Rejected]:
    """A pair, or why there is none, for each part of the texts; the model's voices take turns.

    Parts whose ids are `known` are left out: what comes of the others is the same without them.

    UsageError for a model without voices, or for takes that are all the same.
    """
    if not model.voices:
        raise UsageError("the model has no voices to speak in: add some by  gpa voice  or  gpa finetune")
    parts: list[_Part] = []
    for planned in _planned(model, texts, options):
        if planned.id in known:
            continue
        if isinstance(planned, Rejected):
            yield planned
        else:
            parts.append(planned)
    if parts and not parts[0].request.sampling.temperature:
        raise UsageError("takes differ above temperature 0 only")
    parts.sort(key=lambda part: len(part.text))  # those that are decoded together end together
    block = max(1, ROWS // args.takes)
    for begin in tqdm(range(0, len(parts), block), unit="batch", disable=None, dynamic_ncols=True):
        some = parts[begin : begin + block]
        done = iter(model.complete([request for part in some for request in _requests(part, args)]))
        for part in some:
            takes = [_judged(model, judges, part, next(done)) for _ in range(args.takes)]
            yield _paired(model, part, takes, args.margin)


def _planned(model: GPA, texts: Iterable[str], options: SpeechOptions) -> Iterator[_Part | Rejected]:
    processor, known, number = model.processor, model.processor.dictionary(), 0
    voices = sorted(model.voices.items())
    for n, text in enumerate(texts):
        speaker, voice = voices[n % len(voices)]
        try:
            for passage in processor.passages(text, voice.codes, known):
                request = tts_request(processor, passage.text, voice, known, options)
                yield _Part(f"{n:06d}-{number:06d}", number, passage.text, speaker, voice, request)
                number += 1
        except PromptError as error:
            yield Rejected(f"{n:06d}", speaker, text, str(error))


def _requests(part: _Part, args: TakeArgs) -> Iterator[Request]:
    """Every take has a seed of its own: the same noise twice would be preferred, too."""
    for n in range(part.number * args.takes, (part.number + 1) * args.takes):
        yield replace(part.request, seed=part.request.seed + n * SEED_STEP)


def _judged(model: GPA, judges: Judges, part: _Part, done: Completion) -> Take:
    vocab, heard = model.vocab, ""
    codes = vocab.semantic.codes(i for i in done.ids if i in vocab.semantic)
    whole = len(codes) - len(codes) % vocab.n_codebooks
    if whole:
        wav = model.processor.sound(np.array(codes[:whole]), part.voice)
        wav = audio.load((wav, model.sample_rate), JUDGED_RATE)
        heard = judges.words(np.clip(wav, -1.0, 1.0).astype(np.float32))
    said, found = (words(judges.normalise(text)) for text in (part.text, heard))
    return Take(done.ids, done.finish_reason == "stop", heard, edits(said, found))


def _paired(model: GPA, part: _Part, takes: Sequence[Take], margin: int) -> Pair | Rejected:
    wrong = tuple(take.wrong for take in takes)
    chosen = choose(takes, margin)
    if isinstance(chosen, str):
        return Rejected(part.id, part.speaker, part.text, chosen, wrong)
    from gpa.models.gpa.alignment_gpa import evidence  # here: only what becomes a pair is looked at again

    prompt = tuple(part.request.prompt)
    likely = [float(evidence(model.network, prompt, take.ids, [0]).log_probs.sum()) for take in chosen]
    better, worse = chosen
    return Pair(
        id=part.id,
        split="train" if zlib.crc32(part.text.encode()) % HELD else "dev",
        voice=part.speaker,
        text=part.text,
        prompt=prompt,
        better=tuple(better.ids),
        worse=tuple(worse.ids),
        reference=(likely[0], likely[1]),
        heard=(better.heard, worse.heard),
        wrong=(better.wrong, worse.wrong),
    )


def choose(takes: Sequence[Take], margin: int) -> tuple[Take, Take] | str:
    """The better and the worse of some takes, the first of equals; or why there is no such pair."""
    ended = [take for take in takes if take.stopped]
    if not ended:
        return "no take comes to its end"
    better = min(ended, key=lambda take: take.wrong)
    worse = max(takes, key=lambda take: (not take.stopped, take.wrong))
    if worse.stopped and worse.wrong - better.wrong < margin:
        return f"no take is better: {better.wrong} to {worse.wrong} words are wrong"
    return better, worse
