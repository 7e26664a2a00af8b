"""Random corpora in every layout, some of them damaged: the rows that were written are read exactly."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpa.data.sources import open_source

WORDS = "the lazy fox jumps over brown dogs while nobody looks and äther, 狐狸 \"quoted\" it's 5; e.g. O'Neil"
SPEAKERS = ("ann", "p225", "Mary Ann", "7", "VCTK_0042")
RIFF = b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x80\x3e\0\0\0\x7d\0\0\2\0\x10\0data\0\0\0\0"


class Row(NamedTuple):
    """What was written of one recording: its path, text and speaker."""

    path: str
    text: str
    speaker: str

    @property
    def stem(self) -> str:
        return Path(self.path).stem


def rows_of(random: np.random.Generator, folder: str, suffix: str) -> list[Row]:
    """Rows of two speakers; every text has more words than a name."""
    words, names = WORDS.split(), random.choice(SPEAKERS, 2, replace=False)
    return [
        Row(
            f"{folder}c{n:03}{suffix}",
            " ".join(random.choice(words, int(random.integers(5, 12)))),
            str(random.choice(names)),
        )
        for n in range(int(random.integers(3, 20)))
    ]


def write_sounds(root: Path, rows: list[Row], random: np.random.Generator) -> None:
    """A header for each, some of them called .WAV."""
    for row in rows:
        path = root / row.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(RIFF)
    if random.random() < 0.2:
        (root / Path(rows[0].path).parent / f"._{rows[0].stem}.wav").write_bytes(b"\0\5\26\7")


def joined(delimiter: str, cells: list[list[str]], pad: str = "") -> str:
    """Lines without quoting."""
    return "".join(f"{pad}{delimiter}{pad}".join(line) + "\n" for line in cells)


def quoted(delimiter: str, cells: list[list[str]]) -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(cells)
    return file.getvalue()


# Layouts: each writes label files beside sounds and says whether speakers were written ----------------------

Layout = Callable[[np.random.Generator, Path, list[Row]], bool]


def lj(random: np.random.Generator, root: Path, rows: list[Row]) -> bool:
    """id|text|normalised, which is sometimes empty."""
    full = random.random() < 0.7
    lines = [[row.stem, row.text.upper() if full else row.text, row.text if full else ""] for row in rows]
    (root / "metadata.csv").write_text(joined("|", lines, random.choice(["", " "])), encoding="utf-8")
    return False


def coqui(random: np.random.Generator, root: Path, rows: list[Row]) -> bool:
    lines = [[row.path, row.text, row.speaker] for row in rows]
    head = [["audio_file", "text", "speaker_name"]] if random.random() < 0.5 else []
    (root / "metadata.csv").write_text(joined("|", [*head, *lines]), encoding="utf-8")
    return True


def piper(random: np.random.Generator, root: Path, rows: list[Row]) -> bool:
    several = random.random() < 0.5
    lines = [[row.stem, row.speaker, row.text] if several else [row.stem, row.text] for row in rows]
    (root / "metadata.csv").write_text(joined("|", lines), encoding="utf-8")
    return several


def melo(random: np.random.Generator, root: Path, rows: list[Row]) -> bool:
    language = str(random.choice(["EN", "ZH", "JP", "EN-US"]))
    lines = [[f"data/{root.name}/{row.path}", row.speaker, language, row.text] for row in rows]
    name = random.choice(["metadata.list", "train.list", "esd.list"])
    (root / name).write_text(joined("|", lines), encoding="utf-8")
    return True


def common_voice(random: np.random.Generator, root: Path, rows: list[Row]) -> bool:
    lines = [[row.speaker, Path(row.path).name, row.text, "2", "en"] for row in rows]
    head = ["client_id", "path", "sentence", "up_votes", "locale"]
    cut = len(lines) // 2
    (root / "train.tsv").write_text(joined("\t", [head, *lines[:cut]]), encoding="utf-8")
    (root / "dev.tsv").write_text(joined("\t", [head, *lines[cut:]]), encoding="utf-8")
    (root / "validated.tsv").write_text(joined("\t", [head, *lines]), encoding="utf-8")
    return True


def audio_folder(random: np.random.Generator, root: Path, rows: list[Row]) -> bool:
    delimiter, name = [(",", "csv"), (";", "csv"), ("\t", "tsv")][random.integers(3)]
    breaks = str(random.choice(["\n", "\r\n", "\u2028"]))
    texts = [row.text.replace(" ", breaks, 1) if random.random() < 0.2 else row.text for row in rows]
    lines = [[row.path, text, row.speaker] for row, text in zip(rows, texts, strict=True)]
    table = quoted(delimiter, [["file_name", "text", "speaker_id"], *lines])
    if breaks == "\n" and random.random() < 0.3:
        table = table.replace("\n", "\r\n")
    mark = "\ufeff" if random.random() < 0.3 else ""
    (root / f"metadata.{name}").write_text(mark + table, encoding="utf-8", newline="")
    return True


def json_lines(random: np.random.Generator, root: Path, rows: list[Row]) -> bool:
    key = str(random.choice(["file_name", "audio_filepath"]))
    ascii_only = bool(random.random() < 0.5)
    lines = [{key: row.path, "text": row.text, "speaker": row.speaker, "lang": "en"} for row in rows]
    table = "".join(json.dumps(line, ensure_ascii=ascii_only) + "\n" for line in lines)
    (root / "metadata.jsonl").write_text(table, encoding="utf-8")
    return True


def kaldi(random: np.random.Generator, root: Path, rows: list[Row]) -> bool:
    wavs = [f"{row.stem} {root / row.path}" for row in rows]
    (root / "wav.scp").write_text("\n".join(wavs) + "\n", encoding="utf-8")
    for name, values in (("text", [r.text for r in rows]), ("utt2spk", [r.speaker for r in rows])):
        lines = [f"{row.stem} {value}\n" for row, value in zip(rows, values, strict=True)]
        (root / name).write_text("".join(lines), encoding="utf-8")
    return True


def beside(random: np.random.Generator, root: Path, rows: list[Row]) -> bool:
    suffix = str(random.choice([".txt", ".TXT", ".lab"]))
    for row in rows:
        (root / row.path).with_suffix(suffix).write_text(f" {row.text}\n", encoding="utf-8")
    return False


LAYOUTS: tuple[Layout, ...] = (lj, coqui, piper, melo, common_voice, audio_folder, json_lines, kaldi, beside)


# Damages: each is done to one label file's bytes ------------------------------------------------------------


def cut(data: bytes, random: np.random.Generator) -> bytes:
    """The end is missing."""
    return data[: int(random.integers(0, len(data)))]


def flipped(data: bytes, random: np.random.Generator) -> bytes:
    """A byte is another one."""
    at = int(random.integers(0, len(data)))
    return data[:at] + bytes([int(random.integers(0, 256))]) + data[at + 1 :]


def noise(data: bytes, random: np.random.Generator) -> bytes:
    """Nothing but random bytes."""
    return random.bytes(int(random.integers(0, 400)))


def latin(data: bytes, random: np.random.Generator) -> bytes:
    """Saved in another encoding."""
    return data.decode().encode(str(random.choice(["utf-16", "utf-16-be", "gb18030", "utf-8-sig"])))


def separator(data: bytes, random: np.random.Generator) -> bytes:
    """A separator too many, a quote or a control character somewhere."""
    at = int(random.integers(0, len(data)))
    extra = [b"|", b"\t", b",", b";", b'"', b"\0", b"\x1c", b"\r", b"\n", b"{"][random.integers(10)]
    return data[:at] + extra + data[at:]


DAMAGES = (cut, flipped, noise, latin, separator)


def trial(random: np.random.Generator, folder: Path) -> bool:
    """Write a corpus, sometimes damage a label file, and read it; an undamaged one is read exactly."""
    logging.getLogger("gpa").setLevel(logging.ERROR)
    root = folder / "corpus"
    layout = LAYOUTS[random.integers(len(LAYOUTS))]
    sounds = str(random.choice(["wavs/", "clips/", ""] if layout is not beside else ["", "ann/"]))
    rows = rows_of(random, sounds, str(random.choice([".wav", ".WAV", ".flac"])))
    write_sounds(root, rows, random)
    spoken = layout(random, root, rows)
    most_wrong = 0
    if random.random() < 0.5:
        labels = sorted(
            path for path in root.rglob("*") if path.is_file() and path.read_bytes()[:4] != b"RIFF"
        )
        path = labels[random.integers(len(labels))]
        damage = DAMAGES[random.integers(len(DAMAGES))]
        path.write_bytes(damage(path.read_bytes(), random))
        most_wrong = (
            len(rows) if layout in (beside, kaldi) and damage is noise else 2 if layout is kaldi else 1
        )
    found = [*open_source(root).check()]
    written = {os.path.join(root, row.path): row for row in rows}
    wrong = []
    for row in found:
        true = written.get(row.audio.name)
        same = true and row.text == true.text and (not spoken or most_wrong or row.speaker == true.speaker)
        wrong += [] if same else [(row, true)]
    assert len(wrong) <= most_wrong, f"{layout.__name__}: {wrong[:3]}"
    assert most_wrong or len(found) == len(rows), f"{layout.__name__}: {len(found)} of {len(rows)} rows"
    return True
