"""Recognition of sound of any length: silence skipped, parts of it side by side, text that is never taken back.

Sound is cut at pauses into stretches (activity_gpa.py), and each is encoded and read by itself: codecs hear both
ways, so no code of a stretch is final before its end. A few stretches are on their way through the engine at a
time; their text is handed out in order, the ids of one as soon as no loop can take them back.
"""

from __future__ import annotations

import math
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gpa import audio as sound
from gpa.engine.sampler import FEW, PERIODS
from gpa.models.gpa.alignment_gpa import Evidence, first_frames
from gpa.models.gpa.outputs_gpa import Partial, Segment, Transcript, Word
from gpa.models.gpa.requests_gpa import asr_requests, worst
from gpa.prompt.tasks import ASR

if TYPE_CHECKING:
    from gpa.engine.base import Completer
    from gpa.engine.request import Completion, Request
    from gpa.engine.scheduler import Progress
    from gpa.models.gpa.activity_gpa import Stretch
    from gpa.models.gpa.options_gpa import TranscriptOptions
    from gpa.models.gpa.processing_gpa import GPAProcessor

Read = Callable[[Sequence[int], Sequence[int], Sequence[int]], Evidence]  # of prompt, ids, positions of audio

PARTS = 8  # of one recording at a time
DECIDED = 24  # ids by which it is decided whether this is speech
SOFTNESS = 0.05  # nats around the threshold between which no_speech_prob goes from 0.73 to 0.27
DRAWN = 0.3  # seconds that the last id of a word may take: what follows is a pause


@dataclass(eq=False)
class Part:
    """A stretch of speech on its way."""

    stretch: Stretch
    request: Request
    ids: list[int] = field(default_factory=list)
    completion: Completion | None = None
    told: int = 0  # of its characters, how many were handed out
    no_speech: float | None = None  # how likely it is none, once that is decided


