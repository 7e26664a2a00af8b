"""How many bytes of sound a container says it has, against how many are there.

Chunked files (WAV, RF64, W64, AIFF, 8SVX, CAF) and those with a fixed header (AU, SPHERE, VOC, MAT). Knows no
samples: libsndfile decodes them, but reads a shorter sound in silence where a file ends early.
"""

import re
import struct
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

from gpa.audio.arrays import is_rate
from gpa.audio.opening import Opened, truncated
from gpa.errors import AudioError, AudioWarning

_UNKNOWN = 0x7FFFF000  # writers into a pipe cannot know the size, and state 0, -1 or about 2 or 4 GiB
_ENDLESS = 1 << 60  # of 64 bits
_SLACK = 1  # byte of padding at the end
_TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICS")
_KNOWN = {
    b"LIST",
    b"id3 ",
    b"ID3 ",
    b"bext",
    b"iXML",
    b"_PMX",
    b"JUNK",
    b"cue ",
    b"smpl",
    b"PEAK",
    b"fact",
    b"AUTH",
}
_KNOWN |= {b"(c) ", b"ANNO", b"NAME", b"COMT", b"MARK", b"APPL", b"info", b"free", b"peak", b"cart", b"afsp"}
_BLOCKS = {b"\2\0", b"\x11\0"}  # ADPCM, in blocks
_GSM, _MP3 = b"\x31\0", b"\x55\0"  # WAV formats
_PLAIN = {b"\1\0", b"\3\0", b"\6\0", b"\7\0", b"\xfe\xff"}  # those with one size of samples
_UNPACKED = {
    b"NONE",
    b"twos",
    b"sowt",
    b"fl32",
    b"FL32",
    b"fl64",
    b"FL64",
    b"in24",
    b"in32",
    b"raw ",
}  # of AIFC
_W64 = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"


class Extent(NamedTuple):
    """Bytes of the sound: from, to (None: to the end of the file), and the end of the chunks after it."""

    begin: int
    end: int | None
    last: int = 0


class Chunks(NamedTuple):
    """How the chunks of a container are laid out."""

    start: int
    header: struct.Struct  # name and size
    sound: bytes
    align: int = 2
    counts_itself: bool = False


_LAYOUTS = (
    (b"RIFF", b"WAVE", Chunks(12, struct.Struct("<4sI"), b"data")),
    (b"RF64", b"WAVE", Chunks(12, struct.Struct("<4sI"), b"data")),
    (b"BW64", b"WAVE", Chunks(12, struct.Struct("<4sI"), b"data")),
    (b"RIFX", b"WAVE", Chunks(12, struct.Struct(">4sI"), b"data")),
    (b"FORM", b"AIF", Chunks(12, struct.Struct(">4sI"), b"SSND")),
    (b"FORM", b"8SVX", Chunks(12, struct.Struct(">4sI"), b"BODY")),
    (b"FORM", b"16SV", Chunks(12, struct.Struct(">4sI"), b"BODY")),
    (b"caff", b"", Chunks(8, struct.Struct(">4sq"), b"data", align=1)),
    (_W64, b"", Chunks(40, struct.Struct("<16sQ"), b"data", align=8, counts_itself=True)),
)


def checked(opened: Opened) -> Opened:
    """The file as libsndfile reads all of it, with a warning where its header is a little wrong.

    AudioError for a file of another length than its header says, and for a header that contradicts itself.
    """
    _check_format(opened)
    _check_common(opened)
    found = extent(opened)
    if found is None:
        return opened
    if found.end is None:
        return _endless(opened, found.begin)
    missing = found.end - opened.size
    if missing > 0 and missing not in (
        found.begin,
        found.begin - 8,
    ):  # the file, or all but RIFF's own 8 bytes
        raise truncated(opened.name)
    if missing > 0:
        _warn(f"{opened.name} is {missing} bytes shorter than its header says, which counts itself")
    last = max(found.last, found.end)
    if not _nothing(opened, last):
        what = f"{opened.name} goes on for {opened.size - last} bytes after the sound that its header counts"
        raise AudioError(f"{what}: the header is wrong, export the file again")
    return opened.section(0, last) if last < opened.size else opened


def _endless(opened: Opened, begin: int) -> Opened:
    """A file whose writer did not come back to state the size of its sound, with a size."""
    head, size = opened.at(0, begin), opened.size - begin
    stated = (
        (b"RIFF", begin - 4, b"\xff" * 4),
        (b".snd", 8, b"\xff" * 4),
        (_W64, begin - 8, struct.pack("<q", size + 24)),
        (b"caff", begin - 8, struct.pack(">q", size)),
    )
    for magic, at, new in stated:
        if head.startswith(magic):
            return opened.section(begin, opened.size, head[:at] + new + head[at + len(new) :])
    return opened


