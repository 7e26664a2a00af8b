"""A voice: all that a codec needs to know to sound like somebody. Made once, reused at will."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gpa import disk, hub
from gpa.codec.timbre import Timbre
from gpa.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from gpa.codec.adaptation import Adaptation

KIND, VERSION = "gpa-voice", 1


@dataclass(frozen=True)
class Voice:
    """A speaker as the codec's global codes, a timbre where it can draw one, and what `gpa finetune` learnt.

    For a codec without global codes a voice is an acoustic prompt: `codes` are then those (K, T) of a
    reference, laid into one stream. `text` is what it says, where that is known. `codec` is the fingerprint
    of the codec that gives the codes their meaning; `about` is free text (origin, licence).
    """

    codes: tuple[int, ...]
    codec: str = ""
    name: str = ""
    about: Mapping[str, str] = field(default_factory=dict)
    timbre: Timbre | None = None
    adaptation: Adaptation | None = None
    text: str = ""

    @property
    def corrects(self) -> set[str]:
        """Fingerprints of the decoders that timbre and adaptation are for."""
        return {part.decoder for part in (self.timbre, self.adaptation) if part is not None}

    def save(self, path: str | os.PathLike) -> None:
        """Write a JSON file, whole or not at all."""
        path = Path(path)
        if path.suffix.lower() != ".json":
            raise UsageError(f"{path}: a voice is saved as .json")
        tree = {"kind": KIND, "version": VERSION, "name": self.name or path.stem, "codec": self.codec}
        tree |= {"codes": list(self.codes), "about": dict(self.about)}
        if self.text:
            tree["text"] = self.text
        if self.timbre is not None:
            tree["timbre"] = self.timbre.to_dict()
        if self.adaptation is not None:
            tree["adaptation"] = self.adaptation.to_dict()
        try:
            disk.write_text(path, json.dumps(tree, ensure_ascii=False, indent=2) + "\n")
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
        about = raw.get("about") or {}
        if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
            raise CheckpointError(f"{path}: about must be a section of texts")
        timbre, adaptation = raw.get("timbre"), raw.get("adaptation")
        if adaptation is not None:
            from gpa.codec.adaptation import Adaptation  # with torch, which most voices need not

            adaptation = Adaptation.from_dict(adaptation, str(path))
        return cls(
            tuple(codes),
            str(raw.get("codec", "")),
            str(raw.get("name") or path.stem),
            about,
            None if timbre is None else Timbre.from_dict(timbre, str(path)),
            adaptation,
            str(raw.get("text", "")),
        )
