"""What a session of transcription may be told, as OpenAI's GA interface has it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gpa.models.gpa.activity_gpa import FRAME, PAD, PAUSE
from gpa.serve.failures import Failure
from gpa.serve.speech_request import SAMPLE_RATE


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class Format(_Part):
    """Of the sound that is appended: 16-bit little-endian samples of one channel."""

    type: Literal["audio/pcm"] = "audio/pcm"
    rate: Annotated[int, Field(ge=8000, le=48000)] = SAMPLE_RATE


class Transcription(_Part):
    """Which model reads it. It reads the language that it was trained on."""

    model: str | None = None
    language: str | None = None
    prompt: str | None = None


class TurnDetection(_Part):
    """That the server ends items. Where they end is the model's own matter: the numbers are not used."""

    type: Literal["server_vad"] = "server_vad"
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    prefix_padding_ms: Annotated[int, Field(ge=0)] = 300
    silence_duration_ms: Annotated[int, Field(ge=0)] = 500


class Input(_Part):
    """All of it."""

    format: Format = Format()
    transcription: Transcription = Transcription()
    turn_detection: TurnDetection | None = TurnDetection()


class Audio(_Part):
    """What comes in; nothing goes out."""

    input: Input = Input()


class Config(_Part):
    """A session."""

    type: Literal["transcription"] = "transcription"
    audio: Audio = Audio()

    @property
    def rate(self) -> int:
        """Hz."""
        return self.audio.input.format.rate

    @property
    def vad(self) -> bool:
        """Whether the server ends items."""
        return self.audio.input.turn_detection is not None

    @property
    def model(self) -> str | None:
        """The name that the client gives it."""
        return self.audio.input.transcription.model

    def shown(self, model: str) -> dict[str, Any]:
        """What holds, not what was asked: a client sees what had no effect."""
        turns = {"type": "server_vad", "threshold": None, "prefix_padding_ms": round(1000 * PAD * FRAME),
                 "silence_duration_ms": round(1000 * PAUSE)}  # fmt: skip
        return {
            "format": self.audio.input.format.model_dump(),
            "noise_reduction": None,
            "transcription": {"model": self.model or model, "language": None, "prompt": None},
            "turn_detection": turns if self.vad else None,
        }


def updated(config: Config, session: Any) -> Config:
    """A configuration in which what a client gives has changed. Failure for what cannot be."""
    if not isinstance(session, dict):
        raise Failure(422, "session: an object is needed", "session", "invalid_value")
    try:
        return Config.model_validate(_merged(config.model_dump(), session))
    except ValidationError as error:
        first = error.errors()[0]
        raise Failure.invalid(first["type"], ("session", *first["loc"]), first["msg"]) from error


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """`old` with the leaves of `new`; what is null there counts."""
    both = {name: _merged(old[name], value) for name, value in new.items()
            if isinstance(old.get(name), dict) and isinstance(value, dict)}  # fmt: skip
    return old | new | both
