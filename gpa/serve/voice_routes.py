"""Voices over HTTP: register one from a recording, list, delete."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import APIRouter, Form, UploadFile

from gpa import audio
from gpa.errors import AudioError, UsageError
from gpa.serve.admission import Admitted
from gpa.serve.failures import Failure
from gpa.serve.service import Service, Serving

if TYPE_CHECKING:
    from gpa.codec.voice import Voice

SAMPLE_BYTES = 10 << 20
SAMPLE_SECONDS = 60.0

router = APIRouter(prefix="/v1/audio/voices")


@router.post("")
async def register(
    name: Annotated[str, Form()],
    audio_sample: UploadFile,
    service: Serving,
    admitted: Admitted,
    consent: Annotated[str | None, Form(max_length=4096)] = None,
    ref_text: Annotated[str, Form(max_length=4096)] = "",
    speaker_description: Annotated[str | None, Form(max_length=4096)] = None,
) -> dict[str, Any]:
    """Register the voice of a recording, 3 to 6 s of clear speech, by a name.

    `consent` is kept as it is given: who agreed, or the id of a recording that says so. `ref_text` is what
    the recording says.
    """
    _checked_name(service, name)
    data = await audio_sample.read(SAMPLE_BYTES + 1)
    about = {"file_size": str(len(data)), "mime_type": audio_sample.content_type or ""}
    about |= {"consent": consent} if consent else {}
    about |= {"speaker_description": speaker_description} if speaker_description else {}
    try:
        wav = await service.aside(sample, service, data)
        admitted.hear(len(wav) / service.model.sample_rate)
        voice = await service.aside(_made, service, wav, name, about, ref_text)
    except AudioError as error:
        raise Failure.of(error, "audio_sample") from error
    try:
        return await service.aside(service.voices.register, voice)
    except UsageError as error:
        raise Failure(400, str(error), "name", "invalid_value") from error


def _checked_name(service: Service, name: str) -> None:
    try:
        service.voices.check_name(name)
    except UsageError as error:
        raise Failure(400, str(error), "name", "invalid_value") from error


def sample(service: Service, data: bytes) -> np.ndarray:
    """The sound (S,) of a recording of a voice, at the model's rate; AudioError for too much of it."""
    if len(data) > SAMPLE_BYTES:
        raise AudioError(f"the recording has more than {SAMPLE_BYTES >> 20} MiB: a few seconds are enough")
    rate, blocks, seconds = service.model.sample_rate, [np.zeros(0, np.float32)], 0.0
    for block in audio.blocks(data, rate):
        blocks.append(block)
        seconds += len(block) / rate
        if seconds > SAMPLE_SECONDS:
            raise AudioError(f"the recording is longer than {SAMPLE_SECONDS:.0f} s: 3 to 6 s are best")
    return np.concatenate(blocks)


def _made(service: Service, wav: np.ndarray, name: str, about: dict[str, str], text: str) -> Voice:
    voice = service.model.voice((wav, service.model.sample_rate), name=name, about=about)
    return replace(voice, text=text) if text else voice


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
