"""The wheel: the package `gpa` alone, with every shipped model in it, usable away from the checkout."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.mark.slow
def test_wheel_holds_the_package_alone_and_all_of_it(repo: Path, tmp_path: Path) -> None:
    pytest.importorskip("setuptools", "77")
    tree = tmp_path / "tree"  # a build leaves its files beside the sources, and stale ones end up in wheels
    shutil.copytree(repo / "gpa", tree / "gpa", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repo / name, tree)
    for folder in ("tokenizers", "recipes"):
        (tree / folder).mkdir()
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        ".",
    ]
    built = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("gpa_audio-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    assert {name.split("/")[0].split("-")[0] for name in names} == {"gpa", "gpa_audio"}
    expected = {path.relative_to(tree).as_posix() for path in (tree / "gpa").rglob("*") if path.is_file()}
    assert expected - names == set()
    code = "import sys; sys.path.insert(0, sys.argv[1]); import gpa.audio; print(gpa.__file__)"
    run = subprocess.run(
        [sys.executable, "-I", "-c", code, str(tmp_path / "site")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.stdout.startswith(str(tmp_path / "site")), run.stderr
