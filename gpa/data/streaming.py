"""Rows without a number become a table on disk, once: what `prepare` reads twice has to stand still.

A stream is an `IterableDataset`, a dictionary of them, or any iterable of mappings. Its rows are written in
parts that appear whole, a few rows in memory at a time; a killed run goes on after the last part. The folder
that results is one of `save_to_disk`, with our own column names.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpa import audio, disk
from gpa.data import huggingface, require_datasets, token_folder
from gpa.data.column_names import NAMES, choose
from gpa.errors import DataError

STATE = "state.json"  # appears last
BATCH = 16  # rows in memory


def write(
    stream: Any, folder: Path, columns: Mapping[str, str], splits: Sequence[str] = (), part_rows: int = 1000
) -> None:
    """Write a stream's rows to `folder`, or those that are missing there; the first row names the columns.

    DataError for a stream without rows, or one that does not begin as the one that `folder` was written from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = _rows(huggingface.parts(stream, "stream", splits), columns)
    done = next(n for n in itertools.count() if not _part(folder, n).is_file())
    if done:
        _check_same(next(rows, None), _part(folder, 0))
        written = sum(len(_read(_part(folder, n))) for n in range(done))
        rows = itertools.islice(rows, written - 1, None)
    if (folder / STATE).is_file():
        return
    for n in itertools.count(done):
        first = next(rows, None)
        if first is None:
            break
        part = itertools.chain([first], itertools.islice(rows, part_rows - 1))
        token_folder.write_arrow(_part(folder, n), map(_stored, part), _types(), folder, BATCH)
    _finish(folder)


def _part(folder: Path, number: int) -> Path:
    return folder / f"data-{number:05d}.arrow"


def _read(part: Path) -> Any:
    return require_datasets().Dataset.from_file(str(part))


def _types() -> dict[str, Any]:
    datasets = require_datasets()
    text = datasets.Value("string")
    return {key: datasets.Audio(decode=False) if key == "audio" else text for key in NAMES}


def _rows(parts: Mapping[str, Any], columns: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Rows of all splits, under our keys; sound as it came."""
    for split, part in parts.items():
        used: dict[str, str] = {}
        for number, row in enumerate(part):
            used = used or choose(row, "stream", columns)
            yield {**huggingface.labels(row, used, split, number), "audio": row.get(used["audio"])}


def _stored(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as it is written: sound as encoded bytes, or the path of a file here."""
    found = huggingface.sound(row["audio"])
    if isinstance(found, tuple):
        found = audio.to_bytes(*found)
    elif isinstance(found, str) and "://" in found:  # inside an archive, or on the hub
        from datasets.utils.file_utils import xopen

        with xopen(found, "rb") as remote:
            found = remote.read()
    held = {"bytes": found, "path": None} if isinstance(found, bytes) else {"bytes": None, "path": found}
    return {**dict.fromkeys(NAMES), **row, "audio": held}


def _check_same(row: Mapping[str, Any] | None, part: Path) -> None:
    if row is None or _stored(row) != _read(part)[0]:
        raise DataError(
            f"{part.parent}: holds rows of another stream: give another folder, or remove this one first"
        )


def _finish(folder: Path) -> None:
    """Write what makes the parts a folder of `save_to_disk`; its fingerprint is of the rows alone."""
    paths = sorted(folder.glob("data-*.arrow"))
    if not paths:
        raise DataError("the stream has no rows")
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    datasets = require_datasets()
    datasets.DatasetInfo(features=datasets.Features(_types())).write_to_directory(str(folder))
    state = {"_data_files": [{"filename": path.name} for path in paths], "_fingerprint": digest.hexdigest()}
    rest: dict[str, Any] = {
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_split": None,
    }
    disk.write_text(folder / STATE, json.dumps({**state, **rest, "_output_all_columns": False}) + "\n")
