"""WebDataset tar shards as a stream of rows: files `KEY.wav` and `KEY.txt` or `KEY.json` that stand together.

One sample is in memory at a time. The layout is that of
https://github.com/webdataset/webdataset (section "WebDataset format"): what is before the first dot of a
file's name is the key, files of one key follow each other. What a row may hold is in manifest.py.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpa.data.audio_folder import is_audio, split_of
from gpa.data.column_names import NAMES
from gpa.errors import DataError

logger = logging.getLogger(__name__)

SUFFIX = ".tar"
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
