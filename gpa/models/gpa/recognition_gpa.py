"""Recognition of sound of any length: silence skipped, text that is never taken back, the times of words.

Sound is cut at pauses into stretches (activity_gpa.py). Each is encoded and read by itself: codecs hear both
ways, so no code of a stretch is final before its end. Text is handed out in the order of the sound, that of a
stretch under way as soon as no loop can take it back.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from gpa.engine.sampler import FEW, PERIODS
from gpa.models.gpa.activity_gpa import Uncut, may_be_speech
from gpa.models.gpa.alignment_gpa import first_frames, letters, looked_up, spread, word_times
from gpa.models.gpa.longform_gpa import LongForm, step
from gpa.models.gpa.outputs_gpa import Partial, Segment, Transcript, Word
from gpa.models.gpa.requests_gpa import asr_requests, worst

if TYPE_CHECKING:
    from gpa.engine.base import Completer
    from gpa.engine.request import Completion, Request
    from gpa.engine.scheduler import Progress
    from gpa.models.gpa.activity_gpa import Stretch
    from gpa.models.gpa.alignment_gpa import Evidence, Read
    from gpa.models.gpa.options_gpa import TranscriptOptions
    from gpa.models.gpa.processing_gpa import GPAProcessor

DECIDED = 24  # ids by which it is decided whether this is speech
SOFTNESS = 0.1  # nats around the threshold between which no_speech_prob goes from 0.73 to 0.27
SOFT_RATE = 1.0  # letters a second, likewise
UNSURE = 10.0  # letters a second that a nat of their mean log-probability is worth
WEIGHT = 10.0  # nats that one unit of spread is worth


@dataclass(eq=False)
class Part:
    """A stretch of speech on its way."""

    stretch: Stretch
    request: Request
    ids: list[int] = field(default_factory=list)
    completion: Completion | None = None
    told: int = 0  # of its characters, how many were handed out
    no_speech: float | None = None  # how likely it is none, once that is decided
    handle: int = -1

    @property
    def rejected(self) -> bool:
        """Whether it is no speech."""
        return self.no_speech is not None and self.no_speech > 0.5


def spelt_clearly(letters: np.ndarray, seconds: float) -> float:
    """Letters a second on the likeliest path of (L, V), less `UNSURE` times how unsure they are."""
    path = letters.argmax(-1).tolist()
    runs = ((c, list(places)) for c, places in groupby(range(len(path)), path.__getitem__) if c)
    peaks = [float(letters[places, c].max()) for c, places in runs]
    return len(peaks) / seconds + UNSURE * sum(peaks) / len(peaks) if peaks else -math.inf


def _doubt(surplus: float) -> float:
    """Logistic: 0.5 for evidence at its threshold, less for more."""
    return 1 / (1 + math.exp(float(np.clip(surplus, -50, 50))))


class Recognition(LongForm[Part, Partial]):
    """One recording to be written down.

    All text that is handed out, put together, is that of `transcript`.
    """

    def __init__(
        self,
        processor: GPAProcessor,
        engine: Completer,
        read: Read,
        options: TranscriptOptions,
        uncut: bool = False,
    ) -> None:
        """UsageError for unfit options. `uncut` sound is one stretch, short enough for one pass."""
        super().__init__(engine, Uncut() if uncut else processor.segmenter())
        self._processor, self._read = processor, read
        self._request = asr_requests(processor, options)
        self._begun = self._skipped = 0
        self._segments: list[Segment] = []
        self._completions: list[Completion] = []

    @property
    def transcript(self) -> Transcript:
        """All that was written down."""
        rate = self._processor.codec.spec.sample_rate
        text = " ".join(segment.text for segment in self._segments)
        tokens = np.array([i for segment in self._segments for i in segment.tokens], np.int64)
        reason = worst(self._completions) if self._completions else "no speech"
        about = self._processor.config.about
        return Transcript(
            text,
            tokens,
            reason,
            tuple(self._segments),
            duration=self.samples / rate,
            skipped=self._skipped / rate,
            language=about.get("language", ""),
        )

    # Parts ------------------------------------------------------------------------------------------------

    def _begin(self, stretch: Stretch) -> Part | None:
        if not (stretch.speech and may_be_speech(stretch.wav, self._processor.codec.spec.sample_rate)):
            self._skipped += len(stretch.wav)
            return None
        codec = self._processor.codec
        codes, letters = codec.codes_and_letters((stretch.wav, codec.spec.sample_rate))
        no_speech = self._unspelt(letters, stretch)
        if no_speech is not None and no_speech > 0.5:
            self._skipped += len(stretch.wav)
            return None
        part = Part(stretch, self._request(stretch.wav, self._begun, codes, letters), no_speech=no_speech)
        part.handle = self._pending.ask(part.request, partial(self._made, part))
        self._begun += 1
        return part

    def _unspelt(self, letters: np.ndarray | None, stretch: Stretch) -> float | None:
        """How likely a stretch is no speech by the letters (L, V) in it, where that is how it is decided."""
        least = self._processor.config.letters_threshold
        if letters is None or least is None:
            return None
        seconds = len(stretch.wav) / self._processor.codec.spec.sample_rate
        return _doubt((spelt_clearly(letters, seconds) - least) / SOFT_RATE)

    def _made(self, part: Part, progress: Progress) -> None:
        part.completion = progress.completion
        part.ids = progress.completion.ids if progress.completion else [*part.ids, *progress.ids]

    def _out(self, part: Part) -> Iterator[Partial]:
        self._decide(part)
        if part.no_speech is None:
            return
        if part.rejected:
            self._skipped += len(part.stretch.wav)
            self._pending.forget(part.handle)
        elif part.completion:
            yield from self._complete(part, part.completion)
        else:
            yield from self._tell(part, self._settled(part))

    def _ready(self, part: Part) -> bool:
        return part.rejected or (part.completion is not None and part.no_speech is not None)

    def _decide(self, part: Part) -> None:
        """Whether this is speech: how sure the network is of the first ids, and how narrowly it looks."""
        config = self._processor.config
        if part.no_speech is not None:
            return
        if config.logprob_threshold is None:
            part.no_speech = 0.0
        elif part.completion or len(part.ids) >= DECIDED:
            shown, attention = self._shown(part, part.ids[:DECIDED])
            surplus = float(shown.log_probs.mean()) - config.logprob_threshold
            if config.spread_threshold is not None:
                surplus += WEIGHT * (config.spread_threshold - spread(attention))
            part.no_speech = _doubt(surplus / SOFTNESS)

    def _shown(self, part: Part, ids: list[int]) -> tuple[Evidence, np.ndarray]:
        """What the network shows of ids, and their attention (N, T) on frames."""
        return looked_up(self._read, self._processor.vocab, part.request.prompt, ids)

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
        shown, attention = self._shown(part, part.ids)
        places = [n for n, i in enumerate(part.ids) if i in vocab.text][: len(tokens)]
        attention = attention[places]
        begin = part.stretch.begin / rate
        times = begin + first_frames(attention) / self._processor.codec.spec.frame_rate
        times = np.minimum(times, begin + len(part.stretch.wav) / rate)
        ends = letters(self._processor.text_tokenizer.decode, tokens, text)
        words = tuple(Word(*each) for each in word_times(text, ends, times))
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
            pieces=tuple(text[a:b] for a, b in zip([0, *ends], ends, strict=False)),
            log_probs=tuple(shown.log_probs[places].tolist()),
        )


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


class Recogniser:
    """Recognition of live sound: `push` what was recorded, `finish` when it ends.

    A stretch of speech is read when its pause has lasted 0.8 s, or when it is as long as one pass takes; no
    more than that is kept. All that is returned, put together, is `transcript.text`: the text of the same
    sound recognised at once.
    """

    def __init__(self, engine: Completer, recognition: Recognition) -> None:
        self._engine, self._recognition = engine, recognition

    def push(self, wav: np.ndarray) -> list[Partial]:
        """More sound, float (S,) at the model's rate, and what it made final.

        After an error nothing of the sound before it is on its way.
        """
        return [*self._recognition.feed(np.asarray(wav, np.float32)), *self._until_idle()]

    def finish(self) -> list[Partial]:
        """The rest; nothing may be pushed afterwards."""
        return [*self._recognition.close(), *self._until_idle()]

    def _until_idle(self) -> list[Partial]:
        made: list[Partial] = []
        try:
            while self._recognition.busy:
                made += step(self._engine, self._recognition)
        except BaseException:
            self._recognition.cancel()
            raise
        return made

    @property
    def transcript(self) -> Transcript:
        """What was written down so far."""
        return self._recognition.transcript
