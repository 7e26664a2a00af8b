"""The application: routes of all tasks on one model. `uvicorn --factory` and tests make it alike."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from fastapi import FastAPI

from gpa.errors import GPAError
from gpa.serve import catalogue, failures, health, live_speech, realtime, speaking, transcribing, voice_routes
from gpa.serve.admission import Gate
from gpa.serve.prometheus import Measures
from gpa.serve.service import Service
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

    app = FastAPI(title="gpa", lifespan=lifespan)
    app.state.service, app.state.error = None, None
    app.state.measures = measures
    app.add_middleware(Gate, settings=settings, measures=measures)
    failures.install(app)
    app.include_router(catalogue.router)
    app.include_router(speaking.router)
    app.include_router(transcribing.router)
    app.include_router(health.router)
    app.include_router(voice_routes.router)
    app.include_router(live_speech.router)
    app.include_router(realtime.router)
    return app


def _service(load: Load, settings: Settings) -> Service:
    model, enhancer = load()
    service = Service(model, settings, enhancer)
    service.worker.start()
    return service
