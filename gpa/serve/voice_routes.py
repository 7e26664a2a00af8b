"""Voices and consents over HTTP: register one from a recording, list, delete."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query
from pydantic import BaseModel, Field

from gpa.errors import UsageError
from gpa.serve.consents import ConsentError
from gpa.serve.failures import POSTED, Failure, documented
from gpa.serve.service import Serving
from gpa.serve.uploads import Upload, copied_from, statement

router = APIRouter(prefix="/v1/audio")

Label = Annotated[str, Form(min_length=1, max_length=256)]
Language = Annotated[str, Form(pattern=r"^[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*$", max_length=64)]  # BCP 47


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


@router.post("/voices", response_model=None, responses=documented({"model": Voice}, *POSTED))
async def register(
    name: Annotated[str, Form()],
    audio_sample: Upload,
    service: Serving,
    consent: Annotated[str | None, Form(max_length=4096)] = None,
    ref_text: Annotated[str, Form(max_length=4096)] = "",
    speaker_description: Annotated[str | None, Form(max_length=4096)] = None,
) -> dict[str, Any]:
    """Register the voice of a recording, 3 to 6 s of clear speech, by a name.

    `consent` is the id of a recording from /v1/audio/voice_consents. Words that say who agreed are kept as
    they are, unless the server requires a recording. `ref_text` is what the recording says.
    """
    required = service.settings.require_consent
    try:
        service.voices.check_name(name)
        service.voices.consents.check(consent, required)
        about = {"file_size": str(audio_sample.size), "mime_type": audio_sample.content_type or ""}
        about |= {"consent": consent} if consent else {}
        about |= {"speaker_description": speaker_description} if speaker_description else {}
        voice = await copied_from(service, audio_sample, "audio_sample")
        made = replace(voice, name=name, about=about, text=ref_text)
        return await service.aside(service.voices.register, made, required)
    except ConsentError as error:
        raise Failure(400, f"consent: {error}", "consent", error.code) from error
    except UsageError as error:
        raise Failure.of(error, "name") from error


@router.get("/voices", response_model=None, responses=documented({"model": VoiceList}))
async def voices(service: Serving) -> dict[str, Any]:
    """All voices: those of the model, and those that were registered."""
    found = service.voices.listed()
    return {"object": "list", "data": found, "voices": [each["name"] for each in found]}


@router.get("/voices/{name}", response_model=None, responses=documented({"model": Voice}, 404, 422))
async def voice(name: str, service: Serving) -> dict[str, Any]:
    """One voice, by name or id."""
    try:
        return service.voices.about(name)
    except KeyError:
        raise _missing(name) from None


@router.delete(
    "/voices/{name}", response_model=None, responses=documented({"model": VoiceDeleted}, 403, 404, 422)
)
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


# Consents ---------------------------------------------------------------------------------------------------


class VoiceConsent(BaseModel):
    """A recording in which a speaker agrees."""

    id: str
    object: Literal["audio.voice_consent"]
    name: str
    language: str
    created_at: int


class VoiceConsentList(BaseModel):
    """Consents, the newest first."""

    object: Literal["list"]
    data: list[VoiceConsent]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VoiceConsentDeleted(BaseModel):
    """A consent that is gone."""

    id: str
    object: Literal["audio.voice_consent"]
    deleted: Literal[True]


class VoiceConsentName(BaseModel):
    """What a consent is called."""

    name: str = Field(min_length=1, max_length=256)


@router.post("/voice_consents", response_model=None, responses=documented({"model": VoiceConsent}, *POSTED))
async def agree(name: Label, language: Language, recording: Upload, service: Serving) -> dict[str, Any]:
    """Keep a recording in which a speaker agrees that a voice is copied. Nobody checks what it says.

    `name` is what it is called, `language` the BCP 47 tag of what is said.
    """
    try:
        data = await statement(service, recording, "recording")
        return await service.aside(service.voices.add_consent, name, language, data)
    except UsageError as error:
        raise Failure.of(error, "recording") from error


@router.get(
    "/voice_consents", response_model=None, responses=documented({"model": VoiceConsentList}, 400, 404, 422)
)
async def consents(
    service: Serving, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> dict[str, Any]:
    """Consents, the newest first, from the one `after` which they go on."""
    found = service.voices.consents.newest()
    if after is not None:
        ids = [each["id"] for each in found]
        if after not in ids:
            raise _no_consent(after, "after")
        found = found[ids.index(after) + 1 :]
    page, ends = found[:limit], {"first_id": None, "last_id": None}
    if page:
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]}
    return {"object": "list", "data": page, **ends, "has_more": len(found) > limit}


@router.get(
    "/voice_consents/{consent_id}",
    response_model=None,
    responses=documented({"model": VoiceConsent}, 404, 422),
)
async def consent(consent_id: str, service: Serving) -> dict[str, Any]:
    """One consent."""
    try:
        return service.voices.consents.about(consent_id)
    except KeyError:
        raise _no_consent(consent_id) from None


@router.post(
    "/voice_consents/{consent_id}",
    response_model=None,
    responses=documented({"model": VoiceConsent}, 404, *POSTED),
)
async def rename(consent_id: str, asked: VoiceConsentName, service: Serving) -> dict[str, Any]:
    """Call a consent otherwise."""
    try:
        return await service.aside(service.voices.rename_consent, consent_id, asked.name)
    except KeyError:
        raise _no_consent(consent_id) from None


@router.delete(
    "/voice_consents/{consent_id}",
    response_model=None,
    responses=documented({"model": VoiceConsentDeleted}, 404, 409, 422),
)
async def withdraw(consent_id: str, service: Serving) -> dict[str, Any]:
    """Delete a consent and its recording; 409 while a voice rests on it."""
    try:
        await service.aside(service.voices.withdraw_consent, consent_id)
    except KeyError:
        raise _no_consent(consent_id) from None
    except ConsentError as error:  # asking again does not help
        raise Failure(409, str(error), "consent_id", error.code, {"x-should-retry": "false"}) from error
    return {"id": consent_id, "object": "audio.voice_consent", "deleted": True}


def _no_consent(ident: str, param: str = "consent_id") -> Failure:
    return Failure(404, f"there is no consent {ident!r:.100}", param, "consent_not_found")
