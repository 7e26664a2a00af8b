"""The first ten minutes: README's blocks in reading order, as printed, in an empty folder; each in a process.

Exact wording may differ by a word between processors, as ids are drawn from float32 sums: hence `apart`.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gpa.errors import CheckpointError, DataError
from gpa.text.edit_distance import edits, words

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
NEEDS = {  # of README's recipes, what is missing in an empty folder
    "own": "tok",
    "adapter": "tok",
    "codec": "runs/features",
    "codec_refiner": "runs/codec/export",
    "ctc": "runs/features",
    "mini": "runs/segments",
}


class Newcomer:
    """An empty folder with `gpa` and `python` on the path, without network."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "empty"
        self.folder.mkdir()
        commands = folder / "bin"
        commands.mkdir()
        for name, module in (("gpa", "-m gpa"), ("python", "")):
            (commands / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n')
            (commands / name).chmod(0o755)
        path = f"{commands}{os.pathsep}{os.environ.get('PATH', '')}"
        self.env = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}

    def __call__(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command, and find no traceback, whatever it returns."""
        done = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def block(self, language: str, source: str) -> subprocess.CompletedProcess[str]:
        """Run a block of the README, which ends well and warns of nothing."""
        done = self("sh", "-ec", source) if language == "bash" else self("python", "-c", source)
        assert done.returncode == 0, f"{source}\n{done.stdout}\n{done.stderr}"
        assert "gpa: warning" not in done.stderr and "AudioWarning" not in done.stderr, done.stderr
        return done


def blocks() -> list[tuple[str, str]]:
    """(language, source) of README's blocks that use the package, in reading order."""
    found = re.findall(r"^```(bash|python)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [(language, source) for language, source in found if "make " not in source]


def apart(text: str, other: str) -> int:
    """By how many words two sentences differ, case and punctuation aside."""
    return edits(words(text), words(other))


@pytest.mark.skipif(not (ROOT / "gpa/assets/gpa-mini").is_dir(), reason="the shipped model is not here")
def test_readme_as_printed(tmp_path: Path) -> None:
    user = Newcomer(tmp_path)
    (shell, five), (_, more), (language, snippet) = blocks()
    assert (shell, language) == ("bash", "python")
    first = user.block(shell, five)
    spoken = re.search(r'gpa tts "(.+?)"', five)
    wav, heard, voice, converted, asked = first.stdout.splitlines()
    assert spoken and apart(heard, spoken[1]) <= 1, heard
    assert [wav, voice, converted, asked] == re.findall(r" -o (\S+)", five)
    assert [line for line in first.stderr.splitlines() if line.startswith("gpa: mode codec: ")]
    assert "No problems found." in user.block(shell, more).stdout
    said = re.search(r'model.tts\("(.+?)"', snippet)
    answered = user.block(language, snippet).stdout.strip()
    assert said and apart(answered, said[1]) <= 1, answered


def recipes() -> list[str]:
    """Commands of README's table whose recipe is here."""
    found = re.findall(r"^\| `(gpa train recipes/\S+.*?)` \|", README, re.MULTILINE)
    return [command for command in found if (ROOT / command.split()[2]).is_file()]


@pytest.mark.parametrize("command", recipes())
def test_a_recipe_without_its_data_says_what_it_needs(command: str, tmp_path: Path) -> None:
    user = Newcomer(tmp_path)
    for name in ("recipes", "gpa"):  # of the clone, where README's commands are typed
        (user.folder / name).symlink_to(ROOT / name)
    done = user(*shlex.split(command))
    assert done.returncode in (CheckpointError.exit_code, DataError.exit_code), done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("gpa: ")]
    assert line.startswith("gpa: error: ") and NEEDS[Path(command.split()[2]).stem] in line


def test_the_table_names_recipes() -> None:
    assert len(recipes()) >= 4
