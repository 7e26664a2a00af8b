"""Where rows come from: a JSONL manifest, a folder of audio and text, or a Hugging Face dataset.

Each becomes a `Source` of raw rows with our keys, which manifest.py types. Sound is fetched when it is used.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpa.audio import AudioLike
from gpa.data.manifest import Clip, Raw, Source, read_jsonl
from gpa.errors import DataError, MissingExtraError

logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3"}
TEXT_SUFFIXES = (".txt", ".lab")
# The first folder below the source may be the split, as Hugging Face's audio folders have it.
SPLITS = ("train", "dev", "valid", "validation", "eval", "test")
NAMES = {  # what other corpora call our keys
    "audio": ("audio", "path", "file_name"),
    "text": ("text", "sentence", "transcription", "transcript", "normalized_text"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "licence": ("licence", "license"),
    "split": ("split",),
    "id": ("id",),
}


def open_source(source: Any, columns: Mapping[str, str] | None = None) -> Source:
    """The rows of a JSONL file, a folder, a saved dataset, `hf:owner/name[:config]`, or a loaded dataset.

    `columns` names a dataset's columns where they are not called as usual ({"text": "raw_text"}). DataError
    if there is nothing to read.
    """
    if not isinstance(source, (str, Path)):
        return _dataset(source, "dataset", columns)
    name, path = str(source), Path(source)
    if name.startswith("hf:"):
        return _dataset(_from_hub(name), name, columns)
    if columns:
        raise DataError(f"{name}: columns are named for Hugging Face datasets only; rename the keys instead")
    if path.is_dir():
        saved = (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()
        if saved:
            return _dataset(_datasets().load_from_disk(name), name, columns)
        return _listing(path)
    if path.is_file():
        return read_jsonl(path)
    raise DataError(f"{name}: no such manifest or folder; a dataset of the hub is written  hf:owner/name")


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


# Hugging Face datasets --------------------------------------------------------------------------------------


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "train") from error
    return datasets


def _from_hub(name: str) -> Any:
    repository, _, config = name.removeprefix("hf:").partition(":")
    return _datasets().load_dataset(repository, config or None)


def _dataset(data: Any, name: str, columns: Mapping[str, str] | None) -> Source:
    """A Dataset, or the splits of a DatasetDict one after another; sound is fetched when it is needed."""
    splits = dict(data) if isinstance(data, dict) else {str(data.split or "train"): data}
    parts, places, digest = {}, [], hashlib.sha256()
    for split, part in splits.items():
        used = _columns(part, name, columns or {})
        if type(part.features[used["audio"]]).__name__ == "Audio":  # decoding is ours: no further package
            part = part.cast_column(used["audio"], _datasets().Audio(decode=False))
        parts[split] = (part, part.select_columns([c for k, c in used.items() if k != "audio"]), used)
        places += [(split, i) for i in range(len(part))]
        digest.update(f"{split} {len(part)} {part._fingerprint}\n".encode())

    def raw(begin: int, end: int) -> Iterator[Raw]:
        for split, i in places[begin:end]:
            part, labels, used = parts[split]
            said = labels[i] if labels.column_names else {}
            row = {key: said[column] for key, column in used.items() if key != "audio"}
            row = {key: value if value is None else str(value) for key, value in row.items()}
            where = f"{name}[{split}]:{i}"
            sound = Clip(where, fetch=lambda p=part, i=i, c=used["audio"]: _sound(p[i][c]))  # type: ignore[misc]
            yield Raw(where, {"id": f"{split}-{i}", "split": split, **row, "path": sound})

    return Source(name, digest.hexdigest(), len(places), raw, lambda path, _: path)


def _columns(part: Any, name: str, given: Mapping[str, str]) -> dict[str, str]:
    """Which column holds what; DataError without audio or with a column that is not there."""
    wrong = [key for key in given if key not in NAMES] + [c for c in given.values() if c not in part.features]
    if wrong:
        raise DataError(f"{name}: {wrong[0]!r} is no column; it has {', '.join(part.column_names)}")
    used = {key: next((c for c in names if c in part.features), "") for key, names in NAMES.items()}
    used = {key: column for key, column in {**used, **given}.items() if column}
    if "audio" not in used:
        raise DataError(f"{name}: no column of audio; it has {', '.join(part.column_names)}")
    spare = sorted(set(part.column_names) - set(used.values()))
    if spare:
        logger.warning("%s: columns that are not used: %s", name, ", ".join(spare))
    return used


def _sound(cell: Any) -> AudioLike:
    """What `gpa.audio.load` takes, from a cell of an audio column that is not decoded."""
    if isinstance(cell, dict) and cell.get("array") is not None:
        import numpy as np

        return np.asarray(cell["array"], np.float32), int(cell["sampling_rate"])
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    return cell or b""
