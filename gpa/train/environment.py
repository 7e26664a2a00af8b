"""What a run ran on: code, libraries, machine and data, kept in RUN/environment.json, one entry per start."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from gpa import disk
from gpa.errors import CheckpointError

LIBRARIES = ("gpa-audio", "torch", "transformers", "deepspeed", "accelerate", "numpy")
EDGE = 1 << 20  # of a large file the first and last MiB are hashed, with its size: terabytes stay cheap


def record(run: Path, step: int, facts: dict[str, Any]) -> None:
    """Add this start, at `step`, to RUN/environment.json: `facts` of the caller, versions, commit, host."""
    starts = _starts(run)
    versions = {name: version for name in LIBRARIES if (version := _version(name))}
    machine = {"host": platform.node(), "platform": platform.platform(), "python": platform.python_version()}
    starts.append({"step": step, **facts, "commit": _commit(), "versions": versions, **machine})
    disk.write_text(run / "environment.json", json.dumps(starts, indent=1) + "\n")


def check_data(run: Path, data: dict[str, str]) -> None:
    """CheckpointError where a run that has checkpoints began with other content of a file or folder."""
    seen = [start["data"] for start in _starts(run) if isinstance(start, dict) and start.get("data")]
    if changed := sorted(key for key, found in data.items() if seen and seen[-1].get(key, found) != found):
        names = ", ".join(f"data.{key}" for key in changed)
        raise CheckpointError(
            f"{run}: its checkpoints were trained on other content of {names}: bring it back, or give a new "
            "--run (init=RUN/export starts from what was learnt)"
        )


def _starts(run: Path) -> list[Any]:
    path = run / "environment.json"
    try:
        starts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    except (ValueError, RecursionError):
        starts = None
    if not isinstance(starts, list):
        raise CheckpointError(f"{path}: damaged; it tells of earlier starts: bring it back, or delete it")
    return starts


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    """Commit of the checkout this code is in, with `+` if files differ from it; empty outside a checkout."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--abbrev=40"]
    try:
        done = subprocess.run([*command, "--dirty=+"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):  # no git, or a very slow disk: not worth a run
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def fingerprint(section: Any) -> dict[str, str]:
    """Hash of every file or folder that a recipe section names, by key."""
    values = vars(section) if hasattr(section, "__dict__") else {}
    named = {key: Path(value) for key, value in values.items() if isinstance(value, str) and value}
    return {key: _hash(path) for key, path in named.items() if path.exists()}


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    inside = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    files = inside if path.is_dir() else [path]
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path)}\0{size}\0".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(EDGE))
            if size > EDGE:
                stream.seek(max(EDGE, size - EDGE))
                digest.update(stream.read())
    return digest.hexdigest()