class Recognition:
    """One recording on its way through an engine that may have others: `feed` sound, `take` progress.

    All text that `take` and `close` hand out is that of `transcript`, whatever the sizes of what was fed.
    """

    def __init__(
        self,
        processor: GPAProcessor,
        engine: Completer,
        read: Read,
        options: TranscriptOptions,
        name: str = "the audio",
    ) -> None:
        """UsageError for unfit options."""
        self._processor, self._engine, self._read, self._name = processor, engine, read, name
        self._request = asr_requests(processor, options)
        self._segmenter = processor.segmenter(ASR.name)
        self._waiting: deque[Stretch] = deque()
        self._parts: deque[Part] = deque()  # on their way, in order
        self._handles: dict[int, Part] = {}
        self._begun = self._samples = self._skipped = 0
        self._segments: list[Segment] = []
        self._completions: list[Completion] = []
        self._closed = False

    @property
    def full(self) -> bool:
        """Whether there is enough on its way: more sound would only wait."""
        return len(self._waiting) + len(self._parts) >= PARTS

    @property
    def done(self) -> bool:
        """Whether all that was fed is written down."""
        return self._closed and not self._waiting and not self._parts

    @property
    def busy(self) -> bool:
        """Whether something of what was fed is on its way."""
        return bool(self._parts)

    def feed(self, wav: np.ndarray) -> None:
        """More sound (S,) at the codec's rate."""
        self._add(self._segmenter.push(wav))

    def close(self) -> None:
        """That was all."""
        self._add(self._segmenter.finish())
        self._closed = True

    def take(self, progress: Progress) -> list[Partial]:
        """What can be handed out after a step of the engine; nothing for another's progress."""
        part = self._handles.get(progress.handle)
        if part is None:
            return []
        part.ids += progress.ids
        part.completion = progress.completion
        if progress.completion:
            part.ids = progress.completion.ids
            del self._handles[progress.handle]
        return list(self._out())

    def cancel(self) -> None:
        """Forget what is not complete."""
        for handle in self._handles:
            self._engine.cancel(handle)
        self._handles.clear()
        self._parts.clear()
        self._waiting.clear()
        self._closed = True

    @property
    def transcript(self) -> Transcript:
        """All that was written down."""
        rate = self._processor.codec.spec.sample_rate
        text = " ".join(segment.text for segment in self._segments)
        tokens = np.array([i for segment in self._segments for i in segment.tokens], np.int64)
        reason = worst(self._completions) if self._completions else "silence"
        about = self._processor.config.about
        return Transcript(
            text,
            tokens,
            reason,
            tuple(self._segments),
            duration=self._samples / rate,
            skipped=self._skipped / rate,
            language=about.get("language", ""),
        )

    # Parts ------------------------------------------------------------------------------------------------

    def _add(self, stretches: Iterable[Stretch]) -> None:
        for stretch in stretches:
            self._samples += len(stretch.wav)
            if (
                stretch.speech
                and len(stretch.wav) >= sound.MIN_SECONDS * self._processor.codec.spec.sample_rate
            ):
                self._waiting.append(stretch)
            else:
                self._skipped += len(stretch.wav)
        self._fill()

    def _fill(self) -> None:
        while self._waiting and len(self._parts) < PARTS:
            stretch = self._waiting.popleft()
            if not self._begun:
                sound.check_speech(
                    stretch.wav, self._processor.codec.spec.sample_rate, name=self._name, stacklevel=5
                )
            part = Part(stretch, self._request(stretch.wav, self._begun))
            self._begun += 1
            self._parts.append(part)
            self._handles[self._engine.add(part.request)] = part

    def _out(self) -> Iterator[Partial]:
        while self._parts:
            part = self._parts[0]
            self._decide(part)
            if part.no_speech is None:
                break
            if part.no_speech > 0.5:
                self._reject(part)
            elif part.completion:
                yield from self._complete(part, part.completion)
            else:
                yield from self._tell(part, self._settled(part))
                break
            self._parts.popleft()
            self._fill()

    def _decide(self, part: Part) -> None:
        """Whether this is speech, by the first ids that are written: what they are written about must be heard."""
        threshold = self._processor.config.logprob_threshold
        if threshold is None:
            part.no_speech = 0.0
        elif part.no_speech is None and (part.completion or len(part.ids) >= DECIDED):
            log_probs = self._read(part.request.prompt, part.ids[:DECIDED], [0]).log_probs
            part.no_speech = 1 / (1 + math.exp(min(50.0, (log_probs.mean() - threshold) / SOFTNESS)))

    def _reject(self, part: Part) -> None:
        self._skipped += len(part.stretch.wav)
        for handle in [handle for handle, each in self._handles.items() if each is part]:
            self._engine.cancel(handle)
            del self._handles[handle]

    def _tell(self, part: Part, text: str) -> Iterator[Partial]:
        if new := text[part.told :]:
            yield Partial(self._gap(part) + new)
            part.told = len(text)

    def _gap(self, part: Part) -> str:
        return " " if self._segments and not part.told else ""

    def _settled(self, part: Part) -> str:
        """The words of an unfinished part that stay: all whole ones that no loop can take back."""
        ids = [i for i in part.ids[: settled(part.ids)] if i in self._processor.vocab.text]
        text = self._processor.text_tokenizer.decode(ids).partition("\ufffd")[0].lstrip()
        return text[: max(text.rfind(" "), 0)].rstrip()

    def _complete(self, part: Part, done: Completion) -> Iterator[Partial]:
        self._completions.append(done)
        tokens = self._processor.text_ids(done)
        text = self._processor.text_tokenizer.decode(tokens).strip()
        if text:
            gap = self._gap(part)
            self._segments.append(self._segment(part, tokens, text))
            yield Partial(gap + text[part.told :], self._segments[-1])

    def _segment(self, part: Part, tokens: list[int], text: str) -> Segment:
        rate, vocab = self._processor.codec.spec.sample_rate, self._processor.vocab
        audio = [n for n, i in enumerate(part.request.prompt) if i in vocab.semantic]
        shown = self._read(part.request.prompt, part.ids, audio)
        rows = [n for n, i in enumerate(part.ids) if i in vocab.text][: len(tokens)]
        attention = shown.attention[rows].reshape(len(rows), -1, vocab.n_codebooks).sum(-1)
        begin = part.stretch.begin / rate
        times = begin + first_frames(attention) / self._processor.codec.spec.frame_rate
        times = np.minimum(times, begin + len(part.stretch.wav) / rate)
        words = tuple(self._words(tokens, text, times))
        data = text.encode()
        return Segment(
            id=len(self._segments),
            start=words[0].start,
            end=words[-1].end,
            text=text,
            tokens=tuple(tokens),
            words=words,
            temperature=part.request.sampling.temperature,
            avg_logprob=float(shown.log_probs.mean()),
            compression_ratio=len(data) / len(zlib.compress(data)),
            no_speech_prob=part.no_speech or 0.0,
            seek=round(100 * begin),
        )

    def _words(self, tokens: Sequence[int], text: str, times: np.ndarray) -> Iterator[Word]:
        """Words at the times (N + 1,) of ids: one begins with the id of its first letter, not of the space."""
        decode = self._processor.text_tokenizer.decode
        lengths = np.array([len(decode(tokens[: n + 1]).lstrip()) for n in range(len(tokens))])
        begin = 0
        for word in text.split():
            begin = text.index(word, begin)
            first, last = np.searchsorted(lengths, [begin + 1, begin + len(word)]).clip(0, len(tokens) - 1)
            end = min(times[last + 1], times[last] + DRAWN)
            yield Word(word, round(float(times[first]), 3), round(float(max(end, times[first])), 3))
            begin += len(word)


