"""Rows of training data, typed, and how a JSONL manifest is read; other sources are in sources.py.

Opens no audio and judges nothing (that is screen.py): a row that does not fit its
schema is an error that names the row and the key. Keys: docs/data.md; published ones: docs/data.md.
"""

from __future__ import annotations

import array
import difflib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gpa.audio import AudioLike, load
from gpa.errors import DataError, PromptError
from gpa.prompt.tasks import TASKS, Task, canonical_task

logger = logging.getLogger(__name__)

SHOWN = 5  # problems of one manifest that are printed
# From so many rows on a text that so many rows share on average is suspicious; more texts are not counted.
FEW_ROWS, FEW_TEXTS, MOST_TEXTS = 8, 4, 10_000

_Text, _Number, _Any = (str, type(None)), (int, float), (str, int, float, type(None))
KEYS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("id", "path", "audio"), (str,)),
    **dict.fromkeys(("text", "speaker", "split", "task", "licence", "ref_audio", "vc_audio"), _Text),
    **dict.fromkeys(("begin_time", "end_time", "duration"), _Number),
    **dict.fromkeys(("corpus", "gender", "orig_sr", "age", "emotion", "pitch", "speed"), _Any),  # not used
}
_MOST = 1e12  # of a number
_WORDS = {str: "text", int: "a number", type(None): "null"}


@dataclass(frozen=True)
class Clip:
    """Sound not read yet: a file, or what `fetch` returns, and the span of it in seconds."""

    name: str
    begin: float = 0.0
    end: float | None = None
    fetch: Callable[[], AudioLike] | None = None

    def wav(self, sample_rate: int) -> Any:
        """Samples of the span, float32 (S,); AudioError as `gpa.audio.load`."""
        return load(self.fetch() if self.fetch else self.name, sample_rate, begin=self.begin, end=self.end)


@dataclass(frozen=True)
class ManifestRow:
    """One row, whatever it came from; task "" serves any task it can, `where` is for messages.

    `seconds` is the length that the manifest states for the file, None if it states none.
    """

    id: str
    audio: Clip
    text: str = ""
    speaker: str = ""
    split: str = "train"
    task: str = ""
    reference: Clip | None = None
    target: Clip | None = None
    licence: str = ""
    where: str = ""
    seconds: float | None = None

    @property
    def trains(self) -> bool:
        """Whether the row is of a training split: train, train-synthetic, ..."""
        return self.split.startswith("train")

    @property
    def needs_text(self) -> bool:
        """Whether sequences of this row have its text: its task's do, or any task's where there is one."""
        return TASKS[self.task].uses_text if self.task else bool(self.text.strip())

    def serves(self, tasks: Mapping[str, Task]) -> tuple[str, ...]:
        """Those of a model's tasks that this row is measured by; without a text, a conversion onto itself."""
        if self.task:
            return (self.task,)
        return tuple(name for name, task in tasks.items() if task.uses_text == self.needs_text)

    @property
    def bad_name(self) -> str:
        """The first of its names that is `undecodable`, "" for none."""
        clips = [clip.name for clip in (self.audio, self.reference, self.target) if clip]
        return undecodable(*clips, self.id, self.speaker, self.split, self.licence)

    @property
    def voice(self) -> Clip:
        """The recording whose voice the row's speech has: the reference, else the speech itself."""
        return self.reference or self.target or self.audio


def undecodable(*names: str) -> str:
    """The first name that is no Unicode, as ASCII, "" for none: Python has its bytes as lone surrogates."""
    return next((ascii(name) for name in names if any("\ud800" <= c <= "\udfff" for c in name)), "")


class Raw(NamedTuple):
    """A row before typing: where it stands, and a JSON line or a mapping with our keys."""

    where: str
    row: str | Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """Where rows come from: how many, a SHA-256 of what they say, and the rows `raw(begin, end)`.

    `find` makes a file name of a row a path on disk; its second argument tells the published keys.
    """

    name: str
    digest: str
    size: int
    raw: Callable[[int, int], Iterator[Raw]]
    find: Callable[[str, bool], str]

    def rows(self, begin: int = 0, end: int | None = None) -> Iterator[ManifestRow]:
        """Rows `begin` to `end`, in order; DataError at one that does not fit."""
        for where, row in self.raw(begin, self.size if end is None else min(end, self.size)):
            yield _typed(row, where, self.find)

    def check(self) -> Iterator[ManifestRow]:
        """All rows; DataError after the last one, showing the first few that do not fit.

        Few different texts in many rows are suspicious, and a warning says so.
        """
        problems: list[str] = []
        texts: set[int] = set()
        told = 0  # rows with a text
        if not self.size:
            raise DataError(f"{self.name}: no rows in it")
        for where, row in self.raw(0, self.size):
            try:
                typed = _typed(row, where, self.find)
            except DataError as error:
                problems.append(str(error))
                continue
            if typed.text and len(texts) < MOST_TEXTS:
                texts.add(hash(typed.text))
            told += bool(typed.text)
            yield typed
        if told >= FEW_ROWS and len(texts) * FEW_TEXTS <= told:
            logger.warning(
                "%s: only %d different texts in %d rows: is the text column that of a speaker?",
                *(self.name, len(texts), told),
            )
        if problems:
            more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
            raise DataError("\n  ".join([f"{len(problems)} rows do not fit:", *problems[:SHOWN]]) + more)


