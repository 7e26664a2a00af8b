"""Programs of others that speak or code sound, run one item at a time."""

from __future__ import annotations

import subprocess

from gpa.errors import GenerationError

TIMEOUT = 120  # seconds that a program may take for one item


def call(*command: str) -> None:
    """Run a program; GenerationError with its last words where it fails or takes too long."""
    try:
        found = subprocess.run(command, capture_output=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GenerationError(f"{command[0]}: {error}") from error
    if found.returncode:
        words = found.stderr.decode(errors="replace").strip()[-200:]
        raise GenerationError(f"{command[0]} exited with {found.returncode}: {words}")
