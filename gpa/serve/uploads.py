"""Sound that a client sends: bounded in bytes, and in seconds as it is decoded.

Its name is never a path, and the type that it states is not believed.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
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
    from gpa.codec.voice import Voice
    from gpa.serve.service import Service

# A file of a form, as generators of clients know it; FastAPI's own schema says it in a way that few read.
Upload = Annotated[UploadFile, WithJsonSchema({"type": "string", "format": "binary"})]
FILES = Form(media_type="multipart/form-data")  # a model whose fields are a form's; else it has no files
REFERENCE_SECONDS = 60.0  # of a voice to copy, or of a consent, at most
CONSENT_BYTES = 10 << 20  # of a consent, at most, as OpenAI has it
AUDIBLE = 1e-3  # of full scale: what stays below is as good as silent


@dataclass(frozen=True)
class Recording:
    """Sound that came complete and can be decoded: its bytes, and the seconds they decode to."""

    data: bytes
    seconds: float

    def blocks(self, service: Service) -> Iterator[np.ndarray]:
        """Its samples (S_i,), at the model's rate, bit by bit."""
        return service.model.processor.listened(self.data, "the upload")


async def recorded(request: Request, service: Service, upload: UploadFile, param: str = "file") -> Recording:
    """An upload that may be used. Failure 413 for too many bytes, else 400."""
    data = await received(service, upload, param)
    try:
        seconds = await service.aside(_seconds, service, data)
    except AudioError as error:
        raise Failure(400, f"{param}: {error}", param, "invalid_audio") from error
    visit_of(request).hear(seconds)
    return Recording(data, seconds)


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
        await service.aside(_audible, service, data)
    except AudioError as error:
        raise Failure(400, f"{param}: {error}", param, "invalid_audio") from error
    return data


def copied(service: Service, data: bytes) -> Voice:
    """The voice of a recording. AudioError if it is too long or cannot be read."""
    rate = service.model.sample_rate
    if len(data) > service.settings.upload_bytes:
        raise AudioError(f"{len(data)} bytes, {service.settings.upload_bytes} are the limit")
    blocks = list(bounded(audio.blocks(data, rate), rate, REFERENCE_SECONDS))
    return service.model.voice((np.concatenate([np.zeros(0, np.float32), *blocks]), rate))


def bounded(blocks: Iterator[np.ndarray], rate: int, most: float) -> Iterator[np.ndarray]:
    """The same blocks. AudioError beyond `most` seconds: what a header claims proves nothing."""
    samples = 0
    for block in blocks:
        samples += len(block)
        if samples > most * rate:
            raise AudioError(f"longer than {most:g} s, which is the limit; cut it")
        yield block


async def received(service: Service, upload: UploadFile, param: str, most: int | None = None) -> bytes:
    """Its bytes. Failure 413 for too many, or for more than `most`."""
    limit = min(service.settings.upload_bytes, most or service.settings.upload_bytes)
    if (upload.size or 0) > limit:
        what = f"{param}: more than {limit} bytes, which is the limit; cut the recording or compress it"
        raise Failure(413, what, param, "file_too_large")
    return await upload.read()


def _seconds(service: Service, data: bytes) -> float:
    """Decode everything once, keeping nothing."""
    rate, most = service.model.sample_rate, service.settings.audio_seconds
    if not data:
        raise AudioError("the file is empty")
    return sum(map(len, bounded(audio.blocks(data, rate), rate, most))) / rate


def _audible(service: Service, data: bytes) -> None:
    """Decode everything once. AudioError if it is too long, cannot be read, or is silent."""
    rate = service.model.sample_rate
    if not data:
        raise AudioError("the file is empty")
    blocks = bounded(audio.blocks(data, rate), rate, REFERENCE_SECONDS)
    peaks = [float(np.abs(block).max(initial=0)) for block in blocks]
    if max(peaks, default=0.0) < AUDIBLE:
        raise AudioError("nothing can be heard")
