"""A server as a process: it loads, says so, serves, and on SIGTERM ends what it began before it goes."""

from __future__ import annotations

import logging
import signal
import sys
import time
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from gpa.serve.admission import access

if TYPE_CHECKING:
    import socket

    from fastapi import FastAPI

CLOSING = 2  # seconds for connections that are still open after the drain


class Server(uvicorn.Server):
    """uvicorn's, which drains: it refuses what is new with 503 while what is on its way goes on."""

    def __init__(self, app: FastAPI, drain_seconds: float, **config: Any) -> None:
        given = {"access_log": False, "timeout_graceful_shutdown": CLOSING, **config}
        super().__init__(uvicorn.Config(app, **given))
        self.app, self._seconds = app, drain_seconds
        self._until: float | None = None  # which time the drain lasts
        self.interrupted = False  # by Ctrl-C

    def drain(self) -> None:
        """Take nothing new; end when nothing is on its way, at the latest after `drain_seconds`."""
        service = self.app.state.service
        if service is None:
            self.should_exit = True
            return
        service.draining = True
        self._until = time.monotonic() + self._seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A first signal begins the drain, a second one ends it."""
        if self._until is None and not self.should_exit:
            self.interrupted = sig == signal.SIGINT
            self.drain()
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to go."""
        done = await super().on_tick(counter)
        if self.app.state.error:
            return True
        if self._until is None:
            return done
        return done or not self.app.state.measures.in_flight() or time.monotonic() > self._until


def run(
    app: FastAPI, drain_seconds: float, sockets: list[socket.socket] | None = None, **config: Any
) -> None:
    """Serve until a signal comes; raises what kept the model from being loaded, KeyboardInterrupt for Ctrl-C.

    `config` is uvicorn's. The access log goes to standard output, one JSON object a line.
    """
    lines = logging.StreamHandler(sys.stdout)
    access.addHandler(lines)
    access.setLevel(logging.INFO)
    access.propagate = False
    server = Server(app, drain_seconds, **config)
    try:
        server.run(sockets)
    finally:
        access.removeHandler(lines)
        access.propagate = True
    if app.state.error:
        raise app.state.error
    if server.interrupted:
        raise KeyboardInterrupt
