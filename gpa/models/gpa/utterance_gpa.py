"""Speech on its way: the parts of a text side by side in one engine, their sound handed out in order.

Every part is prompted by the voice alone, never by what was said before, so a voice does not drift. A part
is checked when it is complete, spoken once more with another seed if it failed, and left out if it fails
again.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from gpa.codec.limiter import Limiter
from gpa.errors import GenerationError, PromptError, UsageError
from gpa.models.gpa.alignment_gpa import first_frames, letters, looked_up, word_times
from gpa.models.gpa.longform_gpa import Pending
from gpa.models.gpa.outputs_gpa import Chunk, Failure, Speech, Word
from gpa.models.gpa.requests_gpa import SEED_STEP, reading, tts_request
from gpa.models.gpa.segmentation_gpa import TRIES, Passage, audible_range, unspoken
from gpa.prompt.tasks import ASR, TTS
from gpa.text.ctc_prefix import log_likelihood
from gpa.text.edit_distance import edits, without_punctuation, words

if TYPE_CHECKING:
    from gpa.codec.base import Stream
    from gpa.engine.base import Completer
    from gpa.engine.request import Completion
    from gpa.engine.scheduler import Progress
    from gpa.models.gpa.alignment_gpa import Read
    from gpa.models.gpa.options_gpa import SpeechOptions
    from gpa.models.gpa.outputs_gpa import Voice
    from gpa.models.gpa.processing_gpa import GPAProcessor

logger = logging.getLogger(__name__)

PARTS = 8  # of one text at a time
PAUSE, LONGEST = 0.2, 60.0  # seconds after a sentence, at most
TAKE_STEP = 15_485_863  # between the seeds of the takes of one part
WRONG = 0.7  # share of wrong words with which a take that was read back has failed


class Take:
    """One attempt at a part: its codes become sound as they come."""

    def __init__(self, processor: GPAProcessor, stream: Stream) -> None:
        self._processor, self._stream = processor, stream
        self.codes: list[int] = []
        self.wavs: list[np.ndarray] = []
        self.completion: Completion | None = None
        self._decoded = self._told = 0  # codes, wavs

    def add(self, ids: Sequence[int], completion: Completion | None) -> None:
        """Take new ids, and the completion if they were the last."""
        vocab = self._processor.vocab
        self.codes += vocab.semantic.codes(i for i in ids if i in vocab.semantic)
        end = len(self.codes) - len(self.codes) % vocab.n_codebooks
        if end > self._decoded:
            self._keep(self._stream.push(self._processor.codec.tokens(self.codes[self._decoded : end])))
            self._decoded = end
        if completion:
            self._keep(self._stream.finish())
            self.completion = completion

    def _keep(self, wav: np.ndarray) -> None:
        if len(wav):
            self.wavs.append(wav)

    @property
    def tokens(self) -> np.ndarray:
        """The codes (T,) of whole frames."""
        return np.array(self.codes[: self._decoded], np.int64)

    @property
    def wav(self) -> np.ndarray:
        """All sound (S,) so far."""
        return np.concatenate([np.zeros(0, np.float32), *self.wavs])

    def news(self) -> np.ndarray:
        """The sound (S,) since it was last asked for."""
        new, self._told = self.wavs[self._told :], len(self.wavs)
        return np.concatenate([np.zeros(0, np.float32), *new])


@dataclass(eq=False)
class Part:
    """A part of the text: the takes that are made of it, and how it came out."""

    number: int
    passage: Passage
    takes: list[Take] = field(default_factory=list)
    tries: int = 0
    told: int = 0  # of its codes, how many were handed out
    begin: float = 0.0  # seconds of the sound before its own
    chosen: Take | None = None
    error: PromptError | GenerationError | None = None


class Utterance:
    """One text on its way through an engine that may have others: `take` turns progress into chunks.

    Where `live`, the first part is handed out as it is made; all others, once they are complete and good. The
    sound is the same either way, unless the first part fails: what was handed out cannot be taken back, so
    that part is not spoken again.
    """

    def __init__(
        self,
        processor: GPAProcessor,
        engine: Completer,
        text: str,
        voice: Voice,
        options: SpeechOptions,
        live: bool = False,
        evidence: Read | None = None,
    ) -> None:
        """PromptError for text that says nothing or does not fit, UsageError for unfit options.

        `evidence` of the network is what `best_of` chooses by where the codec hears no letters.
        """
        self._pending = Pending(engine)
        self._processor, self._evidence, self._voice, self._options = processor, evidence, voice, options
        self._known = processor.dictionary(options.get("pronunciations"))
        self._drawn = processor.sampling(TTS.name, options)[0].temperature > 0
        self._takes, self._rest = options.get("best_of", 1), options.get("pause", PAUSE)
        if not 0 <= self._rest <= LONGEST:
            raise UsageError(f"pause={self._rest}: seconds from 0 to {LONGEST:.0f} are needed")
        if self._takes < 1 or (self._takes > 1 and not self._drawn):
            raise UsageError(f"best_of={self._takes}: at least 1, and takes differ above temperature 0 only")
        if self._takes > 1 and not evidence:
            raise UsageError("best_of: without the network no take is known to be better than another")
        self._live = live and self._takes == 1 and not options.get("verify")
        self._plan = enumerate(processor.passages(text, voice.codes, self._known))
        self._parts: deque[Part] = deque()  # on their way, in the order of the text
        self._limiter = Limiter(processor.codec.spec.sample_rate)
        self._samples, self._pause, self._after, self._reason = 0, 0.0, 0.0, "stop"
        self._good = False  # whether any part came out
        self._errors: list[PromptError | GenerationError] = []
        self.done = False
        self._fill()

    @property
    def parts(self) -> int:
        """How many parts are on their way: never more than PARTS, however long the text."""
        return len(self._parts)

    def owns(self, handle: int) -> bool:
        """Whether a request of the engine is this text's."""
        return handle in self._pending

    def take(self, progress: Progress) -> list[Chunk]:
        """What can be handed out after a step of the engine; none for another's progress.

        GenerationError at the end if no part could be spoken.
        """
        return list(self._out()) if self._pending.take(progress) else []

    def cancel(self) -> None:
        """Forget what is not complete."""
        self._pending.cancel()
        self._parts.clear()
        self.done = True

    # Parts ------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Begin as many parts as there is room for: one, until a live one is heard."""
        room = 1 if self._live and not self._samples else max(1, PARTS // self._takes)
        while len(self._parts) < room and (planned := next(self._plan, None)):
            part = Part(*planned)
            self._parts.append(part)
            try:
                self._begin(part)
            except PromptError as error:
                if not part.number:
                    raise
                part.error = error

    def _begin(self, part: Part) -> None:
        """Ask for takes of a part, each with a seed of its own."""
        request = tts_request(self._processor, part.passage.text, self._voice, self._known, self._options)
        part.takes = []
        for n in range(part.tries * self._takes, (part.tries + 1) * self._takes):
            seed = request.seed + part.number * SEED_STEP + n * TAKE_STEP
            take = Take(self._processor, self._stream())
            self._pending.ask(
                replace(request, seed=seed), partial(self._made, part, take), partial(self._broken, part)
            )
            part.takes.append(take)
        part.tries += 1

    def _stream(self) -> Stream:
        return self._processor.codec.stream(self._voice, self._options.get("lookahead"))

    def _made(self, part: Part, take: Take, progress: Progress) -> None:
        take.add(progress.ids, progress.completion)
        if all(take.completion for take in part.takes):
            self._judge(part)

    def _broken(self, part: Part, error: GenerationError) -> None:
        """The engine could not complete a request of this part: the others go on."""
        part.error = error

    def _judge(self, part: Part) -> None:
        """Choose a take and, if that is asked for, have it read back; or try again."""
        faults = [self._fault(part, take) for take in part.takes]
        good = [take for take, fault in zip(part.takes, faults, strict=True) if not fault]
        if not good:
            return self._retry(part, faults[0])
        evidence = self._evidence
        best = max(good, key=partial(self._likelihood, part, evidence)) if evidence and good[1:] else good[0]
        if not self._options.get("verify"):
            part.chosen = best
            return None
        for request, handler in reading(self._processor, best.wav, partial(self._read, part, best)):
            self._pending.ask(request, handler, partial(self._broken, part))
        return None

    def _likelihood(self, part: Part, evidence: Read, take: Take) -> float:
        """How likely the text is, given the sound of a take, in nats: by the letters that the codec hears,
        else to the model's own recognition.
        """
        processor, text = self._processor, part.passage.text
        codes, heard = processor.codec.codes_and_letters((take.wav, processor.codec.spec.sample_rate))
        clear = None if heard is None else log_likelihood(heard, text)
        if clear is not None:
            return clear
        prompt = processor.build(ASR.name, wav=take.wav, codes=codes)
        said = processor.text_tokenizer.encode(without_punctuation(text))
        target = [*said, processor.vocab.control["end_content"]]
        return float(evidence(prompt, target, [0]).log_probs.sum())

    def _fault(self, part: Part, take: Take) -> str:
        """Why a complete take is no speech of its text, "" if it may be."""
        reason = take.completion.finish_reason if take.completion else None
        rate = self._processor.codec.spec.sample_rate
        cut = bool(self._options.get("max_new_tokens"))  # as long as it was asked for
        return unspoken(reason, take.wav, rate, part.passage.text, cut)

    def _read(self, part: Part, take: Take, read: str) -> None:
        """Compare a take with its text, once it is known what it says."""
        said = words(part.passage.text)
        wrong = edits(said, words(read))
        if wrong <= WRONG * len(said):
            part.chosen = take
        else:
            self._retry(part, f"{wrong} of {len(said)} words are wrong: it reads {read!r}")

    def _retry(self, part: Part, why: str) -> None:
        """Speak a part once more where that may help, else give it up."""
        if part.tries < TRIES and self._drawn and not part.told:
            self._begin(part)
            return
        remedy = "try another seed" if self._drawn else "temperature 0 says it no other way, a higher one may"
        part.error = GenerationError(f"no speech for {part.passage.text!r}: {why}; {remedy}")

    # Sound ------------------------------------------------------------------------------------------------

    def _out(self) -> Iterator[Chunk]:
        """Hand out what may be heard now."""
        while self._parts:
            part = self._parts[0]
            if part.error:
                yield self._missing(part, part.error)
            elif part.chosen:
                self._good = True
                yield from self._sound(part, part.chosen)
            else:
                if self._live and not part.number:
                    yield from self._sound(part, part.takes[0])
                break
            self._pause, self._after = max(self._pause, part.passage.pause), part.passage.after
            self._parts.popleft()
            self._fill()
        if not self._parts:
            yield self._last()

    def _sound(self, part: Part, take: Take) -> Iterator[Chunk]:
        """What there is of a part's sound."""
        spec, wav, tokens = self._processor.codec.spec, take.news(), take.tokens
        rate = spec.sample_rate
        timed = bool(part.chosen and self._options.get("word_times"))
        if not len(wav) and not timed:
            return
        if not part.told:
            before = part.passage.before
            usual = self._pause * self._rest if self._samples else 0.0
            rest = _silence(usual if before is None else before, rate)
            wav, part.begin = np.concatenate([rest, wav]), (self._samples + len(rest)) / rate
        self._pause = 0.0
        self._samples += len(wav)
        if take.completion and take.completion.finish_reason != "stop":
            self._reason = take.completion.finish_reason
        text, done = part.passage.text if not part.told else "", part.passage.done if part.chosen else 0.0
        frames = np.arange(part.told, len(tokens)) // spec.n_codebooks
        starts = tuple((part.begin + frames / spec.frame_rate).tolist())
        new, part.told = tokens[part.told :], len(tokens)
        spoken = self._words(part, take) if timed else ()
        heard = self._limiter.push(wav)
        yield Chunk(heard, rate, new, "", text=text, done=done, words=spoken, starts=starts)
        self._fill()

    def _words(self, part: Part, take: Take) -> tuple[Word, ...]:
        """When each word of a complete part is spoken, by where recognition of its codes looks for it."""
        processor, read = self._processor, self._evidence
        given = [(word, without_punctuation(word)) for word in part.passage.text.split()]
        said = [(word, plain) for word, plain in given if plain]
        text = " ".join(plain for _, plain in said)
        ids = processor.text_tokenizer.encode(text)
        if processor.glm:  # its ids are of the sound alone
            prompt = processor.build(ASR.name, wav=take.wav)
        else:
            prompt = processor.format.build(ASR.name, semantic=take.tokens.tolist())
        if not read or not ids or len(prompt) + len(ids) > processor.context:
            return ()
        _, attention = looked_up(read, processor.vocab, prompt, ids)
        spec = processor.codec.spec
        begin, end = audible_range(take.wav, spec.sample_rate)  # no word is said before or after
        times = part.begin + np.clip(first_frames(attention) / spec.frame_rate, begin, end)
        found = word_times(text, letters(processor.text_tokenizer.decode, ids, text), times)
        return tuple(Word(word, start, end) for (_, start, end), (word, _) in zip(found, said, strict=True))

    def _missing(self, part: Part, error: PromptError | GenerationError) -> Chunk:
        rate = self._processor.codec.spec.sample_rate
        self._errors.append(error)
        failure = Failure(part.passage.text, self._samples / rate, str(error))
        nothing = np.zeros(0, np.float32), rate, np.zeros(0, np.int64), ""
        return Chunk(*nothing, failures=(failure,), done=part.passage.done)

    def _last(self) -> Chunk:
        """The end. GenerationError if nothing was spoken."""
        self.done = True
        if not self._good:
            raise self._errors[0]
        if self._reason != "stop":
            logger.warning("speech ended by %s, not by the model", self._reason)
        rate, none = self._processor.codec.spec.sample_rate, np.zeros(0, np.int64)
        end = np.concatenate([self._limiter.finish(), _silence(self._after, rate)])
        return Chunk(end, rate, none, self._reason, done=1.0)


def _silence(seconds: float, rate: int) -> np.ndarray:
    return np.zeros(round(seconds * rate), np.float32)


def chunks(engine: Completer, utterance: Utterance) -> Generator[Chunk, None, None]:
    """Chunks of one utterance; closing the iterator cancels what is on its way."""
    try:
        while not utterance.done:
            yield from [chunk for progress in engine.step() for chunk in utterance.take(progress)]
    finally:
        utterance.cancel()


def together(engine: Completer, utterances: Sequence[Utterance]) -> list[Speech]:
    """What utterances that share an engine say, in their order; an error ends the work on all of them."""
    found: list[list[Chunk]] = [[] for _ in utterances]
    with contextlib.ExitStack() as ends:
        for utterance in utterances:
            ends.callback(utterance.cancel)
        while engine.busy:
            for progress in engine.step():
                for utterance, made in zip(utterances, found, strict=True):
                    made += utterance.take(progress)
    return [Speech.of(made) for made in found]
