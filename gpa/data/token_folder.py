"""The prepared folder: Arrow shards of ids and lengths, read memory-mapped, and what they were made with.

    data-00000-of-00012.arrow ...   rows (COLUMNS, and some of OPTIONAL)
    tokenizer.json ...              the model's own     prepared.json    counts, limits, fingerprints
                                                        rejected.jsonl   every dropped row with its reason

Whoever trains from it needs neither audio nor codec. Knows ids and files, no waveform.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gpa import disk, hub
from gpa.data import require_datasets
from gpa.errors import CheckpointError
from gpa.prompt.vocab import Vocab

PREPARED, REJECTED = "prepared.json", "rejected.jsonl"
KIND, VERSION = "gpa-tokens", 1
COMMAND = "gpa prepare MANIFEST -o"
COLUMNS = {  # name -> type; a list holds codes, not ids: offsets are the vocabulary's business
    "id": "string",
    "task": "string",  # "" serves any task it can
    "split": "string",
    "speaker": "string",
    "text": "string",  # as the model's format reads it
    "semantic": ["int32"],  # (T,) of the clip
    "glm": ["int32"],  # linguistic codes, for models that use them
    "global": ["int32"],  # (G,) of the reference voice, else of the clip
    "target": ["int32"],  # semantic codes of the converted recording, empty without one
    "seconds": "float32",
    "licence": "string",
    "length": "int32",  # ids of the longest sequence the row makes, whatever its wording of the instruction
}
OPTIONAL = {  # columns that a folder may have
    "letters": ["int32"],  # first frame of each letter of `alignment.letters_of(text)`; empty: not known
    "silence": ["int32"],  # [first, last) id of the clip's longest silence; empty: none
    "copies": [["int32"]],  # semantic codes (T,) of the clip in other voices, in noise and in rooms
}
BLANK = {"task": "", "speaker": "", "glm": (), "target": (), "licence": "", **dict.fromkeys(OPTIONAL, ())}
LASTING = ("kind", "version", "gpa", "model", "format", "context", "codec", "vocabulary", "fingerprints")


def shard_name(number: int, count: int) -> str:
    """File name of a shard."""
    return f"data-{number:05d}-of-{count:05d}.arrow"


def write_shard(
    path: Path, rows: Iterable[Mapping[str, Any]], scratch: Path, optional: Sequence[str] = ()
) -> None:
    """Write rows of COLUMNS, and of those `optional` ones, as one Arrow file, whole or not at all; equal rows
    give equal bytes.
    """
    value = require_datasets().Value

    def typed(kind: Any) -> Any:
        return [typed(kind[0])] if isinstance(kind, list) else value(kind)

    kinds = {**COLUMNS, **{name: OPTIONAL[name] for name in optional}}
    write_arrow(path, rows, {name: typed(kind) for name, kind in kinds.items()}, scratch)


def write_arrow(
    path: Path,
    rows: Iterable[Mapping[str, Any]],
    types: Mapping[str, Any],
    scratch: Path,
    batch: int | None = None,
) -> None:
    """Write rows of `types` as one Arrow file, `batch` rows in memory, whole or not at all."""
    datasets = require_datasets()
    from datasets.arrow_writer import ArrowWriter

    temporary = scratch / f"{path.name}.{uuid.uuid4().hex}.tmp"
    options = {"path": str(temporary), "features": datasets.Features(types), "writer_batch_size": batch}
    try:
        with disk.room(path), ArrowWriter(**options) as writer:
            for row in rows:
                writer.write({name: row[name] for name in types})
            writer.finalize()
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class TokenSet(Sequence[dict[str, Any]]):
    """A prepared folder: `data` is a memory-mapped `datasets.Dataset`, `about` is prepared.json."""

    folder: Path
    about: Mapping[str, Any]
    data: Any
    shards: tuple[tuple[int, int], ...]  # first row of each Arrow file, and the first behind it

    @classmethod
    def open(cls, folder: str | os.PathLike) -> TokenSet:
        """Read what `gpa prepare` wrote; CheckpointError for a folder that is not, or not yet, prepared."""
        folder = Path(folder)
        about = read_about(folder)
        datasets = require_datasets()
        paths = [folder / shard_name(n, about["shards"]) for n in range(about["shards"])]
        absent = [path.name for path in paths if not path.is_file()]
        if absent:
            raise CheckpointError(f"{folder}: {absent[0]} is missing; prepare it again:  {COMMAND} {folder}")
        parts = [datasets.table.MemoryMappedTable.from_file(str(path)) for path in paths]
        full = [part for part in parts if len(part)] or parts[:1]
        data = datasets.Dataset(datasets.table.concat_tables(full))  # one: each hashes all that it is made of
        if len(data) != about["rows"]:
            raise CheckpointError(
                f"{folder}: {len(data)} rows, {PREPARED} says {about['rows']}: prepare it again"
            )
        ends = np.cumsum([0, *map(len, parts)]).tolist()
        return cls(folder, about, data, tuple(zip(ends, ends[1:], strict=False)))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: Any) -> Any:
        return self.row(i)

    def training(self, first: int = 0, end: int | None = None) -> np.ndarray:
        """Numbers of the rows of training splits, from row `first` up to `end`."""
        import pyarrow.compute as pc

        names = self.data.data.column("split").slice(first, None if end is None else end - first)
        return first + np.flatnonzero(pc.starts_with(names, "train").to_numpy())

    def held_out(self) -> np.ndarray:
        """Numbers of the rows of the split dev that have a text."""
        import pyarrow.compute as pc

        column = self.data.data.column
        found = pc.and_(pc.equal(column("split"), "dev"), pc.not_equal(column("text"), ""))
        return np.flatnonzero(found.to_numpy())

    @cached_property
    def lengths(self) -> np.ndarray:
        """Longest sequence of every row, (rows,) int32."""
        return self.column("length")

    def column(self, name: str) -> np.ndarray:
        """A whole column of numbers or text as an array (rows,)."""
        return self.data.data.column(name).to_numpy()

    def row(self, i: int) -> dict[str, Any]:
        """Row i: lists as int32 (T,) arrays that lie in the mapped file; IndexError behind the last."""
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        table = self._arrow[i]
        return {name: _read(table[name].chunk(0), kind) for name, kind in self._kinds.items()}

    @cached_property
    def _kinds(self) -> dict[str, Any]:
        found = self.data.column_names
        return {name: kind for name, kind in {**COLUMNS, **OPTIONAL}.items() if name in found}

    @cached_property
    def _arrow(self) -> Any:
        return self.data.with_format("arrow")


def _read(cell: Any, kind: Any) -> Any:
    """A cell of an Arrow column."""
    if not isinstance(kind, list):
        return cell[0].as_py()
    flat = cell.flatten()
    return [each.values.to_numpy() for each in flat] if isinstance(kind[0], list) else flat.to_numpy()


def read_about(folder: Path, kind: str = KIND) -> dict[str, Any]:
    """prepared.json; CheckpointError if the folder has none, or one of another kind or version."""
    path = folder / PREPARED
    if not path.is_file():
        raise CheckpointError(f"{folder}: not prepared, or not to the end; run (again):  {COMMAND} {folder}")
    about = hub.read_json(path)
    if (about.get("kind"), about.get("version")) != (kind, VERSION):
        raise CheckpointError(
            f"{path}: {about.get('kind')} version {about.get('version')!r} cannot be read here"
        )
    return about


def layout(vocab: Vocab) -> dict[str, int | None]:
    """What prepared.json has to say of an id space beside tokenizer.json, which names neither the block of
    linguistic codes nor rows that pad the embedding.
    """
    return {"size": vocab.size, "glm_size": vocab.glm.size if vocab.glm else None}


def read_vocab(folder: Path) -> Vocab:
    """The id space of the model that a folder was prepared for.

    CheckpointError if the tokenizer there is not that of the preparation.
    """
    about = read_about(folder)
    if "vocabulary" not in about:
        return Vocab.from_file(folder)
    vocab = Vocab.from_file(folder, **about["vocabulary"])
    if vocab.fingerprint() != about["fingerprints"]["vocabulary"]:
        raise CheckpointError(
            f"{folder}: tokenizer.json is not the one it was prepared with; prepare it again:  {COMMAND} DIR"
        )
    return vocab


def check_fits(folder: str | os.PathLike, fingerprints: Mapping[str, str]) -> None:
    """CheckpointError unless codec, tokenizer and glm are those the folder was prepared with.

    `fingerprints` are `GPAProcessor.fingerprints()`, or those of the parts that a trainer has; the codec's is
    needed. A vocabulary padded for training does not matter: codes are stored, not ids.
    """
    stored = read_about(Path(folder))["fingerprints"]
    for part in ("codec", "tokenizer", "glm"):
        given = fingerprints.get(part)
        if (part == "codec" or given) and stored.get(part) != given:
            raise CheckpointError(
                f"{folder}: made with another {part} (fingerprint {str(stored.get(part))[:12]}, the model "
                f"has {str(given)[:12]}); prepare it for this model:  {COMMAND} DIR --model MODEL"
            )


def write_json(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a JSON object, whole or not at all."""
    disk.write_text(path, json.dumps(tree, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
