"""The API reference: what users meet has docstrings, and pdoc makes pages of them."""

import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import gpa

ROOT = Path(__file__).resolve().parent.parent


def modules() -> list[str]:
    """Return the modules that `make docs` writes pages of."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.search(r"^API = (.*\\\n)*.*$", makefile, re.MULTILINE)
    assert found
    return [name for name in found[0].replace("\\\n", " ").split()[2:] if "!" not in name]


def undocumented(name: str, thing: Any) -> Iterator[str]:
    """Yield what lacks a docstring: the thing itself, and public methods and properties of a class."""
    doc = inspect.getdoc(thing) or ""
    if not doc or doc.startswith(f"{name}("):  # what a dataclass says of itself
        yield name
    if inspect.isclass(thing):
        for member, value in vars(thing).items():
            function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if member[0] != "_" and inspect.isfunction(function) and not inspect.getdoc(function):
                yield f"{name}.{member}"


def public(module: ModuleType) -> dict[str, Any]:
    """Return a module's public classes and functions; those it fetches when asked too."""
    own = {
        name: value
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__
    }
    if "__getattr__" in own:  # it fetches them when asked
        own = {name: getattr(module, name) for name in module.__all__}
    return {n: v for n, v in own.items() if n[0] != "_" and (inspect.isclass(v) or inspect.isfunction(v))}


@pytest.mark.parametrize("name", modules())
def test_what_is_public_has_a_docstring(name: str) -> None:
    module = importlib.import_module(name)
    things = public(module)
    assert module.__doc__ and things
    assert [lack for key, thing in things.items() for lack in undocumented(key, thing)] == []


def test_a_lack_is_found() -> None:
    class Silent:
        """Says what it is."""

        def speak(self) -> None: ...

        @property
        def loud(self) -> bool: ...

    @dataclass
    class Mute:
        x: int

    assert list(undocumented("Silent", Silent)) == ["Silent.speak", "Silent.loud"]
    assert list(undocumented("Mute", Mute)) == ["Mute"]


def test_pdoc_renders_the_public_names(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pdoc", "gpa", "!gpa.", "gpa.errors", "-o", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    page = (tmp_path / "gpa.html").read_text(encoding="utf-8")
    wanted = [*public(gpa), "GPA.tts", "GPA.asr", "GPA.vc", "GPA.from_pretrained"]
    assert [name for name in wanted if f'id="{name}"' not in page] == []
    assert (tmp_path / "gpa" / "errors.html").is_file() and not (tmp_path / "gpa" / "audio.html").exists()
