"""Sound out: whole files, files that grow, and bytes; WAV, FLAC, Ogg Vorbis and AU."""

import contextlib
import io
import os
import struct
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from gpa import disk
from gpa.audio.arrays import as_wave, checked_rate, time_first
from gpa.audio.opening import readable_name
from gpa.errors import AudioError

FORMATS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}
_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")  # of a WAV file of plain samples
_BLOCK = 1 << 14  # libvorbis may overflow its stack when handed minutes of sound at once


def save(path: str | os.PathLike[str], wav: np.ndarray, sample_rate: int) -> None:
    """Write float (S,) as 16-bit WAV or, by suffix, FLAC or Ogg Vorbis; values beyond +-1 are clipped.

    See `writing`, which takes the sound bit by bit.
    """
    wav = as_wave(wav, "save")
    with writing(path, sample_rate) as write:
        write(wav)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], sample_rate: int) -> Iterator[Callable[[np.ndarray], object]]:
    """A function that appends float (S,) to a file like those of `save`.

    Missing folders are made. The file appears whole or not at all: it is written under a temporary name
    beside its own, then renamed. AudioError for another suffix or a refused place, DiskError for a full disk.
    """
    path = Path(readable_name(os.fspath(path)))
    if path.suffix.lower() not in FORMATS:
        raise AudioError(f"{path}: cannot write '{path.suffix}' files, use one of {', '.join(FORMATS)}")
    container, subtype = FORMATS[path.suffix.lower()]
    rate = checked_rate(sample_rate, "sample_rate")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with disk.room(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()  # libsndfile does not say why a file cannot be opened
            with soundfile.SoundFile(temporary, "w", rate, 1, subtype, format=container) as file:
                yield lambda wav: [file.write(block) for block in _blocks(wav, subtype)]
            os.replace(temporary, path)
    except (FileExistsError, NotADirectoryError) as error:
        raise AudioError(f"{path} cannot be written: {error.filename} is a file, and no folder") from error
    except (OSError, soundfile.LibsndfileError) as error:
        remedy = "check the folder and its permissions"
        raise AudioError(f"{path} cannot be written ({error}): {remedy}") from error
    finally:
        if temporary.exists():
            temporary.unlink()


def _blocks(wav: np.ndarray, subtype: str) -> Iterator[np.ndarray]:
    # libsndfile would scale by 32767 but reads by 32768; with one factor saved samples return unchanged.
    samples = pcm16(wav) if subtype == "PCM_16" else np.clip(wav, -1.0, 1.0)
    return (samples[start : start + _BLOCK] for start in range(0, len(samples), _BLOCK))


def pcm16(wav: np.ndarray) -> np.ndarray:
    """Float (S,) as int16, with the factor of `load`, so that what was read is written unchanged."""
    return np.clip(np.rint(np.asarray(wav) * 32768.0), -32768, 32767).astype(np.int16)


class WavStream:
    """A 16-bit WAV that is heard while it is written: its header says that it goes on until the end.

    `close` puts the true sizes there where the file can be rewound; it leaves the file open.
    """

    def __init__(self, file: BinaryIO, sample_rate: int) -> None:
        self._file, self._rate, self._size = file, checked_rate(sample_rate, "sample_rate"), 0
        self._begin = file.tell() if file.seekable() else None
        self._put(self._header(0xFFFFFFFF))

    @property
    def seconds(self) -> float:
        """What was written so far."""
        return self._size / 2 / self._rate

    def write(self, wav: np.ndarray) -> None:
        """Append float (S,)."""
        self._size += self._put(pcm16(wav).astype("<i2").tobytes())

    def close(self) -> None:
        """Say how long it became, if that is still possible."""
        if self._begin is not None:
            self._file.seek(self._begin)
            self._put(self._header(self._size))
            self._file.seek(self._size, os.SEEK_CUR)

    def _put(self, data: bytes) -> int:
        self._file.write(data)
        self._file.flush()
        return len(data)

    def _header(self, size: int) -> bytes:
        form = (b"WAVE", b"fmt ", 16, 1, 1, self._rate, 2 * self._rate, 2, 16, b"data")
        return _HEADER.pack(b"RIFF", min(size + _HEADER.size - 8, 0xFFFFFFFF), *form, min(size, 0xFFFFFFFF))


def to_bytes(wav: np.ndarray, sample_rate: int) -> bytes:
    """Return float (S,), (S, C) or (C, S) as a float32 AU file, which `load` reads unchanged.

    Equal samples give equal bytes: a WAV file of floats would also hold the time.
    """
    file = io.BytesIO()
    samples = time_first(np.asarray(wav, np.float32), "to_bytes")
    soundfile.write(file, samples, checked_rate(sample_rate, "sample_rate"), "FLOAT", format="AU")
    return file.getvalue()
