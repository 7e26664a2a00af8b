"""Where sound comes from: a path, bytes or a stream is opened once, as a file that can be rewound.

What cannot be rewound (a FIFO, `<(...)`, standard input) goes into memory, then into a temporary file, up to
the limit. Knows nothing of formats but the first bytes of what is no sound at all.
"""

import contextlib
import io
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from gpa.errors import AudioError, UsageError

LIMIT = "GPA_AUDIO_HOURS"  # the environment variable: hours of sound, at most, of one source
_HOURS = 4.0
_BYTES = 200_000  # per second of a stream that is held: CD quality has 176 kB
_MEMORY, _BLOCK, _HEAD = 1 << 26, 1 << 20, 64

# What people hand in instead of audio, by the first bytes, with what to do about it.
_FOREIGN = (
    (b"version https://git-lfs", "a Git-LFS pointer, not the audio itself", "run  git lfs pull"),
    (b"<", "a web page or XML", "download the file itself"),
    (b"{", "JSON text", "give the audio file it names"),
)


class Opened(NamedTuple):
    """A file that can be rewound, its size in bytes, and its name for messages."""

    file: IO[bytes]
    size: int
    name: str

    def at(self, offset: int, count: int) -> bytes:
        """`count` bytes from there, fewer at the end, none where a header points outside."""
        if not 0 <= offset < self.size:
            return b""
        self.file.seek(offset)
        return self.file.read(count)

    def section(self, begin: int, end: int, prefix: bytes = b"") -> "Opened":
        """The bytes from `begin` to `end`, as a file that starts with `prefix`."""
        file = cast(IO[bytes], Section(self.file, begin, end, prefix))
        return Opened(file, len(prefix) + end - begin, self.name)


class Section(io.RawIOBase):
    """A part of a file, after some bytes of its own."""

    def __init__(self, file: IO[bytes], begin: int, end: int, prefix: bytes = b"") -> None:
        self._file, self._begin, self._prefix = file, begin, prefix
        self._size, self._at = len(prefix) + end - begin, 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of any file."""
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def tell(self) -> int:
        """As of any file."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """As of any file; stops between the prefix and the file's own bytes."""
        wanted = min(len(buffer), self._size - self._at)
        if self._at < len(self._prefix):
            data = self._prefix[self._at : self._at + max(wanted, 0)]
        elif wanted > 0:
            self._file.seek(self._begin + self._at - len(self._prefix))
            data = self._file.read(wanted)
        else:
            data = b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def most_seconds() -> float:
    """How long one source may be: the environment variable GPA_AUDIO_HOURS, or 4 hours."""
    given = os.environ.get(LIMIT, "").strip()
    try:
        hours = float(given or _HOURS)
    except ValueError:
        hours = 0.0
    if not 0 < hours < 1e5:
        raise UsageError(f"{LIMIT}={given} is no number of hours: give the longest sound to read, such as 12")
    return 3600 * hours


def truncated(name: str) -> AudioError:
    """The error for a file that ends early."""
    return AudioError(f"{name} is truncated: copy or download it again")


def too_long(name: str, what: str) -> AudioError:
    """The error for sound beyond the limit."""
    limit = f"the limit of {most_seconds() / 3600:g} h"
    return AudioError(f"{name} {what}: cut it, or raise {limit}, for instance with {LIMIT}=24")


@contextlib.contextmanager
def opened(source: Any) -> Iterator[Opened]:
    """Open a source once; AudioError for what is not there, is empty, or clearly is no sound."""
    held: IO[bytes]
    with contextlib.ExitStack() as stack:
        if isinstance(source, (bytes, bytearray, memoryview)):
            name = f"the given bytes ({len(source)})"
            held = stack.enter_context(io.BytesIO(source))
        elif hasattr(source, "read"):
            label = getattr(source, "name", None)
            name = label if isinstance(label, str) and label else "the given stream"
            held = stack.enter_context(_held(source, name))
        elif isinstance(source, (str, os.PathLike)):
            path = os.fsdecode(source)
            name = readable_name(path)
            held = stack.enter_context(_path(Path(path), name))
        else:
            raise AudioError(
                f"{type(source).__name__} is not audio: give a path, bytes, a stream, or an array with rate="
            )
        size = held.seek(0, os.SEEK_END)
        found = Opened(held, size, name)
        _refuse_foreign(found.at(0, _HEAD), name)
        yield found


def readable_name(path: str) -> str:
    """A path for messages; AudioError if it is no text, since neither results nor manifests could name it."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        shown = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        raise AudioError(f"{shown}: this file name is not UTF-8: rename the file") from None
    return path


@contextlib.contextmanager
def _path(path: Path, name: str) -> Iterator[IO[bytes]]:
    if not name:
        raise AudioError("the path is empty: name an audio file")
    try:
        if path.is_dir():
            raise AudioError(f"{name} is a folder: give one audio file in it")
        file = path.open("rb")
    except AudioError:
        raise
    except FileNotFoundError:
        raise AudioError(f"{name} does not exist: check the path (working folder {Path.cwd()})") from None
    except (OSError, ValueError) as error:  # no permission; a null byte in the name
        shown = name if len(name) < 200 else f"{name[:80]}... ({len(name)} characters)"
        why = getattr(error, "strerror", None) or error
        raise AudioError(f"{shown!r} cannot be opened ({why}): check its name and permissions") from error
    with file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            yield file
        else:
            with _held(file, name) as held:
                yield held


@contextlib.contextmanager
def _held(stream: Any, name: str) -> Iterator[IO[bytes]]:
    """What is left in a stream, in memory or in a nameless temporary file."""
    held: IO[bytes] = io.BytesIO()
    most = int(_BYTES * most_seconds())
    with contextlib.ExitStack() as stack:
        try:
            while block := stream.read(_BLOCK):
                if not isinstance(block, bytes):
                    raise AudioError(f"{name} is open in text mode: open it with 'rb'")
                if held.tell() == 0 and not block[:_HEAD].strip(b"\0"):
                    raise AudioError(f"{name} is not readable audio, it begins with zeros: check the source")
                if isinstance(held, io.BytesIO) and held.tell() > _MEMORY:
                    memory, held = held, stack.enter_context(tempfile.TemporaryFile())
                    held.write(memory.getbuffer())
                if held.write(block) and held.tell() > most:
                    raise too_long(name, f"has more than {most >> 20} MiB, and a stream is held")
        except (OSError, ValueError) as error:  # a closed stream, an interrupted one, a full disk
            if isinstance(error, AudioError):
                raise
            if isinstance(error, io.UnsupportedOperation):
                raise AudioError(f"{name} is not open for reading: open it with 'rb'") from error
            where = f"check the source, and the space in {tempfile.gettempdir()}"
            raise AudioError(f"{name} cannot be read to its end ({error}): {where}") from error
        yield held


def _refuse_foreign(head: bytes, name: str) -> None:
    if not head:
        raise AudioError(f"{name} is empty: record or download it again; a stream already read needs seek(0)")
    for magic, what, remedy in _FOREIGN:
        if head.startswith(magic):
            raise AudioError(f"{name} is {what}: {remedy}")
