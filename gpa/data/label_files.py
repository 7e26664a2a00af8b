"""Label files: tables with named columns, lists without (LJSpeech, Coqui, piper, MeloTTS), JSON lines.

A file is read right or refused by name with what to do; docs/data.md has the table of layouts. Knows records
(records.py), no sound. Kaldi's folders are in kaldi.py, which file of a folder counts in label_choice.py.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from gpa.data.audio_folder import AudioFolder, is_audio, one_line
from gpa.data.column_names import NAMES, choose
from gpa.data.records import (
    HEADER,
    Record,
    Rows,
    decode,
    inside_of,
    plain_name,
    read_json_lines,
    read_records,
)
from gpa.errors import DataError

logger = logging.getLogger(__name__)

LANGUAGES = set("zh en jp ja ko kr fr es de it pt ru ar hi pl nl sv tr vi th id yue multi".split())
TIMES = {  # seconds, of a column: ours and NeMo's
    "begin_time": ("begin_time", "start_time", "start", "begin", "offset"),
    "end_time": ("end_time", "end", "stop"),
}
_WORDS = re.compile(r"[\u2e80-\uffff]|[^\W\u2e80-\uffff]+")  # an ideograph is one
_IDEOGRAPHS = re.compile(r"[\u2e80-\uffff]")
_STOPS = re.compile(r"[.?!,:;\u2026\u3001\u3002\uff01\uff0c\uff1f]$")
LABEL_WORDS, LABEL_IDEOGRAPHS, LABEL_LETTERS = 3, 4, 64  # of a speaker's name, at most
_TIME = re.compile(
    r"(start|begin|end|stop|offset|onset)(_?(ms|msec|s|sec|seconds|time|frame|samples?|at|ts))?"
)
_NUMBER = re.compile(r"[-+\d.,:]*")
SIMILAR = 0.5  # words that LJSpeech's text and its normalised form share, at least


def read_labels(path: Path, folder: AudioFolder, columns: Mapping[str, str] | None = None) -> Rows:
    """The rows of one label file of `folder`; `columns` names its columns as for a dataset.

    DataError, with file and line, for what is no label file or cannot be told apart.
    """
    text = decode(path)
    if not text.strip():
        raise DataError(f"{path}: is empty: fetch it again, or remove it")
    if path.suffix.lower() == ".jsonl" or re.match(r"\s*\{.*\}\s*$", text, re.M):  # NeMo calls it .json
        records = read_json_lines(path, text)
        names = list(dict.fromkeys(key for _, row in records for key in row))
        return _named(path, folder, names, records, columns or {})
    if text.lstrip()[:1] in "[{":
        raise DataError(f"{path}: one JSON document; write a row on each line, in a file called .jsonl")
    names, found = read_records(path, text, folder)
    if names:
        return _named(path, folder, names, _mappings(path, names, found), columns or {})
    if columns:
        raise DataError(f"{path}: --columns needs a table with named columns. {HEADER}")
    return _listed(path, folder, found)


# Named columns ----------------------------------------------------------------------------------------------


def _mappings(path: Path, names: list[str], records: list[Record]) -> list[tuple[int, dict[str, Any]]]:
    if twice := [name for name, n in Counter(name for name in names if name).items() if n > 1]:
        raise DataError(f"{path}: has two columns called {twice[0]!r}: remove or rename one")
    _refuse_ragged(path, records, len(names), max(i for i, name in enumerate(names, 1) if name))
    return [(line, dict(zip(names, cells, strict=False))) for line, cells in records]


def _named(
    path: Path,
    folder: AudioFolder,
    names: list[str],
    records: Sequence[tuple[int, Mapping[str, Any]]],
    columns: Mapping[str, str],
) -> Rows:
    """Rows of a table whose columns have names."""
    spans = {key: next((n for n in others if n in names), "") for key, others in TIMES.items()}
    if spans["begin_time"] == "offset":
        spans["duration"] = "duration" if "duration" in names else ""
    rest = [name for name in names if name and name not in spans.values()]
    if strange := [name for name in rest if _TIME.fullmatch(name)]:
        raise DataError(
            f"{path}: column {strange[0]} is no time that is read: give begin_time and end_time, in s"
        )
    known = {name for names in NAMES.values() for name in names}
    if "text" not in columns and not set(NAMES["text"]) & set(rest) and set(rest) - known:
        raise DataError(
            f"{path}: no column is called text; its columns are {', '.join(rest)}: rename the one that is, "
            "or say  --columns text=NAME"
        )
    used = choose(rest, str(path), {key: plain_name(name) for key, name in columns.items()})
    used = {**used, **{key: name for key, name in spans.items() if name}}
    rows = []
    for line, row in records:
        where = f"{path}:{line}"
        if "text" in used and used["text"] not in row:
            raise DataError(f"{where}: has no {used['text']}, which other rows have")
        said = {key: _text(row.get(column), where, column) for key, column in used.items()}
        times = _span(said, where)
        rows.append((where, _row(path, folder, said.pop("audio"), {**said, **times}, where)))
    return rows


def _text(value: Any, where: str, column: str) -> str:
    if isinstance(value, (dict, list, bool)) or value != value:  # the last is NaN
        raise DataError(f"{where}: {column} is {value!r:.40}, text expected")
    return "" if value is None else str(value)


def _span(said: dict[str, str], where: str) -> dict[str, float]:
    """Seconds of the file; NeMo's rows have an offset and the duration from there."""
    given = {key: said.pop(key, "") for key in ("begin_time", "end_time", "duration")}
    try:
        times = {key: float(value) for key, value in given.items() if value}
    except ValueError as error:
        raise DataError(f"{where}: a time is no number of seconds ({error})") from error
    if (lasts := times.pop("duration", None)) is not None:
        times["end_time"] = times.get("begin_time", 0.0) + lasts
    return times


