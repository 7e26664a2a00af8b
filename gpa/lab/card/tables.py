"""Markdown that no content can break: tables, fences, front matter, and numbers as people read them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gpa.errors import UsageError

ABSENT = "not recorded"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; a line break or a bar in a cell does not end it."""
    lines = [_row(head), "|" + " --- |" * len(head)]
    return "\n".join([*lines, *(_row(row) for row in rows)])


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(cell(str(value)) for value in cells) + " |"


def cell(text: str) -> str:
    """A text on one line, its bars escaped."""
    return " ".join(text.replace("|", "\\|").split()) or "-"


def fence(text: str, language: str = "") -> str:
    """A fenced block that is longer than any fence inside."""
    marks = "```"
    while marks in text:
        marks += "`"
    return f"{marks}{language}\n{text.rstrip()}\n{marks}"


def front_matter(tree: Mapping[str, Any]) -> str:
    """YAML between dashes, in the order of `tree`; nothing for an empty one."""
    if not tree:
        return ""
    shown = yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{shown}---\n"


def hours(seconds: float) -> str:
    """Seconds as hours, of which short spans keep their digits."""
    value = seconds / 3600
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def sha256(path: Path) -> str:
    """SHA-256 (hex) of a file; UsageError where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error
    return digest.hexdigest()


def read_text(path: Path, what: str) -> str:
    """A text file; UsageError naming it and what it should be where it is missing or no text."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {what} is needed ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: {what} is not UTF-8 ({error})") from error
