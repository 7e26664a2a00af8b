"""Where rows come from: a manifest, a label file, a folder of audio, or a dataset (huggingface.py).

The one way in for `gpa prepare`, `gpa finetune` and the rest: each becomes a `Source` of raw rows with our
keys, which manifest.py types. Which label files of a folder count is decided in label_choice.py.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from gpa import audio
from gpa.data import huggingface, kaldi, label_choice
from gpa.data.audio_folder import OTHER_SUFFIXES, AudioFolder, split_of
from gpa.data.column_names import NAMES
from gpa.data.label_files import read_labels
from gpa.data.manifest import Raw, Source, read_jsonl
from gpa.data.records import Rows
from gpa.errors import AudioError, DataError

logger = logging.getLogger(__name__)


def open_source(source: Any, columns: Mapping[str, str] | None = None, splits: Sequence[str] = ()) -> Source:
    """The rows of a JSONL file, a folder, a saved dataset, Parquet, `hf:owner/name[:config]`, or a dataset.

    `columns` names a dataset's columns where they are not called as usual ({"text": "raw_text"}), `splits`
    chooses some of its splits. DataError if there is nothing to read.
    """
    if not isinstance(source, (str, Path)):
        if huggingface.is_stream(source) or not hasattr(source, "__getitem__"):
            kind = type(source).__name__
            raise DataError(
                f"{kind}: its rows have no numbers; gpa.data.prepare.prepare alone takes a stream"
            )
        return huggingface.from_dataset(source, "dataset", columns or {}, splits)
    name, path = str(source), Path(source)
    if is_dataset(source):
        data = huggingface.load(name, splits)
        folder = None if name.startswith(huggingface.HUB) else path if path.is_dir() else path.parent
        return huggingface.from_dataset(data, name, columns or {}, splits, folder)
    if splits:
        raise DataError(f"{name}: splits are named for datasets only; a manifest has a key for them")
    if path.is_dir():
        return _of_folder(path, columns or {})
    if path.is_file():
        return _of_file(path, columns or {})
    if path.exists():
        raise DataError(f"{name}: is no regular file or folder: write the manifest to a file first")
    raise DataError(f"{name}: no such manifest or folder; a dataset of the hub is written  hf:owner/name")


def is_dataset(source: str | Path) -> bool:
    """Whether `datasets` reads this: hf:NAME, a folder of `save_to_disk`, or Parquet."""
    path = Path(source)
    return (
        str(source).startswith(huggingface.HUB) or huggingface.is_saved(path) or huggingface.is_parquet(path)
    )


# Files and folders ------------------------------------------------------------------------------------------


def _of_file(path: Path, columns: Mapping[str, str]) -> Source:
    """A manifest of ours, or a label file of any layout, whose folder is that of the sound."""
    if path.name in kaldi.SURE:
        return _of_folder(path.parent, columns)
    if _is_manifest(path):
        if columns:
            raise DataError(
                f"{path}: columns and splits are named for datasets and tables only; a manifest has keys"
            )
        return read_jsonl(path)
    files = AudioFolder.read(path.parent)
    return _listing(path.parent, read_labels(path, files, columns))


def _is_manifest(path: Path) -> bool:
    """Whether the first row of JSONL has our keys or GPA's, or no recording, which manifest.py says."""
    with path.open("rb") as file:
        line = next((line for line in file if line.strip()), b"").removeprefix(b"\xef\xbb\xbf").lstrip()
    if line.startswith(b"[") or not line.startswith(b"{") and path.suffix.lower() not in (".jsonl", ".json"):
        return False
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return path.suffix.lower() != ".json"
    if not isinstance(row, dict) or {"task", "ref_audio", "vc_audio"} & set(row):
        return True
    return {"id", "path"} <= set(row) or not set(NAMES["audio"]) & set(row)


