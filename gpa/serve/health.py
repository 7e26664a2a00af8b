"""Whether a server lives and is ready, for whoever watches it, and its numbers."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from gpa.serve.failures import Failure, documented
from gpa.serve.prometheus import TYPE
from gpa.serve.service import ready_service

router = APIRouter()


class Status(BaseModel):
    """All is well."""

    status: Literal["ok"]


@router.get("/health/live", response_model=None, responses=documented({"model": Status}))
async def live(request: Request) -> dict[str, str]:
    """Whether the process is worth keeping: 503 once its model cannot be loaded or its worker is dead."""
    state = request.app.state
    if state.error:
        raise Failure(503, f"the model was not loaded: {state.error}", None, "unavailable")
    if state.service and not state.service.worker.alive:
        raise Failure(503, "the worker has died", None, "unavailable")
    return {"status": "ok"}


@router.get("/health/ready", response_model=None, responses=documented({"model": Status}))
@router.get("/health", response_model=None, include_in_schema=False)
async def ready(request: Request) -> dict[str, str]:
    """Whether requests are taken: 503 before the model is loaded, and while the server drains."""
    ready_service(request.app)
    return {"status": "ok"}


@router.get(
    "/metrics",
    response_class=Response,
    responses=documented({"content": {"text/plain": {"schema": {"type": "string"}}}}),
)
async def metrics(request: Request) -> Response:
    """Counts, gauges and histograms in Prometheus' text format."""
    return Response(request.app.state.measures.text(), headers={"Content-Type": TYPE})
