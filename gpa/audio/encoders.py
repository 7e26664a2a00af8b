"""Sound as the body of an answer: resampled and encoded bit by bit, as it is made.

Equal sound gives equal bytes, however it was cut. Shapes: wav float32 (S,), mono.
"""

from __future__ import annotations

import io
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
import soundfile
import soxr

from gpa.audio import WavStream, pcm16
from gpa.audio.tempo import Tempo
from gpa.errors import AudioError, UsageError

MPEG_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
SERIAL = b"gpa\0"  # of an Ogg stream; libsndfile would draw one


@dataclass(frozen=True)
class Format:
    """Of a body: its media type, the rates in Hz that it can have (none: any), how libsndfile writes it.

    What is not `streamed` comes when all of it is made.
    """

    media_type: str
    rates: tuple[int, ...] = ()
    written: tuple[tuple[str, Any], ...] = ()
    streamed: bool = True


_MP3 = (
    ("format", "MP3"),
    ("subtype", "MPEG_LAYER_III"),
    ("bitrate_mode", "CONSTANT"),
    ("compression_level", 0.6),
)
FORMATS = {
    "mp3": Format("audio/mpeg", MPEG_RATES, _MP3),  # 64 kbit/s at 24 kHz
    "opus": Format("audio/ogg", OPUS_RATES, (("format", "OGG"), ("subtype", "OPUS"))),
    "aac": Format("audio/aac", MPEG_RATES, streamed=False),
    # Without the length in its header, libsndfile does not read FLAC: it comes when the length is known.
    "flac": Format("audio/flac", (), (("format", "FLAC"), ("subtype", "PCM_16")), streamed=False),
    "wav": Format("audio/wav"),
    "pcm": Format("audio/pcm"),
}


@cache
def available() -> tuple[str, ...]:
    """What can be encoded on this machine: AAC needs ffmpeg, MP3 and Opus libsndfile 1.1."""
    known = soundfile.available_formats()
    subtypes = soundfile.available_subtypes("OGG")
    missing = {"mp3": "MP3" not in known, "opus": "OPUS" not in subtypes, "aac": not shutil.which("ffmpeg")}
    return tuple(name for name in FORMATS if not missing.get(name))


class Sink(io.RawIOBase):
    """A file of which what was written last can be taken away; if `kept`, nothing is, and it can be rewound.

    A header that is written again at the end changes in a body that is kept, and in no other.
    """

    def __init__(self, kept: bool) -> None:
        self._data, self._start, self._at, self._kept = bytearray(), 0, 0, kept

    def seekable(self) -> bool:
        """Whether what is written again is kept."""
        return self._kept

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any) -> int:
        """Put bytes where the file stands; those before what was taken away are lost."""
        new = bytes(data)
        late = max(0, self._start - self._at)
        at = self._at + late - self._start
        self._data[at : at + len(new[late:])] = new[late:]
        self._at += len(new)
        return len(new)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of any file."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._start + len(self._data)}[whence]
        self._at = origin + offset
        return self._at

    def tell(self) -> int:
        """As of any file."""
        return self._at

    def taken(self, last: bool = False) -> bytes:
        """What was written since; of what is kept, everything, at the `last` time."""
        if self._kept and not last:
            return b""
        data = bytes(self._data)
        self._start += len(data)
        self._data.clear()
        return data


class Writer(Protocol):
    """What turns sound into the bytes of a sink."""

    def write(self, wav: np.ndarray) -> object:
        """Append float (S,)."""

    def close(self) -> object:
        """That was all."""


