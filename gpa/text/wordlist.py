"""Files of words: plain ones, which people write, and those that somebody else's work is in.

The latter are lines of text below its licence, compressed: what a checkpoint carries of a dictionary
(`gpa.text.pronunciations`) and of counts (`gpa.text.ngrams`).
"""

from __future__ import annotations

import lzma
from collections.abc import Iterable
from pathlib import Path

from gpa.errors import CheckpointError

NOTICE = ";;; "  # begins a line of the licence


def pack(lines: Iterable[str], notice: str = "") -> bytes:
    """Lines below a notice; equal lines give equal content."""
    everything = [*(NOTICE + line for line in notice.splitlines()), *lines]
    text = "".join(line + "\n" for line in everything)
    return lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)


def unpack(content: bytes, where: str) -> tuple[list[str], str]:
    """The inverse of `pack`; CheckpointError, naming `where`, for anything else."""
    try:
        lines = lzma.decompress(content).decode().splitlines()
    except (lzma.LZMAError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{where}: no compressed list of words: {error}") from error
    notice = [line.removeprefix(NOTICE) for line in lines if line.startswith(NOTICE)]
    return [line for line in lines if not line.startswith(NOTICE)], "\n".join(notice)


def read(path: Path) -> bytes:
    """Content of a file; CheckpointError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error


def read_text(path: Path) -> str:
    """A plain file of text, of any length; UsageError for one that cannot be read as such."""
    from gpa import config  # here: lists of words are packed, and most readers of them need no settings

    return config.read_text(path, most=None)
