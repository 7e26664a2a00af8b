"""Importing is cheap: no torch, no network, a fraction of a second."""

import json
import subprocess
import sys

import pytest

LIGHT = [
    "gpa",
    "gpa.errors",
    "gpa.config",
    "gpa.audio",
    "gpa.text.tokenizer",
    "gpa.prompt.vocab",
    "gpa.hub",
    "gpa.prompt.formats",
]
PROBE = """
import json, sys, time, importlib
before = time.perf_counter()
importlib.import_module(sys.argv[1])
seconds = time.perf_counter() - before
print(json.dumps([seconds, [m for m in ("torch", "transformers", "matplotlib") if m in sys.modules]]))
"""


def probe(module: str) -> tuple[float, list[str]]:
    """Import a module in a fresh interpreter; return the seconds it took and the heavy packages it loaded."""
    run = subprocess.run([sys.executable, "-c", PROBE, module], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    seconds, heavy = json.loads(run.stdout)
    return seconds, heavy


def test_import_gpa_is_quick() -> None:
    best = min(probe("gpa")[0] for _ in range(3))  # the best of a few: another process may hold the machine
    assert best < 0.3


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_no_torch(module: str) -> None:
    assert probe(module)[1] == []
