"""A client that stays: its messages one by one and within bounds, and an end that leaves nothing behind.

A session says what messages mean; here is what all sessions have in common. The size of one message is
uvicorn's to bound (`ws_max_size`), which also asks by pings whether the client is still there.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any, Protocol

import anyio
from fastapi import WebSocket, WebSocketDisconnect

from gpa.serve.admission import visit_of
from gpa.serve.failures import Failure
from gpa.serve.service import Service, live_service_of

logger = logging.getLogger(__name__)

IDLE = 120.0  # seconds without a message, and with nothing to do, after which a connection is closed
HELD = 32 << 20  # characters of messages that wait; what a client sends beyond waits on its side
FRAME = 128  # characters that a message counts for at least
TICK = 0.5  # seconds between looks at whether the server stops
POLICY, FAILED, RESTART = 1008, 1011, 1012  # codes of RFC 6455, section 7.4.1, and of IANA's registry


class Session(Protocol):
    """What is done with a client's messages."""

    @property
    def busy(self) -> bool:
        """Whether something is on its way to the client."""

    async def greet(self) -> None:
        """The client is there."""

    async def handle(self, event: dict[str, Any]) -> None:
        """A message. Failure for what cannot be done; the session goes on."""

    async def refuse(self, failure: Failure, event: dict[str, Any]) -> None:
        """Tell the client what went wrong with a message."""

    async def close(self) -> None:
        """The client has gone: forget everything."""


class Connection:
    """A WebSocket. Whatever it waits for, the end of the client is noticed at once."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket, self.visit = socket, visit_of(socket)
        self._messages: asyncio.Queue[str] = asyncio.Queue()
        self._held, self._room = 0, asyncio.Event()

    async def send(self, event: dict[str, Any]) -> None:
        """An event; WebSocketDisconnect if nobody is there."""
        await self._socket.send_text(json.dumps(event, separators=(",", ":")))

    async def send_bytes(self, data: bytes) -> None:
        """A binary frame."""
        await self._socket.send_bytes(data)

    async def read(self) -> None:
        """Take messages until the client goes."""
        while (message := await self._socket.receive())["type"] != "websocket.disconnect":
            text = message.get("text") or ""  # binary frames are no messages of ours: "" is none either
            self._held += len(text) + FRAME
            self._messages.put_nowait(text)
            while self._held > HELD:
                self._room.clear()
                await self._room.wait()

    async def event(self) -> dict[str, Any]:
        """The next message. Failure if it is none."""
        text = await self._messages.get()
        self._held -= len(text) + FRAME
        self._room.set()
        try:
            event = json.loads(text)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict) or not isinstance(event.get("type"), str):
            what = 'a message is a JSON object with a "type", in a text frame'
            raise Failure(400, what, None, "invalid_message")
        return event

    async def end(self, code: int) -> None:
        """Close it, unless the client has."""
        try:
            await self._socket.close(code)
        except (WebSocketDisconnect, RuntimeError):  # it is closed
            pass


async def attend(socket: WebSocket, begin: Callable[[Service, Connection], Session]) -> None:
    """Accept a client and let a session have its messages until either goes."""
    try:
        service = live_service_of(socket)
    except Failure as failure:
        await socket.send_denial_response(failure.response())
        return
    offered = socket.scope.get("subprotocols", ())  # browsers send keys as another one
    await socket.accept("realtime" if "realtime" in offered else None)
    connection = Connection(socket)
    session = begin(service, connection)
    reading, serving = (
        asyncio.create_task(connection.read()),
        asyncio.create_task(_serve(connection, session)),
    )
    code = FAILED
    try:
        done: set[asyncio.Task] = set()
        while not done:
            done, _ = await asyncio.wait(
                (reading, serving), timeout=TICK, return_when=asyncio.FIRST_COMPLETED
            )
            if service.draining and not session.busy and not done:
                code = RESTART
                break
        if serving in done and not serving.exception():
            code = serving.result()
    finally:
        for task in (reading, serving):
            task.cancel()
        for found in await asyncio.gather(reading, serving, return_exceptions=True):
            if isinstance(found, Exception) and not isinstance(found, WebSocketDisconnect):
                logger.error("a connection failed", exc_info=found)
        await session.close()
        await connection.end(code)


async def _serve(connection: Connection, session: Session) -> int:
    """Handle messages until the client asks for the end or falls silent; the code to close with."""
    await session.greet()
    while True:
        event: dict[str, Any] = {}
        try:
            with anyio.fail_after(IDLE):  # asyncio.wait_for may swallow that this task is cancelled
                event = await connection.event()
            if event["type"] == "session.close":
                return 1000
            await session.handle(event)
        except TimeoutError:
            if not session.busy:
                what = f"nothing came for {IDLE:.0f} s: connect again when there is more"
                await session.refuse(Failure(408, what, None, "idle_timeout"), event)
                return POLICY
        except WebSocketDisconnect:
            raise
        except Exception as error:
            failure = Failure.of(error)
            if failure.status == 500:
                logger.exception("a message failed")
            await session.refuse(failure, event)
