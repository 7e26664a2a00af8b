"""Hugging Face datasets as rows: saved folders, Parquet, the hub, and datasets that a program has loaded.

Sound stays as it is stored, since gpa.audio decodes it: neither torchcodec nor ffmpeg is needed. What a row
may hold is in manifest.py; datasets without a number of rows are in stream.py.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpa.data import require_datasets
from gpa.data.column_names import choose
from gpa.data.manifest import Clip, Raw, Source
from gpa.errors import DataError

if TYPE_CHECKING:
    from gpa.audio import AudioLike

logger = logging.getLogger(__name__)

HUB = "hf:"


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def is_parquet(path: Path) -> bool:
    """Whether this is a Parquet file, or a folder that holds some."""
    return path.suffix == ".parquet" if path.is_file() else next(path.rglob("*.parquet"), None) is not None


def load(source: str, splits: Sequence[str] = (), *, streaming: bool = False) -> Any:
    """`hf:NAME[:CONFIG]`, a folder of `save_to_disk`, or Parquet as `datasets` gives it; {split: dataset} if
    `splits` are named.

    DataError, with the reason, for what cannot be loaded; without network that is all that was never loaded.
    """
    datasets = require_datasets()
    try:
        if is_saved(Path(source)):
            return datasets.load_from_disk(source)
        what: dict[str, Any] = {"path": source}
        if source.startswith(HUB):
            name, _, config = source.removeprefix(HUB).partition(":")
            what = {"path": name, "name": config or None}
        elif Path(source).is_file():
            what = {"path": "parquet", "data_files": source}
        if not splits:
            return datasets.load_dataset(**what, streaming=streaming)
        return {split: datasets.load_dataset(**what, split=split, streaming=streaming) for split in splits}
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(f"{error} {error.__cause__ or ''}".split())
        raise DataError(
            f"{source}: cannot be loaded ({reason:.400}). A dataset of the hub is written "
            "hf:owner/name[:config]; without network only one that was loaded before can be read, or a folder"
        ) from error


def parts(data: Any, name: str, splits: Sequence[str] = ()) -> dict[str, Any]:
    """{split: dataset} of one dataset or several, those of `splits` if some are named; no sound is decoded.

    DataError for a split that is not there, with those that are.
    """
    found = dict(data) if isinstance(data, dict) else {str(getattr(data, "split", None) or "train"): data}
    wrong = [split for split in splits if split not in found]
    if wrong:
        raise DataError(f"{name}: no split {wrong[0]!r}; it has {', '.join(found)}")
    return {split: _undecoded(found[split]) for split in splits or found}


def _undecoded(part: Any) -> Any:
    """A dataset of plain Python values whose sound is bytes or a path."""
    if not hasattr(part, "with_format"):  # any other iterable of rows
        return part
    part, datasets = part.with_format(None), require_datasets()
    features = part.features or {}
    kept = datasets.Audio(decode=False)
    if "__key__" in features:  # a stream of tar shards is not encoded yet; Audio would ask torchcodec to
        kept = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    for column, feature in features.items():
        if type(feature).__name__ == "Audio":
            part = part.cast_column(column, kept)
    return part


def labels(row: Mapping[str, Any], used: Mapping[str, str], split: str, number: int) -> dict[str, Any]:
    """What a row says beside its sound, as text or None under our keys; without an id, its place is one."""
    said = {key: row.get(column) for key, column in used.items() if key != "audio"}
    said = {key: value if value is None else str(value) for key, value in said.items()}
    split = split.partition("[")[0]  # of a slice such as train[:1000]
    return {"id": f"{split}-{number}", "split": split, **said}


def sound(cell: Any, folder: Path | None = None) -> AudioLike:
    """What `gpa.audio.load` takes, of a cell that is not decoded: bytes, a path, or an array and its rate.

    A path that leads nowhere from the working folder is looked for in `folder`. Anything else becomes no
    bytes at all, which the doctor calls unreadable.
    """
    if isinstance(cell, Mapping):
        if cell.get("array") is not None and cell.get("sampling_rate"):
            return np.asarray(cell["array"], np.float32), int(cell["sampling_rate"])
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str) and folder is not None and not Path(cell).exists():
        return str(folder / cell)
    return cell if isinstance(cell, (str, bytes)) else b""


def from_dataset(
    data: Any, name: str, columns: Mapping[str, str], splits: Sequence[str] = (), folder: Path | None = None
) -> Source:
    """The rows of a Dataset, or of the splits of a DatasetDict one after another; sound is read when used."""
    tables, places, digest = {}, [], hashlib.sha256()
    for split, part in parts(data, name, splits).items():
        used = choose(part.column_names, name, columns)
        said = part.select_columns([column for key, column in used.items() if key != "audio"])
        tables[split] = part.select_columns([used["audio"]]), said, used
        places += [(split, i) for i in range(len(part))]
        digest.update(f"{split} {len(part)} {part._fingerprint} {sorted(used.items())}\n".encode())

    def raw(begin: int, end: int) -> Iterator[Raw]:
        for split, i in places[begin:end]:
            sounds, said, used = tables[split]
            row = labels(said[i] if said.column_names else {}, used, split, i)
            where, column = f"{name}[{split}]:{i}", used["audio"]
            clip = Clip(where, fetch=lambda s=sounds, i=i, c=column: sound(s[i][c], folder))  # type: ignore[misc]
            yield Raw(where, {**row, "path": clip})

    return Source(name, digest.hexdigest(), len(places), raw, lambda path, _: path)


def is_stream(source: Any) -> bool:
    """Whether a source gives rows, but neither their number nor the n-th of them."""
    if isinstance(source, Mapping):
        return any(is_stream(part) for part in source.values())
    numbered = (str, Path, require_datasets().Dataset)
    return isinstance(source, Iterable) and not isinstance(source, numbered)
