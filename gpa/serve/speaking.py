"""Text to speech as OpenAI has it: one text as sound or as events, or many texts at once.

What clients may ask for is in `SpeechRequest`; docs/server.md has the answers.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from gpa import audio
from gpa.errors import AudioError, PromptError, UsageError
from gpa.serve.catalogue import check_model, find_voice
from gpa.serve.encoders import FORMATS, Encoder, available
from gpa.serve.failures import Failure
from gpa.serve.service import Service, Serving
from gpa.serve.speech_request import BatchRequest, SpeechRequest

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from gpa.codec.voice import Voice
    from gpa.models.gpa.outputs_gpa import Chunk
    from gpa.serve.worker import Job

REFERENCE_SECONDS = 60.0  # of a voice to copy, at most
PLAIN = re.compile(r"[\w.-]{1,64}", re.ASCII)  # what may be repeated in a header

T = TypeVar("T")
router = APIRouter(prefix="/v1/audio/speech")


@dataclass
class Said:
    """What is known of speech on its way: how much there was to read, how much came of it."""

    text_tokens: int
    voice_tokens: int
    rate: float  # samples of the model in a second of what is heard
    samples: int = 0
    tokens: int = 0
    reason: str = "stop"
    failures: list[dict[str, Any]] = field(default_factory=list)
    segments: list[dict[str, Any]] = field(default_factory=list)

    def add(self, chunk: Chunk) -> None:
        """Count a chunk."""
        if chunk.text:
            self._end()
            self.segments.append({"text": chunk.text, "start": self.seconds})
        self.samples += len(chunk.wav)
        self.tokens += len(chunk.tokens)
        self.reason = chunk.finish_reason or self.reason
        self.failures += [
            {"text": f.text, "start": self.seconds, "message": f.reason} for f in chunk.failures
        ]
        if chunk.finish_reason:
            self._end()

    def _end(self) -> None:
        if self.segments:
            self.segments[-1].setdefault("end", self.seconds)

    @property
    def seconds(self) -> float:
        """Of the sound so far."""
        return self.samples / self.rate

    @property
    def usage(self) -> dict[str, Any]:
        """As OpenAI counts; `audio_tokens` are those of the voice."""
        given = self.text_tokens + self.voice_tokens
        details = {"text_tokens": self.text_tokens, "audio_tokens": self.voice_tokens}
        tokens = {"input_tokens": given, "output_tokens": self.tokens, "total_tokens": given + self.tokens}
        return {**tokens, "input_token_details": details}

    @property
    def summary(self) -> dict[str, Any]:
        """Once it is made."""
        return {"usage": self.usage, "finish_reason": self.reason, "duration": self.seconds}


class Speaking:
    """One text on its way: its sound comes encoded, bit by bit."""

    def __init__(self, service: Service, asked: SpeechRequest, job: Job[Chunk], encoder: Encoder, said: Said):
        self._service, self._job, self._encoder = service, job, encoder
        self.asked, self.said = asked, said

    @classmethod
    async def begin(cls, service: Service, asked: SpeechRequest, complete: bool) -> Speaking:
        """Failure for what cannot be spoken or encoded."""
        check_model(service, asked.model)
        _check_text(service, asked)
        if asked.response_format not in available():
            what = (
                f"{asked.response_format} cannot be encoded on this server: choose {', '.join(available())}"
            )
            raise Failure(400, what, "response_format", "unsupported_format")
        model = service.model
        rate = model.sample_rate
        try:
            encoder = Encoder(asked.response_format, rate, asked.sample_rate, complete, asked.speed)
        except UsageError as error:
            raise Failure.of(error, "sample_rate") from error
        voice = await _voice(service, asked)
        said = await service.aside(_counted, service, asked, voice)
        options, live = asked.options(), not complete
        try:
            job = await service.worker.submit(
                lambda engine: model.utterance(engine, asked.input, voice, options, live)
            )
        except PromptError as error:
            raise Failure.of(error, "input") from error
        except UsageError as error:  # its message begins with the name of the option
            name = re.split(r"\W", str(error))[0]
            raise Failure.of(error, name if name in SpeechRequest.model_fields else None) from error
        return cls(service, asked, job, encoder, said)

    async def bodies(self) -> AsyncIterator[tuple[bytes, Chunk | None]]:
        """Bytes that are ready, with the chunk that they end in; nothing empty, but for a chunk with news."""
        async for chunk in self._job:
            self.said.add(chunk)
            data = await self._service.aside(self._encoder.push, chunk.wav)
            if data or chunk.text:
                yield data, chunk
        yield await self._service.aside(self._encoder.finish), None

    async def whole(self) -> bytes:
        """The complete body."""
        return b"".join([data async for data, _ in self.bodies()])

    def cancel(self) -> None:
        """Forget it."""
        self._job.cancel()

    @property
    def headers(self) -> dict[str, str]:
        """What a body does not say of itself, or not to everybody."""
        asked = self.asked
        given = {
            "X-Audio-Sample-Rate": str(asked.sample_rate),
            "X-Audio-Channels": "1",
            "X-Audio-Encoding": "pcm_s16le"
            if asked.response_format in ("pcm", "wav")
            else asked.response_format,
            "X-Input-Tokens": str(self.said.usage["input_tokens"]),
            "Cache-Control": "no-store",
        }
        ignored = ", ".join(name for name in asked.ignored if PLAIN.fullmatch(name))
        return given | ({"X-Ignored-Fields": ignored} if ignored else {})


class Streamed(StreamingResponse):
    """A body on its way, which is forgotten when the client goes."""

    def __init__(self, speaking: Speaking, body: AsyncIterator[bytes], **given: Any) -> None:
        super().__init__(body, **given)
        self._speaking = speaking

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer. What fails after the first byte breaks the connection: nobody takes it for the end."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._speaking.cancel()


@router.post(
    "", response_class=Response, responses={200: {"content": {f.media_type: {} for f in FORMATS.values()}}}
)
async def speak(asked: SpeechRequest, request: Request, service: Serving) -> Response:
    """Speak a text; the sound comes while it is made, or as events (`stream_format` "sse")."""
    form = FORMATS[asked.response_format]
    complete = asked.stream is False and asked.stream_format != "sse"
    speaking = await Speaking.begin(service, asked, complete or not form.streamed)
    try:
        if complete or not (form.streamed or asked.events):
            body = await attended(request, speaking.whole())
            said = speaking.said
            counted = {"X-Output-Tokens": str(said.tokens), "X-Finish-Reason": said.reason}
            return Response(body, media_type=form.media_type, headers=speaking.headers | counted)
        bodies = speaking.bodies()
        first = await attended(
            request, _awaited(anext(bodies))
        )  # what fails before the first sound has a status
    except BaseException:
        speaking.cancel()
        raise
    if asked.events:
        events = _events(speaking, first, bodies)
        more = {"X-Accel-Buffering": "no"}
        return Streamed(speaking, events, media_type="text/event-stream", headers=speaking.headers | more)
    return Streamed(speaking, _raw(first, bodies), media_type=form.media_type, headers=speaking.headers)


async def _raw(first: tuple[bytes, Any], bodies: AsyncIterator[tuple[bytes, Any]]) -> AsyncIterator[bytes]:
    yield first[0]
    async for data, _ in bodies:
        if data:
            yield data


async def _events(
    speaking: Speaking, first: tuple[bytes, Chunk | None], bodies: AsyncIterator[tuple[bytes, Chunk | None]]
) -> AsyncIterator[bytes]:
    """Deltas, which together are the body, and the end; an error is an event, too."""
    try:
        yield _delta(*first)
        async for data, chunk in bodies:
            yield _delta(data, chunk)
    except Exception as error:  # noqa: BLE001 - the status has been sent
        yield _event(Failure.of(error).body)
        return
    said = speaking.said
    more: dict[str, Any] = {"failures": said.failures} if said.failures else {}
    more |= {"segments": said.segments} if speaking.asked.timestamps else {}
    yield _event({"type": "speech.audio.done", **said.summary, **more})


def _delta(data: bytes, chunk: Chunk | None) -> bytes:
    text = {"text": chunk.text} if chunk and chunk.text else {}
    return _event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode(), **text})


def _event(content: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(content, separators=(',', ':'))}\n\n".encode()


@router.post("/batch")
async def speak_many(asked: BatchRequest, request: Request, service: Serving) -> dict[str, Any]:
    """Speak up to 32 texts side by side; each has a status of its own, and a complete body in base64."""

    async def one(index: int, item: SpeechRequest | Failure) -> dict[str, Any]:
        try:
            if isinstance(item, Failure):
                raise item
            speaking = await Speaking.begin(service, item, complete=True)
            try:
                body = await speaking.whole()
            finally:
                speaking.cancel()
        except Exception as error:  # noqa: BLE001 - the others go on
            return {"index": index, "status": "error", **Failure.of(error).body}
        said, media_type = speaking.said, FORMATS[item.response_format].media_type
        sound = {"audio_data": base64.b64encode(body).decode(), "media_type": media_type}
        more = {"failures": said.failures} if said.failures else {}
        return {"index": index, "status": "success", **sound, **said.summary, **more}

    made = asyncio.gather(*(one(index, item) for index, item in enumerate(asked.requests())))
    results = await attended(request, _awaited(made))
    good = sum(result["status"] == "success" for result in results)
    counted = {"total": len(results), "succeeded": good, "failed": len(results) - good}
    return {"id": f"speech-batch-{uuid.uuid4().hex}", "results": results, **counted}


async def _awaited(made: Awaitable[T]) -> T:
    return await made


async def attended(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of work for a client that waits for it; cancelled if the client goes."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Failure(499, "the client went away")
        return task.result()
    finally:
        for each in (task, leaving):
            each.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await each


def _check_text(service: Service, asked: SpeechRequest) -> None:
    most = service.settings.text_characters
    if not asked.input.strip():
        raise Failure(400, "input: there is nothing to say; give a text", "input", "invalid_value")
    if len(asked.input) > most:
        what = f"input: {len(asked.input)} characters, {most} are the limit; cut the text"
        raise Failure(400, what, "input", "string_above_max_length")


async def _voice(service: Service, asked: SpeechRequest) -> Voice:
    if asked.ref_audio is None:
        return find_voice(service, asked.voice)
    found = re.match(r"data:[\w/.+;=-]*;base64,", asked.ref_audio[:200])
    if not found:
        what = "ref_audio: give a data URL, data:audio/wav;base64,...; files and addresses are not opened"
        raise Failure(400, what, "ref_audio", "invalid_value")
    try:
        data = base64.b64decode(asked.ref_audio[found.end() :], validate=True)
        return await service.aside(_copied, service, data)
    except (AudioError, ValueError) as error:
        raise Failure(400, f"ref_audio: {error}", "ref_audio", "invalid_value") from error


def _copied(service: Service, data: bytes) -> Voice:
    """The voice of a recording that a client sent."""
    rate, seconds, blocks = service.model.sample_rate, 0.0, []
    if len(data) > service.settings.upload_bytes:
        raise AudioError(f"{len(data)} bytes, {service.settings.upload_bytes} are the limit")
    for block in audio.blocks(data, rate):
        blocks.append(block)
        seconds += len(block) / rate
        if seconds > REFERENCE_SECONDS:
            raise AudioError(f"longer than {REFERENCE_SECONDS:.0f} s; 3 to 6 s of clear speech are best")
    return service.model.voice((np.concatenate([np.zeros(0, np.float32), *blocks]), rate))


def _counted(service: Service, asked: SpeechRequest, voice: Voice) -> Said:
    """How much there is to read."""
    model = service.model
    text = model.processor.text_tokenizer.encode(asked.input)
    return Said(len(text), len(voice.codes), model.sample_rate * asked.speed)
