"""Which suites stand beside each other, which of their items are shown, and what was said and heard.

Items are chosen by hash of seed and id, as everywhere in the evaluation; nobody listened before. An item that
failed is shown as failed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpa.errors import UsageError
from gpa.evals import items, report_file, suites

if TYPE_CHECKING:
    from gpa.evals.report import Item

RECORDINGS = "floor"  # the suite of the recordings themselves: a reference, nothing that was made


@dataclass(frozen=True)
class Group:
    """One task: our suite, and the chosen items of it and of its peers, in one order."""

    suite: str
    shown: dict[str, list[Item]]

    @property
    def ids(self) -> list[str]:
        """Names of the items."""
        return [item.id for item in self.shown[self.suite]]


def groups(
    folder: Path, report: Mapping[str, Any], k: int, seed: int, without: Sequence[str] = ()
) -> list[Group]:
    """Every task of a report, a suite of ours with its peers, with k of its items; `without` are left out.

    UsageError where the folder's items are not those of the report.
    """
    if strange := sorted(set(without) - set(report["items"])):
        raise UsageError(f"--without {strange[0]}: the report has {', '.join(report['items'])}")
    known = _items(folder, report)
    there = [name for name in known if name != RECORDINGS and name not in without]
    peers = {a: [b for first, b in suites.PEERS if first == a and b in there] for a in there}
    taken = {b for found in peers.values() for b in found}
    ours = [name for name in there if name in suites.MINI and name not in taken]
    if not ours:
        raise UsageError(f"{folder}: the report has no suite of ours to show; run gpa eval with a model")
    return [_group({suite: known[suite] for suite in (name, *peers[name])}, k, seed) for name in ours]


def _group(found: Mapping[str, Mapping[str, Item]], k: int, seed: int) -> Group:
    common = set.intersection(*(set(known) for known in found.values()))
    ids = items.pick(sorted(common), k, seed, str)
    if not ids:
        raise UsageError(f"{', '.join(found)} have no item in common")
    return Group(next(iter(found)), {suite: [known[i] for i in ids] for suite, known in found.items()})


def _items(folder: Path, report: Mapping[str, Any]) -> dict[str, dict[str, Item]]:
    """{suite: {id: item}} with their texts, of which the report holds hashes only."""
    found: dict[str, dict[str, Item]] = {}
    for suite, rows in report["items"].items():
        known = _read(folder / f"{suite}.jsonl")
        found[suite] = {row["id"]: known[row["id"]] for row in rows if row["id"] in known}
    listed = {suite: list(known.values()) for suite, known in found.items()}
    if report_file.results_digest(report["settings"], listed) != report["results_sha256"]:
        raise UsageError(f"{folder}: its items are not those of its report: measured again since, or edited")
    return found


def _read(path: Path) -> dict[str, Item]:
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give the folder that gpa eval wrote, with report.json in it")
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {row["id"]: report_file.item_of(row) for row in rows}
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{path}: not items of this version of gpa eval ({error}); measure again") from error


# Recordings -------------------------------------------------------------------------------------------------


def recordings(group: Group, item: Item) -> dict[str, str]:
    """{what it is to the item: id of the clip}; nothing where a text was spoken in a shipped voice."""
    if "target" in item.labels:
        source, _, target = item.id.partition(">")
        return {"recording": source, "voice to take": target}
    if "corpus" in item.labels:
        return {"recording": item.id}
    if group.suite == "tts-clip":
        return {"voice to take": item.labels["voice"]}
    return {}


def name_of(suite: str, key: str) -> str:
    """A short file name of its own for every suite and id."""
    plain = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in key)[:60]
    return f"{suite}-{plain}-{hashlib.sha256(key.encode()).hexdigest()[:6]}.ogg"
