"""What comes back: sound or events, complete or while it is made; clients may go away before its end."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from gpa.audio.encoders import FORMATS, Encoder, available
from gpa.errors import UsageError
from gpa.serve.admission import Visit, visit_of
from gpa.serve.failures import ErrorDetail, Failure

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from gpa.models.gpa.outputs_gpa import Chunk
    from gpa.serve.service import Service

PLAIN = re.compile(r"[\w.\[\]-]{1,64}", re.ASCII)  # what may be repeated in a header
NAMED = 32  # fields that a header names at most: clients refuse long ones


def bodies(*media_types: str) -> dict[str, Any]:
    """Answers that are text or sound."""
    text, binary = {"type": "string"}, {"type": "string", "format": "binary"}
    return {each: {"schema": text if each.startswith("text/") else binary} for each in media_types}


_EVENT = {"type": "string", "contentMediaType": "application/json"}
EVENTS = {"text/event-stream": {"itemSchema": {"type": "object", "properties": {"data": _EVENT}}}}
SOUND = {"content": bodies(*(f.media_type for f in FORMATS.values())) | EVENTS}


class TokenDetails(BaseModel):
    """Of the ids that were read."""

    text_tokens: int
    audio_tokens: int


class Usage(BaseModel):
    """Ids that were read and made."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_token_details: TokenDetails


class SpokenItem(BaseModel):
    """What became of one text: a complete body in base64, or an error."""

    index: int
    status: Literal["success", "error"]
    audio_data: str = ""
    media_type: str = ""
    usage: Usage | None = None
    finish_reason: str = ""
    duration: float = 0.0
    token_ids: list[int] | None = None
    token_starts: list[float] | None = None
    error: ErrorDetail | None = None


class SpokenBatch(BaseModel):
    """Many texts, in the order of the request."""

    id: str
    total: int
    succeeded: int
    failed: int
    results: list[SpokenItem]


class Asked(Protocol):
    """How sound is asked for."""

    response_format: Any
    stream_format: Any
    stream: bool | None
    sample_rate: int

    @property
    def timestamps(self) -> bool | str:
        """Whether the last event has the times of segments."""

    @property
    def ignored(self) -> list[str]:
        """Names of given fields that change nothing."""


class Cancellable(Protocol):
    """What may be forgotten."""

    def cancel(self) -> None:
        """Do so."""


class Source(Cancellable, Protocol):
    """Speech on its way: a job, or anything else that gives chunks."""

    def __aiter__(self) -> AsyncIterator[Chunk]:
        """Its chunks."""


def is_events(asked: Asked) -> bool:
    """Whether the answer is a stream of events."""
    return asked.stream_format == "sse" or asked.stream is True


def is_complete(asked: Asked) -> bool:
    """Whether the body comes when all of it is made."""
    whole = asked.stream is False and asked.stream_format != "sse"
    return whole or not FORMATS[asked.response_format].streamed


def encoder_of(asked: Asked, rate: int, complete: bool, speed: float = 1.0) -> Encoder:
    """What encodes sound at a rate as it is asked for. Failure if that cannot be done here."""
    form = asked.response_format
    if form not in available():
        what = f"{form} cannot be encoded on this server: choose {', '.join(available())}"
        raise Failure(400, what, "response_format", "unsupported_format")
    try:
        return Encoder(form, rate, asked.sample_rate, complete, speed)
    except UsageError as error:
        raise Failure.of(error, "sample_rate") from error


