"""Label files: tables with named columns, lists without (LJSpeech, Coqui, piper, MeloTTS), JSON lines.

A file is read right or refused by name with what to do; docs/data.md has the table of layouts. Knows text
and names of files, no sound. Kaldi's folders are in kaldi.py, which file of a folder counts in sources.py.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from gpa.data.audio_folder import AudioFolder, is_audio, one_line
from gpa.data.column_names import NAMES, choose
from gpa.errors import DataError

logger = logging.getLogger(__name__)

DELIMITERS = "\t|;,"
LANGUAGES = set("zh en jp ja ko kr fr es de it pt ru ar hi pl nl sv tr vi th id yue zh_mix_en zh_en".split())
TIMES = {  # seconds, of a column: ours and NeMo's
    "begin_time": ("begin_time", "start_time", "start", "begin", "offset"),
    "end_time": ("end_time", "end", "stop"),
}
_WORDS = re.compile(r"[\u2e80-\uffff]|[^\W\u2e80-\uffff]+")  # an ideograph is one
LABEL_WORDS = 3  # of a speaker's name, at most
SIMILAR = 0.5  # words that LJSpeech's text and its normalised form share, at least
HEADER = "Write a first line that names the columns, such as  file_name|text|speaker"
Rows = list[tuple[str, dict[str, Any]]]  # (place for messages, row with our keys)


class Record(NamedTuple):
    """One record of a table: the line it begins on, and its cells without the blanks around them."""

    line: int
    cells: list[str]


def read_labels(path: Path, folder: AudioFolder, columns: Mapping[str, str] | None = None) -> Rows:
    """The rows of one label file of `folder`; `columns` names its columns as for a dataset.

    DataError, with file and line, for what is no label file or cannot be told apart.
    """
    text = decode(path)
    if not text.strip():
        raise DataError(f"{path}: is empty: fetch it again, or remove it")
    if path.suffix.lower() == ".jsonl" or re.match(r"\s*\{.*\}\s*$", text, re.M):  # NeMo calls it .json
        records = _json_lines(path, text)
        names = list(dict.fromkeys(key for _, row in records for key in row))
        return _named(path, folder, names, records, columns or {})
    if text.lstrip()[:1] in "[{":
        raise DataError(f"{path}: one JSON document; write a row on each line, in a file called .jsonl")
    names, found = _records(path, text, folder)
    if names:
        return _named(path, folder, names, _mappings(path, names, found), columns or {})
    if columns:
        raise DataError(f"{path}: --columns needs a table with named columns. {HEADER}")
    return _listed(path, folder, found)


def decode(path: Path) -> str:
    """The text of a label file without a byte order mark; DataError with the line that is not UTF-8."""
    data = path.read_bytes()
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8 ({error.reason}); save it again as UTF-8") from error
    if "\0" in text:
        raise DataError(f"{path}: holds zero bytes, so it is no text or was damaged: save it again as UTF-8")
    return text


# Records ----------------------------------------------------------------------------------------------------


def _records(path: Path, text: str, folder: AudioFolder) -> tuple[list[str], list[Record]]:
    """Names of the columns, if the first line has some, and the records."""
    if stated := re.match(r"sep=(.)\r?\n", text):  # Excel's
        text = text[stated.end() - 1 :]
    for delimiter in stated[1] if stated else DELIMITERS:
        if names := _header(text, delimiter, path, folder):
            records = _parse(path, text, delimiter, folder)
            return names, records[1:]
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    for delimiter in DELIMITERS + " ":
        if _divides(delimiter, lines, path, folder):
            return [], _parse(path, text, delimiter, folder)
    raise DataError(
        f"{path}: no layout that is read: the first line {lines[0]!r:.60} names neither columns (file_name, "
        f"text, ...) nor a recording under {folder.root}. {HEADER}; "
        "what is no label file belongs elsewhere"
    )


def _header(text: str, delimiter: str, path: Path, folder: AudioFolder) -> list[str]:
    """Names of the columns, lower case and without blanks, if the first record has some."""
    first = next(line for line in re.split(r"[\r\n]+", text) if line.strip())
    cells = [cell.strip() for cell in next(csv.reader([first], delimiter=delimiter), [])]
    names = [_plain(cell) for cell in cells]
    known = {name for key in ("audio", "text") for name in NAMES[key]}
    if not known & set(names) or any(is_audio(cell) for cell in cells):
        return []
    if len(names) == 1 and names[0] not in NAMES["audio"]:
        return []
    if folder.find(cells[0], _inside(path, folder)) and not len(known & set(names)) > 1:
        return []  # a recording that is called like a column
    return names


def _divides(delimiter: str, lines: list[str], path: Path, folder: AudioFolder) -> bool:
    """Whether nearly every line has the delimiter and what is before it names recordings."""
    with_it = [line for line in lines if delimiter in line.strip()]
    if len(with_it) < 0.9 * len(lines):
        return False
    inside = _inside(path, folder)
    heads = [line.strip().split(delimiter, 1)[0].strip().strip('"') for line in with_it]
    named = sum(is_audio(head) or bool(folder.find(head, inside)) for head in heads)
    return named > 0 if delimiter in "\t|" else named >= len(lines) / 2


def _inside(path: Path, folder: AudioFolder) -> str:
    return path.parent.relative_to(folder.root).as_posix()


def _parse(path: Path, text: str, delimiter: str, folder: AudioFolder) -> list[Record]:
    """Records of the text. Quotes count where commas and semicolons divide; elsewhere where they must:
    LJSpeech and Common Voice have quotation marks that are part of the text.
    """
    if delimiter == " ":
        lines = enumerate(re.split(r"\r\n|\r|\n", text), 1)
        return [Record(n, line.strip().split(None, 1)) for n, line in lines if line.strip()]
    if delimiter in ",;":
        return _closed(path, _quoted(path, text, delimiter), delimiter)
    plain = [*_cells(path, text, delimiter, quoting=csv.QUOTE_NONE)]
    if '"' not in text:
        return plain
    try:
        quoted = _closed(path, [*_cells(path, text, delimiter, strict=True)], delimiter)
    except DataError:
        return plain
    return quoted if _uniform(quoted) and (not _uniform(plain) or '""' in text) else plain


def _uniform(records: Sequence[Record]) -> bool:
    return len({len(record.cells) for record in records}) == 1


def _quoted(path: Path, text: str, delimiter: str) -> list[Record]:
    """Strictly quoted records; where that fails, as lenient readers have them, but for a quote left open."""
    try:
        return [*_cells(path, text, delimiter, strict=True)]
    except DataError as error:
        end = "\0end"
        lenient = [*_cells(path, f"{text.rstrip()}\n{end}", delimiter)]
        if not lenient or lenient[-1].cells != [end]:
            raise DataError(f"{error}; a quote is opened and not closed: double it, or close it") from error
        return lenient[:-1]


def _closed(path: Path, records: list[Record], delimiter: str) -> list[Record]:
    """The records; DataError where a cell has swallowed records, because its quote was closed by theirs."""
    for line, cells in records:
        for cell in cells:
            after = re.split(r"[\r\n]+", cell)[1:]
            if any(is_audio(part.split(delimiter, 1)[0].strip().strip('"')) for part in after):
                raise DataError(f"{path}:{line}: a quote is opened here and closed in another row: close it")
    return records


def _cells(path: Path, text: str, delimiter: str, **how: Any) -> Iterator[Record]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, **how)
    begin = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield Record(begin, [cell.strip() for cell in cells])
            begin = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{begin}: cannot be divided into columns ({error})") from error


# Named columns ----------------------------------------------------------------------------------------------


def _json_lines(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for n, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{n}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{n}: a row is an object, this is {type(row).__name__}")
        rows.append((n, {_plain(key): value for key, value in row.items()}))
    return rows


def _mappings(path: Path, names: list[str], records: list[Record]) -> list[tuple[int, dict[str, Any]]]:
    if twice := [name for name, n in Counter(name for name in names if name).items() if n > 1]:
        raise DataError(f"{path}: has two columns called {twice[0]!r}: remove or rename one")
    _refuse_ragged(path, [Record(1, names), *records], len(names))
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
    known = {name for names in NAMES.values() for name in names}
    if "text" not in columns and not set(NAMES["text"]) & set(rest) and set(rest) - known:
        raise DataError(
            f"{path}: no column is called text; its columns are {', '.join(rest)}: rename the one that is, "
            "or say  --columns text=NAME"
        )
    used = choose(rest, str(path), {key: _plain(name) for key, name in columns.items()})
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


def _plain(name: str) -> str:
    """A column's name as it is compared."""
    return re.sub(r"\s+", "_", name.strip().casefold())


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
    inside = _inside(path, folder)
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
        logger.warning("%s: the last %d columns are not used", path, spare)
    there = [is_audio(cells[0]) or bool(folder.find(cells[0], _inside(path, folder))) for _, cells in records]
    may_lack = layout.instead >= 0  # LJSpeech's second form of a text, of a recording that is there
    for ok, record in zip(there, records, strict=True):
        _refuse_ragged(path, [record], width, layout.instead + 1 if ok and may_lack else width)
    rows = []
    for line, cells in records:
        text = next((cells[i] for i in (layout.text, layout.instead) if 0 <= i < len(cells) and cells[i]), "")
        said = {"text": text, "speaker": cells[layout.speaker] if layout.speaker >= 0 else ""}
        rows.append((f"{path}:{line}", _row(path, folder, cells[0], said, f"{path}:{line}")))
    return rows


