"""The page of samples: which items it shows, which recordings it may show, how large it is."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from evaluated import FAILED, ITEMS, LICENCES, noise, write_data, write_evaluation
from gpa import audio
from gpa.errors import UsageError
from gpa.evals import items
from gpa.lab.samples import main, ogg
from gpa.lab.samples.clips import is_free, needs_credit

CREDIT = "Of Acknowledgements.\n"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_evaluation(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("made") / "data")


@pytest.fixture(scope="module")
def page(out: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of all items; read only."""
    folder = tmp_path_factory.mktemp("page")
    make(out, folder, "-k", "3")
    return folder


@pytest.fixture
def credit(tmp_path: Path) -> Path:
    (tmp_path / "credit.md").write_text(CREDIT)
    return tmp_path / "credit.md"


def make(out: Path, page: Path, *more: str | Path) -> str:
    """Write a page and return its text."""
    main([str(out), "-o", str(page), *map(str, more)])
    return (page / "index.md").read_text(encoding="utf-8")


# The page ---------------------------------------------------------------------------------------------------


def test_page_shows_text_ours_baselines_and_what_was_heard(page: Path) -> None:
    text = (page / "index.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", text, re.MULTILINE) == ["codec", "tts", "asr", "vc-lm", "Recordings"]
    assert "> a second \\| text" in text  # a bar does not end a table's cell
    assert "tts-flite heard 1 | 2 of 3 | not measured" in text and "vc-codec heard 0" in text
    assert "as recorded | 1 of 3" in text and "`clip-0`" in text  # the recording's own errors, its id
    assert f"nothing was made: {FAILED.error}" in text and "3 of 3" in text
    assert "not by ear" in text and "not on this page" in text


def test_links_lead_to_sounds_and_every_sound_is_linked(page: Path) -> None:
    text = (page / "index.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([^)]+)\)", text))
    assert linked == {path.name for path in page.glob("*.ogg")}
    assert linked == set(re.findall(r'src="([^"]+)"', text))
    made = sum(
        item.heard is not None
        for suite, rows in ITEMS.items()
        if suite not in ("asr", "floor")
        for item in rows
    )
    assert len(linked) == made == 14


def test_sounds_are_small_mono_and_at_16_khz(page: Path) -> None:
    paths = list(page.iterdir())
    assert sum(path.stat().st_size for path in paths) <= 1_200_000
    for path in paths:
        if path.suffix == ".ogg":
            found = soundfile.info(path)
            assert path.stat().st_size <= 25_000
            assert (found.samplerate, found.channels, found.subtype) == (16_000, 1, "OPUS")
            assert found.frames == 8_000


def test_equal_input_gives_equal_bytes(out: Path, page: Path, tmp_path: Path) -> None:
    make(out, tmp_path, "-k", "3")
    one, two = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (page, tmp_path))
    assert one == two


def test_items_are_those_of_the_hash(out: Path, tmp_path: Path) -> None:
    text = make(out, tmp_path / "page", "-k", "1", "--seed", "5", "--without", "codec", "vc-lm", "vc-codec")
    wanted = items.pick([item.id for item in ITEMS["tts"]], 1, 5, str)
    shown = text[text.index("## tts") : text.index("## asr")]
    assert re.findall(r"^### (\S+)", shown, re.MULTILINE) == wanted


def test_a_page_is_replaced_and_nothing_else(out: Path, page: Path, tmp_path: Path) -> None:
    page = shutil.copytree(page, tmp_path / "page")
    (page / "mine.ogg").write_bytes(b"not of the page")
    before = {path.name for path in page.iterdir()}
    text = make(out, page, "-k", "1", "--without", "tts", "tts-flite", "vc-lm")
    after = {path.name for path in page.iterdir()}
    assert "mine.ogg" in after and after < before
    assert after - {"index.md", "mine.ogg"} == set(re.findall(r"\]\(([^)]+\.ogg)\)", text))


def test_suites_can_be_left_out(out: Path, tmp_path: Path) -> None:
    assert "flite" not in make(out, tmp_path / "page", "--without", "tts-flite", "tts", "vc-lm", "vc-codec")
    with pytest.raises(UsageError, match="--without nothing"):
        make(out, tmp_path / "page", "--without", "nothing")


def test_a_suite_with_a_further_peer_is_shown_too(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ITEMS, "tts-best", ITEMS["tts"])
    shown = make(write_evaluation(tmp_path / "out"), tmp_path / "page", "-k", "3")
    assert [line for line in shown.splitlines() if line.startswith("## ")] == [
        line for line in (page / "index.md").read_text().splitlines() if line.startswith("## ")
    ]