class Encoder:
    """Sound at one rate becomes a body at another. `complete` bodies come at the end, with true sizes.

    `speed` makes speech shorter or longer, not higher or lower.
    """

    def __init__(
        self, name: str, source_rate: int, rate: int, complete: bool = False, speed: float = 1.0
    ) -> None:
        """UsageError for a rate that the format cannot have, AudioError for what cannot be encoded here."""
        form = FORMATS[name]
        if name not in available():
            raise AudioError(f"{name} cannot be encoded on this server: choose {', '.join(available())}")
        if form.rates and rate not in form.rates:
            raise UsageError(f"{name} at {rate} Hz: choose {', '.join(map(str, form.rates))}")
        self._tempo = Tempo(speed, source_rate) if speed != 1 else None
        self._resampler = soxr.ResampleStream(source_rate, rate, 1, "float32", "VHQ")
        self._sink, self._ogg = Sink(complete or not form.streamed), name == "opus"
        self._writer = self._write(name, form, rate)

    def push(self, wav: np.ndarray) -> bytes:
        """More sound (S,); the bytes that are ready."""
        return self._encode(self._resampler.resample_chunk(self._tempo.push(wav) if self._tempo else wav))

    def finish(self) -> bytes:
        """That was all the sound; all other bytes."""
        rest = self._tempo.finish() if self._tempo else np.zeros(0, np.float32)
        head = self._encode(self._resampler.resample_chunk(rest, last=True))
        self._writer.close()
        return head + self._named(self._sink.taken(last=True))

    def _encode(self, wav: np.ndarray) -> bytes:
        if len(wav):
            self._writer.write(wav)
        return self._named(self._sink.taken())

    def _named(self, data: bytes) -> bytes:
        return with_serial(data) if self._ogg else data

    def _write(self, name: str, form: Format, rate: int) -> Writer:
        file = cast(BinaryIO, self._sink)
        if name == "wav":
            return WavStream(file, rate)
        if name == "pcm":
            return Samples(file)
        if name == "aac":
            return Aac(file, rate)
        return Compressed(file, rate, dict(form.written))


class Samples:
    """16-bit little-endian samples, and nothing else."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, wav: np.ndarray) -> None:
        """Append float (S,)."""
        self._file.write(pcm16(wav).astype("<i2").tobytes())

    def close(self) -> None:
        """Nothing comes after the samples."""


class Compressed:
    """What libsndfile compresses."""

    def __init__(self, file: BinaryIO, rate: int, written: dict[str, Any]) -> None:
        self._file = soundfile.SoundFile(file, "w", rate, 1, **written)
        self._exact = self._file.subtype == "PCM_16"

    def write(self, wav: np.ndarray) -> None:
        """Append float (S,)."""
        self._file.write(pcm16(wav) if self._exact else np.clip(wav, -1, 1))

    def close(self) -> None:
        """Write what is left."""
        self._file.close()


class Aac:
    """ADTS by ffmpeg, at the end: it is a process, which should not live as long as a client may take."""

    def __init__(self, file: BinaryIO, rate: int) -> None:
        self._file, self._rate, self._samples = file, rate, io.BytesIO()

    def write(self, wav: np.ndarray) -> None:
        """Append float (S,)."""
        self._samples.write(pcm16(wav).astype("<i2").tobytes())

    def close(self) -> None:
        """Encode all of it. AudioError if ffmpeg cannot."""
        given = f"-f s16le -ar {self._rate} -ac 1 -i pipe:0 -c:a aac -b:a 64k"
        command = f"ffmpeg -v error {given} -fflags +bitexact -flags:a +bitexact -f adts pipe:1"
        run = subprocess.run(command.split(), input=self._samples.getvalue(), capture_output=True)
        if run.returncode:
            raise AudioError(f"ffmpeg does not encode AAC: {run.stderr.decode(errors='replace')[-200:]}")
        self._file.write(run.stdout)


def encoded(name: str, wav: np.ndarray, source_rate: int, rate: int) -> bytes:
    """A complete body of sound (S,)."""
    encoder = Encoder(name, source_rate, rate, complete=True)
    return encoder.push(wav) + encoder.finish()


def with_serial(pages: bytes) -> bytes:
    """Whole pages of an Ogg stream under our serial number (RFC 3533, section 6)."""
    data, at = bytearray(pages), 0
    while at < len(data):
        segments = data[at + 26]
        end = at + 27 + segments + sum(data[at + 27 : at + 27 + segments])
        data[at + 14 : at + 18], data[at + 22 : at + 26] = SERIAL, bytes(4)
        data[at + 22 : at + 26] = _checksum(bytes(data[at:end])).to_bytes(4, "little")
        at = end
    return bytes(data)


def _checksum(page: bytes) -> int:
    """CRC-32 with the polynomial 0x04C11DB7, nothing reflected or inverted."""
    table, crc = _table(), 0
    for byte in page:
        crc = (crc << 8 & 0xFFFFFFFF) ^ table[crc >> 24 ^ byte]
    return crc


@cache
def _table() -> tuple[int, ...]:
    found = []
    for crc in range(0, 1 << 32, 1 << 24):
        for _ in range(8):
            crc = (crc << 1) ^ (0x104C11DB7 if crc >> 31 else 0)
        found.append(crc)
    return tuple(found)
