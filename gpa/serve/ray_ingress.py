"""The server as a deployment of Ray Serve: copies of it on many GPUs or machines behind one address.

Ray starts, watches, replaces and drains the copies and spreads requests; each is the application of `gpa
serve` with a model of its own. docs/serving.md shows how to run it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from gpa.errors import MissingExtraError, UsageError
from gpa.serve.settings import Settings, keys_of

if TYPE_CHECKING:
    from fastapi import FastAPI

    from gpa.models.gpa import GPA
    from gpa.models.speechop.pipeline_speechop import SpeechOp


class Copies(BaseModel, extra="forbid"):
    """What `serve run gpa.serve.ray_ingress:build` takes as NAME=VALUE, or a configuration of Ray as `args`.

    `model` to `threads` are the options of `gpa serve`, and so are the fields of `settings`. Each of the
    `replicas` gets so many `gpus` and `cpus`; `voices` is a folder that all machines see.
    """

    model: str = "gpa-mini"
    speechop: str = "speechop-mini"
    engine: str = ""
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    voices: Path | None = None
    keys: Path | None = None
    replicas: int = 1
    gpus: float = 0.0
    cpus: float = 1.0
    settings: dict[str, float] = {}

    def bounds(self) -> Settings:
        """The settings of each copy; UsageError for one that there is not."""
        keys = keys_of(self.keys) if self.keys else ()
        kinds = {name: type(value) for name, value in vars(Settings()).items()}
        unknown = {name for name in self.settings if kinds.get(name) not in (int, float, bool)}
        if unknown:
            raise UsageError(f"no such settings: {', '.join(sorted(unknown))}; `gpa serve --help` lists them")
        given: dict[str, Any] = {name: kinds[name](value) for name, value in self.settings.items()}
        return Settings(**given, keys=keys, voices=self.voices)

    def load(self) -> tuple[GPA, SpeechOp | None]:
        """The models of one copy."""
        from gpa.models.gpa import GPA
        from gpa.speechop import SpeechOp

        given = {"dtype": self.dtype, "threads": self.threads, "engine": self.engine}
        model = GPA.from_pretrained(self.model, device=self.device, **given)
        if self.speechop == "none":
            return model, None
        return model, SpeechOp.from_pretrained(self.speechop, device=self.device)


class Replica:
    """One copy, as Ray sees it."""

    app: FastAPI  # which Ray's ingress sets

    async def check_health(self) -> None:
        """Raise what keeps it from serving; the first answer, before requests come, waits for the model."""
        state = self.app.state
        while state.service is None and state.error is None:
            await asyncio.sleep(0.1)
        if state.error:
            raise state.error
        if not state.service.worker.alive:
            raise RuntimeError("the worker has died")


def application(copies: Copies) -> Callable[[], FastAPI]:
    """What makes the application where a copy runs: only this goes there, not a model."""

    def make() -> FastAPI:
        from gpa.serve.app import create_app

        return create_app(copies.load, copies.bounds())

    return make


def build(copies: Copies | dict[str, Any]) -> Any:
    """The deployment, for `serve.run`, `serve run` and a configuration of Ray, which give a dict."""
    copies = Copies.model_validate(copies)
    try:
        from ray import serve
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "ray", "ray") from error

    bounds = copies.bounds()
    deployed = serve.deployment(
        name="gpa",
        num_replicas=copies.replicas,
        ray_actor_options={"num_gpus": copies.gpus, "num_cpus": copies.cpus},
        max_ongoing_requests=bounds.requests,
        graceful_shutdown_timeout_s=bounds.drain_seconds,
    )
    return deployed(serve.ingress(application(copies))(Replica)).bind()
