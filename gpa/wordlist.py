"""Files of words that somebody else's work is in: lines of text below its licence, compressed.

What a checkpoint carries of a dictionary (`gpa.pronounce`) and of counts (`gpa.bigrams`) is written so.
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
