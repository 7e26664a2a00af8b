"""Where rows come from: a JSONL manifest, a folder of audio and text, or a dataset (huggingface.py).

Each becomes a `Source` of raw rows with our keys, which manifest.py types. Sound is fetched when it is used.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpa.data import huggingface
from gpa.data.huggingface import NAMES
from gpa.data.manifest import Raw, Source, read_jsonl
from gpa.errors import DataError

logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3"}
TEXT_SUFFIXES = (".txt", ".lab")
# The first folder below the source may be the split, as Hugging Face's audio folders have it.
SPLITS = ("train", "dev", "valid", "validation", "eval", "test")


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
    if columns or splits:
        raise DataError(
            f"{name}: columns and splits are named for datasets only; a manifest has keys for them"
        )
    if path.is_dir():
        return _listing(path)
    if path.is_file():
        return read_jsonl(path)
    raise DataError(f"{name}: no such manifest or folder; a dataset of the hub is written  hf:owner/name")


def is_dataset(source: str | Path) -> bool:
    """Whether `datasets` reads this: hf:NAME, a folder of `save_to_disk`, or Parquet."""
    path = Path(source)
    return (
        str(source).startswith(huggingface.HUB) or huggingface.is_saved(path) or huggingface.is_parquet(path)
    )


# Folders ----------------------------------------------------------------------------------------------------


def _listing(root: Path) -> Source:
    table = root / "metadata.csv"
    found = _from_table(table) if table.is_file() else _from_files(root)
    said = json.dumps([row for _, row in found], sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(said.encode("utf-8", "surrogatepass"))
    for _, row in found:
        path = root / row["path"]
        digest.update(str(path.stat().st_size if path.is_file() else -1).encode())
    return Source(
        str(root),
        digest.hexdigest(),
        len(found),
        lambda begin, end: (Raw(*item) for item in found[begin:end]),
        lambda name, _: str(root / name),
    )


def _from_files(root: Path) -> list[tuple[str, dict[str, Any]]]:
    """Every audio file with the text of the same stem; the folder is the speaker."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    audio = [path for path in files if path.suffix.lower() in AUDIO_SUFFIXES]
    stems = {path.with_suffix("") for path in audio}
    alone = [path for path in files if path.suffix in TEXT_SUFFIXES and path.with_suffix("") not in stems]
    if alone:
        logger.warning("%s: %d text files without audio are not used, %s first", root, len(alone), alone[0])
    rows = []
    for path in audio:
        inside = path.relative_to(root)
        texts = [path.with_suffix(suffix) for suffix in TEXT_SUFFIXES]
        row = {"id": inside.with_suffix("").as_posix(), "path": inside.as_posix()}
        row["text"] = next((_read_text(text) for text in texts if text.is_file()), "")
        row["split"] = inside.parts[0] if inside.parts[0] in SPLITS and len(inside.parts) > 1 else "train"
        above = inside.parent.name if inside.parent.name not in SPLITS else ""
        rows.append((str(path), {**row, "speaker": above or root.resolve().name}))
    return rows


def _from_table(table: Path) -> list[tuple[str, dict[str, Any]]]:
    """metadata.csv: LJSpeech's `id|text|normalised`, or columns named in the first line with file_name."""
    text = _read_text(table)
    first = text.split("\n", 1)[0]
    if "file_name" in first:
        rows = [(n, _named(row)) for n, row in enumerate(csv.DictReader(text.splitlines()), 2)]
    else:
        rows = [(n, _lj(line, table, n)) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    named = {(table.parent / row["path"]).resolve() for _, row in rows}
    unused = [
        path
        for path in table.parent.rglob("*")
        if path.suffix.lower() in AUDIO_SUFFIXES and path.resolve() not in named
    ]
    if unused:
        logger.warning("%s: %d audio files are not named in it and not used", table, len(unused))
    speaker = table.parent.resolve().name
    return [(f"{table}:{n}", {"speaker": speaker, **row}) for n, row in rows]


def _named(row: Mapping[str, Any]) -> dict[str, Any]:
    ours = {other: key for key, names in NAMES.items() for other in names if other in row}
    renamed = {ours.get(str(key), str(key)): value for key, value in row.items()}
    path = str(renamed.pop("audio"))
    return {"id": Path(path).with_suffix("").as_posix(), **renamed, "path": path}


def _lj(line: str, table: Path, number: int) -> dict[str, Any]:
    name, *texts = line.split("|")
    if not texts:
        raise DataError(f"{table}:{number}: id|text expected, or a first line that names file_name and text")
    places = [Path("wavs") / f"{name}.wav", Path(f"{name}.wav"), Path("wavs") / name, Path(name)]
    path = next((place for place in places if (table.parent / place).is_file()), places[0])
    return {"id": name, "path": path.as_posix(), "text": texts[-1].strip() or texts[0].strip()}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error}); save it again") from error
