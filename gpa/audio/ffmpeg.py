"""Formats that libsndfile does not read, through the program ffmpeg where it is installed.

Phones write M4A, browsers WebM, old recorders WMA and AMR. ffmpeg's output is decoded while it comes.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

import numpy as np

from gpa.audio.opening import Opened, most_seconds, truncated
from gpa.errors import AudioError

_PACKETS = 1 << 20
_AU = 24  # bytes of an AU header: magic, offset, size, encoding, rate, channels


class Foreign(NamedTuple):
    """A format by its first bytes: where they are, what people call it, and ffmpeg's name of its reader."""

    magic: bytes
    at: int
    name: str
    demuxer: str


_FORMATS = (
    Foreign(b"ftyp", 4, "MP4/M4A", "mov"),
    Foreign(b"moov", 4, "QuickTime", "mov"),
    Foreign(b"mdat", 4, "QuickTime", "mov"),
    Foreign(b"wide", 4, "QuickTime", "mov"),
    Foreign(b"\x1aE\xdf\xa3", 0, "WebM/Matroska", "matroska"),
    Foreign(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", 0, "WMA/ASF", "asf"),
    Foreign(b"#!AMR", 0, "AMR", "amr"),
    Foreign(b"wvpk", 0, "WavPack", "wv"),
    Foreign(b"MAC ", 0, "Monkey's Audio", "ape"),
    Foreign(b"TTA1", 0, "True Audio", "tta"),
    Foreign(b"MPCK", 0, "Musepack", "mpc8"),
    Foreign(b"MP+", 0, "Musepack", "mpc"),
    Foreign(b"DSD ", 0, "DSF", "dsf"),
    Foreign(b"FRM8", 0, "DSDIFF", "iff"),
    Foreign(b"\x0bw", 0, "AC-3", "ac3"),
    Foreign(b"FLV\x01", 0, "Flash video", "flv"),
    Foreign(b"AVI ", 8, "AVI", "avi"),
    Foreign(b".RMF", 0, "RealMedia", "rm"),
    Foreign(b"\x00\x00\x01\xba", 0, "MPEG-PS", "mpeg"),
)
# Containers that libsndfile knows, but not with every codec inside.
_OTHERS = (
    Foreign(b"OggS", 0, "Ogg (neither Vorbis nor Opus)", "ogg"),
    Foreign(b"caff", 0, "CAF of a rare codec", "caf"),
    Foreign(b"WAVE", 8, "WAV of a rare codec", "wav"),
)
_LIBSNDFILE = [bytes((tag, 0)) for tag in (1, 2, 3, 6, 7, 0x11, 0x31, 0x55, 0x64, 0x65)] + [
    b"\xfe\xff"
]  # in WAV
_ADTS, _TS = Foreign(b"", 0, "AAC (ADTS)", "aac"), Foreign(b"", 0, "MPEG-TS", "mpegts")
HEAD = 377  # bytes that tell a format


def foreign(head: bytes) -> Foreign | None:
    """The format that these first bytes begin, None for what is not ffmpeg's."""
    if len(head) > 6 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return _ADTS
    if head[:1] == head[188:189] == head[376:377] == b"G":
        return _TS
    return _first(_FORMATS, head)


def other_codec(head: bytes) -> Foreign | None:
    """The same of what libsndfile has failed to open for its codec."""
    known = head[12:16] == b"fmt " and head[20:22] in _LIBSNDFILE
    return None if known else _first(_OTHERS, head)


def _first(forms: tuple[Foreign, ...], head: bytes) -> Foreign | None:
    matching = (form for form in forms if head[form.at : form.at + len(form.magic)] == form.magic)
    return next(matching, None)


class Pipe(NamedTuple):
    """Decoded sound as it comes: its rate in Hz, and a function to at most n more samples (n, C)."""

    rate: int
    read: Callable[[int], np.ndarray]


@contextlib.contextmanager
def converted(opened: Opened, form: Foreign) -> Iterator[Pipe]:
    """Decode with ffmpeg; AudioError without the program, or for what it complains of."""
    if form.magic == b"AVI " and int.from_bytes(opened.at(4, 4), "little") + 8 > opened.size:
        raise truncated(opened.name)  # what ffmpeg does not mind
    program = shutil.which("ffmpeg")
    if program is None:
        remedy = "install ffmpeg (gpa then uses it), or convert the file elsewhere:  ffmpeg -i IN OUT.wav"
        raise AudioError(
            f"{opened.name} is {form.name}, which needs ffmpeg, and it is not installed: {remedy}"
        )
    talk = ("-nostdin", "-hide_banner", "-v", "error", "-protocol_whitelist", "file,pipe")
    source = (
        "-f",
        form.demuxer,
        "-i",
        "file:/dev/stdin",
        "-map",
        "0:a:0",
        "-t",
        f"{most_seconds() + 60:.0f}",
    )
    command = (program, *talk, *source, "-c:a", "pcm_f32be", "-f", "au", "pipe:1")
    with tempfile.TemporaryFile() as said, _as_file(opened) as file:
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        with subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, stderr=said) as process:
            assert process.stdout is not None
            try:
                yield _pipe(process.stdout, opened.name, lambda: _complaint(process, said, opened.name, form))
            finally:
                process.kill()


@contextlib.contextmanager
def _as_file(opened: Opened) -> Iterator[IO[bytes]]:
    """What has a descriptor: the file, or a temporary copy of what is in memory."""
    try:
        opened.file.fileno()
        yield opened.file
    except OSError:
        with tempfile.TemporaryFile() as copy:
            opened.file.seek(0)
            shutil.copyfileobj(opened.file, copy, _PACKETS)
            copy.flush()
            yield copy


def _pipe(stream: IO[bytes], name: str, check: Callable[[], None]) -> Pipe:
    head = stream.read(_AU)
    if len(head) < _AU:
        check()
        raise AudioError(f"{name} has no sound that ffmpeg finds: check it with  ffmpeg -i IN")
    begin, _, _, rate, channels = np.frombuffer(head, ">u4", offset=4).tolist()
    stream.read(begin - _AU)

    def read(count: int) -> np.ndarray:
        data = stream.read(4 * channels * count)
        if len(data) < 4 * channels * count:
            check()
        whole = len(data) // (4 * channels) * channels
        return np.frombuffer(data, ">f4", whole).reshape(-1, channels).astype(np.float64)

    return Pipe(rate, read)


def _complaint(process: subprocess.Popen[bytes], said: IO[bytes], name: str, form: Foreign) -> None:
    """AudioError if ffmpeg, which has come to an end, said anything: it goes on after errors."""
    code = process.wait()
    said.seek(0)
    lines = said.read(_PACKETS).decode("utf-8", "replace").strip().splitlines()
    if code or lines:
        detail = lines[0] if lines else f"exit code {code}"
        what = f"{name} is {form.name} that ffmpeg cannot decode whole ({detail})"
        raise AudioError(f"{what}: it is damaged or truncated, copy or download it again")
