"""The hand-written part of a card: a Markdown file of fixed sections, taken over word for word.

YAML front matter (licence, language, tags of the Hugging Face hub), a few sentences, then the sections.
Numbers do not belong here: those of a card come from reports, runs and manifests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gpa.errors import UsageError
from gpa.lab.card.tables import read_text

NEEDED = ("intended use", "known failures", "acknowledgements")
OPTIONAL = ("commands",)  # of steps that leave no run folder: preparing, averaging, exporting
HEADING = re.compile(r"^## +(.+?) *$", re.MULTILINE)
UNWRITTEN = "Not written: no notes were given."


@dataclass(frozen=True)
class Notes:
    """`front` is the front matter, `summary` what stands before the first section, both perhaps empty."""

    front: Mapping[str, Any] = field(default_factory=dict)
    summary: str = ""
    sections: Mapping[str, str] = field(default_factory=dict)

    def section(self, name: str) -> str:
        """A section's text, or that it was not written."""
        return self.sections.get(name) or UNWRITTEN


def read_notes(path: Path) -> Notes:
    """Read notes; UsageError for a section that is missing, empty, unknown or there twice."""
    front, body = _split(read_text(path, "a Markdown file of notes"), path)
    parts = HEADING.split(body)
    names = [name.lower() for name in parts[1::2]]
    texts = [text.strip() for text in parts[2::2]]
    sections = dict(zip(names, texts, strict=True))
    known = ", ".join((*NEEDED, *OPTIONAL))
    if strange := [name for name in names if name not in (*NEEDED, *OPTIONAL)]:
        raise UsageError(f"{path}: unknown section '{strange[0]}'; known: {known}")
    if len(sections) < len(names):
        raise UsageError(f"{path}: a section is there twice; one each of {known}")
    if missing := [name for name in NEEDED if not sections.get(name)]:
        raise UsageError(f"{path}: the section '## {missing[0].capitalize()}' is missing or empty")
    return Notes(front, parts[0].strip(), sections)


def _split(text: str, path: Path) -> tuple[dict[str, Any], str]:
    """Front matter and the rest."""
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    if not found:
        return {}, text
    try:
        front = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: its front matter is not YAML ({error})") from error
    if not isinstance(front, dict):
        raise UsageError(f"{path}: its front matter is not a section of keys")
    return front, text[found.end() :]
