"""Names that clients know: those of models and voices, and what they stand for here."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from gpa.serve.failures import Failure, documented
from gpa.serve.service import Service, Serving

if TYPE_CHECKING:
    from gpa.codec.voice import Voice

ALIASES = (  # which many programs ask for, whoever serves
    *("tts-1", "tts-1-hd", "gpt-4o-mini-tts"),
    *("whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe", "gpt-realtime-whisper"),
)
VOICES: Mapping[str, str] = {  # OpenAI's, and which of gpa-mini's is most like it
    **{"alloy": "alloy", "ash": "michael", "ballad": "george", "coral": "kore", "echo": "echo"},
    **{"fable": "george", "onyx": "onyx", "nova": "kore", "sage": "alloy", "shimmer": "kore"},
    **{"verse": "michael", "marin": "alloy", "cedar": "onyx"},
}
BEGUN = int(time.time())

router = APIRouter(prefix="/v1")


class Model(BaseModel):
    """A model; `root` is its own name."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str


class ModelList(BaseModel):
    """The models that are served."""

    object: Literal["list"]
    data: list[Model]


def model_name(service: Service) -> str:
    """The language model's."""
    model = service.model
    return model.config.name or (model.path.name if model.path else "gpa")


def check_model(service: Service, asked: str | None) -> None:
    """404 for a model that is not here; none, its own name and the usual ones are the one that is."""
    if asked and asked != model_name(service) and asked not in ALIASES:
        what = (
            f"there is no model {asked!r} for speech and transcripts: this server has {model_name(service)!r}"
        )
        raise Failure(404, what, "model", "model_not_found")


def find_voice(service: Service, name: str | None, param: str = "voice") -> Voice:
    """A voice by its name, or by one of OpenAI's; the first for none. 400 says which there are."""
    voices = service.voices
    if name is None:
        return service.model.resolve_voice(None)
    if name not in voices and voices and name in VOICES:
        number = list(VOICES).index(name) % len(voices)
        name = VOICES[name] if VOICES[name] in voices else sorted(voices)[number]
    voice = voices.get(name)  # never a path: the name comes from a stranger
    if voice is None:
        raise Failure(400, f"no voice {name!r}: choose {', '.join(sorted(voices))}", param, "voice_not_found")
    return voice


def _described(name: str, root: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": BEGUN, "owned_by": "gpa", "root": root}


@router.get("/models", response_model=None, responses=documented({"model": ModelList}))
async def models(service: Serving) -> dict[str, Any]:
    """The models that are served."""
    names = [model_name(service)] + (["speechop-mini"] if service.enhancer else [])
    return {"object": "list", "data": [_described(name, name) for name in names]}


@router.get("/models/{name:path}", response_model=None, responses=documented({"model": Model}, 404, 422))
async def model(name: str, service: Serving) -> dict[str, Any]:
    """One model; a usual name of others stands for ours, which is its `root`."""
    if name == "speechop-mini" and service.enhancer:
        return _described(name, name)
    check_model(service, name)
    return _described(name, model_name(service))
