"""Conversion of sound of any length: cut where it is quiet, converted side by side, drawn in one stream.

The codes of all parts go through one stream of the codec, so there is no seam where parts meet: the sound is
that of all codes decoded at once.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from gpa.codec.limiter import Limiter
from gpa.engine.request import Request
from gpa.errors import GenerationError, UsageError
from gpa.models.gpa.longform_gpa import LongForm
from gpa.models.gpa.outputs_gpa import Chunk
from gpa.models.gpa.requests_gpa import SEED_STEP, anchored, reading, worst
from gpa.prompt.tasks import ASR, VC
from gpa.text.normaliser import normalise_text

if TYPE_CHECKING:
    from gpa.codec.voice import Voice
    from gpa.engine.base import Completer
    from gpa.engine.request import Completion
    from gpa.engine.scheduler import Progress
    from gpa.models.gpa.activity_gpa import Stretch
    from gpa.models.gpa.options_gpa import ConversionOptions
    from gpa.models.gpa.processing_gpa import GPAProcessor

logger = logging.getLogger(__name__)

PAUSE = 3.0  # seconds of a pause that is not generated: its codes are kept
WINDOW, MARGIN = 20.0, 2.0  # seconds that are encoded at once where codes are kept, and their surroundings


class Joined:
    """Codes of consecutive parts in, chunks of one sound out."""

    def __init__(self, processor: GPAProcessor, voice: Voice, mode: str) -> None:
        self._codec, self._mode = processor.codec, mode
        self._stream = processor.codec.stream(voice)
        self._limiter = Limiter(processor.codec.spec.sample_rate)
        self.codes = 0  # so many so far

    def push(self, codes: np.ndarray) -> Chunk:
        """What is final once these codes (L,) are known."""
        self.codes += len(codes)
        wav = self._stream.push(self._codec.tokens(codes))
        return self._chunk(self._limiter.push(wav), codes)

    def finish(self, reason: str) -> Chunk:
        """The end, and why."""
        if reason != "stop":
            logger.warning("speech ended by %s, not by the model", reason)
        rest = self._limiter.push(self._stream.finish())
        wav = np.concatenate([rest, self._limiter.finish()])
        return replace(self._chunk(wav, np.zeros(0, np.int64)), finish_reason=reason, done=1.0)

    def _chunk(self, wav: np.ndarray, codes: np.ndarray) -> Chunk:
        return Chunk(wav, self._codec.spec.sample_rate, codes, "", self._mode)


@dataclass(eq=False)
class Part:
    """A stretch on its way: asked what it says if that shall guide, then converted."""

    stretch: Stretch
    number: int
    codes: np.ndarray | None = None


class Conversion(LongForm[Part, Chunk]):
    """One recording to be said anew by the language model, in another voice."""

    def __init__(
        self, processor: GPAProcessor, engine: Completer, voice: Voice, options: ConversionOptions
    ) -> None:
        """UsageError for unfit options."""
        super().__init__(engine, processor.segmenter(VC.name, PAUSE))
        self._processor, self._voice, self._options = processor, voice, options
        self._sampling, self._seed, self._most = processor.sampling(VC.name, options)
        self._joined = Joined(processor, voice, "lm")
        self._begun = 0
        self._completions: list[Completion] = []

    def close(self) -> list[Chunk]:
        """That was all the sound."""
        made = super().close()
        return [*made, *self._last()]

    def take(self, progress: Progress) -> list[Chunk]:
        """Chunks that are ready; at the end the last."""
        busy = self.busy
        made = super().take(progress)
        return [*made, *self._last()] if busy else made

    def _last(self) -> Iterator[Chunk]:
        if self.done:
            yield self._joined.finish(worst(self._completions) if self._completions else "stop")

    def _begin(self, stretch: Stretch) -> Part:
        part = Part(stretch, self._begun)
        if not stretch.speech:
            part.codes = self._processor.codec.codes((stretch.wav, self._processor.codec.spec.sample_rate))
            return part
        self._begun += 1
        transcript = self._options.get("transcript")
        if transcript == ASR.name:
            for request, handler in reading(self._processor, stretch.wav, partial(self._convert, part)):
                self._pending.ask(request, handler)
        elif transcript and part.number:
            raise UsageError("the source takes several parts: cut it, or let transcript='asr' hear each")
        else:
            self._pending.ask(self._request(part, transcript or ""), partial(self._made, part))
        return part

    def _convert(self, part: Part, words: str) -> None:
        """Now that it is known what is said."""
        self._pending.ask(self._request(part, normalise_text(words)), partial(self._made, part))

    def _request(self, part: Part, text: str) -> Request:
        processor, codes = self._processor, self._voice.codes
        ids = processor.build(VC.name, wav=part.stretch.wav, voice=codes)
        rules, said = processor.conversion_rules(ids, self._most), processor.pronounced(text)
        gamma = self._options.get("gamma")
        guidance = anchored(processor.format, ids, said, codes, gamma) if text else None
        return Request(ids, rules, self._sampling, self._seed + part.number * SEED_STEP, guidance)

    def _made(self, part: Part, progress: Progress) -> None:
        if done := progress.completion:
            self._completions.append(done)
            part.codes = np.array(self._processor.codes(done), np.int64)
            if not len(part.codes):
                at = part.stretch.begin / self._processor.codec.spec.sample_rate
                raise GenerationError(
                    f"the model produced no speech for the part at {at:.1f} s: try another seed"
                )

    def _out(self, part: Part) -> Iterator[Chunk]:
        if part.codes is not None:
            yield self._joined.push(part.codes)

    def _ready(self, part: Part) -> bool:
        return part.codes is not None


def exchanged(
    processor: GPAProcessor, voice: Voice, blocks: Iterable[np.ndarray]
) -> Generator[Chunk, None, None]:
    """A recording whose codes are kept, in another voice.

    Codes are made in windows of 20 s that hear 2 s more on either side. UsageError where the codes hold the
    voice as well.
    """
    codec, joined = processor.codec, Joined(processor, voice, "codec")
    codec.check_exchange()
    spec = codec.spec
    size, margin = (round(seconds * spec.frame_rate) * spec.hop_length for seconds in (WINDOW, MARGIN))
    wav, before = np.zeros(0, np.float32), 0  # not exchanged yet, with so many samples that are
    for block in blocks:
        wav = np.concatenate([wav, block])
        while len(wav) >= before + size + 2 * margin:
            yield joined.push(_kept(processor, wav[: before + size + margin], before, size))
            wav, before = wav[before + size - margin :], margin
    yield joined.push(_kept(processor, wav, before, len(wav)))
    yield joined.finish("stop")


def _kept(processor: GPAProcessor, wav: np.ndarray, before: int, size: int) -> np.ndarray:
    """Codes of `size` samples of a waveform (S,) that begin after `before`; all that follow, at the end."""
    spec = processor.codec.spec
    codes = processor.codec.codes((wav, spec.sample_rate))
    first, count = (samples // spec.hop_length * spec.n_codebooks for samples in (before, size))
    return codes[first : first + count] if before + size < len(wav) else codes[first:]
