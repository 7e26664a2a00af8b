"""`gpa lab`: every tool is listed with a sentence and reached by its name, in a process of its own."""

import subprocess
import sys

from gpa.errors import BROKEN_PIPE, UsageError
from gpa.lab.__main__ import TOOLS
from headers import ROOT, run


def lab(*words: str) -> list[str]:
    return [sys.executable, "-m", "gpa", "lab", *words]


def test_the_list_is_whole() -> None:
    here = {path.stem for path in (ROOT / "gpa" / "lab").iterdir() if not path.name.startswith("_")}
    assert here == set(TOOLS)
    shown = run(lab("--help"), ROOT).stdout
    assert all(f"  {name:<20}{about}" in shown for name, about in TOOLS.items())


def test_a_tool_gets_its_own_words() -> None:
    shown = run(lab("merge", "--help"), ROOT).stdout
    assert "usage: gpa lab merge" in shown and "--share" in shown


def test_a_tool_that_there_is_not() -> None:
    done = run(lab("nosuch"), ROOT, fails=True)
    assert done.returncode == UsageError.exit_code and "known: ngram_list" in done.stderr


def test_a_reader_that_has_gone_ends_it_quietly() -> None:
    child = subprocess.Popen(
        lab("--help"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    child.stdout.close()
    _, complaint = child.communicate(timeout=60)
    assert (child.returncode, complaint) == (BROKEN_PIPE, "")
