"""WebDataset tar shards, read and written: files `KEY.wav` and `KEY.txt` or `KEY.json` that stand together.

One sample is in memory at a time. The layout is that of
https://github.com/webdataset/webdataset (section "WebDataset format"): what is before the first dot of a
file's name is the key, files of one key follow each other. What a row may hold is in manifest.py.
"""

from __future__ import annotations

import glob
import io
import json
import logging
import os
import re
import tarfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpa import audio, disk
from gpa.data.audio_folder import is_audio, split_of
from gpa.data.column_names import NAMES
from gpa.errors import DataError

if TYPE_CHECKING:
    from gpa.data.manifest import Clip, ManifestRow

logger = logging.getLogger(__name__)

SUFFIX = ".tar"
KIND = "gpa-recordings"  # of the prepared.json beside shards that are written
_MAGIC = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg", b"ID3": ".mp3"}
_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)")  # the key, with its folder, and what follows the first dot


def find(source: Any) -> list[Path]:
    """The shards of a `.tar` file, a pattern of them or a folder that holds some, in order; else none."""
    if not isinstance(source, (str, Path)):
        return []
    path = Path(source)
    if path.is_dir():
        return sorted(path.glob(f"*-[0-9]*{SUFFIX}"))  # not an archive that lies there
    if path.suffix != SUFFIX:
        return []
    return [path] if path.is_file() else sorted(map(Path, glob.glob(str(source))))


def read(paths: list[Path]) -> Iterator[dict[str, Any]]:
    """The samples of all shards as rows with our keys; `id` is SHARD/KEY and the sound is encoded bytes.

    A sample without sound is rejected as unreadable later; those without text are counted in a warning.
    DataError for a shard that is cut or no tar, or JSON that is no object, with the file and the key.
    """
    bare: list[str] = []  # the first without a text
    count = 0
    for path in paths:
        for key, files in _samples(path):
            row = _row(path, key, files)
            if not row["text"]:
                bare, count = bare or [f"{path}: {key}"], count + 1
            yield row
    if count:
        logger.warning("%d samples have no text and serve vc only, the first is %s", count, bare[0])


def _samples(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, {suffix: content}) of one shard."""
    last = "its beginning"
    try:
        with tarfile.open(path, "r|") as tar:  # from front to end, like a pipe
            held: tuple[str, dict[str, bytes]] | None = None
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # it keeps every header otherwise
                named, last = _NAME.fullmatch(member.name), member.name
                if not named or not member.isfile() or (file := tar.extractfile(member)) is None:
                    continue
                if held and held[0] != named[1]:
                    yield held
                    held = None
                held = held or (named[1], {})
                held[1][named[2].lower()] = file.read()
        _check_end(path)  # before the last sample, which may lack a file
        if held:
            yield held
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{path}: cut, or no tar file ({error}), after {last}: fetch it again") from error


def _check_end(path: Path) -> None:
    """A shard that was cut between two files reads well, but for the zeros that end it."""
    with path.open("rb") as file:
        file.seek(-tarfile.BLOCKSIZE, os.SEEK_END)
        if any(file.read()):
            raise tarfile.ReadError("the end mark is missing")


def _row(path: Path, key: str, files: dict[str, bytes]) -> dict[str, Any]:
    sound = next((name for name in files if is_audio(f"_.{name}")), "")
    said: Any = {}
    if "json" in files:
        try:
            said = json.loads(files["json"])
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: {key}.json: not JSON ({error}): write the shard again") from error
        if not isinstance(said, dict):
            raise DataError(f"{path}: {key}.json: an object of labels, this is {type(said).__name__}")
    told = {ours: next((said[name] for name in names if name in said), None) for ours, names in NAMES.items()}
    if "txt" in files:
        told["text"] = files["txt"].decode("utf-8", "replace").strip()  # the doctor tells what is no UTF-8
    place = {"id": f"{path.stem}/{key}", "split": told["split"] or split_of(path.stem) or "train"}
    return {**told, **place, "audio": files.get(sound, b"")}


# Writing ----------------------------------------------------------------------------------------------------


def shard_name(number: int, _: int) -> str:
    """File name of a shard that is written, of however many."""
    return f"shard-{number:06d}{SUFFIX}"


def write(path: Path, rows: Iterable[tuple[int, ManifestRow]], rate: int, scratch: Path) -> None:
    """Write numbered rows as one shard, whole or not at all; equal rows give equal bytes.

    A whole recording in WAV, FLAC, Ogg or MP3 stays as it is, anything else becomes WAV at `rate` (Hz).
    DataError for a row of more than one recording.
    """
    temporary = scratch / f"{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        with disk.room(path):
            with tarfile.open(temporary, "w") as tar:
                for number, row in rows:
                    key = f"{number:09d}_" + re.sub(r"[^\w-]+", "_", row.id)
                    for suffix, content in _files(row, rate):
                        member = tarfile.TarInfo(key + suffix)
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _files(row: ManifestRow, rate: int) -> Iterator[tuple[str, bytes]]:
    """(suffix, content) of a sample's files."""
    if row.task or row.reference or row.target:
        raise DataError(f"{row.where}: has a task or a second recording, which tar shards do not hold")
    yield _sound(row.audio, rate)
    said = {key: getattr(row, key) for key in NAMES if key != "audio"}
    yield ".json", json.dumps({key: text for key, text in said.items() if text}, ensure_ascii=False).encode()


def _sound(clip: Clip, rate: int) -> tuple[str, bytes]:
    source = clip.fetch() if clip.fetch else clip.name
    content = Path(source).read_bytes() if isinstance(source, str) else source
    suffix = next((_MAGIC[m] for m in _MAGIC if isinstance(content, bytes) and content.startswith(m)), "")
    if suffix and isinstance(content, bytes) and not clip.begin and clip.end is None:
        return suffix, content
    made = io.BytesIO()
    stream = audio.WavStream(made, rate)
    stream.write(clip.wav(rate))
    stream.close()
    return ".wav", made.getvalue()