# Recordings -------------------------------------------------------------------------------------------------


def test_recordings_where_asked_for_and_free(out: Path, data: Path, credit: Path, tmp_path: Path) -> None:
    few = ("-k", "3", "--data", data, "--without", "tts", "tts-flite", "vc-lm", "vc-codec")
    named = make(out, tmp_path / "a", *few)
    assert "small corpus, CC-BY-NC-4.0" in named and not list((tmp_path / "a").glob("recording-*"))
    shown = make(out, tmp_path / "b", *few, "--references", "--credit", credit)
    files = sorted(path.name[:16] for path in (tmp_path / "b").glob("recording-*"))
    assert files == ["recording-clip-0", "recording-clip-2"]  # clip-1 is for non-commercial use only
    assert "2 of 3 are on this page" in shown and "Of Acknowledgements." in shown


def test_recordings_need_data_and_a_credit(out: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--references needs --data"):
        make(out, tmp_path / "page", "--references")
    with pytest.raises(UsageError, match="asks for a credit"):
        make(out, tmp_path / "page", "--data", data, "--references")
    assert not (tmp_path / "page").exists()


def test_licences() -> None:
    free = ["CC-BY-4.0", "cc-by-3.0", "CC0-1.0", "CC0", "public-domain", "Public Domain"]
    other = ["CC-BY-NC-4.0", "CC-BY-SA-4.0", "CC-BY-ND-4.0", "Apache-2.0 (synthetic)", "", "unknown"]
    assert all(map(is_free, free)) and not any(map(is_free, other))
    assert [needs_credit(name) for name in (free[0], free[2], other[0])] == [True, False, False]


def test_data_of_another_evaluation_is_refused(out: Path, data: Path, tmp_path: Path) -> None:
    other = shutil.copytree(data, tmp_path / "other")
    lines = (other / "speech/manifest.jsonl").read_text().splitlines(keepends=True)
    (other / "speech/manifest.jsonl").write_text(
        "".join(line for line in lines if list(LICENCES)[0] not in line)
    )
    with pytest.raises(UsageError, match="no clip clip-0"):
        make(out, tmp_path / "page", "--data", other, "-k", "3")


# What is refused --------------------------------------------------------------------------------------------


def test_what_is_missing_is_named(out: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"report\.json"):
        make(tmp_path, tmp_path / "page")
    copy = shutil.copytree(out, tmp_path / "copy")
    (copy / "tts.jsonl").rename(copy / "kept")
    with pytest.raises(UsageError, match=r"tts\.jsonl"):
        make(copy, tmp_path / "page")
    (copy / "kept").rename(copy / "tts.jsonl")
    shutil.rmtree(copy / "wavs" / "tts-flite")
    with pytest.raises(UsageError, match="--save-wavs"):
        make(copy, tmp_path / "page")


def test_edited_items_are_refused(out: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(out, tmp_path / "copy")
    rows = [json.loads(line) for line in (copy / "tts.jsonl").read_text().splitlines()]
    rows[0]["heard"] = "what it should have said"
    (copy / "tts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UsageError, match="not those of its report"):
        make(copy, tmp_path / "page")


def test_a_page_that_cannot_be_small_enough_is_refused(out: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="do not fit"):
        make(out, tmp_path / "page", "-k", "3", "--page-bytes", "7000")
    with pytest.raises(UsageError, match="-k 0"):
        make(out, tmp_path / "page", "-k", "0")


# Ogg --------------------------------------------------------------------------------------------------------


def test_long_sound_gets_a_lower_rate_not_a_cut() -> None:
    short, long = (ogg.encode((noise(seconds), 16_000), 6_000, "noise") for seconds in (0.3, 3.0))
    assert len(long) <= 6_000
    assert abs(len(audio.load(long, 16_000)) / 16_000 - 3) < 0.01
    assert len(short) * 10 > len(long)
    with pytest.raises(UsageError, match="noise: 3.0 s"):
        ogg.encode((noise(3.0), 16_000), 1_000, "noise")


def test_settled_files_have_checksums_that_hold(second: np.ndarray) -> None:
    data = ogg.encode((second, 16_000), 25_000, "a second")
    assert ogg.settled(data) == data
    damaged = bytearray(data)
    damaged[-1] ^= 1
    assert ogg.settled(bytes(damaged))[-1] == damaged[-1] and ogg.settled(bytes(damaged)) != bytes(damaged)
    assert np.corrcoef(audio.load(data, 16_000), second)[0, 1] > 0.9
