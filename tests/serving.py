"""A real server for tests: uvicorn on a free loopback port, in a thread, with an application of ours."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvicorn

from gpa.serve.app import create_app
from gpa.serve.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from gpa.models.gpa import GPA
    from gpa.models.speechop.pipeline_speechop import SpeechOp
    from gpa.serve.service import Service

    Models = tuple[GPA, SpeechOp | None]


@dataclass(frozen=True)
class Served:
    """A server on its way: its address, and what is behind it."""

    url: str  # http://127.0.0.1:PORT
    app: FastAPI

    @property
    def service(self) -> Service:
        """The service behind the routes, once it is ready."""
        found: Service = self.app.state.service
        return found

    def settled(self, seconds: float = 10) -> bool:
        """Wait until no work is on its way and the engine holds nothing; whether that came to be."""
        worker, end = self.service.worker, time.monotonic() + seconds
        while worker.jobs or worker.engine.busy:
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    def left(self, seconds: float = 10) -> bool:
        """Wait until everybody has gone, too: no place at the gate, no row of the cache is taken."""
        measures, cache, end = (
            self.app.state.measures,
            self.service.worker.engine.cache,
            time.monotonic() + seconds,
        )
        while not self.settled(seconds) or measures.in_flight() or cache.used:
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True


@contextlib.contextmanager
def served(
    model: GPA | Callable[[], Models],
    settings: Settings | None = None,
    enhancer: SpeechOp | None = None,
    ready: bool = True,
) -> Iterator[Served]:
    """Serve a model, or what a function loads, once it is `ready`; the server ends with the context."""
    app = create_app(model if callable(model) else lambda: (model, enhancer), settings)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=10))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            while not server.started or (ready and not app.state.service and not app.state.error):
                assert thread.is_alive(), "the server did not start"
                time.sleep(0.01)
            yield Served(f"http://127.0.0.1:{listening.getsockname()[1]}", app)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive(), "the server did not end"
