"""Speech to text as OpenAI has it: a recording as text, JSON or subtitles, or as events while it is read.

Text that was sent is never revised: all deltas put together are the text at the end.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator

from gpa.errors import UsageError
from gpa.models.gpa.options_gpa import TranscriptOptions
from gpa.models.gpa.subtitles_gpa import FORMATS, verbose
from gpa.serve.answers import EVENTS, Usage, bodies, event, ignoring, server_sent
from gpa.serve.catalogue import check_model
from gpa.serve.failures import POSTED, Failure, documented
from gpa.serve.service import Service, Serving
from gpa.serve.speech_request import Seed
from gpa.serve.uploads import FILES, Upload, recorded

if TYPE_CHECKING:
    import numpy as np

    from gpa.models.gpa.outputs_gpa import Partial, Transcript
    from gpa.models.gpa.outputs_gpa import Segment as Spoken
    from gpa.serve.worker import Job

MEDIA_TYPES = {"text": "text/plain", "srt": "text/plain", "vtt": "text/vtt"}
GRANULARITIES = ("word", "segment")
LANGUAGE = re.compile(r"[A-Za-z]{2,16}(-[A-Za-z0-9]{1,8})*")
CODES = {"english": "en", "chinese": "zh"}  # of languages as checkpoints state them
Granularity = Annotated[str, WithJsonSchema({"type": "string", "enum": [*GRANULARITIES]})]

router = APIRouter(prefix="/v1/audio/transcriptions")


class Text(BaseModel):
    """What is said."""

    text: str


class Logprob(BaseModel):
    """What an id spells, its bytes, and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class Transcription(Text):
    """The same, with what was counted, and how likely each id was if that was asked for."""

    usage: Usage
    logprobs: list[Logprob] = []


class Word(BaseModel):
    """A word and when it is said, in seconds."""

    word: str
    start: float
    end: float


class Segment(BaseModel):
    """A stretch of speech, as Whisper tells it."""

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class Duration(BaseModel):
    """Seconds that were read."""

    type: Literal["duration"]
    seconds: float


class VerboseTranscription(Text):
    """What is said and when, by the granularities that were asked for."""

    task: Literal["transcribe"]
    language: str
    duration: float
    segments: list[Segment] = []
    words: list[Word] = []
    usage: Duration


TEXT = {"model": VerboseTranscription | Transcription, "content": bodies("text/plain", "text/vtt") | EVENTS}


