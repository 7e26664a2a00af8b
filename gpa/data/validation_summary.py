"""What the doctor's records say together: rejected.jsonl, counts, the table, and whether to refuse.

A record is one row's judgement as a line of JSON. Knows records only, no audio and no model.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpa.data.checks import REASONS
from gpa.data.screening import Judgement, Seen
from gpa.errors import DataError

if TYPE_CHECKING:
    from gpa.data.manifest import ManifestRow

Tally = dict[str, list[float]]  # name -> [rows, seconds]


def record(n: int, row: ManifestRow, found: Judgement) -> dict[str, Any]:
    """The judgement on row `n`; `key` is equal for rows that serve one task with the same sound."""
    return {
        "n": n,
        "id": row.id,
        "where": row.where,
        "path": row.audio.name,
        "split": row.split,
        "speaker": row.speaker,
        "task": row.task,
        "seconds": round(found.parts[0].seconds, 3) if found.parts else 0.0,
        "reason": found.reason,
        "detail": found.detail,
        "allowed": list(found.allowed),
        "key": " ".join([row.task, *(part.digest for part in found.parts)]),
    }


def usable(records: Iterable[Mapping[str, Any]]) -> Iterator[Seen]:
    """What `screen.duplicates` compares: rows without a reason against them."""
    for r in records:
        if not r["reason"]:
            yield Seen(r["n"], r["split"].startswith("train"), r["where"], r["key"])


def rejections(records: Iterable[Mapping[str, Any]], copies: Mapping[int, str]) -> Iterator[str]:
    """Lines of rejected.jsonl in the order of the manifest; `copies` are duplicates to drop."""
    shown = ("id", "where", "path", "split", "speaker", "seconds", "reason", "detail")
    for r in records:
        if r["n"] in copies:
            r = {**r, "reason": "duplicate", "detail": f"the same sound as {copies[r['n']]}"}
        if r["reason"]:
            yield json.dumps({key: r[key] for key in shown}, ensure_ascii=False) + "\n"


def summarise(
    records: Iterable[Mapping[str, Any]], copies: Mapping[int, str], allowed: bool, shard_rows: int
) -> dict[str, Any]:
    """Counts of everything; `copies` are dropped unless they are `allowed`."""
    kept, screened = [0, 0.0], [0, 0.0]
    shards: dict[int, float] = defaultdict(float)
    rejected: Tally = {}
    passed: Tally = {}
    counts: dict[str, Tally] = {"split": {}, "speaker": {}, "task": {}}
    for r in records:
        copied, seconds = r["n"] in copies, r["seconds"]
        _add(screened, seconds)
        for code in [*r["allowed"], *(["duplicate"] if copied and allowed else [])]:
            _add(passed.setdefault(code, [0, 0.0]), seconds)
        reason = r["reason"] or ("duplicate" if copied and not allowed else "")
        shards[r["n"] // shard_rows] += 0.0 if reason else seconds
        if reason:
            _add(rejected.setdefault(reason, [0, 0.0]), seconds)
            continue
        _add(kept, seconds)
        for key, tally in counts.items():
            _add(tally.setdefault(r[key], [0, 0.0]), seconds)
    return {
        "rows": int(kept[0]),
        "seconds": round(kept[1], 3),
        "screened": {"rows": int(screened[0]), "seconds": round(screened[1], 3)},
        "rejected": _shown(rejected),
        "allowed": _shown(passed),
        "counts": {key: _shown(tally) for key, tally in counts.items()},
        "duplicates": [] if allowed else sorted(copies),
        "shard_seconds": [round(shards[k], 3) for k in range(max(shards, default=-1) + 1)],
    }


def _add(tally: list[float], seconds: float) -> None:
    tally[0] += 1
    tally[1] += seconds


def _shown(tally: Tally) -> dict[str, Any]:
    return {name: {"rows": int(n), "hours": round(s / 3600, 4)} for name, (n, s) in sorted(tally.items())}


def table(found: Mapping[str, Any]) -> str:
    """Reason, rows, share and hours, worst first, with what to do about each."""
    rows = found["screened"]["rows"]
    lines = [f"{'':<14}{'rows':>9}{'share':>9}{'hours':>10}"]
    lines.append(_line("kept", found["rows"], rows, found["seconds"] / 3600, ""))
    for code, n in sorted(found["rejected"].items(), key=lambda item: (-item[1]["rows"], item[0])):
        lines.append(
            _line(code, n["rows"], rows, n["hours"], f"{REASONS[code].meaning[:-1]}: {REASONS[code].fix}")
        )
    for code, n in found["allowed"].items():
        lines.append(_line(code, n["rows"], rows, n["hours"], "Kept, as --allow says."))
    return "\n".join(lines)


def _line(name: str, n: int, total: int, hours: float, note: str) -> str:
    return f"{name:<14}{n:>9}{100 * n / max(total, 1):>7.1f} %{hours:>10.2f}  {note}".rstrip()


def refuse(found: Mapping[str, Any], most: float, rejected: Path) -> None:
    """DataError with the table when a larger share than `most` was rejected, or nothing is left."""
    rows = found["screened"]["rows"]
    bad = rows - found["rows"]
    if bad > most * rows or not found["rows"]:
        raise DataError(
            f"{bad} of {rows} rows are rejected, more than the share of {most:g} that --max-rejected allows; "
            f"nothing was encoded. Each with its reason: {rejected}\n{table(found)}"
        )
