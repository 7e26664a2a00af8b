"""What goes in and out of a model besides audio and text: a voice, spoken output, a transcript."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpa import audio as sound
from gpa import hub
from gpa.codec.timbre import Timbre
from gpa.errors import CheckpointError, UsageError

KIND, VERSION = "gpa-voice", 1


@dataclass(frozen=True)
class Voice:
    """A speaker as the codec's global codes and, where it can draw one, a timbre: made once, reused at will.

    `codec` is the fingerprint of the codec that gives the codes their meaning; `about` is free text (origin,
    licence).
    """

    codes: tuple[int, ...]
    codec: str
    name: str = ""
    about: Mapping[str, str] = field(default_factory=dict)
    timbre: Timbre | None = None

    def save(self, path: str | os.PathLike) -> None:
        """Write a JSON file, whole or not at all."""
        path = Path(path)
        if path.suffix.lower() != ".json":
            raise UsageError(f"{path}: a voice is saved as .json")
        tree = {"kind": KIND, "version": VERSION, "name": self.name or path.stem, "codec": self.codec}
        tree |= {"codes": list(self.codes), "about": dict(self.about)}
        if self.timbre is not None:
            tree["timbre"] = self.timbre.to_dict()
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(tree, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
            os.replace(temporary, path)
        except OSError as error:
            raise UsageError(f"{path}: cannot be written ({error.strerror or error})") from error

    @classmethod
    def load(cls, path: str | os.PathLike) -> Voice:
        """Read what `save` wrote; CheckpointError for anything else."""
        path = Path(path)
        raw = hub.read_json(path)
        if raw.get("kind") != KIND or raw.get("version") != VERSION:
            raise CheckpointError(
                f"{path}: not a voice of this version; make one with  gpa voice REF.wav -o {path}"
            )
        codes = raw.get("codes")
        if not isinstance(codes, list) or not codes or not all(type(c) is int for c in codes):
            raise CheckpointError(f"{path}: codes must be a list of whole numbers")
        timbre = raw.get("timbre")
        return cls(
            tuple(codes),
            str(raw.get("codec", "")),
            str(raw.get("name") or path.stem),
            dict(raw.get("about") or {}),
            None if timbre is None else Timbre.from_dict(timbre, str(path)),
        )


@dataclass(frozen=True)
class Speech:
    """Generated speech: `wav` float32 (S,), `tokens` the semantic codes (T,) int64 it was decoded from.

    `finish_reason` is "stop", or "length" (the budget ran out) or "loop" (repetition was cut) if any part
    ended so; `mode` that the language model chose the tokens ("lm"), or a conversion kept them ("codec").
    """

    wav: np.ndarray
    sample_rate: int
    tokens: np.ndarray
    finish_reason: str
    mode: str = "lm"

    @property
    def seconds(self) -> float:
        """Duration."""
        return len(self.wav) / self.sample_rate

    def save(self, path: str | os.PathLike) -> None:
        """Write a 16-bit WAV, or FLAC or Ogg by suffix."""
        sound.save(path, self.wav, self.sample_rate)


@dataclass(frozen=True)
class Transcript:
    """Recognised text; `tokens` (N,) int64 are its text ids, `finish_reason` as for `Speech`."""

    text: str
    tokens: np.ndarray
    finish_reason: str

    def __str__(self) -> str:
        return self.text


VoiceLike = (
    Voice | str | os.PathLike | Any
)  # a Voice, a shipped name, a JSON path, or any audio `gpa.audio.load` takes
