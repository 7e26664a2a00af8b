"""The commands in the headers of recipes, for tests that run them as a user does."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMAND = re.compile(r"(?:^|: )((?:python -m gpa|gpa |accelerate launch ).*)")
MODULES = {"gpa": ["gpa"], "accelerate": ["accelerate.commands.launch"]}  # of what pip puts on the path
FROM_A_CORPUS = (
    "adapter",
    "encodec",
    "gpa_0_3b",
    "gpa_3b",
    "instruct",
    "own",
)  # recipes that begin with a corpus of the user's


def commands(recipe: Path) -> list[str]:
    """Return the commands of a recipe's header, in order."""
    lines = (line[1:].strip() for line in recipe.read_text(encoding="utf-8").splitlines() if line[:1] == "#")
    return [found[1] for line in lines if (found := COMMAND.search(line))]


def arguments(command: str, words: Mapping[str, str] | None = None, more: tuple[str, ...] = ()) -> list[str]:
    """Return an argument list for a command, its placeholders replaced by `words` and `more` overrides added.

    A launcher is told to start two processes, as its file says for a machine without GPUs.
    """
    name, *rest = [(words or {}).get(word, word) for word in shlex.split(command)]
    for placeholder, value in (words or {}).items():  # also as a value: init=PUBLISHED
        rest = [word.replace(f"={placeholder}", f"={value}") for word in rest]
    if name == "accelerate":
        at = rest.index("--config_file") + 2
        rest = [*rest[1:at], "--num_processes", "2", *rest[at:]]
    module = [rest.pop(1)] if name == "python" else MODULES[name]
    return [sys.executable, "-m", *module, *(rest[1:] if name == "python" else rest), *more]


def run(line: list[str], folder: Path, *, fails: bool = False) -> subprocess.CompletedProcess[str]:
    """Run an argument list in a folder, on one thread a process, without network, and look how it ended."""
    quiet = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, **quiet, "PYTHONPATH": path}
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert (done.returncode != 0) == fails, f"{shlex.join(line)}\n{done.stdout[-2000:]}{done.stderr[-6000:]}"
    return done
