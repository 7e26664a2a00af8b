"""What an instruction alone makes of sound, text and a voice: speech, or a transcript.

The prompt (`InstructFormat.ask`) has neither a task's token nor an opened output block. The model opens the
block itself, free to choose any id; what may follow are the ids that are legal in it. A transcript is drafted
so, and says by its form what was asked for; its words are those that `asr` finds.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from gpa.codec.limiter import limited
from gpa.config import check_options
from gpa.engine.request import Completion, Request, Rules
from gpa.errors import AudioWarning, GenerationError, PromptError, UsageError
from gpa.models.gpa.budgets_gpa import budget
from gpa.models.gpa.options_gpa import SamplingOptions
from gpa.models.gpa.outputs_gpa import Speech, Transcript
from gpa.models.gpa.segmentation_gpa import TRIES, unspoken
from gpa.prompt.attributes import written_as

if TYPE_CHECKING:
    from typing import Unpack

    from gpa.audio import AudioLike
    from gpa.models.gpa.outputs_gpa import Voice, VoiceLike
    from gpa.models.gpa.processing_gpa import GPAProcessor
    from gpa.prompt.formats import InstructFormat
    from gpa.prompt.tasks import Task

SLACK = 2.0  # seconds of speech beyond the usual, for pauses
SLOWER = 2  # times as long as usual speech and transcripts: slow speech, spelled words


class Question(NamedTuple):
    """A prompt that asks, the sound (S,) and the text in it, and the voice that an answer has."""

    ids: list[int]
    wav: np.ndarray
    seconds: float
    text: str
    voice: Voice | None


class Instructed(ABC):
    """The part of `GPA` that follows instructions."""

    processor: GPAProcessor

    @abstractmethod
    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Completions of requests, as one batch."""

    @abstractmethod
    def asr(self, audio: Any) -> Any:
        """The `Transcript` of a recording."""

    def run(
        self,
        instruction: str,
        *,
        audio: AudioLike | None = None,
        text: str | None = None,
        voice: VoiceLike | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Speech | Transcript:
        """Do what an instruction says with audio or text: "transcribe this in capitals", "read this slowly".

        The instruction alone decides, and the result is typed by what came out. `voice` is the first shipped
        one unless given. A transcript has the words of `asr`, unless it is drawn or cut. Longer input than a
        pass takes is for `tts`, `asr` and `vc`. UsageError for a model that has not learnt it
        (`instructions.free` of a recipe), PromptError for input that is missing or too long, GenerationError
        where the model opens no block, or says nothing.
        """
        check_options(options, SamplingOptions)
        question = _question(self.processor, instruction, (), audio, text, voice)
        kind = self._opens(question)
        if kind is None:
            raise GenerationError(f"{instruction!r}: the model chose neither speech nor text; reword it")
        if kind == "content" and not question.seconds:
            raise PromptError(f"{instruction!r} is understood as a wish for a transcript: give audio")
        return self._answer(question, kind, options)

    def opens(
        self,
        instruction: str,
        *,
        audio: AudioLike | None = None,
        text: str | None = None,
        voice: VoiceLike | None = None,
        tasks: Sequence[str] = (),
    ) -> str | None:
        """Which output `run` would give: "content" is text, "semantic" speech, None neither.

        `tasks` are named by their tokens as well, to see which of both the model follows.
        """
        return self._opens(_question(self.processor, instruction, tasks, audio, text, voice))

    def _opens(self, question: Question) -> str | None:
        """Nothing is masked: the model may choose any id."""
        fmt = _format(self.processor)
        done = self.complete([Request(question.ids, Rules(1, frozenset({fmt.vocab.stop})))])[0]
        return fmt.opened(done.ids[0])

    def _answer(self, question: Question, kind: str, options: SamplingOptions) -> Speech | Transcript:
        processor, fmt = self.processor, _format(self.processor)
        task = _nearest(fmt, kind, question)
        sampling, seed, asked = processor.sampling(task.name, options)
        ids = [*question.ids, fmt.vocab.control[f"start_{kind}"]]
        most = budget(asked, min(_most(processor, task, question), processor.context - len(ids)))
        least = 0 if task.reads_speech or asked else processor.spoken_ids(question.text)[0]
        request = Request(ids, processor.rules(task.name, most, min(least, most)), sampling, seed)
        if not task.writes:
            return self._spoken(question, request, bool(asked))
        return self._written(question, request, searched=sampling.plain and not asked)

    def _written(self, question: Question, request: Request, searched: bool) -> Transcript:
        """What the model writes freely; `searched` in its form, with the words of `asr`, if they fit it."""
        heard = self._heard(question.wav) if searched else None
        if heard and not heard.text:
            return heard
        processor, done = self.processor, self.complete([request])[0]
        tokens = processor.text_ids(done)
        draft = processor.text_tokenizer.decode(tokens).strip()
        said = written_as(draft, heard.text) if heard else None
        if heard is None or said is None:
            return Transcript(
                draft, np.array(tokens, np.int64), done.finish_reason, duration=question.seconds
            )
        if said == heard.text:
            return heard
        ids = np.array(processor.text_tokenizer.encode(said), np.int64)
        return replace(heard, text=said, tokens=ids, segments=())

    def _heard(self, wav: np.ndarray) -> Transcript:
        """What `asr` writes of sound (S,), whose faults were told when it came."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AudioWarning)
            heard: Transcript = self.asr((wav, self.processor.codec.spec.sample_rate))
        return heard

    def _spoken(self, question: Question, request: Request, cut: bool) -> Speech:
        """Speech that may be what was asked for, or another take of it; `cut` where its length was given."""
        if question.voice is None:
            raise GenerationError("a voice is needed for speech: give one")
        rate, why = self.processor.codec.spec.sample_rate, ""
        for take in range(TRIES if request.sampling.temperature > 0 else 1):
            done = self.complete([replace(request, seed=request.seed + take)])[0]
            codes = np.array(self.processor.codes(done), np.int64)
            wav = (
                limited(self.processor.sound(codes, question.voice), rate)
                if len(codes)
                else np.zeros(0, np.float32)
            )
            if not (why := unspoken(done.finish_reason, wav, rate, question.text, cut)):
                return Speech(wav, rate, codes, done.finish_reason)
        raise GenerationError(f"no speech: {why}; give another seed, or another voice")


def _question(
    processor: GPAProcessor,
    instruction: str,
    tasks: Sequence[str],
    audio: AudioLike | None,
    text: str | None,
    voice: VoiceLike | None,
) -> Question:
    """The prompt for what is given; UsageError for an untaught model, PromptError for unfit input."""
    fmt, wording = _format(processor), instruction.strip(" .!?")
    if not (wording or tasks) or (audio is None and not text):
        raise PromptError("an instruction needs words, and audio or text to do something with")
    speaker = None
    if text or voice is not None or processor.voices:
        speaker = processor.resolve_voice(voice)
    given: dict[str, Any] = {} if speaker is None else {"global": speaker.codes}
    wav, seconds = np.zeros(0, np.float32), 0.0
    if audio is not None:
        rate = processor.codec.spec.sample_rate
        wav = processor.hear(audio, "the audio")
        seconds = len(wav) / rate
        reading = (processor.longest_audio(name) for name, task in fmt.tasks.items() if task.reads_speech)
        _check_length(seconds, min(reading, default=0), "s of audio", "gpa asr or vc")
        given["semantic"] = processor.codec.codes((wav, rate)).tolist()
    if text:
        _check_length(len(text), processor.config.max_text_chars, "characters of text", "gpa tts")
        given["content"] = processor.pronounced(text)
    ids = fmt.ask(wording, given, tasks)
    _check_length(len(ids), processor.context - 2, "ids of prompt", "gpa tts, asr or vc")
    return Question(ids, wav, seconds, text or "", speaker)


def _format(processor: GPAProcessor) -> InstructFormat:
    if not processor.config.instructed:
        raise UsageError(
            f"{processor.config.name} has not learnt to follow instructions alone: use tts, asr or vc, or "
            "train a model with instructions.free above 0 (docs/speech.md)"
        )
    return cast("InstructFormat", processor.format)


def _nearest(fmt: InstructFormat, kind: str, question: Question) -> Task:
    """The task whose ids, sampling and length an output has: of its kind, reading sound where there is."""
    fits = [task for task in fmt.tasks.values() if task.writes == (kind == "content")]
    return next((task for task in fits if task.reads_speech == (question.seconds > 0)), fits[0])


def _most(processor: GPAProcessor, task: Task, question: Question) -> int:
    """The most ids of an answer: more than the task takes, since an instruction may want it longer."""
    if not task.reads_speech:
        usual = processor.spoken_ids(question.text)[1]
    else:
        usual = processor.span(task, round(question.seconds * processor.frame_rate))[1]
    return SLOWER * usual + (0 if task.writes else int(SLACK * processor.frame_rate))


def _check_length(found: float, limit: float, what: str, otherwise: str) -> None:
    if found > limit:
        raise PromptError(f"{found:.0f} {what}, an instruction takes {limit:.0f} at most: use {otherwise}")