def _refuse_ragged(path: Path, records: Sequence[Record], width: int, least: int = 0) -> None:
    """DataError for a row of more cells than `width`, or of fewer than `least` and than most rows have."""
    least = least or min(width, Counter(len(cells) for _, cells in records).most_common(1)[0][0])
    for line, cells in records:
        if any(cells[width:]) or len(cells) < least:
            raise DataError(
                f"{path}:{line}: {cells[0]!r:.60} has {len(cells)} cells where other rows have {width}; "
                "quote a text that holds a separator or a line break"
            )


def _refuse_header(path: Path, folder: AudioFolder, records: list[Record]) -> None:
    """DataError for a first line of names that are none of ours."""
    first, inside = records[0].cells, _inside(path, folder)
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
    labels = [i for i, column in enumerate(columns) if i and _is_label(column)]
    languages = len(columns) > 3 and all(_plain(cell).replace("-", "_") in LANGUAGES for cell in columns[2])
    found = None
    if len(columns) == 2:
        found = Layout(1)
    elif languages and 1 in labels:
        found = Layout(3, speaker=1)  # MeloTTS, Bert-VITS2, GPT-SoVITS
    elif _similar(columns[1], columns[2]):
        found = Layout(2, instead=1)  # LJSpeech
    elif len(columns) == 3 and labels == [2]:
        found = Layout(1, speaker=2)  # Coqui
    elif len(columns) == 3 and labels == [1]:
        found = Layout(2, speaker=1)  # piper
    if found is None:
        raise DataError(
            f"{path}: {len(columns)} columns without names; which is the text and which the speaker "
            f"cannot be told. {HEADER}"
        )
    return found, len(columns) - 1 - max(found)


def _is_label(column: Sequence[str]) -> bool:
    """Whether cells could name speakers: a few words each."""
    return all(len(cell.split()) <= LABEL_WORDS and not re.search(r"[.?!,]$", cell) for cell in column)


def _similar(given: Sequence[str], normalised: Sequence[str]) -> bool:
    """Whether two columns say the same, row by row, in the words of most rows."""
    pairs = [(a.casefold(), b.casefold()) for a, b in zip(given, normalised, strict=True) if a and b]
    if not pairs:
        return True  # id|text| and nothing after it
    ratios = [
        difflib.SequenceMatcher(None, _WORDS.findall(a), _WORDS.findall(b)).ratio() for a, b in pairs[:200]
    ]
    return sum(ratio >= SIMILAR for ratio in ratios) > len(ratios) / 2