# Typing a row -----------------------------------------------------------------------------------------------


def _typed(raw: str | Mapping[str, Any], where: str, find: Callable[[str, bool], str]) -> ManifestRow:
    row = _mapping(raw, where)
    published = "audio" in row
    needed = ("task", "audio") if published else ("id", "path")
    missing = [key for key in needed if key not in row]
    if missing or (published and "path" in row):
        raise DataError(f"{where}: a row has id and path, or GPA's task and audio; found {', '.join(row)}")
    _check_types(row, where)

    def found(key: str) -> Clip | None:
        value = row.get(key)
        return value if isinstance(value, Clip) else Clip(find(value, published)) if value else None

    main = found(needed[1])
    if main is None:
        raise DataError(f"{where}: key {needed[1]!r} is empty")
    begin, end = _span(row, where)
    return ManifestRow(
        id=row.get("id") or f"{Path(main.name).stem}-{where.rpartition(':')[2]}",
        audio=Clip(main.name, begin, end, main.fetch),
        text=row.get("text") or "",
        speaker=row.get("speaker") or "",
        split=row.get("split") or "train",
        task=_task(row, where),
        reference=found("ref_audio"),
        target=found("vc_audio"),
        licence=(row.get("licence") or "").strip(),
        where=where,
        seconds=row.get("duration"),
    )


def _mapping(raw: str | Mapping[str, Any], where: str) -> Mapping[str, Any]:
    if not isinstance(raw, str):
        return raw
    try:
        row = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: a row is an object, this is {type(row).__name__}")
    return row


def _check_types(row: Mapping[str, Any], where: str) -> None:
    for key, value in row.items():
        if key.startswith("text_"):  # other transcripts of the same clip, which are not used
            continue
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(KEYS)}"
            raise DataError(f"{where}: unknown key {key!r}; {hint}")
        legal = KEYS[key]
        fits = isinstance(value, (*legal, Clip)) and not isinstance(value, bool)
        if not fits or (isinstance(value, (int, float)) and not abs(value) < _MOST):
            kinds = " or ".join(_WORDS[kind] for kind in legal if kind in _WORDS)
            raise DataError(f"{where}: key {key!r} is {value!r:.60}, {kinds} expected")


def _span(row: Mapping[str, Any], where: str) -> tuple[float, float | None]:
    """Begin and end in seconds; -1 stands for none, as in the published rows."""
    begin, end = row.get("begin_time", -1), row.get("end_time", -1)
    for key, value in (("begin_time", begin), ("end_time", end)):
        if value < 0 and value != -1:
            raise DataError(f"{where}: key {key!r} is {value}, seconds or -1 (none) expected")
    return (0.0 if begin == -1 else float(begin)), (None if end == -1 else float(end))


def _task(row: Mapping[str, Any], where: str) -> str:
    try:
        task = canonical_task(row["task"]) if row.get("task") else ""
    except PromptError as error:
        raise DataError(f"{where}: key 'task': {error}") from error
    converts = bool(task) and TASKS[task].converts
    if converts != bool(row.get("vc_audio")):
        converting = ", ".join(name for name, each in TASKS.items() if each.converts)
        state = (
            f"empty; a {task} row needs the converted recording"
            if converts
            else f"for rows of task {converting} only"
        )
        raise DataError(f"{where}: key 'vc_audio' is {state}")
    return task


# JSONL ------------------------------------------------------------------------------------------------------


def read_jsonl(path: Path) -> Source:
    """The rows of a JSONL file; in memory are only the places of its lines."""
    starts, numbers, digest, at = array.array("q"), array.array("q"), hashlib.sha256(), 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            digest.update(line)
            if line.strip():
                starts.append(at)
                numbers.append(number)
            at += len(line)

    def raw(begin: int, end: int) -> Iterator[Raw]:
        with path.open("rb") as lines:
            for i in range(begin, end):
                lines.seek(starts[i])
                where = f"{path}:{numbers[i]}"
                try:
                    yield Raw(where, lines.readline().decode("utf-8" if starts[i] else "utf-8-sig"))
                except UnicodeDecodeError as error:
                    raise DataError(f"{where}: not UTF-8 ({error}); save the manifest again") from error

    def find(name: str, published: bool) -> str:
        """The reference reads its paths from the working folder; the manifest's folder comes second."""
        return name if published and os.path.exists(name) else str(path.parent / name)

    return Source(str(path), digest.hexdigest(), len(starts), raw, find)
