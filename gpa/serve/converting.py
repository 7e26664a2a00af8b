"""Sound to sound in the style of OpenAI's routes: speech in another voice, and clean speech of a recording.

OpenAI has neither. Answers are those of /v1/audio/speech: sound while it is made, complete, or as events.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import wait
from typing import TYPE_CHECKING, Annotated, Literal, cast

import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from gpa.errors import GenerationError, PromptError, UsageError
from gpa.models.gpa.options_gpa import SEEDS, ConversionOptions
from gpa.models.gpa.outputs_gpa import Chunk
from gpa.serve.answers import SOUND, Said, Speaking, answered, encoder_of, is_complete
from gpa.serve.catalogue import check_model, find_voice
from gpa.serve.failures import POSTED, Failure, documented
from gpa.serve.service import Service, Serving
from gpa.serve.speech_request import (
    SAMPLE_RATE,
    Container,
    Gamma,
    Penalty,
    Rate,
    Streamed,
    Temperature,
    TopK,
    TopP,
    options_of,
)
from gpa.serve.transcription import recognising, written
from gpa.serve.uploads import FILES, Recording, Upload, copied_from, recorded

if TYPE_CHECKING:
    from gpa.models.speechop.pipeline_speechop import SpeechOp
    from gpa.serve.answers import Source

ENHANCED_SECONDS = 600.0  # of a recording to be enhanced at most: all of it is done at once
CHECKED = 0.5  # seconds between looks whether a client that waits for recognition is still there

router = APIRouter(prefix="/v1/audio")


class SoundForm(BaseModel):
    """A recording, and what its answer is like."""

    model_config = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False, extra="allow")

    file: Upload
    model: str | None = None
    response_format: Container = "mp3"
    stream_format: Literal["audio", "sse"] = "audio"
    stream: Streamed = None
    sample_rate: Rate = SAMPLE_RATE
    seed: int | None = Field(None, ge=0, lt=SEEDS)
    transcript: str | None = Field(None, description='what is said, or "asr" to recognise it')

    @property
    def timestamps(self) -> bool:
        """There are none."""
        return False

    @property
    def ignored(self) -> list[str]:
        """Names of given fields that change nothing: those that are unknown."""
        return sorted(self.model_extra or {})


class ConversionRequest(SoundForm):
    """A recording to be said in a voice, by name or that of another recording."""

    voice: str | None = None
    ref_audio: Upload | None = Field(None, description="a voice to copy")
    mode: Literal["lm", "codec"] | None = Field(None, description="generated anew, or codes kept")
    gamma: Gamma = None
    temperature: Temperature = None
    top_k: TopK = None
    top_p: TopP = None
    repetition_penalty: Penalty = None

    def options(self) -> ConversionOptions:
        """For the model."""
        return cast("ConversionOptions", options_of(self, ConversionOptions))


class EnhancementRequest(SoundForm):
    """A recording to be cleaned. `filtered` turns the recording itself down where there is no speech."""

    gamma: Gamma = None
    steps: int | None = Field(None, ge=1, le=200)
    filtered: bool | None = None


Converted = Annotated[ConversionRequest, FILES]
Enhanced = Annotated[EnhancementRequest, FILES]


@router.post("/conversions", response_class=Response, responses=documented(SOUND, *POSTED, 404))
async def convert(asked: Converted, request: Request, service: Serving) -> Response:
    """Say what a recording says in another voice; the sound comes while it is made."""
    return await converted(asked, request, service)


async def converted(
    asked: ConversionRequest, request: Request, service: Service, param: str = "file"
) -> Response:
    """The answer to a request whose recording is named `param`."""
    check_model(service, asked.model)
    encoder = encoder_of(asked, service.model.sample_rate, is_complete(asked))
    if asked.ref_audio:
        voice = await copied_from(service, asked.ref_audio, "ref_audio")
    else:
        voice = find_voice(service, asked.voice)
    recording = await recorded(request, service, asked.file, param)
    options = asked.options()
    given = {name: value for name, value in options.items() if name not in ("mode", "seed")}
    try:
        mode = service.model.config.conversion_mode(asked.mode, given)
        if mode == "codec":
            service.model.codec.check_exchange()
    except UsageError as error:
        raise Failure.of(error, "mode") from error
    source: Source
    if mode == "codec":
        source = Aside(service, service.model.vc(recording.source, voice, mode="codec", stream=True))
    else:
        source = await service.worker.submit(
            lambda engine: service.model.conversion(engine, voice, options), recording.blocks(service)
        )
    said = Said(0, len(voice.codes) + _tokens(service, recording), service.model.sample_rate)
    return await answered(request, Speaking(service, asked, source, encoder, said))


@router.post("/enhancements", response_class=Response, responses=documented(SOUND, *POSTED, 404, 501))
async def enhance(asked: Enhanced, request: Request, service: Serving) -> Response:
    """Clean speech of a recording, all of it at once."""
    return await enhanced(asked, request, service)


async def enhanced(
    asked: EnhancementRequest, request: Request, service: Service, param: str = "file"
) -> Response:
    """The answer to a request whose recording is named `param`."""
    enhancer = service.enhancer
    if enhancer is None:
        raise Failure(501, "this server has no model for enhancement", None, "not_installed")
    if asked.model != "speechop-mini":
        check_model(service, asked.model)
    encoder = encoder_of(asked, enhancer.sample_rate, is_complete(asked))
    recording = await recorded(request, service, asked.file, param, enhancer.sample_rate)
    if recording.seconds > ENHANCED_SECONDS:
        what = f"{param}: {recording.seconds:.0f} s, {ENHANCED_SECONDS:.0f} are the limit; cut it"
        raise Failure(400, what, param, "invalid_audio")
    if asked.transcript is not None and not asked.transcript.strip():
        raise Failure(400, "transcript: it is empty; leave it out", "transcript", "invalid_value")
    said = Said(0, _tokens(service, recording), enhancer.sample_rate)
    source = Enhancing(service, enhancer, recording, asked)
    return await answered(request, Speaking(service, asked, source, encoder, said))


class Aside:
    """Chunks that are computed one by one, away from the engine; cancelled between two of them."""

    def __init__(self, service: Service, chunks: Iterator[Chunk]) -> None:
        self._service, self._chunks, self._cancelled = service, chunks, False

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """All of them."""
        while not self._cancelled:
            chunk = await self._service.aside(next, self._chunks, None)
            if chunk is None:
                return
            yield chunk

    def cancel(self) -> None:
        """Compute no more."""
        self._cancelled = True


class Enhancing:
    """A recording on its way to clean speech, which comes as one chunk; cancelled within a step."""

    def __init__(
        self, service: Service, enhancer: SpeechOp, recording: Recording, asked: EnhancementRequest
    ) -> None:
        self._service, self._enhancer, self._recording, self._asked = service, enhancer, recording, asked
        self._cancelled = threading.Event()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """The chunk."""
        loop = asyncio.get_running_loop()

        def recognise(wav: np.ndarray) -> str:
            """By the worker, as everybody's recognition."""
            heard = asyncio.run_coroutine_threadsafe(self._recognised(wav), loop)
            while not wait([heard], CHECKED).done:
                self._check()
            return heard.result()

        yield await self._service.enhance(self._enhanced, recognise)

    def cancel(self) -> None:
        """Stop before the next step."""
        self._cancelled.set()

    async def _recognised(self, wav: np.ndarray) -> str:
        recording = self._service.model.processor.listened((wav, 16000), "the recording")
        return (await written(await recognising(self._service, recording, {}))).text

    def _check(self, *_: object) -> None:
        if self._cancelled.is_set():
            raise GenerationError("the client went away")

    def _enhanced(self, recognise: Callable[[np.ndarray], str]) -> Chunk:
        asked, enhancer = self._asked, self._enhancer

        self._check()
        enhancer.progress = self._check
        try:
            made = enhancer.enhance(
                self._recording.source,
                asked.transcript,
                seed=asked.seed or 0,
                steps=asked.steps,
                gamma=asked.gamma,
                filtered=asked.filtered,
                recogniser=recognise,
            )
        except PromptError as error:
            raise Failure.of(error, "transcript") from error
        finally:
            enhancer.progress = None
        none = np.zeros(0, np.int64)
        return Chunk(made.wav, made.sample_rate, none, "stop", "lm", text=made.transcript or "", done=1.0)


def _tokens(service: Service, recording: Recording) -> int:
    """Ids of the sound."""
    spec = service.model.codec.spec
    return round(recording.seconds * spec.frame_rate) * spec.n_codebooks