class TranscriptionRequest(BaseModel):
    """The form. Lists come with brackets after their names, as OpenAI's client sends them, or without."""

    model_config = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False, extra="allow")

    file: Upload
    model: str | None = None
    language: str | None = Field(
        None, description="ISO 639-1 or BCP 47; the model writes its own language, so another changes nothing"
    )
    prompt: str | None = Field(None, description="changes nothing; keywords[] are names that may be said")
    temperature: float | None = Field(None, ge=0, le=1)
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    granularities: list[Granularity] = Field([], alias="timestamp_granularities[]")
    bare_granularities: list[Granularity] = Field([], alias="timestamp_granularities")
    include: list[str] = Field([], alias="include[]", description="logprobs: of each id, in json alone")
    bare_include: list[str] = Field([], alias="include")
    keywords: list[str] = Field([], alias="keywords[]", description="names that may be said")
    languages: list[str] = Field([], alias="languages[]", description="as language")
    speakers: list[str] = Field([], alias="known_speaker_names[]")
    references: list[str] = Field([], alias="known_speaker_references[]")
    chunking_strategy: str | None = Field(None, description='"auto", or server_vad as JSON')
    stream: bool = False
    seed: Seed = None
    beams: int | None = Field(None, ge=1, le=16)

    @field_validator("granularities", "bare_granularities")
    @classmethod
    def _known(cls, given: list[str]) -> list[str]:
        for each in given:
            if each not in GRANULARITIES:
                raise ValueError(f"{each!r} is none: choose {' or '.join(GRANULARITIES)}")
        return given

    @field_validator("include", "bare_include")
    @classmethod
    def _includable(cls, given: list[str]) -> list[str]:
        for each in given:
            if each != "logprobs":
                raise ValueError(f"{each!r} is none: logprobs can be included")
        return given

    @field_validator("language", "languages")
    @classmethod
    def _tags(cls, given: Any) -> Any:
        for tag in given if isinstance(given, list) else [given or "en"]:
            if not LANGUAGE.fullmatch(tag):
                raise ValueError(f"{tag[:64]!r} is no language: give its ISO 639-1 code, such as en")
        return given

    @field_validator("chunking_strategy")
    @classmethod
    def _strategy(cls, given: str | None) -> str | None:
        """Sound is always cut at its pauses, so that either is what we do."""
        if given and given != "auto":
            try:
                found = json.loads(given)  # what else it raises is a ValueError
            except RecursionError:
                found = None
            if not isinstance(found, dict) or found.get("type") != "server_vad":
                raise ValueError('choose "auto" or {"type": "server_vad"}')
        return given

    def check(self) -> None:
        """Failure for what does not go together, or is not done here."""
        verbose = self.response_format == "verbose_json"
        if self.timestamps and not verbose:
            what = "timestamp_granularities[]: times need response_format 'verbose_json'"
            raise Failure(400, what, "timestamp_granularities[]", "invalid_value")
        if self.speakers or self.references:
            name = "known_speaker_names[]" if self.speakers else "known_speaker_references[]"
            raise Failure(400, f"{name}: this model does not tell speakers apart", name, "unsupported_value")
        if self.logprobs and self.response_format != "json":
            what = "include[]: logprobs need response_format 'json'; verbose_json has a segment's avg_logprob"
            raise Failure(400, what, "include[]", "invalid_value")
        if self.stream and self.response_format not in ("json", "text"):
            what = f"stream: events hold text, not {self.response_format}; leave response_format out"
            raise Failure(400, what, "stream", "invalid_value")

    @property
    def timestamps(self) -> set[str]:
        """The granularities that were asked for."""
        return {*self.granularities, *self.bare_granularities}

    @property
    def logprobs(self) -> bool:
        """Whether the log-probabilities of ids were asked for."""
        return bool(self.include or self.bare_include)

    def ignored(self, spoken: str) -> list[str]:
        """Names of given fields that change nothing, for a model of a language: its own is what it writes."""
        own = {"", spoken, CODES.get(spoken, spoken)}
        given = {"language": [self.language or ""], "languages": self.languages}
        names = [n for n, tags in given.items() if any(tag.lower().split("-")[0] not in own for tag in tags)]
        names += ["prompt"] if self.prompt else []
        return names + sorted(self.model_extra or {})

    def options(self) -> TranscriptOptions:
        """For the model."""
        drawn: TranscriptOptions = {"seed": self.seed, "temperature": self.temperature, "beams": self.beams}
        return drawn | {"words": self.keywords} if self.keywords else drawn


@router.post("", response_class=Response, responses=documented(TEXT, *POSTED, 404))
async def transcribe(
    asked: Annotated[TranscriptionRequest, FILES], request: Request, service: Serving
) -> Response:
    """Write down what is said in a recording; with `stream`, as events while it is read."""
    check_model(service, asked.model)
    asked.check()
    recording = await recorded(request, service, asked.file)
    job = await recognising(service, recording.blocks(service), asked.options(), "keywords[]")
    headers = ignoring(asked.ignored(service.model.config.about.get("language", "")))
    if asked.stream:
        return server_sent(job, _events(service, job, asked.logprobs), headers)
    transcript = await written(job)
    headers |= {
        "X-Finish-Reason": transcript.finish_reason,
        "X-Audio-Seconds": f"{transcript.duration:.3f}",
        "X-Skipped-Seconds": f"{transcript.skipped:.3f}",
    }
    if asked.response_format == "json":
        more = {"logprobs": _logprobs(transcript.segments)} if asked.logprobs else {}
        told = {"text": transcript.text, "usage": usage(service, transcript), **more}
        return JSONResponse(told, headers=headers)
    if asked.response_format == "verbose_json":
        return JSONResponse(_verbose(transcript, asked.timestamps or {"segment"}), headers=headers)
    body = FORMATS[asked.response_format](transcript)
    return Response(body, media_type=MEDIA_TYPES[asked.response_format], headers=headers)


