"""What every request passes on its way in: keys, bounds, a time budget; and on its way out: log and counts.

Plain ASGI, so that bodies stream through in both directions. Routes need nothing of it; one that knows how
much sound it gets or makes says so by `Admitted`, and has more time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import re
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import anyio
from fastapi import Depends
from fastapi.requests import HTTPConnection
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Match

from gpa.serve.failures import Failure, busy
from gpa.serve.service import ready_service

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from gpa.serve.prometheus import Measures
    from gpa.serve.settings import Settings

logger = logging.getLogger(__name__)
access = logging.getLogger("gpa.access")  # one JSON object a line

OPEN = re.compile(r"/|/health(/live|/ready)?|/page/.*|/favicon.ico")  # for everybody, key or not
IDENT = re.compile(r"[\w.:-]{1,128}", re.ASCII)  # a request id that a client may choose
SOCKET_KEY = "openai-insecure-api-key."  # how browsers send a key: as a subprotocol
FORM = 1 << 20  # bytes of a body beside the upload
GONE = 499  # the client went away: not a status of HTTP, but the one that logs have for it


class Visit:
    """A request on its way: what comes in and goes out of it, and how it ends."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, settings: Settings) -> None:
        self.scope, self._receive, self._send, self.settings = scope, receive, send, settings
        self.headers = Headers(scope=scope)
        asked = self.headers.get("x-request-id", "")
        self.id = asked if IDENT.fullmatch(asked) else f"req_{uuid.uuid4().hex}"
        self.client = scope["client"][0] if scope.get("client") else "local"
        self.socket = scope["type"] == "websocket"
        self.begun = time.monotonic()
        self.first: float | None = None  # seconds to the first byte of the answer
        self.status, self.kind, self.finished = 0, "", False
        self.bytes_in = self.bytes_out = 0
        self.heard = self.made = 0.0  # seconds of sound
        self.unencoded = 0
        self.failure: Failure | None = None  # which ended it
        self._left = asyncio.Event()  # the client went away
        self._arrived = False  # all of the body
        self._watching: asyncio.Task | None = None
        self._limit = anyio.CancelScope()

    # For routes -------------------------------------------------------------------------------------------

    def hear(self, seconds: float) -> None:
        """So much sound came: count it, and allow the time for it."""
        self.heard += seconds
        self.allow(self.heard)

    def make(self, seconds: float) -> None:
        """So much sound was made."""
        self.made += seconds
        self.allow(self.made)

    def allow(self, sound: float) -> None:
        """Time for so many seconds of sound, which come or are expected to be made."""
        lasts = self.settings.seconds + self.settings.seconds_per_second * sound
        passed = time.monotonic() - self.begun
        self._limit.deadline = max(self._limit.deadline, anyio.current_time() - passed + lasts)

    def encode_failed(self) -> None:
        """Sound could not be encoded."""
        self.unencoded += 1

    # For the gate -----------------------------------------------------------------------------------------

    @property
    def gone(self) -> bool:
        """Whether the client went away before the end."""
        return self._left.is_set() and not self.finished

    @property
    def key(self) -> str:
        """What the client shows, if anything."""
        scheme, _, bearer = self.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return bearer.strip()
        offered = self.headers.get("sec-websocket-protocol", "").split(",") if self.socket else []
        named = (name.strip() for name in offered)
        key = next((name for name in named if name.startswith(SOCKET_KEY)), "").removeprefix(SOCKET_KEY)
        return self.headers.get("x-api-key", "") or key

    @property
    def route(self) -> str:
        """The path as the application has it; "other" for what it has not, so that there are not too many."""
        found = self.scope.get("route")
        if found is None:  # it was refused before the application looked
            for route in self.scope["app"].routes:
                fits, more = route.matches(self.scope)
                if fits == Match.FULL:
                    found = more.get("route", route)
                    break
        return getattr(found, "path", None) or "other"

    async def run(self, app: ASGIApp) -> None:
        """Let the application answer. Failure where it takes too long or too much comes."""
        if not self.socket:
            self._limit.deadline = anyio.current_time() + self.settings.seconds
            if self.headers.get("content-length", "0") == "0" and "transfer-encoding" not in self.headers:
                self._watching = asyncio.create_task(self._watch())  # there is no body that a route may read
        try:
            with self._limit:
                await app(self.scope, self.receive, self.send)
        finally:
            if self._watching is not None:
                self._watching.cancel()
        if self._limit.cancelled_caught and not self.gone:
            passed = time.monotonic() - self.begun
            late = Failure(408, f"not done after {passed:.0f} s: ask for less at once", None, "timeout")
            raise self.failure or late

    async def receive(self) -> Message:
        """The application asks for more of the request."""
        if self._arrived:
            await self._left.wait()
            return {"type": "http.disconnect"}
        if self._watching is not None:
            self._arrived = True
            return {"type": "http.request", "body": b"", "more_body": False}
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._leave()
            await anyio.sleep(0)  # where the application is cancelled: half a request is no wrong one
        elif message["type"] == "http.request":
            self.bytes_in += len(message.get("body", b""))
            await self._check_size()
            if not message.get("more_body"):
                self._arrived = True
                self._watching = asyncio.create_task(self._watch())
        return message

    async def _check_size(self) -> None:
        try:
            self.check_size(self.bytes_in)
        except Failure as failure:  # which the application shall not make its own of
            self.failure = failure
            self._limit.cancel()
            await anyio.sleep_forever()

    def check_size(self, size: int) -> None:
        """Failure for a body that is too large."""
        most = self.settings.upload_bytes * 4 // 3 + FORM  # base64 takes a third more
        if size > most:
            raise Failure(413, f"the body has more than {most} bytes: send less", None, "too_large")

    async def _watch(self) -> None:
        """Wait for the client to go away; what was to be answered is then cancelled."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        self._left.set()
        if not self.finished:
            self._limit.cancel()

    async def send(self, message: Message) -> None:
        """The application answers."""
        kind = message["type"].removeprefix("websocket.")
        if kind in ("http.response.start", "accept"):
            self.status = message.get("status", 101)
            headers = MutableHeaders(scope=message) if "headers" in message else MutableHeaders()
            headers["x-request-id"] = self.id
            self.kind, message["headers"] = headers.get("content-type", ""), headers.raw
        elif kind in ("http.response.body", "send"):
            data = message.get("body") or message.get("bytes") or (message.get("text") or "").encode()
            self.bytes_out += len(data)
            if data and self.first is None:
                self.first = time.monotonic() - self.begun
            self.finished = kind != "send" and not message.get("more_body")
        elif kind == "close":
            self.finished = True
        await self._send(message)

    async def refuse(self, failure: Failure) -> None:
        """Answer with an error; where an answer has begun, as its last event, or by breaking it off."""
        self.failure = failure
        if not self.status and (
            not self.socket or "websocket.http.response" in self.scope.get("extensions", {})
        ):
            await failure.response()(self.scope, self._receive, self.send)
        elif self.socket:
            await self.send({"type": "websocket.close", "code": 1011 if failure.status == 500 else 1008})
            self.status = failure.status
        elif self.kind.startswith("text/event-stream") and not self.finished:
            event = f"data: {json.dumps(failure.body)}\n\n".encode()
            await self.send({"type": "http.response.body", "body": event})


def visit_of(connection: HTTPConnection) -> Visit:
    """The visit that a request or a WebSocket is."""
    found: Visit = connection.scope["gpa.visit"]
    return found


Admitted = Annotated[Visit, Depends(visit_of)]  # as a parameter of a route


class Gate:
    """Middleware around an application: who comes in, how many at once, and what became of them."""

    def __init__(self, app: ASGIApp, settings: Settings, measures: Measures) -> None:
        self.app, self.settings, self.measures = app, settings, measures
        self._keys = [hashlib.sha256(key.encode()).digest() for key in settings.keys]
        self._clients: Counter[str] = Counter()  # requests on their way
        self._typical = 1.0  # seconds that one takes
        measures.watch(self._clients.total)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it; in any case count and log it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        visit = Visit(scope, receive, send, self.settings)
        scope["gpa.visit"] = visit
        try:
            self._identify(visit)
            with self._place(visit):
                await visit.run(self.app)
        except Failure as failure:
            await visit.refuse(failure)
        except Exception as error:
            logger.exception("request %s failed", visit.id)
            await visit.refuse(Failure.of(error))
        finally:
            self._note(visit)

    def _identify(self, visit: Visit) -> None:
        """By which of the keys a client is known; every key is compared, in constant time."""
        if not self._keys or OPEN.fullmatch(visit.scope["path"]):
            return
        shown = hashlib.sha256(visit.key.encode("utf-8", "surrogateescape")).digest()
        fits = [hmac.compare_digest(shown, key) for key in self._keys]
        if not any(fits):
            what = "give one of this server's API keys as  Authorization: Bearer KEY"
            raise Failure(401, what, None, "invalid_api_key", {"WWW-Authenticate": "Bearer"})
        visit.client = f"key {fits.index(True) + 1}"

    @contextlib.contextmanager
    def _place(self, visit: Visit) -> Iterator[None]:
        """A place among the requests on their way, for those that take long."""
        if not visit.socket and visit.scope["method"] != "POST":
            yield
            return
        ready_service(visit.scope["app"])
        visit.check_size(int(visit.headers.get("content-length", 0)))
        taken = self._clients.total()
        wait = min(max(self._typical / max(taken, 1), 0.25), 30.0)
        if taken >= self.settings.requests:
            raise busy(f"{taken} requests are on their way, the limit: ask again soon", wait)
        if self._clients[visit.client] >= self.settings.per_client:
            most = self.settings.per_client
            raise busy(f"{most} requests of yours are on their way, the limit: ask again soon", wait)
        self._clients[visit.client] += 1
        try:
            yield
        finally:
            self._clients[visit.client] -= 1
            self._clients += Counter()  # forgets those with none
            self._typical += 0.2 * (time.monotonic() - visit.begun - self._typical)

    def _note(self, visit: Visit) -> None:
        """Count and log a request that ended."""
        passed = time.monotonic() - visit.begun
        status = GONE if visit.gone else visit.status or 500
        method = visit.scope.get("method", "WEBSOCKET")
        count, route = self.measures, visit.route
        count.requests.labels(route, method, status).inc()
        count.seconds.labels(route).observe(passed)
        if visit.first is not None and visit.kind.startswith(("audio/", "text/event-stream")):
            count.first.labels(route).observe(visit.first)
        count.audio.labels("in").inc(visit.heard)
        count.audio.labels("out").inc(visit.made)
        count.encode_failures.inc(visit.unencoded)
        line: dict[str, Any] = {"time": round(time.time(), 3), "request_id": visit.id, "client": visit.client}
        line |= {"method": method, "path": visit.scope["path"], "route": route, "status": status}
        line |= {"seconds": round(passed, 4), "first_byte": visit.first and round(visit.first, 4)}
        line |= {"bytes_in": visit.bytes_in, "bytes_out": visit.bytes_out}
        line |= {"audio_in": round(visit.heard, 3), "audio_out": round(visit.made, 3)}
        access.info(json.dumps(line, ensure_ascii=True))
