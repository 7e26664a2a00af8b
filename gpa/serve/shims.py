"""Routes of others, so that their clients work here: ElevenLabs' of sound to sound, and GPA's reference's.

Each is one of ours by other names; errors have OpenAI's shape.
"""

from __future__ import annotations

import io
import re
import wave
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request, Response, UploadFile
from pydantic import BaseModel, ConfigDict, Field

from gpa.serve.answers import answered, bodies
from gpa.serve.converting import ConversionRequest, EnhancementRequest, converted, enhanced
from gpa.serve.failures import POSTED, Failure, documented
from gpa.serve.service import Service, Serving
from gpa.serve.speaking import begin
from gpa.serve.speech_request import RATES, Penalty, SpeechRequest, Temperature, TopK, TopP
from gpa.serve.transcription import Text, recognising, written
from gpa.serve.uploads import FILES, Upload, copied_from, received, recorded

WAV = {"content": bodies("audio/wav")}
CHANGED = documented({"content": bodies("audio/mpeg", "audio/pcm", "audio/wav", "audio/ogg")}, *POSTED)
ISOLATED = documented({"content": bodies("audio/mpeg")}, *POSTED, 501)

router = APIRouter()


# ElevenLabs: elevenlabs.io/docs/api-reference/speech-to-speech ----------------------------------------------


class ChangerForm(BaseModel):
    """The form of speech-to-speech. `model_id` and settings of their voices mean nothing here."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    audio: Upload
    model_id: str | None = None
    seed: int | None = Field(None, ge=0, lt=1 << 32)
    voice_settings: str | None = None
    remove_background_noise: bool = False
    file_format: str | None = Field(None, description='"other", or "pcm_s16le_16" for samples at 16 kHz')


Format = Annotated[str, Query(alias="output_format", description="such as mp3_44100_128 or pcm_16000")]


@router.post("/v1/speech-to-speech/{voice_id}", response_class=Response, responses=CHANGED)
async def change_voice(
    voice_id: str,
    asked: Annotated[ChangerForm, FILES],
    request: Request,
    service: Serving,
    output: Format = "mp3_44100_128",
) -> Response:
    """Say what a recording says in another voice: a complete body."""
    return await _changed(voice_id, asked, request, service, output, False)


@router.post("/v1/speech-to-speech/{voice_id}/stream", response_class=Response, responses=CHANGED)
async def stream_voice(
    voice_id: str,
    asked: Annotated[ChangerForm, FILES],
    request: Request,
    service: Serving,
    output: Format = "mp3_44100_128",
) -> Response:
    """The same; the sound comes while it is made."""
    return await _changed(voice_id, asked, request, service, output, None)


async def _changed(
    voice: str, asked: ChangerForm, request: Request, service: Service, output: str, stream: bool | None
) -> Response:
    if asked.remove_background_noise:
        what = "remove_background_noise: clean the recording first, by /v1/audio-isolation"
        raise Failure(400, what, "remove_background_noise", "unsupported_value")
    form, rate = _format(output)
    file = await _sampled(service, asked.audio, asked.file_format)
    given = {"file": file, "voice": voice, "seed": asked.seed, "stream": stream}
    wanted = ConversionRequest.model_validate(given | {"response_format": form, "sample_rate": rate})
    return await converted(wanted, request, service, "audio")


@router.post("/v1/audio-isolation", response_class=Response, responses=ISOLATED)
@router.post("/v1/audio-isolation/stream", response_class=Response, responses=ISOLATED)
async def isolate(
    request: Request, service: Serving, audio: Upload, file_format: Annotated[str | None, Form()] = None
) -> Response:
    """Clean speech of a recording, as MP3."""
    file = await _sampled(service, audio, file_format)
    given = EnhancementRequest.model_validate({"file": file, "stream": False, "sample_rate": 44100})
    return await enhanced(given, request, service, "audio")


def _format(output: str) -> tuple[Any, int]:
    """Format and rate of such as "mp3_44100_128". Failure for what cannot be made."""
    found = re.fullmatch(r"(mp3|pcm|wav|opus)_(\d{4,5})(_\d+)?", output, re.ASCII)
    if not found or int(found[2]) not in RATES:
        what = f"output_format {output[:40]!r}: choose mp3, pcm, wav or opus and a rate, such as pcm_16000"
        raise Failure(400, what, "output_format", "unsupported_format")
    return found[1], int(found[2])


async def _sampled(service: Service, upload: UploadFile, form: str | None) -> UploadFile:
    """An upload that can be decoded: samples without a header get one."""
    if form in (None, "other"):
        return upload
    if form != "pcm_s16le_16":
        what = "file_format: choose other, or pcm_s16le_16 for 16-bit samples at 16 kHz"
        raise Failure(400, what, "file_format", "invalid_value")
    data = await service.aside(_with_header, await received(service, upload, "audio"))
    return UploadFile(io.BytesIO(data), size=len(data))


def _with_header(data: bytes) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as header:
        header.setparams((1, 2, 16000, 0, "NONE", ""))
        header.writeframes(data[: len(data) // 2 * 2])
    return file.getvalue()


# The reference's --------------------------------------------------------------------------------------------


class Drawn(BaseModel):
    """How ids are drawn: what is left out is the model's own."""

    model_config = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)

    temperature: Temperature = None
    top_k: TopK = None
    top_p: TopP = None
    repetition_penalty: Penalty = None

    def options(self) -> dict[str, Any]:
        """What was given."""
        return self.model_dump(include=set(Drawn.model_fields), exclude_none=True)


class SttForm(Drawn):
    """A recording."""

    file: Upload


class TtsForm(Drawn):
    """A text and a recording of the voice."""

    text: str
    ref_audio: Upload


class VcForm(Drawn):
    """A recording and one of the voice."""

    src_audio: Upload
    ref_audio: Upload


@router.post("/stt", response_model=None, responses=documented({"model": Text}, *POSTED))
async def stt(asked: Annotated[SttForm, FILES], request: Request, service: Serving) -> dict[str, str]:
    """Write down a recording."""
    recording = await recorded(request, service, asked.file)
    options: Any = asked.options()
    job = await recognising(service, recording.blocks(service), options)
    return {"text": (await written(job)).text}


@router.post("/tts/a", response_class=Response, responses=documented(WAV, *POSTED))
async def tts(asked: Annotated[TtsForm, FILES], request: Request, service: Serving) -> Response:
    """Speak a text in the voice of a recording: a WAV file."""
    voice = await copied_from(service, asked.ref_audio, "ref_audio")
    given = SpeechRequest.model_validate({"input": asked.text, **asked.options(), **_wav(service)})
    try:
        return await answered(request, await begin(service, given, True, voice))
    except Failure as failure:
        failure.param = "text" if failure.param == "input" else failure.param
        raise


@router.post("/vc", response_class=Response, responses=documented(WAV, *POSTED))
async def vc(asked: Annotated[VcForm, FILES], request: Request, service: Serving) -> Response:
    """Say what a recording says in the voice of another: a WAV file."""
    files = {"file": asked.src_audio, "ref_audio": asked.ref_audio}
    given = ConversionRequest.model_validate({**files, **asked.options(), **_wav(service)})
    return await converted(given, request, service, "src_audio")


def _wav(service: Service) -> dict[str, Any]:
    """A complete file at the model's rate."""
    return {"response_format": "wav", "sample_rate": service.model.sample_rate, "stream": False}