async def recognising(
    service: Service, blocks: Iterator[np.ndarray], options: TranscriptOptions, param: str | None = None
) -> Job[Partial]:
    """Sound on its way into text. Failure, which names a parameter, for options that do not fit."""
    model = service.model
    try:
        return await service.worker.submit(lambda engine: model.recognition(engine, options), blocks)
    except UsageError as error:
        raise Failure.of(error, param) from error


async def written(job: Job[Partial]) -> Transcript:
    """All that is said."""
    async for _ in job:
        pass
    found: Transcript = job.work.transcript
    return found


def usage(service: Service, transcript: Transcript) -> dict[str, Any]:
    """As OpenAI counts: ids of the sound that was read, and ids of the text."""
    spec = service.model.codec.spec
    heard = round((transcript.duration - transcript.skipped) * spec.frame_rate) * spec.n_codebooks
    made = len(transcript.tokens)
    details = {"text_tokens": 0, "audio_tokens": heard}
    tokens = {"input_tokens": heard, "output_tokens": made, "total_tokens": heard + made}
    return {"type": "tokens", **tokens, "input_token_details": details}


def _verbose(transcript: Transcript, granularities: set[str]) -> dict[str, Any]:
    found = verbose(transcript, "word" in granularities)
    if "segment" not in granularities:
        del found["segments"]
    return {**found, "usage": {"type": "duration", "seconds": round(transcript.duration, 3)}}


def _logprobs(segments: Sequence[Spoken], begun: bool = False) -> list[dict[str, Any]]:
    """As OpenAI has them: what each id spells, its bytes, and its log-probability; together the text.

    `begun` says that text came before, so that a space is between.
    """
    found = []
    for number, segment in enumerate(segments):
        for at, (piece, value) in enumerate(zip(segment.pieces, segment.log_probs, strict=True)):
            token = f" {piece}" if not at and (number or begun) else piece
            found.append({"token": token, "logprob": value, "bytes": list(token.encode())})
    return found


async def _events(service: Service, job: Job[Partial], logprobs: bool) -> AsyncIterator[bytes]:
    """Deltas and the end; an error is an event, too.

    How likely text is, is known when its segment is complete: with `logprobs` a delta is a segment.
    """
    held, likely = "", list[dict[str, Any]]()
    try:
        async for partial in job:
            held += partial.text
            if logprobs and not partial.segment:
                continue
            more: dict[str, Any] = {}
            if partial.segment:
                more |= {"words": [asdict(word) for word in partial.segment.words]}  # with their times
                own = _logprobs([partial.segment], bool(likely)) if logprobs else []
                likely += own
                more |= {"logprobs": own} if logprobs else {}
            yield event({"type": "transcript.text.delta", "delta": held, **more})
            held = ""
    except Exception as error:  # noqa: BLE001 - the status has been sent
        yield event(Failure.of(error).body)
        return
    transcript: Transcript = job.work.transcript
    more = {"finish_reason": transcript.finish_reason, "duration": round(transcript.duration, 3)}
    more |= {"skipped": round(transcript.skipped, 3)}
    more |= {"logprobs": likely} if logprobs else {}
    done = {"type": "transcript.text.done", "text": transcript.text, "usage": usage(service, transcript)}
    yield event(done | more)
