"""`gpa doctor`: every probe really runs, and a broken part becomes a line with its remedy."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpa import audio
from gpa.cli import doctor
from gpa.cli.doctor import Check


@pytest.fixture(scope="module")
def checks() -> list[Check]:
    return doctor.diagnose()


def named(checks: list[Check], name: str) -> Check:
    (found,) = [check for check in checks if check.name == name]
    return found


def test_everything_needed_works_on_this_machine(checks: list[Check]) -> None:
    needed = [
        "python",
        *doctor.CORE,
        "cpu",
        "sdpa",
        "batching",
        "wav",
        "flac",
        "ogg",
        "resampling",
        "threads",
        "disk",
    ]
    for name in needed:
        assert named(checks, name).ok is True, named(checks, name)
    assert "float32" in named(checks, "cpu").detail


def test_optional_parts_are_listed_and_never_a_problem(checks: list[Check]) -> None:
    for extra in doctor.EXTRAS:
        check = named(checks, f"[{extra}]")
        assert check.ok in (True, None) and f"gpa-audio[{extra}]" in check.detail + check.fix
    assert named(checks, "ffmpeg").ok in (True, None)


def test_an_extra_that_is_absent_is_one_line_with_what_to_type() -> None:
    (check,) = doctor._extra("serve", ("fastapi", "a_package_that_nobody_has"))
    assert doctor.report([check]).splitlines()[:-1] == [
        "-     [serve]  not installed: pip install 'gpa-audio[serve]' (lacks a_package_that_nobody_has)"
    ]


def test_ffmpeg_is_used_once_and_named_where_it_is_absent_or_broken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (absent,) = doctor._ffmpeg()
    assert absent.ok is None and "m4a" in absent.detail and "install ffmpeg" in absent.detail
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\necho ffmpeg version 7.1 Copyright\n")
    program.chmod(0o755)
    (found,) = doctor._ffmpeg()
    assert found.ok is True and found.detail.startswith(f"7.1 at {program}")
    program.write_text("#!/bin/sh\nexit 127\n")
    (broken,) = doctor._ffmpeg()
    assert broken.ok is False and "127" in broken.detail and broken.fix


def test_extras_are_those_of_the_package(repo: Path) -> None:
    text = (repo / "pyproject.toml").read_text(encoding="utf-8")
    for extra, modules in doctor.EXTRAS.items():
        block = text.split(f"\n{extra} = [")[1].split("]\n")[0].replace("-", "_")
        assert all(module in block for module in modules), extra


def test_an_extra_that_is_there_and_does_not_work_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As a transformers that refuses every published peft: both import, and their use raises."""
    broken = "def inject_adapter_in_model(*a):\n    raise ImportError('needs peft 0.22')\nLoraConfig = dict\n"
    (tmp_path / "peft.py").write_text(broken)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "peft", raising=False)
    check = named(list(doctor._extras()), "[finetune]")
    assert check.ok is False and "needs peft 0.22" in check.detail and check.fix


def test_report_is_plain_text_for_a_bug_report(checks: list[Check]) -> None:
    text = doctor.report(checks)
    assert text.isprintable() or set(text) - {"\n"} == {c for c in text if c.isprintable()}
    assert str(Path.home()) not in text or str(Path.home()) == os.sep
    for check in checks:
        assert check.name in text
    assert text.splitlines()[-1] == "No problems found." or "problem" in text.splitlines()[-1]


def test_problems_come_with_their_remedy() -> None:
    checks = [
        Check("a", True, "fine", "unused"),
        Check("b", False, "broken", "mend it"),
        Check("c", None, "absent"),
    ]
    assert doctor.report(checks).splitlines() == [
        "ok    a  fine",
        "FAIL  b  broken",
        "         -> mend it",
        "-     c  absent",
        "1 problem: b",
    ]
    assert not doctor.healthy(checks) and doctor.healthy(checks[::2])


def test_a_broken_probe_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*arguments: object) -> None:
        raise RuntimeError("driver\nmismatch")

    monkeypatch.setattr(audio, "save", explode)
    (check,) = doctor._guarded("audio files", doctor._audio_files)
    assert check.ok is False and check.detail == "RuntimeError: driver mismatch" and check.fix


def test_a_package_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_lower_bounds", lambda: {"torch": "99.1"})
    check = named(list(doctor._packages()), "torch")
    assert check.ok is False and "99.1 is needed" in check.detail and "torch>=99.1" in check.fix
    assert doctor._numbers("2.13.0+cpu") == (2, 13, 0) and (2, 9) < doctor._numbers("2.13.0")


def test_flash_attention_that_cannot_load_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A wheel built for another torch imports with an undefined symbol: that must be said, not raised."""
    (tmp_path / "flash_attn.py").write_text("raise ImportError('undefined symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    findings: Iterator[Check] = doctor._guarded("flash-attn", doctor._flash)
    (check,) = findings
    assert check.ok is False and "undefined symbol" in check.detail
