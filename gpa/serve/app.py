"""The application: routes of all tasks on one model. `uvicorn --factory` and tests make it alike."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from fastapi import FastAPI

from gpa.errors import GPAError
from gpa.serve import (
    catalogue,
    converting,
    failures,
    health,
    live_speech,
    page,
    realtime,
    shims,
    speaking,
    transcription,
    voice_routes,
)
from gpa.serve.admission import Gate
from gpa.serve.library import Library
from gpa.serve.prometheus import Measures
from gpa.serve.service import Service, ready_service
from gpa.serve.settings import Settings

if TYPE_CHECKING:
    from gpa.models.gpa import GPA
    from gpa.models.speechop.pipeline_speechop import SpeechOp

logger = logging.getLogger(__name__)

Load = Callable[[], tuple["GPA", "SpeechOp | None"]]


def load_shipped() -> tuple[GPA, SpeechOp | None]:
    """The models inside the package."""
    from gpa.models.gpa import GPA
    from gpa.speechop import SpeechOp

    return GPA.from_pretrained("gpa-mini"), SpeechOp.from_pretrained("speechop-mini")


def create_app(load: Load = load_shipped, settings: Settings | None = None) -> FastAPI:
    """An application that loads its models while it already tells that it lives.

    It is ready once they are there, and ends what is on its way when it stops.
    """
    settings = settings or Settings()
    measures = Measures()

    async def begin(app: FastAPI) -> None:
        try:
            service = await asyncio.to_thread(_service, load, settings)
        except Exception as error:
            logger.error("the model was not loaded: %s", error, exc_info=not isinstance(error, GPAError))
            app.state.error = error
            return
        measures.serve(service)
        app.state.service = service

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(begin(app))
        try:
            yield
        finally:
            await loading
            if app.state.service:
                app.state.service.stop()

    app = FastAPI(title="gpa", lifespan=lifespan, responses=failures.documented(None, 401, 500, 503))
    app.state.service, app.state.error = None, None
    app.state.measures = measures
    app.add_middleware(Gate, settings=settings, measures=measures, check=ready_service)
    failures.install(app)
    for module in (catalogue, speaking, transcription, converting, shims, voice_routes, health):
        app.include_router(module.router)
    for module in (live_speech, realtime, page):
        app.include_router(module.router)
    return app


def _service(load: Load, settings: Settings) -> Service:
    model, enhancer = load()
    service = Service(model, settings, Library(model, settings.voices), enhancer)
    service.worker.start()
    return service
