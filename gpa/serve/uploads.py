"""Sound that a client sends: bounded in bytes as it comes, and in seconds as it is decoded.

Its name is never a path, and the type that it states is not believed.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response, UploadFile
from fastapi.routing import APIRoute

from gpa.errors import AudioError
from gpa.serve.failures import Failure

if TYPE_CHECKING:
    import numpy as np
    from starlette.types import Message

    from gpa.serve.service import Service

FORM_BYTES = 1 << 20  # for the fields of a form besides its sound
LINGER = 4  # as many bytes as may be sent are still read, so that the one who sends them gets the answer


class UploadRoute(APIRoute):
    """A route whose body is counted as it comes: 413 beyond `Settings.upload_bytes`, before it is read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, which never sees more than it may."""
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            service = getattr(request.app.state, "service", None)
            if service is None:
                return await handle(request)  # which says so
            body = Body(request, service.settings.upload_bytes + FORM_BYTES)
            try:
                return await handle(Request(request.scope, body.receive, request._send))
            except Exception:
                if body.exceeded:
                    await body.discard()
                    raise too_large(service.settings.upload_bytes) from None
                raise

        return bounded


class Body:
    """The body of a request, up to a number of bytes."""

    def __init__(self, request: Request, most: int) -> None:
        self._request, self._most, self._got = request, most, 0
        self._ended = False
        self.exceeded = False

    async def receive(self) -> Message:
        """The next message. ValueError for more than there may be."""
        stated = self._request.headers.get("content-length", "")
        message = await self._next()
        if self._got > self._most or (stated.isdecimal() and int(stated) > self._most):
            self.exceeded = True
            raise ValueError("the body is too large")
        return message

    async def discard(self) -> None:
        """Read on for a while: a client that is answered before it has sent all may miss the answer."""
        while not self._ended and self._got <= LINGER * self._most:
            await self._next()

    async def _next(self) -> Message:
        message = await self._request.receive()
        self._got += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        return message


def too_large(most: int, param: str = "file") -> Failure:
    """The answer to too many bytes."""
    what = f"{param}: more than {most} bytes, which is the limit; cut the recording or compress it"
    return Failure(413, what, param, "file_too_large")


@dataclass(frozen=True)
class Recording:
    """Sound that came complete and can be decoded: its bytes, and the seconds they decode to."""

    data: bytes
    seconds: float

    def blocks(self, service: Service) -> Iterator[np.ndarray]:
        """Its samples (S_i,), at the model's rate, bit by bit."""
        return service.model.processor.listened(self.data, "the upload")


async def recorded(
    service: Service, upload: UploadFile, param: str = "file", most: float | None = None
) -> Recording:
    """An upload that may be used, of `most` seconds. Failure 413 for too many bytes, else 400."""
    if (upload.size or 0) > service.settings.upload_bytes:
        raise too_large(service.settings.upload_bytes, param)
    data = await upload.read()
    try:
        return await service.aside(_decoded, service, data, most or service.settings.audio_seconds)
    except AudioError as error:
        raise Failure(400, f"{param}: {error}", param, "invalid_audio") from error


def _decoded(service: Service, data: bytes, most: float) -> Recording:
    """Decode everything once, keeping nothing: what a header claims proves nothing."""
    if not data:
        raise AudioError("the file is empty")
    recording, samples, rate = Recording(data, 0.0), 0, service.model.sample_rate
    for block in recording.blocks(service):
        samples += len(block)
        if samples > most * rate:
            raise AudioError(f"longer than {most:g} s, which is the limit; cut it")
    return Recording(data, samples / rate)
