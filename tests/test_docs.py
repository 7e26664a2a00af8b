"""What is written is true: links lead somewhere, make targets exist, commands launch modules, not files."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from gpa.cli import main
from headers import commands

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    """Return every Markdown page of the project."""
    folders = (ROOT / name for name in ("docs", "recipes", "tokenizers"))
    return sorted({*ROOT.glob("*.md"), *(page for folder in folders for page in folder.rglob("*.md"))})


def launchers() -> list[Path]:
    """Return every file that may tell somebody what to run."""
    recipes = [path for path in (ROOT / "recipes").rglob("*") if path.suffix in (".yaml", ".sh", ".json")]
    return [*pages(), *recipes, ROOT / "Makefile", ROOT / ".ci" / "run"]


def test_links_lead_somewhere() -> None:
    dead = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages()
        for target in re.findall(r"\]\(([^)#\s]+)", FENCE.sub("", page.read_text(encoding="utf-8")))
        if "://" not in target and not target.startswith("mailto:") and not (page.parent / target).exists()
    ]
    assert dead == []


def test_make_targets_exist_and_explain_themselves() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):.*## \S", makefile, re.MULTILINE))
    assert {"help", "install", "format", "lint", "type", "test", "demo", "smoke", "docs", "clean"} <= targets
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony and set(phony.group(1).split()) == targets
    shell = [block for page in pages() for _, block in FENCE.findall(page.read_text(encoding="utf-8"))]
    named = {
        name for block in shell for name in re.findall(r"^\$? ?make ([a-z][a-z-]*)", block, re.MULTILINE)
    }
    assert named - targets == set()


def test_commands_launch_modules_not_files() -> None:
    """Launching a file puts its folder first on the path, and `tokenizers/` then hides that package."""
    launched = re.compile(r"(?:python3?|accelerate launch|deepspeed|torchrun)\b[^\n|;&]*?\s(gpa/\S+\.py)")
    found = [
        f"{path.relative_to(ROOT)}: {file}"
        for path in launchers()
        for file in launched.findall(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_python_snippets_parse() -> None:
    for page in pages():
        for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
            if language == "python":
                compile(block, f"{page.name} snippet", "exec")


# Snippets and commands -------------------------------------------------------------------------------------


PASSED_ON = ("train", "lab")  # to parsers of their own


def snippets(page: Path) -> list[tuple[str, str]]:
    """Return (language, source) of a page's Python blocks and `gpa` lines, in reading order."""
    found = []
    for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            found.append((language, block))
        elif language == "bash":
            found += [("gpa", line) for line in block.splitlines() if line.startswith("gpa ")]
    return found


def test_readme_shows_all_tasks_in_both_languages() -> None:
    shown = snippets(ROOT / "README.md")
    commands = " ".join(source for language, source in shown if language == "gpa")
    assert all(f"gpa {task} " in commands + " " for task in ("tts", "asr", "vc", "voice", "info", "verify"))
    assert any(language == "python" for language, _ in shown)


def test_readme_names_the_extras() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.search(r"Extras: ([^;]+);", readme)
    assert named and re.findall(r"`([a-z]+)`", named[1]) == re.findall(
        r"^([a-z]+) = \[", section, re.MULTILINE
    )


def test_numbers_of_the_readme_stand_in_the_results() -> None:
    measured = (ROOT / "README.md").read_text(encoding="utf-8").split("## Measured")[1].split("\n## ")[0]
    measured = re.sub(r"\]\([^)]+\)", "]", measured)  # file names hold numbers, too
    results = "".join(
        (ROOT / "recipes" / name / "RESULTS.md").read_text(encoding="utf-8") for name in ("gpa", "speechop")
    )
    numbers = re.findall(r"\d+\.\d+|\d{3,}", measured)
    assert len(numbers) > 20
    assert [
        number for number in numbers if not re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.]*\d)", results)
    ] == []


def test_every_command_shown_is_accepted_by_the_parser() -> None:
    """Recipes and pages name many commands; all must parse, though only the README's are run."""
    lines = [
        line
        for page in pages()
        for language, block in FENCE.findall(page.read_text(encoding="utf-8"))
        if language in ("bash", "")
        for line in block.splitlines()
        if line.startswith("gpa ")
    ]
    for line in lines:
        words = shlex.split(re.split(r" [|<>&]", line)[0], comments=True)[1:]
        _, unknown = main._parser().parse_known_args(words)
        assert not unknown or words[0] in PASSED_ON, f"{line}: {unknown}"


def test_make_lines_of_the_readme_are_targets() -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("no make on this machine")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = [
        line for _, block in FENCE.findall(text) for line in block.splitlines() if line.startswith("make ")
    ]
    assert len(shown) >= 2
    for line in shown:
        words = shlex.split(line, comments=True)[1:]
        run = subprocess.run([make, "--dry-run", *words], cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, f"{line}\n{run.stderr}"


def test_commands_in_recipe_headers_parse() -> None:
    """The comment at the top of each recipe says what to run, and names recipes that exist."""
    for recipe in sorted((ROOT / "recipes").rglob("*.yaml")):
        found = commands(recipe)
        assert found, f"{recipe}: its header lacks the command"
        for command in found:
            named = re.findall(r"recipes/\S+\.yaml", command)
            assert all((ROOT / name).is_file() for name in named), command
