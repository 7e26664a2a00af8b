"""What a client may ask of speech, field by field: OpenAI's, and by the usual names what is ours."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from gpa.models.gpa.options_gpa import SEEDS, SpeechOptions
from gpa.serve.failures import Failure

SAMPLE_RATE = 24000  # Hz of every body, unless asked otherwise: what OpenAI's client plays
RATES = range(8000, 48001)  # Hz that a body may have

# What several routes ask for by the same names, and its bounds. None is the model's own.
Seed = Annotated[int | None, Field(ge=-SEEDS, lt=SEEDS)]
Temperature = Annotated[float | None, Field(ge=0, le=10)]
TopK = Annotated[int | None, Field(ge=0)]
TopP = Annotated[float | None, Field(gt=0, le=1)]
Penalty = Annotated[float | None, Field(gt=0, le=10)]
Gamma = Annotated[float | None, Field(ge=0, le=10)]
Container = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
Rate = Annotated[int, Field(ge=RATES[0], le=RATES[-1])]
Streamed = Annotated[bool | None, Field(description="true: events; false: a complete body with its length")]

_VOICE = {"anyOf": [{"type": "string"}, {"type": "object", "properties": {"id": {"type": "string"}}}]}


def options_of(asked: BaseModel, group: type) -> dict[str, Any]:
    """The fields of a request that have the names of a typed group of options."""
    return {name: getattr(asked, name) for name in group.__annotations__ if name in type(asked).model_fields}


def _voice_id(given: Any) -> Any:
    """The name in {"id": name}, which newer clients send."""
    return given["id"] if isinstance(given, dict) and "id" in given else given


class SpeechSettings(BaseModel):
    """All but the text. What is unknown is ignored, and the answer says so."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: str | None = None
    voice: Annotated[str | None, BeforeValidator(_voice_id), WithJsonSchema(_VOICE)] = None
    instructions: str | None = Field(None, max_length=4096)
    response_format: Container = "mp3"
    speed: float = Field(1.0, ge=0.25, le=4)
    stream_format: Literal["audio", "sse"] = "audio"
    stream: Streamed = None
    seed: Seed = None
    temperature: Temperature = None
    top_k: TopK = None
    top_p: TopP = None
    repetition_penalty: Penalty = None
    max_new_tokens: int | None = Field(None, ge=1)
    gamma: Gamma = None
    best_of: int = Field(1, ge=1, le=8)
    verify: bool = False
    pause: float = Field(0.2, ge=0, le=60)
    pronunciations: dict[str, str] | None = None
    initial_chunk_tokens: int | None = Field(None, ge=0, description="frames that the first sound waits for")
    sample_rate: Rate = SAMPLE_RATE
    ref_audio: str | None = Field(None, description="a voice to copy: data:audio/wav;base64,...")
    ref_text: str | None = None
    language: str | None = None
    normalize: bool = True
    timestamps: bool | Literal["word"] = Field(
        False, description="true: the last event has the times of segments; word: those of their words, too"
    )
    return_token_ids: bool = Field(
        False, description="events have the ids of the sound and where each begins"
    )

    @property
    def ignored(self) -> list[str]:
        """Names of given fields that change nothing."""
        names = [name for name in ("instructions", "ref_text", "language") if getattr(self, name) is not None]
        return names + ([] if self.normalize else ["normalize"]) + sorted(self.model_extra or {})

    def options(self) -> SpeechOptions:
        """For the model."""
        own = {"lookahead": self.initial_chunk_tokens, "word_times": self.timestamps == "word"}
        return cast("SpeechOptions", options_of(self, SpeechOptions) | own)


class SpeechRequest(SpeechSettings):
    """One text."""

    input: str


class BatchRequest(SpeechSettings):
    """Many texts, `input` and whatever counts instead of the settings of all."""

    items: list[dict[str, Any]] = Field(min_length=1, max_length=32)

    def requests(self) -> list[SpeechRequest | Failure]:
        """A request each, or why it is none."""
        shared = self.model_dump(exclude={"items"}, exclude_unset=True)
        return [_request({**shared, **item}) for item in self.items]


def _request(given: dict[str, Any]) -> SpeechRequest | Failure:
    try:
        return SpeechRequest.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        return Failure.invalid(first["type"], first["loc"], first["msg"])
