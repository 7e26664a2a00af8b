"""The report as a file: canonical JSON with its own hash inside, and what it says about model and machine.

`sha256` covers everything else in the file, so a report that was edited or cut is refused. `results_sha256`
covers what two runs of one thing must agree in: settings and findings, without times and machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpa import hub
from gpa.disk import write_text
from gpa.errors import UsageError
from gpa.evals.report import Item
from gpa.evals.wer import Edits

KIND, VERSION, FILE = "gpa-eval", 1, "report.json"
_CLOCKS = ("seconds", "cpu_seconds")  # of an item; all else is the same in every run
# code that can move a number
_SOURCES = (
    "*.py",
    *(f"{name}/**/*.py" for name in ("text", "prompt", "codec", "nn", "engine", "models/gpa", "evals")),
)


def canonical(content: Any) -> bytes:
    """JSON with sorted keys and no spaces, UTF-8: equal content, equal bytes."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def digest(content: Any) -> str:
    """SHA-256 (hex) of the canonical form."""
    return hashlib.sha256(canonical(content)).hexdigest()


def results_digest(settings: Mapping[str, Any], found: Mapping[str, Sequence[Item]]) -> str:
    """SHA-256 over settings and items without their times."""
    plain = {suite: [_timeless(item) for item in rows] for suite, rows in found.items()}
    return digest({"settings": dict(settings), "items": plain})


def _timeless(item: Item) -> dict[str, Any]:
    return {key: value for key, value in asdict(item).items() if key not in _CLOCKS}


def write(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write a report with its hash, whole or not at all; returns it as `read` does."""
    body = {"kind": KIND, "version": VERSION, **content}
    sealed = {"sha256": digest(body), **body}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(sealed, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return sealed


def read(path: Path) -> dict[str, Any]:
    """A report, or the one in a folder; UsageError for another file and for one whose hash does not fit."""
    path = path / FILE if path.is_dir() else path
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not a report of gpa eval ({error})") from error
    if not isinstance(found, dict) or found.get("kind") != KIND or found.get("version") != VERSION:
        raise UsageError(f"{path}: not a report of this version of gpa eval; measure again")
    body = {key: value for key, value in found.items() if key != "sha256"}
    if found.get("sha256") != digest(body):
        raise UsageError(
            f"{path}: its content does not fit its hash: it was edited or damaged; measure again"
        )
    return found


def item_of(raw: Mapping[str, Any]) -> Item:
    """The inverse of `asdict`; TypeError where keys are those of another version."""
    edits = ("words", "chars", "floor_words", "phones", "floor_phones", "words_2", "floor_words_2")
    return Item(**{**raw, **{key: Edits(*raw[key]) if raw.get(key) is not None else None for key in edits}})


def compact(item: Item) -> dict[str, Any]:
    """An item for the report: numbers without its texts, which are in the JSONL; `text` stands for them."""
    texts = ("reference", "heard", "floor", "heard_2", "floor_2")
    row = {key: value for key, value in asdict(item).items() if key not in texts}
    text = hashlib.sha256(item.reference.encode()).hexdigest()[:12]
    return {**row, "text": text, "failed": item.heard is None}


# What was measured, and where -------------------------------------------------------------------------------


def folder_hash(path: str | os.PathLike | None) -> str | None:
    """SHA-256 over weights, settings and voices of a local checkpoint; None for anything else."""
    if not path or not Path(path).exists():
        return None
    root = Path(path)
    if root.is_file():
        return hub.fingerprint_files(root)
    return _over_files(root, (p for p in root.rglob("*") if p.suffix in (".safetensors", ".json", ".pt")))


def code_hash() -> str:
    """SHA-256 over the sources that can move a number: those of inference and of the judges."""
    root = Path(__file__).resolve().parent.parent
    return _over_files(root, {path for pattern in _SOURCES for path in root.glob(pattern)})


def _over_files(root: Path, files: Iterable[Path]) -> str:
    found = hashlib.sha256()
    for path in sorted(files):
        found.update(str(path.relative_to(root)).encode() + b"\0")
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def machine() -> dict[str, Any]:
    """Processor, cores, memory (GB), load, system and Python of this machine."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": len(affinity(0)) if affinity else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load": [round(load, 2) for load in os.getloadavg()],
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def peak_memory_mb() -> float:
    """Most memory this process held so far, in MB."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)  # bytes there, KiB on Linux