def _check_format(opened: Opened) -> None:
    """Hold the numbers of a WAV header against each other: bytes a sample, and bytes a second."""
    data = _format(opened)
    if len(data) < 16 or data[:2] not in _PLAIN | _BLOCKS or data[2:4] == b"\0\0":
        return
    tag, channels, rate, second, align, bits = struct.unpack("<HHIIHH", data)
    if not is_rate(rate):
        raise AudioError(
            f"{opened.name} states a sample rate of {rate} Hz: its header is wrong, export it again"
        )
    found = extent(opened)
    if found and found.end and align and (found.end - found.begin) % align:
        _warn(f"{opened.name} ends within a sample or a block, by its header")
    if data[:2] in _BLOCKS:
        return
    width = channels * (1 if tag in (6, 7) else -(-bits // 8))
    if align != width and second == rate * align and not (16 < bits < 32 and align == 4 * channels):
        what = f"{opened.name} says {channels} channels of {bits} bits, and {align} bytes for all of them"
        raise AudioError(f"{what}: its header is wrong, export it again")
    if align != width or second != rate * align:
        _warn(f"{opened.name} contradicts itself: {rate} Hz, {align} bytes a sample, {second} bytes a second")


def _check_common(opened: Opened) -> None:
    """Hold channels, bits and samples of an AIFF or CAF header against the bytes of sound."""
    layout = _layout(opened)
    found = {name: (at, size) for name, at, size in chunks(opened, layout)} if layout else {}
    if b"COMM" in found and b"SSND" in found:
        head = opened.at(found[b"COMM"][0], 22).ljust(22, b"\0")
        channels, samples, bits = struct.unpack(">hIh", head[:8])
        if opened.at(8, 4) == b"AIFC" and head[18:] not in _UNPACKED:
            return
        at, size = found[b"SSND"]
        there, width = size - 8, channels * -(-bits // 8)
        if samples in (0, 0xFFFFFFFF) or there <= 0 or size >= _UNKNOWN:
            return
        if abs(there - samples * width) <= max(width, 1):
            return
        stated = f"{samples} samples of {channels} channels and {bits} bits, and has {there} bytes of sound"
    elif b"desc" in found and found[b"desc"][1] == 32:
        head = opened.at(found[b"desc"][0], 32)
        packet, _, channels, bits = struct.unpack(">4I", head[16:])
        if head[8:12] != b"lpcm" or packet == channels * -(-bits // 8):
            return
        stated = f"{channels} channels of {bits} bits, and {packet} bytes for all of them"
    else:
        return
    raise AudioError(f"{opened.name} says {stated}: its header is wrong, export it again")


def _warn(message: str) -> None:
    warnings.warn(message, AudioWarning, stacklevel=4)


def extent(opened: Opened) -> Extent | None:
    """Where the sound lies by the container's own word; None for containers that state nothing."""
    if layout := _layout(opened):
        return _chunked(opened, layout)
    head = opened.at(0, 40)
    for magic, parse in _FIXED:
        if head.startswith(magic):
            try:
                return parse(opened)
            except (struct.error, KeyError):
                raise truncated(opened.name) from None  # not even a header
    return None


# Chunked ----------------------------------------------------------------------------------------------------


def chunks(opened: Opened, layout: Chunks) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, first byte, size) of every chunk that can be one, whether or not it fits into the file."""
    at = layout.start
    width = layout.header.size
    while len(head := opened.at(at, width)) == width:
        name, size = layout.header.unpack(head)
        size -= width if layout.counts_itself else 0
        end = at + width + size
        if not name[:4].isascii() or not name[:4].decode("ascii").isprintable():
            return
        if name[:4] != layout.sound and name[:4] not in _KNOWN and not 0 <= size <= opened.size - at - width:
            return
        yield name[:4], at + width, size
        if size < 0 or end >= opened.size:
            return
        at = end + -end % layout.align
        if -end % layout.align and opened.at(end, 4) in _KNOWN:
            at = end  # an odd chunk without its pad byte


def _chunked(opened: Opened, layout: Chunks) -> Extent | None:
    found, long, last = None, None, layout.start
    for name, begin, size in chunks(opened, layout):
        last = begin + size
        if name == b"ds64":  # of RF64, whose data chunk says 0xFFFFFFFF
            long = int.from_bytes(opened.at(begin + 8, 8), "little")
        if name != layout.sound or found:
            continue
        if size == 0xFFFFFFFF and long:
            found, last = Extent(begin, begin + long), begin + long
            continue
        unknown = size < 0 or size >= (_UNKNOWN if layout.header.size == 8 else _ENDLESS)
        found = Extent(begin, None if unknown else begin + size)
        last = begin + size
    if found is None:
        return None
    # A writer that was interrupted states 0: then the sound goes on to the end of the file.
    interrupted = found.end == found.begin and not _nothing(opened, last)
    return Extent(found.begin, None) if interrupted else found._replace(last=last)


def _nothing(opened: Opened, begin: int) -> bool:
    """Whether what follows is only padding or a tag of another kind of file."""
    if begin >= opened.size - _SLACK:
        return True
    head = opened.at(begin, 64)
    if head.lstrip(b"\0").startswith(_TAGS) or head[1:].startswith(_TAGS):
        return True
    opened.file.seek(begin)
    while block := opened.file.read(1 << 20):
        if block.strip(b"\0"):
            return False
    return True


def gsm_samples(opened: Opened) -> int | None:
    """Samples of GSM in WAV or W64: libsndfile takes a pad byte for a block of 65, and gives 320 of noise."""
    found = extent(opened) if _format(opened)[:2] == _GSM else None
    return (found.end - found.begin) // 65 * 320 if found and found.end else None


def mp3_inside(opened: Opened) -> Opened | None:
    """The MP3 stream in a WAV file of format 0x55, else None; libsndfile opens only the bare stream."""
    if _format(opened)[:2] != _MP3 or (found := extent(opened)) is None:
        return None
    return opened.section(found.begin, min(found.end or opened.size, opened.size))


def _format(opened: Opened) -> bytes:
    """The beginning of the format chunk of a WAV, RF64 or W64 file: tag, channels, rate and so on."""
    layout = _layout(opened)
    found = chunks(opened, layout) if layout else ()
    return next((opened.at(begin, 16) for name, begin, _ in found if name == b"fmt "), b"")


def _layout(opened: Opened) -> Chunks | None:
    head = opened.at(0, 40)
    found = (one for magic, form, one in _LAYOUTS if head.startswith(magic) and head[8:].startswith(form))
    return next(found, None)


# Fixed headers ----------------------------------------------------------------------------------------------


def _au(opened: Opened) -> Extent:
    head = opened.at(0, 12)
    begin, size = struct.unpack(">II" if head.startswith(b".snd") else "<II", head[4:])
    return Extent(begin, None if size == 0 or size >= _UNKNOWN else begin + size)


def _sphere(opened: Opened) -> Extent:
    begin = int(opened.at(8, 8).strip() or b"1024")
    header = opened.at(0, begin)

    def field(name: bytes, default: int) -> int:
        found = re.search(rb"\n" + name + rb" -(?:i|s\d+) (\d+)", header)
        return int(found[1]) if found else default

    size = field(b"sample_count", 0) * field(b"channel_count", 1) * field(b"sample_n_bytes", 2)
    return Extent(begin, begin + size if size else None)


def _voc(opened: Opened) -> Extent | None:
    at = struct.unpack("<H", opened.at(20, 2))[0]
    begin = None
    while (kind := opened.at(at, 1)) not in (b"", b"\0"):
        size = int.from_bytes(opened.at(at + 1, 3), "little")
        if kind in b"\x01\x02\x09":
            if begin is not None:
                raise AudioError(
                    f"{opened.name} has its sound in several blocks: convert it with ffmpeg or sox"
                )
            begin = at + 4
            size += (opened.size - at - 4 - size) >> 24 << 24 if opened.size - at - 4 > size else 0  # 24 bits
        at += 4 + size
    if begin is None:
        return None
    return Extent(begin, at + (kind == b"\0"))


def _mat4(opened: Opened) -> Extent:
    order = "<" if opened.at(0, 4) == b"\0\0\0\0" or opened.at(0, 1) != b"\0" else ">"
    at, begin = 0, 0
    while at < opened.size:
        kind, rows, columns, imaginary, name = struct.unpack(order + "5I", opened.at(at, 20))
        width = {0: 8, 1: 4, 2: 4, 3: 2, 4: 2, 5: 1}[kind // 10 % 10]
        begin = at + 20 + name
        at = begin + rows * columns * width * (1 + imaginary)
    return Extent(begin, at)


def _mat5(opened: Opened) -> Extent:
    order = "<" if opened.at(126, 2) == b"IM" else ">"

    def element(at: int) -> tuple[int, int]:
        """Where the data of an element begins, and its size."""
        kind, size = struct.unpack(order + "II", opened.at(at, 8))
        return (at + 4, kind >> 16) if kind >> 16 else (at + 8, size)

    at, begin, size = 128, 128, 0
    while at < opened.size:
        begin, size = element(at)
        at = begin + size + -size % 8
        for _ in range(3):  # of a matrix: flags, dimensions and name, before the numbers
            begin, size = element(begin)
            begin += size + -(begin + size) % 8
        begin, size = element(begin)
    return Extent(begin, begin + size, max(at, begin + size))


_FIXED: tuple[tuple[bytes, Callable[[Opened], Extent | None]], ...] = (
    (b".snd", _au),
    (b"dns.", _au),
    (b"NIST_1A", _sphere),
    (b"Creative Voice File\x1a", _voc),
    (b"MATLAB 5.0 MAT-file", _mat5),
    (b"\0\0\0\0\1\0\0\0\1\0\0\0\0\0\0\0", _mat4),
    (b"\0\0\3\xe8\0\0\0\1\0\0\0\1\0\0\0\0", _mat4),
)
