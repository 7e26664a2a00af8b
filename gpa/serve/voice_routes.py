"""Voices over HTTP: register one from a recording, list, delete."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Form, UploadFile

from gpa.errors import UsageError
from gpa.serve.failures import Failure
from gpa.serve.service import Serving
from gpa.serve.uploads import copied_from

router = APIRouter(prefix="/v1/audio/voices")


@router.post("")
async def register(
    name: Annotated[str, Form()],
    audio_sample: UploadFile,
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


@router.get("")
async def voices(service: Serving) -> dict[str, Any]:
    """All voices: those of the model, and those that were registered."""
    names = list(service.voices)
    return {"object": "list", "data": [service.voices.about(name) for name in names], "voices": names}


@router.get("/{name}")
async def voice(name: str, service: Serving) -> dict[str, Any]:
    """One voice, by name or id."""
    try:
        return service.voices.about(name)
    except KeyError:
        raise _missing(name) from None


@router.delete("/{name}")
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