def settled(ids: Sequence[int]) -> int:
    """How many of the ids so far stay, should the rest turn out to be a loop (`LoopDetector`)."""
    repeats = 0
    for period in range(1, min(PERIODS, len(ids) - 1) + 1):
        run = 0
        while run + period < len(ids) and ids[-1 - run] == ids[-1 - run - period]:
            run += 1
        repeats = max(repeats, run)
    few = 0
    while few < len(ids) and len(set(ids[len(ids) - few - 1 :])) <= FEW:
        few += 1
    return len(ids) - max(repeats, few - FEW, 0)


def partials(engine: Completer, recognition: Recognition, blocks: Iterable[np.ndarray]) -> Iterator[Partial]:
    """What is handed out of one recording; closing the iterator cancels what is on its way."""
    try:
        for block in blocks:
            recognition.feed(block)
            while recognition.full:
                yield from _step(engine, recognition)
        recognition.close()
        while not recognition.done:
            yield from _step(engine, recognition)
    finally:
        recognition.cancel()


def _step(engine: Completer, recognition: Recognition) -> Iterator[Partial]:
    for progress in engine.step():
        yield from recognition.take(progress)


def together(
    engine: Completer, recognitions: Sequence[Recognition], sources: Sequence[Iterable[np.ndarray]]
) -> list[Transcript]:
    """The transcripts of recordings that share an engine, in their order."""
    open_ends = list(zip(recognitions, map(iter, sources), strict=True))
    while open_ends or engine.busy:
        for each in list(open_ends):
            recognition, blocks = each
            while not recognition.full:
                block = next(blocks, None)
                if block is None:
                    recognition.close()
                    open_ends.remove(each)
                    break
                recognition.feed(block)
        for progress in engine.step():
            for recognition in recognitions:
                recognition.take(progress)
    return [recognition.transcript for recognition in recognitions]


class Recogniser:
    """Recognition of live sound: `push` what was recorded, `finish` when it ends.

    A stretch of speech is read when its pause has lasted 0.8 s, or it is as long as one pass takes. At most one
    such stretch of sound is kept. All that is returned, put together, is `transcript.text`, and that is the text of
    the same sound recognised at once.
    """

    def __init__(self, engine: Completer, recognition: Recognition) -> None:
        self._engine, self._recognition = engine, recognition

    def push(self, wav: np.ndarray) -> list[Partial]:
        """More sound, float (S,) at the model's rate, and what it made final."""
        self._recognition.feed(np.asarray(wav, np.float32))
        return self._until_idle()

    def finish(self) -> list[Partial]:
        """The rest; nothing may be pushed afterwards."""
        self._recognition.close()
        return self._until_idle()

    def _until_idle(self) -> list[Partial]:
        made: list[Partial] = []
        while self._recognition.busy:
            made += _step(self._engine, self._recognition)
        return made

    @property
    def transcript(self) -> Transcript:
        """What was written down so far."""
        return self._recognition.transcript
