"""The application: routes of all tasks on one model. `uvicorn --factory` and tests make it alike."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from fastapi import FastAPI

from gpa.serve import catalogue, failures, live_speech, realtime, speaking
from gpa.serve.request_ids import RequestIds
from gpa.serve.service import Service
from gpa.serve.settings import Settings

if TYPE_CHECKING:
    from gpa.models.gpa import GPA
    from gpa.models.speechop.pipeline_speechop import SpeechOp

Load = Callable[[], tuple["GPA", "SpeechOp | None"]]


def load_shipped() -> tuple[GPA, SpeechOp | None]:
    """The models inside the package."""
    from gpa.models.gpa import GPA
    from gpa.speechop import SpeechOp

    return GPA.from_pretrained("gpa-mini"), SpeechOp.from_pretrained("speechop-mini")


def create_app(load: Load = load_shipped, settings: Settings | None = None) -> FastAPI:
    """An application that loads its models when it starts, and ends what is on its way when it stops."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        model, enhancer = load()
        service = Service(model, settings or Settings(), enhancer)
        service.worker.start()
        app.state.service = service
        try:
            yield
        finally:
            service.draining = True
            service.worker.stop()
            service.pool.shutdown(cancel_futures=True)

    app = FastAPI(title="gpa", lifespan=lifespan)
    failures.install(app)
    app.add_middleware(RequestIds)
    app.include_router(catalogue.router)
    app.include_router(speaking.router)
    app.include_router(live_speech.router)
    app.include_router(realtime.router)
    return app
