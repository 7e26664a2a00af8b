"""Text files as records: encodings, separators and quotes of tables and lists, JSON lines, sentences.

Knows characters, and which names are those of recordings; what a cell means is in label_files.py.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpa.data.audio_folder import MOST_TABLE, AudioFolder, is_audio, read_bytes
from gpa.data.column_names import NAMES
from gpa.errors import DataError

DELIMITERS = "\t|;,"
LONGEST, SEEN = 100_000, 1000  # characters of a first line, and lines, that a layout is told by
HEADER = "Write a first line that names the columns, such as  file_name|text|speaker"
Rows = list[tuple[str, dict[str, Any]]]  # (place for messages, row with our keys)


class Record(NamedTuple):
    """One record of a table: the line it begins on, and its cells without the blanks around them."""

    line: int
    cells: list[str]


def decode(path: Path) -> str:
    """The text of a label file without a byte order mark; DataError with the line that is not UTF-8."""
    data = read_bytes(path, MOST_TABLE)
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8 ({error.reason}); save it again as UTF-8") from error
    if "\0" in text:
        raise DataError(f"{path}: holds zero bytes, so it is no text or was damaged: save it again as UTF-8")
    return text


def read_records(path: Path, text: str, folder: AudioFolder) -> tuple[list[str], list[Record]]:
    """Names of the columns, if the first line has some, and the records."""
    if stated := re.match(rf"sep=([{DELIMITERS}])\r?\n", text):  # Excel's
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
    first = next(line for line in re.split(r"[\r\n]+", text) if line.strip())[:LONGEST]
    cells = [cell.strip() for cell in next(csv.reader([first], delimiter=delimiter), [])]
    names = [plain_name(cell) for cell in cells]
    known = {name for key in ("audio", "text") for name in NAMES[key]}
    if not known & set(names) or any(is_audio(cell) for cell in cells):
        return []
    if len(names) == 1 and names[0] not in NAMES["audio"]:
        return []
    if folder.find(cells[0], inside_of(path, folder)) and not len(known & set(names)) > 1:
        return []  # a recording that is called like a column
    return names


def _divides(delimiter: str, lines: list[str], path: Path, folder: AudioFolder) -> bool:
    """Whether lines have the delimiter, most by `|` or a tab and nearly all by others, which texts have too,
    and what is before it names recordings.
    """
    sure = "\t|"
    with_it = [line for line in lines if delimiter in line.strip()]
    if len(with_it) < (0.5 if delimiter in sure else 0.9) * len(lines):
        return False
    if delimiter == " " and sum(any(mark in line for mark in sure) for line in lines) >= len(lines) / 2:
        return False
    inside = inside_of(path, folder)
    heads = [line.strip().split(delimiter, 1)[0].strip().strip('"') for line in with_it[:SEEN]]
    named = sum(is_audio(head) or bool(folder.find(head, inside)) for head in heads)
    return named > 0 if delimiter in sure else named >= len(heads) / 2


def inside_of(path: Path, folder: AudioFolder) -> str:
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


def plain_name(name: str) -> str:
    """A column's name as it is compared."""
    return re.sub(r"\s+", "_", name.strip().casefold())


def read_json_lines(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
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
        rows.append((n, {plain_name(key): value for key, value in row.items()}))
    return rows


def read_sentences(path: Path) -> Iterator[str]:
    """Texts of any file: the column of the text where columns have names, else a line from its last tab on.

    DataError for a table or JSON lines without such a column, and for what is not UTF-8.
    """
    text, nowhere = decode(path), AudioFolder(path.parent, ())
    divided = DELIMITERS if path.suffix.lower() in (".csv", ".tsv", ".psv") else "\t|"
    if not text.strip():
        return
    if path.suffix.lower() == ".jsonl":
        mappings = [row for _, row in read_json_lines(path, text)]
        column = next((name for name in NAMES["text"] if any(name in row for row in mappings)), "")
        if not column:
            raise DataError(f"{path}: no row has a text; keys of it are {', '.join(NAMES['text'])}")
        yield from (str(row[column]) for row in mappings if row.get(column))
    elif any(_header(text, delimiter, path, nowhere) for delimiter in divided):
        names, records = read_records(path, text, nowhere)
        column = next((name for name in NAMES["text"] if name in names), "")
        if not column:
            raise DataError(f"{path}: no column is called text; its columns are {', '.join(names)}")
        at = names.index(column)
        yield from (record.cells[at] for record in records if len(record.cells) > at)
    else:
        yield from (line.split("\t")[-1] for line in re.split(r"[\r\n]+", text))
