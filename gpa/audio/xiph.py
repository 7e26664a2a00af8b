"""Ogg pages and FLAC frames: whether all are there, and what the last one says of the length.

Knows no samples. Ogg: RFC 3533; FLAC: RFC 9639.
"""

import struct
import zlib

from gpa.audio.opening import Opened, truncated
from gpa.errors import AudioError

_PAGE = struct.Struct("<4sBBqIIIB")
_CONTINUES, _BEGINS, _ENDS = 1, 2, 4
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

# Ogg --------------------------------------------------------------------------------------------------------


def check_pages(opened: Opened) -> None:
    """Every page whole, in order, and the last one marked as such (RFC 3533 section 6); AudioError if not."""
    at, expected, ended, data = 0, dict[int, int](), set[int](), False
    while at < opened.size:
        head = opened.at(at, _PAGE.size)
        if len(head) < _PAGE.size:
            raise truncated(opened.name)
        magic, _, flags, _, serial, number, checksum, segments = _PAGE.unpack(head)
        if magic != b"OggS":
            raise _damaged(opened, at)
        table = opened.at(at + _PAGE.size, segments)
        size = _PAGE.size + segments + sum(table)
        if at + size > opened.size:
            raise truncated(opened.name)
        page = opened.at(at, size)
        if _crc(page[:22] + bytes(4) + page[26:]) != checksum:
            raise _damaged(opened, at)
        if flags & _BEGINS and data:
            what = f"{opened.name} is several Ogg streams, one after another"
            raise AudioError(f"{what}: join them:  ffmpeg -i IN OUT.wav")
        if number != expected.get(serial, number if flags & _BEGINS else -1):
            raise _damaged(opened, at)
        expected[serial] = (number + 1) & 0xFFFFFFFF
        data = data or not flags & _BEGINS
        if flags & _ENDS:
            ended.add(serial)
        at += size
    if ended != set(expected):
        what = f"{opened.name} is truncated: it lacks the mark of its end"
        raise AudioError(f"{what}. Copy it again; if it was a live stream:  ffmpeg -i IN -c copy OUT.ogg")


def _damaged(opened: Opened, at: int) -> AudioError:
    return AudioError(f"{opened.name} is damaged or truncated at byte {at}: copy or download it again")


def _crc(page: bytes) -> int:
    """Polynomial 0x04C11DB7 from the high bit on, by zlib's, which starts at the low bit."""
    crc = ~zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) & 0xFFFFFFFF
    return int.from_bytes(crc.to_bytes(4, "little").translate(_REVERSED), "big")


# FLAC -------------------------------------------------------------------------------------------------------


def whole_flac(opened: Opened) -> Opened:
    """A FLAC file that states how many samples it has; AudioError if its last frame says otherwise."""
    head = opened.at(0, 42)
    if len(head) < 42:
        raise truncated(opened.name)
    stated = int.from_bytes(head[21:26], "big") & (1 << 36) - 1
    found = _last_sample(opened, head)
    if found is None and stated == 0:
        raise truncated(opened.name)
    if found is None or found == stated:
        return opened  # whether all samples are there shows when they are decoded
    if stated > found:
        raise truncated(opened.name)
    if stated:
        what = f"{opened.name} has {found} samples, and its header says {stated}"
        raise AudioError(f"{what}: encode it again")
    rate_etc = int.from_bytes(head[18:26], "big") | found
    return opened.section(26, opened.size, head[:18] + rate_etc.to_bytes(8, "big"))


def _last_sample(opened: Opened, head: bytes) -> int | None:
    """Samples up to the end of the last frame, None if no frame ends with the file (RFC 9639 section 9)."""
    most = int.from_bytes(head[10:12], "big")
    packed = int.from_bytes(head[18:26], "big")
    channels, bits = (packed >> 41 & 7) + 1, (packed >> 36 & 31) + 1
    end = opened.size - (128 if opened.at(opened.size - 128, 3) == b"TAG" else 0)
    window = min(end, most * channels * (bits + 8) // 8 + 1024)  # a frame that is not compressed
    tail = opened.at(end - window, window)
    at = len(tail)
    while (at := tail.rfind(b"\xff", 0, at)) >= 0:
        parsed = _frame(tail[at : at + 16], most)
        if parsed is not None and _crc16(tail[at:]) == 0:
            return parsed
    return None


def _frame(head: bytes, most: int) -> int | None:
    """The sample after a frame by its header; None if this is no header (RFC 9639 section 9.1)."""
    if len(head) < 6 or head[1] & 0xFE != 0xF8:
        return None
    ones = 8 - (head[4] ^ 0xFF).bit_length()
    width = max(ones, 1)
    if ones in (1, 8) or len(head) < 8 + width or head[2] < 16:
        return None
    number = head[4] & (0x7F >> ones) if ones < 7 else 0
    for byte in head[5 : 4 + width]:
        number = number << 6 | byte & 0x3F
    at, code, rate = 4 + width, head[2] >> 4, head[2] & 15
    size = {1: 192, 6: head[at] + 1, 7: int.from_bytes(head[at : at + 2], "big") + 1}.get(code)
    if size is None:
        size = 576 << code - 2 if code < 6 else 256 << code - 8
    at += {6: 1, 7: 2}.get(code, 0) + {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if at >= len(head) or _crc8(head[: at + 1]):
        return None
    return number + size if head[1] & 1 else number * most + size


def _table(polynomial: int, bits: int) -> list[int]:
    table = []
    for byte in range(256):
        value = byte << bits - 8
        for _ in range(8):
            value = value << 1 ^ (polynomial if value >> bits - 1 else 0)
        table.append(value & (1 << bits) - 1)
    return table


_CRC8, _CRC16 = _table(0x107, 8), _table(0x18005, 16)


def _crc8(data: bytes) -> int:
    value = 0
    for byte in data:
        value = _CRC8[value ^ byte]
    return value


def _crc16(data: bytes) -> int:
    value = 0
    for byte in data:
        value = value << 8 & 0xFFFF ^ _CRC16[value >> 8 ^ byte]
    return value
