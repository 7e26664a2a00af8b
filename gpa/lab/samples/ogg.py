"""Sound as a small Ogg Opus file: mono, 16 kHz, no larger than asked, equal samples giving equal bytes."""

from __future__ import annotations

import io
import struct

import numpy as np

from gpa import audio
from gpa.errors import UsageError

RATE = 16_000
LEVELS = (0.75, 0.8, 0.85, 0.9, 0.93, 0.96, 0.98, 1.0)  # libsndfile: 1.0 is Opus' lowest rate, 0 its highest
HEAD = 27  # bytes of an Ogg page before its list of segments
SERIAL = 0x67706100  # of the stream; libsndfile draws one at random
POLYNOMIAL = 0x04C11DB7  # of Ogg's checksum, which is not that of zlib


def encode(sound: audio.AudioLike, limit: int, name: str) -> bytes:
    """The file at the highest of a few rates that keeps it within `limit` bytes; UsageError if none does."""
    wav = audio.load(sound, RATE)  # (S,)
    best, low, high = b"", 0, len(LEVELS)
    while low < high:  # levels before `low` are too large, those from `high` on fit
        at = (low + high) // 2
        if len(data := _opus(wav, LEVELS[at])) <= limit:
            best, high = data, at
        else:
            low = at + 1
    if best:
        return settled(best)
    raise UsageError(
        f"{name}: {len(wav) / RATE:.1f} s of sound do not fit into {limit} bytes: "
        "lower -k, raise --page-bytes, or leave its suite out with --without"
    )


def _opus(wav: np.ndarray, level: float) -> bytes:
    import soundfile

    held = io.BytesIO()
    soundfile.write(held, wav, RATE, format="OGG", subtype="OPUS", compression_level=level)
    return held.getvalue()


def settled(data: bytes) -> bytes:
    """An Ogg file with a fixed serial number and the checksums that belong to it."""
    pages, at = [], 0
    while data[at : at + 4] == b"OggS":
        segments = data[at + HEAD - 1]
        size = HEAD + segments + sum(data[at + HEAD : at + HEAD + segments])
        page = bytearray(data[at : at + size])
        page[14:18], page[22:26] = struct.pack("<I", SERIAL), bytes(4)
        page[22:26] = struct.pack("<I", _checksum(page))
        pages.append(bytes(page))
        at += size
    return b"".join(pages)


def _table() -> tuple[int, ...]:
    found = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ (POLYNOMIAL if value & 0x80000000 else 0)
        found.append(value & 0xFFFFFFFF)
    return tuple(found)


TABLE = _table()


def _checksum(page: bytes | bytearray) -> int:
    value = 0
    for byte in page:
        value = ((value << 8) & 0xFFFFFFFF) ^ TABLE[(value >> 24) ^ byte]
    return value
