"""What every route shares: the model, the thread that computes, a pool for all else that takes long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, TypeVar

from fastapi import Depends, Request, WebSocket

from gpa.serve.failures import Failure
from gpa.serve.worker import Worker

if TYPE_CHECKING:
    from gpa.models.gpa import GPA
    from gpa.models.speechop.pipeline_speechop import SpeechOp
    from gpa.serve.settings import Settings

T = TypeVar("T")


class Service:
    """One model behind the routes. `started` and `ready` are told apart: it is live while it loads."""

    def __init__(self, model: GPA, settings: Settings, enhancer: SpeechOp | None = None) -> None:
        self.model, self.settings, self.enhancer = model, settings, enhancer
        self.worker = Worker(model.engine())
        self.pool = ThreadPoolExecutor(2, "gpa-pool")  # sound that is read or encoded, voices, enhancement
        self.draining = False

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self.worker.alive and not self.draining

    async def aside(self, do: Callable[..., T], *given: object) -> T:
        """Call something that takes long, away from the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, do, *given)


def service_of(request: Request) -> Service:
    """The service of a request's application; 503 before it is ready and while it drains."""
    return _ready(getattr(request.app.state, "service", None))


def live_service_of(socket: WebSocket) -> Service:
    """The same for a connection that stays open."""
    return _ready(getattr(socket.app.state, "service", None))


def _ready(service: Service | None) -> Service:
    if service is None or not service.ready:
        raise Failure(503, "loading the model" if service is None else "the server stops", code="unavailable")
    return service


Serving = Annotated[Service, Depends(service_of)]  # as a parameter of a route