@dataclass
class Said:
    """What is known of speech on its way: how much there was to read, how much came of it."""

    text_tokens: int
    voice_tokens: int
    rate: float  # samples of the model in a second of what is heard
    shown: bool = False  # whether ids go out, too
    samples: int = 0
    tokens: int = 0
    reason: str = "stop"
    failures: list[dict[str, Any]] = field(default_factory=list)
    segments: list[dict[str, Any]] = field(default_factory=list)
    fresh: list[tuple[int, float]] = field(default_factory=list)  # ids that have not gone out, with seconds

    def add(self, chunk: Chunk) -> None:
        """Count a chunk."""
        if chunk.text:
            self._end()
            self.segments.append({"text": chunk.text, "start": self.seconds})
        slower = chunk.sample_rate / self.rate
        if self.shown:
            starts = [round(start * slower, 3) for start in chunk.starts]
            self.fresh += zip(chunk.tokens.tolist(), starts, strict=True)
        if chunk.words:
            timed = [(each.word, each.start * slower, each.end * slower) for each in chunk.words]
            self.segments[-1]["words"] = [
                {"word": word, "start": round(start, 3), "end": round(end, 3)} for word, start, end in timed
            ]
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

    def new_ids(self) -> dict[str, Any]:
        """The ids since the last time and the seconds where each begins; nothing unless they are shown."""
        fresh, self.fresh = self.fresh, []
        ids, starts = [token for token, _ in fresh], [start for _, start in fresh]
        return {"token_ids": ids, "token_starts": starts} if self.shown else {}

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
    """Speech on its way: its sound comes encoded, bit by bit."""

    def __init__(self, service: Service, asked: Asked, source: Source, encoder: Encoder, said: Said) -> None:
        self._service, self._source, self._encoder = service, source, encoder
        self.asked, self.said = asked, said
        self.visit: Visit | None = None  # which is told how much was made

    async def bodies(self) -> AsyncIterator[tuple[bytes, Chunk | None]]:
        """Bytes that are ready, with the chunk that they end in; nothing empty, but for a chunk with news."""
        async for chunk in self._source:
            self.said.add(chunk)
            if self.visit is not None:
                self.visit.make(chunk.seconds)
            data = await self._encoded(self._encoder.push, chunk.wav)
            if data or chunk.text or chunk.words:
                yield data, chunk
        yield await self._encoded(self._encoder.finish), None

    async def _encoded(self, encode: Callable[..., bytes], *given: object) -> bytes:
        try:
            return await self._service.aside(encode, *given)
        except Exception:
            if self.visit is not None:
                self.visit.encode_failed()
            raise

    async def whole(self) -> bytes:
        """The complete body."""
        return b"".join([data async for data, _ in self.bodies()])

    def cancel(self) -> None:
        """Forget it."""
        self._source.cancel()

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
        return given | ignoring(asked.ignored)


def ignoring(names: Sequence[str]) -> dict[str, str]:
    """The header that names given fields which change nothing."""
    plain = [name for name in names if PLAIN.fullmatch(name)]
    return {"X-Ignored-Fields": ", ".join(plain[:NAMED])} if plain else {}


class Streamed(StreamingResponse):
    """A body on its way, which is forgotten when the client goes."""

    def __init__(self, work: Cancellable, body: AsyncIterator[bytes], **given: Any) -> None:
        super().__init__(body, **given)
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer. What fails after the first byte breaks the connection: nobody takes it for the end."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._work.cancel()


async def answered(request: Request, speaking: Speaking) -> Response:
    """The answer in which speech goes out; what fails before the first sound has a status."""
    asked, form = speaking.asked, FORMATS[speaking.asked.response_format]
    speaking.visit = visit_of(request)
    try:
        if is_complete(asked) and not is_events(asked):
            body = await speaking.whole()
            said = speaking.said
            counted = {"X-Output-Tokens": str(said.tokens), "X-Finish-Reason": said.reason}
            return Response(body, media_type=form.media_type, headers=speaking.headers | counted)
        bodies = speaking.bodies()
        first = await anext(bodies)
    except BaseException:
        speaking.cancel()
        raise
    if is_events(asked):
        return server_sent(speaking, _events(speaking, first, bodies), speaking.headers)
    return Streamed(speaking, _raw(first, bodies), media_type=form.media_type, headers=speaking.headers)


def server_sent(work: Cancellable, each: AsyncIterator[bytes], headers: dict[str, str]) -> Response:
    """The answer in which events go out."""
    buffered = {"X-Accel-Buffering": "no", "Cache-Control": "no-store"}
    return Streamed(work, each, media_type="text/event-stream", headers=headers | buffered)


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
        yield _delta(speaking.said, *first)
        async for data, chunk in bodies:
            yield _delta(speaking.said, data, chunk)
    except Exception as error:  # noqa: BLE001 - the status has been sent
        yield event(Failure.of(error).body)
        return
    said = speaking.said
    more: dict[str, Any] = {"failures": said.failures} if said.failures else {}
    more |= {"segments": said.segments} if speaking.asked.timestamps else {}
    yield event({"type": "speech.audio.done", **said.summary, **more})


def _delta(said: Said, data: bytes, chunk: Chunk | None) -> bytes:
    more: dict[str, Any] = {"text": chunk.text} if chunk and chunk.text else {}
    more |= {"words": said.segments[-1]["words"]} if chunk and chunk.words else {}
    more |= said.new_ids()
    return event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode(), **more})


def event(content: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(content, separators=(',', ':'))}\n\n".encode()
