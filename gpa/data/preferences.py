"""Pairs of takes of one text, a better and a worse one: `gpa pairs` writes, preference training reads them.

    pairs.jsonl      a pair a line: ids of the prompt and of both takes, and how likely the takes were
    rejected.jsonl   every text without a pair, with its reason
    pairs.json       how they were made, and fingerprints of the checkpoint that spoke

Knows ids and files: no sound, no judge, no network.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gpa import config, disk
from gpa.errors import CheckpointError, DataError, PromptError, UsageError, VocabError

if TYPE_CHECKING:
    from gpa.prompt.formats import Format

T = TypeVar("T")
PAIRS, REJECTED, ABOUT = "pairs.jsonl", "rejected.jsonl", "pairs.json"
KIND, VERSION = "gpa-pairs", 1
REMEDY = "let this checkpoint speak:  gpa pairs SENTENCES --model MODEL -o PAIRS"


@dataclass(frozen=True)
class Pair:
    """A prompt and two completions of it, all ids; the stop id is the last of a take that came to its end.

    `reference` are the log-probabilities (nats) of the better and of the worse take under the checkpoint that
    spoke, `heard` what a judge heard in each, `wrong` how many words of that were wrong.
    """

    id: str
    split: str  # train, or dev: held out
    voice: str
    text: str
    prompt: tuple[int, ...]
    better: tuple[int, ...]
    worse: tuple[int, ...]
    reference: tuple[float, float]
    heard: tuple[str, str]
    wrong: tuple[int, int]


@dataclass(frozen=True)
class Rejected:
    """A text without a pair: why, and how many words were wrong in each take."""

    id: str
    voice: str
    text: str
    reason: str
    wrong: tuple[int, ...] = ()


@dataclass(frozen=True)
class TakeArgs:
    """How many takes of each text, from which seed on, and by how many wrong words a pair differs."""

    takes: int = 4
    margin: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.takes < 2 or self.margin < 1:
            raise UsageError(f"{self.takes} takes, a margin of {self.margin}: at least 2, and at least 1")


@dataclass(frozen=True)
class About:
    """pairs.json: which checkpoint spoke, what was asked of it, who judged, and what came of it."""

    model: str
    fingerprints: Mapping[str, str]
    judge: str
    asked: TakeArgs
    pairs: int
    rejected: int
    kind: str = KIND
    version: int = VERSION


class Journal:
    """What was found so far, a text a line, so that a command that was stopped goes on where it was.

    The first line says what was `asked`: lines of another question are dropped, and so is a last one that was
    cut. Nothing is written before the first new row. DataError for a line that is damaged.
    """

    def __init__(self, path: Path, asked: Mapping[str, Any]) -> None:
        head = json.dumps(asked, sort_keys=True) + "\n"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        found = [line for line in lines[1:] if line.endswith("\n")] if lines[:1] == [head] else []
        self.path, self._kept = path, [head, *found]
        self.rows = [_pair_or_rejection(line, f"{path}:{n}") for n, line in enumerate(found, 2)]

    def add(self, row: Pair | Rejected) -> None:
        """Keep one more row."""
        line = _line(row)
        if self._kept:
            disk.write_text(self.path, "".join([*self._kept, line]))
            self._kept = []
        else:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        self.rows.append(row)


def _pair_or_rejection(line: str, where: str) -> Pair | Rejected:
    tree = _tree(line, where)
    return _built(Pair, tree, where) if "better" in tree else _built(Rejected, tree, where)


def write(folder: Path, pairs: Iterable[Pair], rejected: Iterable[Rejected], about: About) -> None:
    """Write the three files into a folder."""
    for name, rows in ((PAIRS, pairs), (REJECTED, rejected)):
        (folder / name).write_text("".join(map(_line, rows)), encoding="utf-8")
    (folder / ABOUT).write_text(json.dumps(asdict(about), indent=1) + "\n", encoding="utf-8")


def read(folder: Path, fmt: Format, fingerprints: Mapping[str, str]) -> list[Pair]:
    """All pairs of a folder, for a checkpoint of this format with these fingerprints.

    CheckpointError for pairs that another checkpoint spoke, DataError, naming file, line and key, for what
    is damaged, of other ids, or not better.
    """
    path = folder / ABOUT
    about = _built(About, config.read_json(path, DataError), str(path))
    if (about.kind, about.version) != (KIND, VERSION):
        raise DataError(f"{path}: {about.kind} version {about.version} cannot be read here")
    for part, spoke in sorted(about.fingerprints.items()):
        if fingerprints.get(part) != spoke:
            raise CheckpointError(
                f"{path}: {about.model} spoke these pairs, its {part} is another (fingerprint {spoke[:12]}, "
                f"here {str(fingerprints.get(part))[:12]}); {REMEDY}"
            )
    path = folder / PAIRS
    lines = config.read_text(path, DataError, most=None).splitlines()
    pairs = [_pair(line, f"{path}:{n}", fmt) for n, line in enumerate(lines, 1)]
    if len(pairs) != about.pairs:
        raise DataError(f"{path}: {len(pairs)} pairs, {ABOUT} says {about.pairs}; {REMEDY}")
    return pairs


def _pair(line: str, where: str, fmt: Format) -> Pair:
    pair = _built(Pair, _tree(line, where), where)
    where = f"{where}, pair {pair.id!r}"
    for name in ("prompt", "better", "worse"):
        if strange := [i for i in getattr(pair, name) if not 0 <= i < fmt.vocab.size]:
            raise DataError(f"{where}, {name}: id {strange[0]} is not one of the {fmt.vocab.size} ids here")
    try:
        said = fmt.parse([*pair.prompt, *pair.better])
        fmt.parse([*pair.prompt, *pair.worse])
    except (PromptError, VocabError) as error:
        raise DataError(f"{where}: no {fmt.name} sequence: {error}") from error
    if not said.finished or pair.better == pair.worse:
        why = "is the worse one" if said.finished else "does not come to its end"
        raise DataError(f"{where}, better: this take {why}, so none is better; {REMEDY}")
    return pair


def _line(row: Pair | Rejected) -> str:
    return json.dumps(asdict(row), ensure_ascii=False) + "\n"


def _tree(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON ({error})") from error


def _built(cls: type[T], tree: Any, where: str) -> T:
    try:
        return config.build(cls, tree, where)
    except UsageError as error:
        raise DataError(str(error)) from error
