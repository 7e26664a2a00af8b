"""MPEG audio (MP3 and its elder layers) frame by frame: how long a stream really is.

libsndfile believes the Xing header, or estimates from the first frames and the size of the file, which is
wrong for a variable rate. Here the frames are counted, and a stream without the header is given one. Knows no
samples. Source: ISO/IEC 11172-3 section 2.4.2.3; gabriel-bouvigne.com's description of the Xing header.
"""

import struct
from typing import NamedTuple

from gpa.audio.opening import Opened, truncated
from gpa.errors import AudioError

_V1 = {
    1: (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    2: (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
}
_V2_1 = (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256)
_V2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES = (44100, 48000, 32000)
_SPECIFIES = 0xFFFE0C00  # sync, version, layer, rate: the same in all frames of a stream
_SMALLEST = 160  # bytes of a frame that has room for a Xing header


class Frame(NamedTuple):
    """A frame: its bytes, samples per channel, rate in Hz, the place of a Xing header, and the layer."""

    size: int
    samples: int
    rate: int
    info: int
    layer: int


def parse(head: bytes) -> Frame | None:
    """The frame that a 4-byte header begins, None if it is no header, or one of free format."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bitrate, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or rate == 3 or bitrate in (0, 15):
        return None
    first = version == 3
    kbps = _V1[layer][bitrate] if first else (_V2_1 if layer == 1 else _V2)[bitrate]
    hertz = _RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    samples = {1: 384, 2: 1152, 3: 1152 if first else 576}[layer]
    slot = 4 if layer == 1 else 1
    size = (samples // 8 // slot * kbps * 1000 // hertz + padding) * slot
    mono = head[3] >> 6 == 3
    side = (17 if mono else 32) if first else (9 if mono else 17)
    return Frame(size, samples, hertz, 4 + side, layer)


def begins(opened: Opened) -> bool:
    """Whether libsndfile would take this for MPEG audio: it looks at the first sync word alone."""
    head = opened.at(0, 2)
    return len(head) == 2 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0


def counted(opened: Opened) -> Opened:
    """The stream with a header that counts its frames; AudioError if frames are missing or damaged."""
    head = opened.at(0, 4)
    first = parse(head)
    if first is None:
        raise _damaged(opened, 0)
    count, end = _count(opened, head)
    stated = _stated(opened.at(0, first.size), first)
    if stated is None:
        begin = 0
    elif stated > count - 1:
        raise truncated(opened.name)
    elif stated == count - 1:
        return opened.section(0, end)
    else:
        begin, count = first.size, count - 1
    if first.layer != 3:
        return opened
    return opened.section(begin, end, _xing(head, count, end - begin))


def _count(opened: Opened, head: bytes) -> tuple[int, int]:
    """Frames, and the byte after the last; tags between and after them are skipped."""
    at = end = count = 0
    specified = int.from_bytes(head, "big") & _SPECIFIES
    while at < opened.size:
        head = opened.at(at, 10)
        frame = parse(head[:4])
        if frame is not None and int.from_bytes(head[:4], "big") & _SPECIFIES == specified:
            at += frame.size
            count, end = count + 1, at
        elif skip := _tag(opened, at, head):
            at += skip
        else:
            raise _damaged(opened, at)
    if end > opened.size:
        raise truncated(opened.name)
    return count, end


def _damaged(opened: Opened, at: int) -> AudioError:
    what = f"{opened.name} is damaged at byte {at}, where an MP3 frame should begin"
    return AudioError(f"{what}: copy it again, or repair it:  ffmpeg -i IN OUT.wav")


def _tag(opened: Opened, at: int, head: bytes) -> int:
    """Bytes of a tag or padding there, 0 if it is none."""
    if head.startswith(b"ID3"):
        return 10 + id3_size(head)
    if head.startswith(b"TAG"):
        return 128
    rest = opened.size - at
    if head.startswith((b"APETAGEX", b"LYRICSBEGI")) or (
        rest < 1 << 20 and not opened.at(at, rest).strip(b"\0")
    ):
        return rest
    return 0


def id3_size(head: bytes) -> int:
    """Bytes of an ID3v2 tag after its ten bytes of header (id3.org, ID3v2.4.0 section 3.1)."""
    head, size = head.ljust(10, b"\0"), 0  # the file may end within it
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    return size + (10 if head[5] & 0x10 else 0)


def _stated(data: bytes, frame: Frame) -> int | None:
    """Frames by the header in the first frame, None without it; 0 if it does not count them."""
    if data[frame.info : frame.info + 4] in (b"Xing", b"Info"):
        flags, count = struct.unpack(">II", data[frame.info + 4 : frame.info + 12])
        return count if flags & 1 else 0
    if data[36:40] == b"VBRI":
        return int(struct.unpack(">I", data[50:54])[0])
    return None


def _xing(head: bytes, count: int, size: int) -> bytes:
    """A frame without sound that counts `count` others, of `size` bytes."""
    for bitrate in range(1, 15):
        made = bytes((head[0], head[1] | 1, bitrate << 4 | head[2] & 0x0C, head[3]))
        frame = parse(made)
        if frame is not None and frame.size >= _SMALLEST:
            break
    assert frame is not None
    info = b"Info" + struct.pack(">III", 3, count, size + frame.size)
    return (made + bytes(frame.info - 4) + info).ljust(frame.size, b"\0")
