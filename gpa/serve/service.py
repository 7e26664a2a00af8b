"""What every route shares: the model, the thread that computes, a pool for all else that takes long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, TypeVar

from fastapi import Depends, FastAPI, Request, WebSocket

from gpa.serve.failures import Failure
from gpa.serve.worker import Worker

if TYPE_CHECKING:
    from gpa.models.gpa import GPA
    from gpa.models.speechop.pipeline_speechop import SpeechOp
    from gpa.serve.library import Library
    from gpa.serve.settings import Settings

T = TypeVar("T")


class Service:
    """One model behind the routes. `started` and `ready` are told apart: it is live while it loads."""

    def __init__(self, model: GPA, settings: Settings, voices: Library, enhancer: SpeechOp | None = None):
        self.model, self.settings, self.enhancer = model, settings, enhancer
        model.processor.search()  # reads its lists now, not when somebody waits
        self.worker = Worker(model.engine())
        self.pool = ThreadPoolExecutor(2, "gpa-pool")  # sound that is read or encoded, voices
        self.enhancing = ThreadPoolExecutor(1, "gpa-enhance")  # takes long, and holds up nobody else
        self.voices = voices
        self.draining = False

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self.worker.alive and not self.draining

    def stop(self) -> None:
        """End what is on its way, and let go of what is held."""
        self.draining = True
        self.worker.stop()
        self.pool.shutdown(cancel_futures=True)
        self.enhancing.shutdown(wait=False, cancel_futures=True)  # it may wait for the event loop

    async def aside(self, do: Callable[..., T], *given: object) -> T:
        """Call something that takes long, away from the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, do, *given)

    async def enhance(self, do: Callable[..., T], *given: object) -> T:
        """The same for enhancement, one after the other."""
        return await asyncio.get_running_loop().run_in_executor(self.enhancing, do, *given)


def service_of(request: Request) -> Service:
    """The service of a request's application; 503 before it is ready and while it drains."""
    return ready_service(request.app)


def live_service_of(socket: WebSocket) -> Service:
    """The same for a connection that stays open."""
    return ready_service(socket.app)


def ready_service(app: FastAPI) -> Service:
    """The service of an application; 503 before it is ready and while it drains."""
    state = app.state
    service: Service | None = getattr(state, "service", None)
    if service is not None and service.ready:
        return service
    what = (
        "the server stops" if service else f"the model was not loaded: {state.error}" if state.error else ""
    )
    raise Failure(503, what or "loading the model", None, "unavailable", {"Retry-After": "1"})


Serving = Annotated[Service, Depends(service_of)]  # as a parameter of a route
