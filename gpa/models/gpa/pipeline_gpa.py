"""GPA: one decoder-only transformer over audio and text ids that recognises, speaks and converts voices.

The public class. Inputs become requests and completions become results in utterance_gpa.py,
recognition_gpa.py and conversion_gpa.py, `gpa.engine` completes requests, the codec is sound's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import torch

from gpa.config import check_options
from gpa.engine.backends import find_engine
from gpa.engine.network import Network
from gpa.engine.request import Completion, Request, Rules
from gpa.engine.scheduler import Engine
from gpa.errors import PromptError, UsageError
from gpa.models.gpa import checkpoint_gpa as files
from gpa.models.gpa import longform_gpa as longform
from gpa.models.gpa.alignment_gpa import evidence
from gpa.models.gpa.budgets_gpa import budget
from gpa.models.gpa.configuration_gpa import GPAConfig
from gpa.models.gpa.conversion_gpa import Conversion, exchanged
from gpa.models.gpa.info_gpa import describe
from gpa.models.gpa.instructed_gpa import Instructed
from gpa.models.gpa.options_gpa import (
    ConversionOptions,
    HubOptions,
    SamplingOptions,
    SpeechOptions,
    TranscriptOptions,
)
from gpa.models.gpa.outputs_gpa import Speech
from gpa.models.gpa.processing_gpa import GPAProcessor
from gpa.models.gpa.recognition_gpa import Recogniser, Recognition
from gpa.models.gpa.utterance_gpa import Utterance, chunks, together
from gpa.nn import threads as processor
from gpa.nn.device import pick_device, pick_dtype

if TYPE_CHECKING:
    from typing import Unpack

    from gpa.audio import AudioLike
    from gpa.codec.base import LinguisticTokenizer, TokenCodec
    from gpa.engine.base import Completer
    from gpa.models.gpa.outputs_gpa import Chunk, Partial, Transcript, Voice, VoiceLike
    from gpa.prompt.formats import Format
    from gpa.prompt.vocab import Vocab

T = TypeVar("T")
Live = Literal[True]
Streamed = Literal[True, "parts"]


class GPA(Instructed):
    """A loaded model: `tts`, `asr`, `vc`, `run`, `voice`; below: `prompt`, `generate`, `network`, `codec`."""

    def __init__(
        self,
        network: Network,
        codec: TokenCodec,
        tokenizer: str | os.PathLike,
        *,
        glm: LinguisticTokenizer | None = None,
        config: GPAConfig | None = None,
        voices: Mapping[str, Voice] | None = None,
    ) -> None:
        """Join loaded parts; `tokenizer` is a directory. CheckpointError if they do not belong together."""
        self.config = config or GPAConfig()
        s = network.sizes
        sizes = {"vocab_size": s.vocab_size, "context": s.max_position_embeddings}
        self.processor = GPAProcessor(tokenizer, codec, glm, self.config, **sizes)
        self.network = network
        self.other_engine: Callable[[], Completer] | None = None  # makes engines in the place of ours
        self.path: Path | None = None  # of the files
        self.precision = network.dtype  # of the files, which saving keeps
        for name, voice in (voices or {}).items():
            self.add_voice(name, voice)

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | os.PathLike,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        engine: str = "",
        threads: int | None = None,
        **hub: Unpack[HubOptions],
    ) -> GPA:
        """Load a directory, a repository id or a shipped name.

        It may hold a published checkpoint (at its root or in gpa_0_3b/) or what `save_pretrained` wrote.
        `dtype` is that of the language model; the codec computes in float32. Nothing is downloaded for a
        local path. `engine` completes prompts in the place of ours and has the same weights:
        "llamacpp:FILE.gguf", "vllm:http://HOST:PORT" or "sglang:http://HOST:PORT" (docs/serving.md).
        `threads` of the processor hold for the whole process: None lets the model's size decide, 0 leaves
        torch's number alone (docs/performance.md). Raises CheckpointError for missing, unexpected or
        mismatched parts.
        """
        check_options(hub, HubOptions)
        folder = files.find(path_or_repo, **hub)
        config = GPAConfig.read(folder)
        chosen = pick_device(device)
        network, stored = Network.load(folder)
        processor.settle(processor.weights(network), threads, chosen)
        codec, glm = files.load_parts(folder, chosen)
        model = cls(network, codec, folder, glm=glm, config=config)
        if (folder / "gpa.json").is_file():
            config.check(model.processor.fingerprints(), str(folder))
        for name, voice in files.load_voices(folder).items():
            model.add_voice(name, voice)
        network.to(chosen, pick_dtype(dtype, chosen, stored))
        model.path, model.precision = folder, stored
        model.other_engine = find_engine(engine, network) if engine else None
        return model

    def save_pretrained(
        self,
        path: str | os.PathLike,
        *,
        dtype: torch.dtype | None = None,
        codec_dtype: torch.dtype | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write a plain Hugging Face directory that needs nothing from outside: AutoModelForCausalLM and
        AutoTokenizer load it without this package; codec/, voices/ and gpa.json lie beside their files.

        Precisions default to those of the loaded files. Card, data page and golden/ come along unless the
        copy computes something else: an adapter folded in, a list taken, the precision lowered. An existing
        directory is refused unless `overwrite`.
        """
        return files.write_checkpoint(
            path,
            network=self.network,
            codec=self.codec,
            glm=self.processor.glm,
            text_files=self.processor.text_files,
            voices=self.voices,
            config=self.config,
            fingerprints=self.processor.text_fingerprints(),
            dtypes=(dtype or self.precision, codec_dtype),
            origin=self.path,
            overwrite=overwrite,
        )

    @property
    def codec(self) -> TokenCodec:
        """The codec: `encode`, `decode`, `stream`; docs/add-a-codec.md."""
        return self.processor.codec

    @property
    def voices(self) -> dict[str, Voice]:
        """Shipped voices by name."""
        return self.processor.voices

    @property
    def glm(self) -> LinguisticTokenizer | None:
        """The GLM tokenizer of a published checkpoint."""
        return self.processor.glm

    @property
    def vocab(self) -> Vocab:
        """The id space."""
        return self.processor.vocab

    @property
    def format(self) -> Format:
        """The prompt format."""
        return self.processor.format

    @property
    def device(self) -> torch.device:
        """Where the language model is."""
        return self.network.device

    @property
    def sample_rate(self) -> int:
        """Hz of everything spoken."""
        return self.codec.spec.sample_rate

    def info(self) -> dict[str, Any]:
        """Path, format, sizes, limits, voices and fingerprints, ready for JSON."""
        return describe(self.network, self.processor, self.path)

    def voice(self, reference: AudioLike, *, name: str = "", about: Mapping[str, str] | None = None) -> Voice:
        """The voice of a recording, 3 to 6 s of clear speech; AudioWarning if short, silent or clipped."""
        return self.processor.voice(reference, name, about)

    def add_voice(self, name: str, voice: Voice) -> None:
        """Make a voice available by name; `save_pretrained` ships it."""
        self.voices[name] = self.codec.checked(voice)

    def resolve_voice(self, voice: VoiceLike) -> Voice:
        """A Voice from itself, a shipped name, a JSON path, or any audio; the first shipped one for None.

        UsageError lists the choices.
        """
        return self.processor.resolve_voice(voice)

    def prompt(
        self,
        task: str,
        *,
        audio: AudioLike | None = None,
        text: str | None = None,
        source: AudioLike | None = None,
        voice: VoiceLike | None = None,
        instruction: str | None = None,
    ) -> list[int]:
        """The exact ids the model sees: asr takes `audio`, tts `text` and `voice`, vc `source` and `voice`,
        a task of your own what its `Task` says.

        PromptError names a missing or superfluous input, and the numbers of a prompt that exceeds the
        context.
        """
        given = {"audio": audio, "text": text, "source": source, "voice": voice}
        return self.processor.prompt(task, given, instruction)

    def generate(
        self, ids: list[int], *, task: str, constrained: bool = True, **options: Unpack[SamplingOptions]
    ) -> list[int]:
        """New ids after a prompt, the stop id included if it was reached; temperature 0 is greedy.

        `constrained` allows only ids that a completion of the task may hold, and ends loops; without it any
        id may come. Unset options are this model's defaults for the task; without `max_new_tokens` the length
        follows from the prompt.
        """
        task, ids = self.format.task(task).name, _ids(ids)
        check_options(options, SamplingOptions)
        sampling, seed, asked = self.processor.sampling(task, options)
        most = budget(asked, self.processor.budget_of(ids))
        rules = self.processor.rules(task, most)
        if not constrained:
            rules = Rules(most, rules.stop)
        return self.complete([Request(ids, rules, sampling, seed)])[0].ids

    def engine(self) -> Completer:
        """A new engine, which is cheap: what completes requests."""
        return self.other_engine() if self.other_engine else Engine(self.network)

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Completions of requests, as one batch."""
        return self.engine().generate(requests)

    # Tasks ------------------------------------------------------------------------------------------------

    @overload
    def tts(self, text: str, voice: VoiceLike = None, **options: Unpack[SpeechOptions]) -> Speech: ...
    @overload
    def tts(
        self, text: list[str], voice: VoiceLike = None, **options: Unpack[SpeechOptions]
    ) -> list[Speech]: ...
    @overload
    def tts(
        self, text: str, voice: VoiceLike = None, *, stream: Streamed, **options: Unpack[SpeechOptions]
    ) -> Generator[Chunk, None, None]: ...
    def tts(
        self,
        text: str | list[str],
        voice: VoiceLike = None,
        *,
        stream: Streamed | Literal[False] = False,
        **options: Unpack[SpeechOptions],
    ) -> Speech | list[Speech] | Generator[Chunk, None, None]:
        """Speak a text of any length in a voice, or each text of a list; a long one is spoken in parts.

        With `stream` the chunks of one text come as they are made, and closing the iterator ends the work;
        `stream="parts"` hands out no part before it has been checked. See `SpeechOptions`. PromptError for
        text that says nothing, GenerationError where no part of a text could be spoken.
        """
        if stream not in (False, True, "parts"):
            raise UsageError(f"stream={stream!r}: expected True, False or 'parts'")
        if stream and isinstance(text, list):
            raise UsageError("a stream speaks one text: give a str, or leave stream out")
        speaker, engine, live = self.resolve_voice(voice), self.engine(), stream is True
        utterances = [self.utterance(engine, one, speaker, options, live) for one in _list(text)]
        if stream:
            return chunks(engine, utterances[0])
        return _as_asked(text, together(engine, utterances))

    @overload
    def vc(
        self, source: AudioLike, voice: VoiceLike = None, **options: Unpack[ConversionOptions]
    ) -> Speech: ...
    @overload
    def vc(
        self, source: list[AudioLike], voice: VoiceLike = None, **options: Unpack[ConversionOptions]
    ) -> list[Speech]: ...
    @overload
    def vc(
        self, source: AudioLike, voice: VoiceLike = None, *, stream: Live, **o: Unpack[ConversionOptions]
    ) -> Generator[Chunk, None, None]: ...
    def vc(
        self,
        source: AudioLike | list[AudioLike],
        voice: VoiceLike = None,
        *,
        stream: bool = False,
        **options: Unpack[ConversionOptions],
    ) -> Speech | list[Speech] | Generator[Chunk, None, None]:
        """Say what `source` says, of any length, in another voice; a list of sources gives a list.

        With `stream` the chunks of one source come as they are made, and closing the iterator ends the work.
        See `ConversionOptions`. UsageError for an option that the mode has no use for.
        """
        check_options(options, ConversionOptions)
        transcript = options.get("transcript")
        if transcript is not None and not transcript.strip():
            raise PromptError("the transcript is empty: leave it out")
        if stream and isinstance(source, list):
            raise UsageError("a stream converts one source: give one, or leave stream out")
        speaker = self.resolve_voice(voice)
        given = {name: value for name, value in options.items() if name not in ("mode", "seed")}
        mode = self.config.conversion_mode(options.get("mode"), given)
        sources = [self.processor.listened(one, "the source") for one in _list(source)]
        if mode == "codec":
            made = [exchanged(self.processor, speaker, wavs) for wavs in sources]
            return made[0] if stream else _as_asked(source, [Speech.of(each) for each in made])
        engine = self.engine()
        works = [self.conversion(engine, speaker, options) for _ in sources]
        if stream:
            return longform.stream(engine, works[0], sources[0])
        return _as_asked(source, [Speech.of(each) for each in longform.together(engine, works, sources)])

    @overload
    def asr(self, audio: AudioLike, **options: Unpack[TranscriptOptions]) -> Transcript: ...
    @overload
    def asr(self, audio: list[AudioLike], **options: Unpack[TranscriptOptions]) -> list[Transcript]: ...
    @overload
    def asr(
        self, audio: AudioLike, *, stream: Live, **options: Unpack[TranscriptOptions]
    ) -> Generator[Partial, None, None]: ...
    def asr(
        self,
        audio: AudioLike | list[AudioLike],
        *,
        stream: bool = False,
        **options: Unpack[TranscriptOptions],
    ) -> Transcript | list[Transcript] | Generator[Partial, None, None]:
        """Write down what is said in audio of any length, or in each of a list, with the times of words.

        Sound without speech is skipped, and where there is no other the transcript is empty. With `stream`
        the text of one recording comes as it is written, and is never taken back; closing the iterator ends
        the work. See `TranscriptOptions`.
        """
        if stream and isinstance(audio, list):
            raise UsageError("a stream writes down one recording: give one, or leave stream out")
        engine, sources = self.engine(), [self.processor.listened(one, "the audio") for one in _list(audio)]
        recognitions = [self.recognition(engine, options) for _ in sources]
        if stream:
            return longform.stream(engine, recognitions[0], sources[0])
        longform.together(engine, recognitions, sources)
        return _as_asked(audio, [recognition.transcript for recognition in recognitions])

    def recogniser(self, **options: Unpack[TranscriptOptions]) -> Recogniser:
        """What writes down live sound, as it is recorded. See `TranscriptOptions`."""
        engine = self.engine()
        return Recogniser(engine, self.recognition(engine, options))

    def utterance(
        self, engine: Completer, text: str, voice: Voice, options: SpeechOptions, live: bool = False
    ) -> Utterance:
        """A text on its way; where it is `live`, its first part is handed out as it is made."""
        check_options(options, SpeechOptions)
        read = partial(evidence, self.network)
        return Utterance(self.processor, engine, text, voice, options, live, read)

    def conversion(self, engine: Completer, voice: Voice, options: ConversionOptions) -> Conversion:
        """A recording on its way into another voice, by the language model."""
        return Conversion(self.processor, engine, voice, options)

    def recognition(self, engine: Completer, options: TranscriptOptions, uncut: bool = False) -> Recognition:
        """A recording on its way into text; an `uncut` one is a stretch of speech from a segmenter."""
        check_options(options, TranscriptOptions)
        words = options.get("words", ())
        options["words"] = [words] if isinstance(words, str) else list(words)
        return Recognition(self.processor, engine, partial(evidence, self.network), options, uncut)


def _ids(given: Any) -> list[int]:
    try:
        return [index(each) for each in given]
    except TypeError as error:
        raise PromptError("a prompt is a list of ids, as `prompt` makes it") from error


def _list(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given]


def _as_asked(given: Any, results: list[T]) -> Any:
    """The results of a list, or the one of what was no list."""
    return results if isinstance(given, list) else results[0]
