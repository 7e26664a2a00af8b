"""gpa.json: what a checkpoint directory says about itself beyond its Hugging Face files.

Prompt format, limits, sampling defaults and the fingerprints that tie tokenizer, vocabulary and codec to the
language model. A directory without it is a published one.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpa import config, hub
from gpa.engine.request import Sampling
from gpa.errors import CheckpointError, UsageError
from gpa.prompt.tasks import DEFAULT, TASKS
from gpa.text.spelling import SpellingSearch

FILE = "gpa.json"
VERSION = 1
CONVERSIONS = ("lm", "codec")


@dataclass(frozen=True)
class GPAConfig:
    """Content of gpa.json.

    `tasks` name what the model does, as the table of `gpa.prompt.tasks` knows it: the tokenizer needs their
    control tokens and no others. `sampling` is by task, and what it leaves out is the table's.
    `max_audio_seconds` and `max_text_chars` are what one pass takes; longer input is split. A model that
    `keeps_timing` was trained on conversions as long as their source; it makes them so, give or take.
    `beams` are how recognition searches, with the checkpoint's words and n-grams; what it writes with less
    than `logprob_threshold`, a mean over ids, is taken for no speech (None believes everything); where
    `spread_threshold` is given, attention on the audio that is less spread makes up for a lower one.
    Where the codec hears letters, `letters_threshold` of them a second decide instead, by how clear they are.
    `takes` of each part are made where speech goes into a file as a whole (`gpa tts`), and the best is kept.
    `gamma` is how strongly a text guides its speech, for models that have learnt speech without text too
    (`data.drop_text` of a recipe). One that is `instructed` does what a wording alone says
    (`instructions.free` of a recipe): `GPA.run`. `conversion` is how a voice is converted unless asked
    otherwise: by the language model, or by the codec, which exchanges the voice and keeps all else; whichever
    measures better.
    `about` is free text for people: licence, training data, command, language.
    """

    name: str = "gpa"
    format: str = "published"
    max_audio_seconds: float = 30.0
    max_text_chars: int = 200
    keeps_timing: bool = False
    tasks: tuple[str, ...] = DEFAULT
    sampling: Mapping[str, Sampling] = field(default_factory=dict)
    beams: SpellingSearch = SpellingSearch()
    takes: int = 1
    gamma: float = 0.0
    logprob_threshold: float | None = None
    spread_threshold: float | None = None
    letters_threshold: float | None = None
    conversion: str = "lm"
    instructed: bool = False
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.gamma) and self.gamma >= 0):
            raise UsageError(f"gamma={self.gamma}: a finite number of at least 0 is needed")
        if self.takes < 1:
            raise UsageError(f"takes={self.takes}: at least 1 is needed")
        for name in ("logprob_threshold", "spread_threshold", "letters_threshold"):
            if (limit := getattr(self, name)) is not None and not math.isfinite(limit):
                raise UsageError(f"{name}={limit}: a finite number or null is needed")
        if self.conversion not in CONVERSIONS:
            raise UsageError(f"conversion={self.conversion!r}: choose one of {', '.join(CONVERSIONS)}")
        for name in ("max_audio_seconds", "max_text_chars"):
            if not (math.isfinite(value := getattr(self, name)) and value > 0):
                raise UsageError(f"{name}={value}: a finite number above 0 is needed")
        if self.instructed and self.format == "published":
            raise UsageError("instructed: the published format has no instructions")
        if strange := [name for name in self.tasks if name not in TASKS]:
            raise UsageError(f"tasks: unknown tasks {strange}; known: {', '.join(TASKS)}")
        if strange := sorted(set(self.sampling) - set(self.tasks)):
            raise UsageError(f"sampling: unknown tasks {strange}; known: {', '.join(self.tasks)}")
        usual = {name: Sampling(**TASKS[name].sampling) for name in self.tasks}  # type: ignore[arg-type]
        object.__setattr__(self, "sampling", {**usual, **self.sampling})

    @classmethod
    def read(cls, folder: Path) -> GPAConfig:
        """From a checkpoint directory; the published settings where there is no gpa.json."""
        path = folder / FILE
        return cls.from_dict(hub.read_json(path), str(path)) if path.is_file() else cls(name=folder.name)

    @classmethod
    def from_dict(cls, raw: dict[str, Any], where: str = FILE) -> GPAConfig:
        """Typed content; CheckpointError for unknown keys and wrong types: no setting is silently ignored."""
        raw = dict(raw)
        if (version := raw.pop("version", None)) != VERSION:
            raise CheckpointError(f"{where}: version {version!r}; this release reads version {VERSION}")
        return config.build_stored(cls, raw, where)

    def write(self, folder: Path) -> None:
        """Write gpa.json, the inverse of `read`."""
        tree = {"version": VERSION, **dataclasses.asdict(self)}
        (folder / FILE).write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def conversion_mode(self, asked: str | None, options: Mapping[str, Any]) -> str:
        """How to convert: as asked, else "lm" where one of its `options` is given, else the checkpoint's way.

        UsageError for an unknown mode, and for an option that mode "codec" has no use for.
        """
        given = [name for name, value in options.items() if value is not None]
        mode = asked or ("lm" if given else self.conversion)
        if mode not in CONVERSIONS:
            raise UsageError(f"mode {mode!r}: choose lm or codec")
        if mode == "codec" and given:
            raise UsageError(
                f"{given[0]} is an option of mode lm: mode codec exchanges the voice and generates nothing"
            )
        return mode

    def check(self, found: Mapping[str, str], where: str) -> None:
        """CheckpointError unless what was loaded has the recorded fingerprints, every part."""
        missing = sorted(set(found) - set(self.fingerprints))
        if missing:
            raise CheckpointError(f"{where}: {FILE} records no fingerprint of {', '.join(missing)}")
        for part, expected in self.fingerprints.items():
            if found.get(part, "") != expected:
                raise CheckpointError(
                    f"{where}: the {part} is not the one this model was made with (fingerprint "
                    f"{found.get(part, 'none')[:12]}, {expected[:12]} expected); restore the original {part}"
                )
