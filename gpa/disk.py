"""Files and folders that appear whole or not at all, a full disk by its name, and folders that one job holds.

Libraries say in many ways that a disk is full: the system with an errno, torch's zip writer with a
RuntimeError, safetensors and tokenizers with an exception of theirs. Whoever writes does so within `room`,
which all functions here do, and the user meets one DiskError.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gpa.errors import DiskError, GPAError, UsageError

LOCK = ".lock"
_FULL = {
    getattr(errno, "EDQUOT", errno.ENOSPC): "your quota of the disk is used up",
    errno.ENOSPC: "the disk is full",
    errno.EFBIG: "the disk may not hold a file that large (ulimit -f)",
    errno.EIO: "the disk has a fault",
}
# What libraries say who lose the errno: Rust's standard library, and torch's zip writer.
_SAID = {f"os error {number}": why for number, why in _FULL.items()}
_SAID |= {os.strerror(number).lower(): why for number, why in _FULL.items()}
# By libraries that do not know why a write failed: torch's zip writer, libsndfile.
_CUT = ("pytorchstreamwriter failed", "unexpected pos", "file write failed", "system error.")
_LITTLE = 1 << 16  # bytes: with less free, a writer that failed for no reason of its own met a full disk
_HELD: dict[Path, int] = {}  # folder -> open file of its lock


@contextmanager
def room(path: str | os.PathLike) -> Iterator[None]:
    """Within it a full disk, however a library says so, is a DiskError naming `path` and its disk."""
    try:
        yield
    except Exception as error:
        ours = isinstance(error, GPAError)  # which may be made of what a library said
        why = "" if isinstance(error, DiskError) else _why(error.__cause__ if ours else error, Path(path))
        if not why:
            raise
        raise DiskError(_told(Path(path), why)) from error


def is_full(error: OSError) -> bool:
    """Whether the system says by it that a disk is full."""
    return error.errno in _FULL


def _why(error: BaseException | None, path: Path) -> str:
    """What makes this error one of a full disk; empty if it is another."""
    first = error
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return _FULL[error.errno]
        text = str(error).lower()
        if why := next((why for sign, why in _SAID.items() if sign in text), ""):
            return why
        error = error.__cause__ or error.__context__
    if not isinstance(first, (RuntimeError, AssertionError)):
        return ""
    if _free(path) < _LITTLE:
        return _FULL[errno.ENOSPC]
    return "the disk took only a part of it" if any(sign in str(first).lower() for sign in _CUT) else ""


def _told(path: Path, why: str) -> str:
    place = _there(path)
    while not place.is_mount() and place.parent != place:
        place = place.parent
    free = _free(path)
    return (
        f"{path}: {why}: it is the one at {place}, with {free / 2**20:,.1f} MiB free. Nothing half written "
        "was kept. Make room there, or choose another disk, and give the same command again"
    )


def _there(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = path.resolve()
    while not path.exists() and path.parent != path:
        path = path.parent
    return path


def _free(path: Path) -> int:
    try:
        usage = shutil.disk_usage(_there(path))
    except OSError:
        return _LITTLE
    return usage.free if usage.total else _LITTLE  # what has no size, as /proc, is never full


@contextmanager
def written_whole(out: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary directory that becomes `out` at the end of the block: never half of one.

    UsageError for an existing directory unless it is empty or `overwrite`, which keeps a README.md there if
    none was written; DiskError for a full disk.
    """
    if out.exists() and not (overwrite or (out.is_dir() and not any(out.iterdir()))):
        raise UsageError(f"{out} exists and is not empty: choose another directory, or overwrite=True")
    mark = uuid.uuid4().hex
    temporary, old = out.with_name(f".{out.name}.{mark}.tmp"), out.with_name(f".{out.name}.{mark}.old")
    try:
        with room(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            yield temporary
            if out.exists():
                if (out / "README.md").is_file() and not (temporary / "README.md").exists():
                    shutil.copyfile(out / "README.md", temporary / "README.md")
                os.replace(out, old)
            os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def file_whole(path: Path) -> Iterator[Path]:
    """A temporary name, of the same suffix, whose file becomes `path` at the end of the block.

    Missing folders are made. The content is on the disk before the name is; DiskError where it is full.
    """
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp{path.suffix}")
    try:
        with room(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with file_whole(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a file of UTF-8 whole or not at all."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def append(path: Path, text: str) -> None:
    """Add to a file all of `text` or nothing of it."""
    with room(path), path.open("ab") as file:
        before = file.tell()
        try:
            file.write(text.encode())
            file.flush()
        except OSError:
            with suppress(OSError):
                os.ftruncate(file.fileno(), before)
            raise


@contextmanager
def held(folder: Path, job: str) -> Iterator[None]:
    """Make `folder` and hold it until the end of the block: another process that asks is refused, by name.

    The lock is the system's (flock), so it ends with the process however that ends; what the file says of
    pid and host is for people. It holds across hosts where the file system shares locks, as NFS does.
    UsageError if another holds it. Without locks (some network file systems, Windows) the folder is not held.
    """
    with room(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(file, folder, job)
    except UsageError:
        os.close(file)
        raise
    _HELD[folder.resolve()] = file
    try:
        about = {"pid": os.getpid(), "host": platform.node(), "job": job}
        os.ftruncate(file, 0)
        with suppress(OSError):  # who holds it is for people; a full disk shows where it matters
            os.write(file, json.dumps(about).encode())
        yield
    finally:
        _HELD.pop(folder.resolve(), None)
        _unlock(file)
        os.close(file)


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Wait for those who have their turn in `folder`, then keep others waiting until the end of the block.

    For changes that take a moment, by threads and by processes; the lock is that of `held`.
    """
    with room(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with suppress(ImportError, OSError):  # Windows, a file system without locks
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        _unlock(file)
        os.close(file)


def _lock(file: int, folder: Path, job: str) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"{folder} is in use by {_holder(folder)}: wait for its end, stop it, or choose another folder "
            f"for this {job}"
        ) from None
    except OSError:  # a file system without locks
        return


def _unlock(file: int) -> None:
    """Also where a child that was forked this moment still has the file."""
    with suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_UN)


def _holder(folder: Path) -> str:
    about: Any = None
    with suppress(OSError, ValueError):
        about = json.loads((folder / LOCK).read_text(encoding="utf-8"))
    if not isinstance(about, dict):
        return "another process"
    return f"{about.get('job')} (process {about.get('pid')} on {about.get('host')})"


def _forget_locks() -> None:
    """In a forked child: its copy of a lock would outlive a parent that is killed."""
    while _HELD:
        os.close(_HELD.popitem()[1])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)
