"""Voices over HTTP: register one from a recording, list, delete."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form
from pydantic import BaseModel

from gpa.errors import UsageError
from gpa.serve.failures import POSTED, Failure, documented
from gpa.serve.service import Serving
from gpa.serve.uploads import Upload, copied_from

router = APIRouter(prefix="/v1/audio/voices")


class Voice(BaseModel):
    """A voice that the model ships or that was registered."""

    id: str
    object: Literal["audio.voice"]
    name: str
    created_at: int


class VoiceList(BaseModel):
    """All voices; `voices` are their names."""

    object: Literal["list"]
    data: list[Voice]
    voices: list[str]


class VoiceDeleted(BaseModel):
    """A voice that is gone."""

    id: str
    object: Literal["audio.voice"]
    deleted: Literal[True]


@router.post("", response_model=None, responses=documented({"model": Voice}, *POSTED))
async def register(
    name: Annotated[str, Form()],
    audio_sample: Upload,
    service: Serving,
    consent: Annotated[str | None, Form(max_length=4096)] = None,
    ref_text: Annotated[str, Form(max_length=4096)] = "",
    speaker_description: Annotated[str | None, Form(max_length=4096)] = None,
) -> dict[str, Any]:
    """Register the voice of a recording, 3 to 6 s of clear speech, by a name.

    `consent` is kept as it is given: who agreed, or the id of a recording that says so. `ref_text` is what
    the recording says.
    """
    try:
        service.voices.check_name(name)
        about = {"file_size": str(audio_sample.size), "mime_type": audio_sample.content_type or ""}
        about |= {"consent": consent} if consent else {}
        about |= {"speaker_description": speaker_description} if speaker_description else {}
        voice = await copied_from(service, audio_sample, "audio_sample")
        made = replace(voice, name=name, about=about, text=ref_text)
        return await service.aside(service.voices.register, made)
    except UsageError as error:
        raise Failure.of(error, "name") from error


@router.get("", response_model=None, responses=documented({"model": VoiceList}))
async def voices(service: Serving) -> dict[str, Any]:
    """All voices: those of the model, and those that were registered."""
    names = list(service.voices)
    return {"object": "list", "data": [service.voices.about(name) for name in names], "voices": names}


@router.get("/{name}", response_model=None, responses=documented({"model": Voice}, 404, 422))
async def voice(name: str, service: Serving) -> dict[str, Any]:
    """One voice, by name or id."""
    try:
        return service.voices.about(name)
    except KeyError:
        raise _missing(name) from None


@router.delete("/{name}", response_model=None, responses=documented({"model": VoiceDeleted}, 403, 404, 422))
async def delete(name: str, service: Serving) -> dict[str, Any]:
    """Delete a registered voice, by name or id."""
    if name in service.model.voices:
        raise Failure(403, f"{name!r} is a voice of the model: it stays", "name", "voice_is_shipped")
    try:
        ident = await service.aside(service.voices.remove, name)
    except KeyError:
        raise _missing(name) from None
    return {"id": ident, "object": "audio.voice", "deleted": True}


def _missing(name: str) -> Failure:
    return Failure(404, f"there is no voice {name!r}", "name", "voice_not_found")
