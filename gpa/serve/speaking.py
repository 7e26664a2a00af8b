"""Text to speech as OpenAI has it: one text as sound or as events, or many texts at once.

What clients may ask for is in `SpeechRequest`; docs/server.md has the answers.
"""

from __future__ import annotations

import asyncio
import base64
import re
import uuid
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from gpa.audio.encoders import FORMATS
from gpa.errors import PromptError, UsageError
from gpa.serve.admission import visit_of
from gpa.serve.answers import SOUND, Said, Speaking, SpokenBatch, answered, encoder_of, is_complete
from gpa.serve.catalogue import check_model, find_voice
from gpa.serve.failures import POSTED, Failure, documented
from gpa.serve.service import Service, Serving
from gpa.serve.speech_request import BatchRequest, SpeechRequest
from gpa.serve.uploads import copied_url

if TYPE_CHECKING:
    from gpa.codec.voice import Voice

router = APIRouter(prefix="/v1/audio/speech")


@router.post("", response_class=Response, responses=documented(SOUND, *POSTED, 404))
async def speak(asked: SpeechRequest, request: Request, service: Serving) -> Response:
    """Speak a text; the sound comes while it is made, or as events (`stream_format` "sse")."""
    return await answered(request, await begin(service, asked, is_complete(asked)))


@router.post("/batch", response_model=None, responses=documented({"model": SpokenBatch}, *POSTED))
async def speak_many(asked: BatchRequest, request: Request, service: Serving) -> dict[str, Any]:
    """Speak up to 32 texts side by side; each has a status of its own, and a complete body in base64."""

    async def one(index: int, item: SpeechRequest | Failure) -> dict[str, Any]:
        try:
            if isinstance(item, Failure):
                raise item
            speaking = await begin(service, item, complete=True)
            speaking.visit = visit_of(request)
            try:
                body = await speaking.whole()
            finally:
                speaking.cancel()
        except Exception as error:  # noqa: BLE001 - the others go on
            return {"index": index, "status": "error", **Failure.of(error).body}
        said, media_type = speaking.said, FORMATS[item.response_format].media_type
        sound = {"audio_data": base64.b64encode(body).decode(), "media_type": media_type}
        more = {"failures": said.failures} if said.failures else {}
        more |= {"segments": said.segments} if item.timestamps else {}
        more |= said.new_ids()
        return {"index": index, "status": "success", **sound, **said.summary, **more}

    results = await asyncio.gather(*(one(index, item) for index, item in enumerate(asked.requests())))
    good = sum(result["status"] == "success" for result in results)
    counted = {"total": len(results), "succeeded": good, "failed": len(results) - good}
    return {"id": f"speech-batch-{uuid.uuid4().hex}", "results": results, **counted}


async def begin(
    service: Service, asked: SpeechRequest, complete: bool, voice: Voice | None = None
) -> Speaking:
    """A text on its way, in a given voice or that which is asked for. Failure for what cannot be done."""
    check_model(service, asked.model)
    _check_text(service, asked)
    model = service.model
    encoder = encoder_of(asked, model.sample_rate, complete, asked.speed)
    speaker = voice or await _voice(service, asked)
    said = await service.aside(_counted, service, asked, speaker)
    options, live = asked.options(), not complete
    try:
        job = await service.worker.submit(
            lambda engine: model.utterance(engine, asked.input, speaker, options, live)
        )
    except PromptError as error:
        raise Failure.of(error, "input") from error
    except UsageError as error:  # its message begins with the name of the option
        name = re.split(r"\W", str(error))[0]
        raise Failure.of(error, name if name in SpeechRequest.model_fields else None) from error
    return Speaking(service, asked, job, encoder, said)


def _check_text(service: Service, asked: SpeechRequest) -> None:
    most = service.settings.text_characters
    if not asked.input.strip():
        raise Failure(400, "input: there is nothing to say; give a text", "input", "invalid_value")
    if len(asked.input) > most:
        what = f"input: {len(asked.input)} characters, {most} are the limit; cut the text"
        raise Failure(400, what, "input", "string_above_max_length")


async def _voice(service: Service, asked: SpeechRequest) -> Voice:
    if asked.ref_audio is None:
        return find_voice(service, asked.voice)
    return await copied_url(service, asked.ref_audio, "ref_audio")


def _counted(service: Service, asked: SpeechRequest, voice: Voice) -> Said:
    """How much there is to read."""
    model = service.model
    text = model.processor.text_tokenizer.encode(asked.input)
    return Said(len(text), len(voice.codes), model.sample_rate * asked.speed, asked.return_token_ids)
