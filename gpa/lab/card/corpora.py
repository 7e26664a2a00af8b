"""Manifest -> what the data is: clips, hours, speakers, licences, how much is synthetic, what is held out.

Only the manifest is read, no sound. What a row does not state is counted as not stated.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpa.errors import UsageError
from gpa.evals.items import Row, data_hash, is_training, text_key
from gpa.lab.card.tables import hours, read_text, sha256, table

UNSTATED = "not stated"
RULE = "A clip counts as synthetic where its split, corpus or licence says so."


@dataclass(frozen=True)
class Manifest:
    """Rows of a manifest; `data_sha256` also covers the sentence lists beside it, as reports state it."""

    file: str
    sha256: str
    data_sha256: str | None
    rows: Sequence[Row]

    @property
    def training(self) -> list[Row]:
        """Rows of splits that train."""
        return [row for row in self.rows if is_training(row)]


def read_manifests(paths: Sequence[Path]) -> Manifest:
    """Several manifests as one: the first one's hash of data, the rows, names and hashes of all."""
    first, *others = [read_manifest(path) for path in paths]
    every = [first, *others]
    rows = [row for each in every for row in each.rows]
    return Manifest(
        ", ".join(each.file for each in every),
        ", ".join(each.sha256 for each in every),
        first.data_sha256,
        rows,
    )


def read_manifest(path: Path) -> Manifest:
    """Read a JSONL manifest; UsageError naming the line that does not fit."""
    rows = []
    for number, line in enumerate(read_text(path, "a manifest (JSON lines)").splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{path}:{number}: not JSON ({error})") from error
        if not isinstance(row, dict) or "id" not in row or "split" not in row:
            raise UsageError(f"{path}:{number}: a row with id and split was expected")
        rows.append(row)
    if not rows:
        raise UsageError(f"{path}: no rows in it")
    root = path.resolve().parent.parent
    usual = path.resolve() == root / "speech" / "manifest.jsonl"
    return Manifest(path.name, sha256(path), data_hash(root) if usual else None, rows)


def is_synthetic(row: Row) -> bool:
    """Whether a row says that a machine speaks."""
    return any("synthetic" in str(row.get(key) or "").lower() for key in ("split", "corpus", "licence"))


def seconds(rows: Iterable[Row]) -> float:
    """Stated length of rows together."""
    return float(sum(row.get("duration") or 0 for row in rows))


def groups(rows: Iterable[Row], *keys: str) -> dict[tuple[str, ...], list[Row]]:
    """Rows by what they state under some keys, in the order of those."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(str(row.get(key) or UNSTATED) for key in keys), []).append(row)
    return dict(sorted(found.items()))


def share(part: Iterable[Row], whole: Iterable[Row]) -> str:
    """Share of the hours in percent."""
    total = seconds(whole)
    return f"{100 * seconds(part) / total:.1f} %" if total else UNSTATED


def synthetic_share(manifest: Manifest) -> str:
    """One sentence: how much of what was trained on is synthetic."""
    made = [row for row in manifest.training if is_synthetic(row)]
    return (
        f"Trained on: {len(manifest.training)} clips, {hours(seconds(manifest.training))} hours, of which "
        f"synthetic {hours(seconds(made))} hours ({share(made, manifest.training)}). {RULE}"
    )


def overview(manifest: Manifest) -> str:
    """A line for every corpus and split."""
    rows = [
        [*key, *_counts(found), _synthetic(found)]
        for key, found in groups(manifest.rows, "corpus", "split", "licence").items()
    ]
    head = ("corpus", "split", "licence", "clips", "hours", "speakers", "synthetic")
    return table(head, rows)


def _counts(rows: Sequence[Row]) -> list[object]:
    speakers = {row["speaker"] for row in rows if row.get("speaker")}
    return [len(rows), hours(seconds(rows)), len(speakers) or UNSTATED]


def _synthetic(rows: Sequence[Row]) -> str:
    made = sum(map(is_synthetic, rows))
    return "yes" if made == len(rows) else "no" if not made else f"{made} clips"


def by(manifest: Manifest, key: str) -> str:
    """What was trained on, by what rows state under one key."""
    rows = [
        [name, *_counts(found), share(found, manifest.training)]
        for (name,), found in groups(manifest.training, key).items()
    ]
    return table((key, "clips", "hours", "speakers", "share of hours"), rows)


def clips(manifest: Manifest) -> str:
    """Lengths, rates and texts of the clips of every corpus."""
    rows = [[key[0], *_lengths(found), _rates(found), *_texts(found)]
            for key, found in groups(manifest.rows, "corpus").items()]  # fmt: skip
    head = (
        "corpus",
        "shortest, s",
        "median, s",
        "longest, s",
        "Hz",
        "with text",
        "machine transcript",
        "neither",
    )
    return table(head, rows)


def _lengths(rows: Sequence[Row]) -> list[str]:
    found = [float(row["duration"]) for row in rows if row.get("duration")]
    measures: tuple[Callable[[list[float]], float], ...] = (min, statistics.median, max)
    return [f"{measure(found):.1f}" if found else UNSTATED for measure in measures]


def _rates(rows: Sequence[Row]) -> str:
    return (
        ", ".join(str(rate) for rate in sorted({row["orig_sr"] for row in rows if row.get("orig_sr")}))
        or UNSTATED
    )


def _texts(rows: Sequence[Row]) -> list[int]:
    own = sum(bool(row.get("text")) for row in rows)
    machine = sum(not row.get("text") and _transcribed(row) for row in rows)
    return [own, machine, len(rows) - own - machine]


def _transcribed(row: Row) -> bool:
    return any(value for key, value in row.items() if key.startswith("text_"))


def held_out(manifest: Manifest) -> str:
    """Of every split that does not train: what of it training knows."""
    speakers = {row.get("speaker") for row in manifest.training}
    texts = {text_key(str(row["text"])) for row in manifest.training if row.get("text")}
    ids = {row["id"] for row in manifest.training}
    rows = []
    for (split,), found in groups((r for r in manifest.rows if not is_training(r)), "split").items():
        theirs = {row.get("speaker") for row in found}
        read = [row for row in found if row.get("text") and text_key(str(row["text"])) in texts]
        same = sum(row["id"] in ids for row in found)
        known = f"{len(theirs & speakers)} of {len(theirs)}"
        rows.append([split, len(found), hours(seconds(found)), known, len(read), same])
    if not rows:
        return "No split is held out."
    head = (
        "split",
        "clips",
        "hours",
        "speakers also trained on",
        "texts also trained on",
        "clips also trained on",
    )
    return table(head, rows)


def unstated(manifest: Manifest) -> str:
    """How many rows lack what a data card needs."""
    lacking: list[tuple[str, Any]] = [
        (key, sum(not row.get(key) for row in manifest.rows))
        for key in ("duration", "licence", "speaker", "corpus")
    ]
    said = ", ".join(f"{key} of {count} clips" for key, count in lacking if count)
    return (
        f"Not stated in the manifest: {said}."
        if said
        else "Every clip states length, licence, speaker and corpus."
    )
