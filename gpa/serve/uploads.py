"""Sound that a client sends: bounded in bytes, and in seconds as it is decoded.

Its name is never a path, and the type that it states is not believed.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from fastapi import Form, Request, UploadFile
from pydantic import WithJsonSchema

from gpa import audio
from gpa.errors import AudioError
from gpa.serve.admission import visit_of
from gpa.serve.failures import Failure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpa.codec.voice import Voice
    from gpa.serve.service import Service

# A file of a form, as generators of clients know it; FastAPI's own schema says it in a way that few read.
Upload = Annotated[UploadFile, WithJsonSchema({"type": "string", "format": "binary"})]
FILES = Form(media_type="multipart/form-data")  # a model whose fields are a form's; else it has no files
REFERENCE_SECONDS = 60.0  # of a voice to copy, or of a consent, at most
HELD_SECONDS = 60.0  # of sound that are kept as they were decoded
CONSENT_BYTES = 10 << 20  # of a consent, at most, as OpenAI has it
AUDIBLE = 1e-3  # of full scale: what stays below is as good as silent


@dataclass(frozen=True)
class Recording:
    """Sound that came complete and could be decoded: how long and how loud it is, and what to read it from.

    `source` are its samples. Where they would fill the memory, it is the upload, to be decoded once more.
    """

    seconds: float
    peak: float  # of full scale
    source: audio.AudioLike

    def blocks(self, service: Service) -> Iterator[np.ndarray]:
        """Its samples (S_i,), at the model's rate, bit by bit."""
        return service.model.processor.listened(self.source, "the upload")


async def recorded(
    request: Request, service: Service, upload: UploadFile, param: str = "file", rate: int | None = None
) -> Recording:
    """An upload that may be used, at a rate or the model's. Failure 413 for too many bytes, else 400."""
    data = await received(service, upload, param)
    rate, most = rate or service.model.sample_rate, service.settings.audio_seconds
    try:
        recording = await service.aside(decoded, data, rate, most)
    except AudioError as error:
        raise Failure(400, f"{param}: {error}", param, "invalid_audio") from error
    visit_of(request).hear(recording.seconds)
    return recording


async def copied_from(service: Service, upload: UploadFile, param: str) -> Voice:
    """The voice of an upload. Failures as for `recorded`."""
    data = await received(service, upload, param)
    try:
        return await service.aside(copied, service, data)
    except AudioError as error:
        raise Failure(400, f"{param}: {error}", param, "invalid_audio") from error


async def copied_url(service: Service, url: str, param: str) -> Voice:
    """The voice of a recording in a data URL, the only kind that is opened. Failure 400 for anything else."""
    found = re.match(r"data:[\w/.+;=-]*;base64,", url[:200])
    if not found:
        what = f"{param}: give a data URL, data:audio/wav;base64,...; files and addresses are not opened"
        raise Failure(400, what, param, "invalid_value")
    try:
        data = base64.b64decode(url[found.end() :], validate=True)
        return await service.aside(copied, service, data)
    except (AudioError, ValueError) as error:
        raise Failure(400, f"{param}: {error}", param, "invalid_value") from error


async def statement(service: Service, upload: UploadFile, param: str) -> bytes:
    """An upload in which something can be heard, as it came. Failures as for `recorded`."""
    data = await received(service, upload, param, CONSENT_BYTES)
    try:
        recording = await service.aside(decoded, data, service.model.sample_rate, REFERENCE_SECONDS)
        if recording.peak < AUDIBLE:
            raise AudioError("nothing can be heard")
    except AudioError as error:
        raise Failure(400, f"{param}: {error}", param, "invalid_audio") from error
    return data


def copied(service: Service, data: bytes) -> Voice:
    """The voice of a recording. AudioError if it is too long or cannot be read."""
    if len(data) > service.settings.upload_bytes:
        raise AudioError(f"{len(data)} bytes, {service.settings.upload_bytes} are the limit")
    return service.model.voice(decoded(data, service.model.sample_rate, REFERENCE_SECONDS).source)


def decoded(data: bytes, rate: int, most: float) -> Recording:
    """Decode a recording to the end. AudioError if it cannot be read, or has more than `most` seconds.

    What a header claims proves nothing, so the samples are counted; those of a short one are kept.
    """
    if not data:
        raise AudioError("the file is empty")
    samples, peak, kept = 0, 0.0, [np.zeros(0, np.float32)]
    for block in audio.blocks(data, rate):
        samples += len(block)
        if samples > most * rate:
            raise AudioError(f"longer than {most:g} s, which is the limit; cut it")
        peak = max(peak, float(np.abs(block).max(initial=0)))
        kept = [*kept, block] if samples <= HELD_SECONDS * rate else []
    return Recording(samples / rate, peak, (np.concatenate(kept), rate) if kept else data)


async def received(service: Service, upload: UploadFile, param: str, most: int | None = None) -> bytes:
    """Its bytes. Failure 413 for too many, or for more than `most`."""
    limit = min(service.settings.upload_bytes, most or service.settings.upload_bytes)
    if (upload.size or 0) > limit:
        what = f"{param}: more than {limit} bytes, which is the limit; cut the recording or compress it"
        raise Failure(413, what, param, "file_too_large")
    return await upload.read()