def _row(path: Path, folder: AudioFolder, name: str, said: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A row of ours: where the recording is, and what is said of it."""
    if not name.strip():
        raise DataError(f"{where}: names no audio file")
    inside = inside_of(path, folder)
    found = folder.find(name, inside)
    row = folder.row(found or (PurePosixPath(inside) / name.replace("\\", "/")).as_posix())
    if not is_audio(name):
        row["id"] = name
    said = {key: one_line(value) if isinstance(value, str) else value for key, value in said.items()}
    return {**row, **{key: value for key, value in said.items() if value != ""}, "text": said.get("text", "")}


# Columns without names --------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """Which cell of a list holds what; `instead` is the text where that of `text` is empty, -1 is none."""

    text: int
    speaker: int = -1
    instead: int = -1


def _listed(path: Path, folder: AudioFolder, records: list[Record]) -> Rows:
    """Rows of a list without a header."""
    counts = Counter(len(record.cells) for record in records)
    width = max(counts, key=lambda n: (counts[n], n))
    _refuse_ragged(path, records, width, 1)
    _refuse_header(path, folder, records)
    layout, spare = _layout(path, [record.cells for record in records])
    if spare:
        logger.warning("%s: %d columns are not used", path, spare)
    for record in records:  # LJSpeech's second form of a text may lack, of a recording that is there
        name = record.cells[0]
        if len(record.cells) < width:
            there = layout.instead >= 0 and (is_audio(name) or folder.find(name, inside_of(path, folder)))
            _refuse_ragged(path, [record], width, layout.instead + 1 if there else width)
    rows = []
    for line, cells in records:
        text = next((cells[i] for i in (layout.text, layout.instead) if 0 <= i < len(cells) and cells[i]), "")
        said = {"text": text, "speaker": cells[layout.speaker] if layout.speaker >= 0 else ""}
        rows.append((f"{path}:{line}", _row(path, folder, cells[0], said, f"{path}:{line}")))
    return rows


def _refuse_ragged(path: Path, records: Sequence[Record], width: int, least: int) -> None:
    """DataError for a row of more cells than `width`, or of fewer than `least`."""
    for line, cells in records:
        if any(cells[width:]) or len(cells) < least:
            raise DataError(
                f"{path}:{line}: {cells[0]!r:.60} has {len(cells)} cells where other rows have {width}; "
                "quote a text that holds a separator or a line break"
            )


def _refuse_header(path: Path, folder: AudioFolder, records: list[Record]) -> None:
    """DataError for a first line of names that are none of ours."""
    first, inside = records[0].cells, inside_of(path, folder)
    words = all(re.fullmatch(r"[^\W\d]\w*", cell) for cell in first if cell)
    if words and len(records) > 1 and not is_audio(first[0]) and not folder.find(first[0], inside):
        raise DataError(
            f"{path}:{records[0].line}: {', '.join(first)} names no recording; if these are columns, "
            "call them file_name, text and speaker"
        )


def _layout(path: Path, rows: list[list[str]]) -> tuple[Layout, int]:
    """Which column is the text, and how many are not used; DataError where a speaker might be the text."""
    columns = [*zip_longest(*rows, fillvalue="")]
    while columns and not any(columns[-1]):
        columns.pop()
    if len(columns) < 2:
        raise DataError(f"{path}: its rows have one column, no text. {HEADER}")
    labels = {i for i, column in enumerate(columns) if i and _is_label(column)}
    languages = {i for i in labels if len(columns) > 3 and _is_language(columns[i])}
    said = [i for i in range(len(columns)) if i not in languages]
    found = None
    if len(columns) == 2:
        found = Layout(1)
    elif 2 in languages and 1 in labels:
        found = Layout(3, speaker=1)  # MeloTTS, Bert-VITS2, GPT-SoVITS
    elif not languages and _similar(columns[1], columns[2]):
        found = Layout(2, instead=1)  # LJSpeech
    elif len(said) == 3 and labels & {*said} == {said[2]}:
        found = Layout(said[1], speaker=said[2])  # Coqui
    elif len(said) == 3 and labels & {*said} == {said[1]}:
        found = Layout(said[2], speaker=said[1])  # piper
    if found is None:
        raise DataError(
            f"{path}: {len(columns)} columns without names; which is the text and which the speaker "
            f"cannot be told. {HEADER}"
        )
    if all(_NUMBER.fullmatch(cell) for cell in columns[found.text]):
        raise DataError(
            f"{path}: column {found.text + 1} has numbers alone, no texts. {HEADER}, if it is the text"
        )
    return found, len(columns) - 1 - len({*found, *languages} - {-1})


def _is_language(column: Sequence[str]) -> bool:
    codes = [plain_name(cell).replace("-", "_") for cell in column]
    return all(code.partition("_")[0] in LANGUAGES and code.replace("_", "").isalpha() for code in codes)


def _is_label(column: Sequence[str]) -> bool:
    """Whether cells could name speakers: a few words each, and no sentence."""
    return not any(
        len(cell.split()) > LABEL_WORDS
        or len(_IDEOGRAPHS.findall(cell)) > LABEL_IDEOGRAPHS
        or len(cell) > LABEL_LETTERS
        or _STOPS.search(cell)
        for cell in column
    )


def _similar(given: Sequence[str], normalised: Sequence[str]) -> bool:
    """Whether two columns say the same, row by row, in the words of most rows."""
    pairs = [(a.casefold(), b.casefold()) for a, b in zip(given, normalised, strict=True) if a and b]
    if not pairs:
        return True  # id|text| and nothing after it
    words = [[_WORDS.findall(cell)[:100] for cell in pair] for pair in pairs[:200]]
    ratios = [difflib.SequenceMatcher(None, a, b).ratio() for a, b in words]
    return sum(ratio >= SIMILAR for ratio in ratios) > len(ratios) / 2