def _of_folder(root: Path, columns: Mapping[str, str]) -> Source:
    files = AudioFolder.read(root)
    kaldis = {PurePosixPath(name).parent for name in files.files if PurePosixPath(name).name in kaldi.SURE}
    if kaldis:
        parts = {str(root / here): kaldi.read_kaldi(root / here, root, files) for here in sorted(kaldis)}
    else:
        used = label_choice.choose_labels(files)
        if [path for path in used if _is_manifest(path)]:
            return _of_file(used[0], columns)
        read = {str(path): _labels(path, files, columns) for path in used}
        parts = {path: rows for path, rows in read.items() if rows is not None}
        if len(parts) > 1:
            parts = {path: _with_split(Path(path), rows) for path, rows in parts.items()}
    if columns and not parts:
        raise DataError(f"{root}: holds no table with columns to be named")
    _refuse_overlap(parts)
    if parts:
        rows = [row for part in parts.values() for row in part]
        _tell_unnamed(root, files, rows)
    else:
        rows = [*files.beside()]
    return _listing(root, rows, labelled=bool(parts))


def _labels(path: Path, files: AudioFolder, columns: Mapping[str, str]) -> Rows | None:
    """Rows of a label file; None, with a warning, if it is not read but texts lie beside the sound."""
    try:
        return read_labels(path, files, columns)
    except DataError as error:
        if not files.texts or label_choice.must_be_read(path):
            raise
        logger.warning("%s; the texts beside the recordings count instead", error)
        return None


def _with_split(path: Path, rows: Rows) -> Rows:
    """Rows of one label file of several, which is named after its split."""
    split = split_of(path.stem)
    return [(where, {**row, "split": split or row["split"]}) for where, row in rows]


def _refuse_overlap(parts: Mapping[str, Rows]) -> None:
    """DataError where two label files name the same recording."""
    owner: dict[Any, str] = {}
    for name, rows in parts.items():
        for _, row in rows:
            key = row["path"], row.get("begin_time"), row.get("end_time")
            if owner.setdefault(key, name) != name:
                raise DataError(
                    f"{owner[key]} and {name} both name {row['path']}: "
                    "give the one to be read, or put the other away"
                )


def _tell_unnamed(root: Path, files: AudioFolder, rows: Rows) -> None:
    named = {os.path.normpath(row["path"]) for _, row in rows}
    named |= {os.path.relpath(path, root.absolute()) for path in named if os.path.isabs(path)}
    if unused := sorted(set(files.audio.values()) - named):
        logger.warning("%s: %d audio files are not named in its label files and not used", root, len(unused))


def _tell_unreadable(root: Path, rows: Rows) -> None:
    """Count files of formats that need a converter, unless gpa.audio has one: a file of each is tried."""
    suffixes = Counter(PurePosixPath(row["path"]).suffix.lower() for _, row in rows)
    for suffix in sorted(OTHER_SUFFIXES & set(suffixes)):
        first = next(row["path"] for _, row in rows if row["path"].lower().endswith(suffix))
        try:
            next(audio.blocks(root / first, end=audio.MIN_SECONDS), None)
        except AudioError as error:
            logger.warning("%s: %d %s files cannot be read: %s", root, suffixes[suffix], suffix, error)


def _listing(root: Path, rows: Rows, *, labelled: bool = True) -> Source:
    """Rows in memory as a source, from label files or not; ids are made unique."""
    counts: Counter[str] = Counter()
    found = []
    for where, row in rows:
        counts[row["id"]] += 1
        n = counts[row["id"]]
        found.append((where, row if n == 1 else {**row, "id": f"{row['id']}-{n}"}))
    _tell_unreadable(root, found)
    without = sum(not row["text"] for _, row in found)
    if 0 < without < len(found) or (labelled and without):
        logger.warning("%s: %d of %d rows have no text", root, without, len(found))
    said = json.dumps([row for _, row in found], sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(said.encode("utf-8", "surrogatepass"))
    for _, row in found:
        path = root / row["path"]
        digest.update(str(path.stat().st_size if os.path.isfile(path) else -1).encode())
    return Source(
        str(root),
        digest.hexdigest(),
        len(found),
        lambda begin, end: (Raw(*item) for item in found[begin:end]),
        lambda name, _: str(root / name),
    )
