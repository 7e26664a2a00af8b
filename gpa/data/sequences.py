"""Rows of a prepared folder as sequences of a prompt format: what a row becomes, and its length."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpa.data import token_folder
from gpa.prompt.formats import Example, Format, InstructFormat, get_format
from gpa.prompt.tasks import FIELD_OF, IGNORE, Task
from gpa.prompt.vocab import Vocab
from gpa.text.normaliser import normalise_text
from gpa.text.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from gpa.data.instructions import Asked

KNOWN = 1 << 14  # texts whose sizes are remembered
COLUMN_OF = {"semantic": "semantic", "global": "global", "glm": "glm", "content": "text"}


def example(format: Format, task: str, row: Mapping[str, Any], instruction: str | None = None) -> Example:
    """The training sequence of a row for one task; a conversion without target goes onto itself."""
    layout = format.layouts[format.task(task).name]
    fields: dict[str, Any] = {FIELD_OF[kind]: row[COLUMN_OF[kind]] for kind in layout.blocks}
    fields[f"target_{FIELD_OF[layout.output]}"] = _target(format, task, row)
    return format.example(task, **fields, instruction=instruction)


def free_example(format: InstructFormat, task: str, row: Mapping[str, Any], asked: Asked) -> Example:
    """The sequence of a row whose wording alone tells the task; that it opens its output has a loss."""
    layout = format.layouts[task]
    kinds = (("global",) if asked.voiced else ()) + layout.blocks
    prompt = format.ask(asked.words, {kind: row[COLUMN_OF[kind]] for kind in kinds}, asked.tasks)
    answer = format.answer(layout.output, _target(format, task, row))
    return Example(prompt + answer, [IGNORE] * len(prompt) + answer)


def _target(format: Format, task: str, row: Mapping[str, Any]) -> Any:
    """What a row's completion says: its text or its speech, a conversion's own recording if there is one."""
    asked = format.task(task)
    if asked.writes:
        return row["text"]
    return row["target" if asked.converts and len(row["target"]) else "semantic"]


def stored_text(format: Format, text: str) -> str:
    """A text as the format reads it: published models take it verbatim."""
    return normalise_text(text) if format.name == "instruct" else text


def longest(format: Format, tasks: Sequence[str], row: Mapping[str, Any]) -> int:
    """Ids of the longest sequence that the row makes for these tasks, under the longest instruction."""
    sizes = []
    for name in tasks:
        task = format.task(name)
        texts = {row["text"], target_text(format, task, row["text"])}
        rows = [example(format, task.name, {**row, "text": text}) for text in texts]
        sizes.append(max(len(made.input_ids) for made in rows) + _wording(format, task.name))
    return max(sizes, default=0)


class Sizes:
    """`longest` for many rows of a format: what a task adds and what a text takes are counted once.

    Rows are taken as they are: that a code or a text is none of the model's shows when the row is built.
    """

    def __init__(self, format: Format) -> None:
        self.format = format
        self._added: dict[str, int] = {}
        self._known: dict[tuple[type, str], int] = {}  # by type, since some texts are verbatim

    def __call__(self, name: str, row: Mapping[str, Any]) -> int:
        """Ids of the longest sequence that the row makes for a task."""
        task = self.format.task(name)
        if task.name not in self._added:
            frame = [0] * self.format.vocab.n_codebooks
            least = {"text": "a", "semantic": frame, "global": frame, "glm": frame, "target": ()}
            self._added[task.name] = longest(self.format, (task.name,), least) - self._ids(task, least)
        return self._added[task.name] + self._ids(task, row)

    def _ids(self, task: Task, row: Mapping[str, Any]) -> int:
        """Ids of a row's own content."""
        target = _target(self.format, task.name, row)
        said = 0 if isinstance(target, str) else len(target)
        texts = {row["text"], target_text(self.format, task, row["text"])}
        blocks = self.format.layouts[task.name].blocks
        written = blocks.count("content") + isinstance(target, str)
        said += sum(len(row[COLUMN_OF[kind]]) for kind in blocks if kind != "content")
        return said + (written * max(map(self._text_ids, texts)) if written else 0)

    def _text_ids(self, text: str) -> int:
        """Ids of a text in a block, without what closes it."""
        key = type(text), text
        if key not in self._known:
            if len(self._known) >= KNOWN:
                self._known.clear()
            self._known[key] = len(self.format.ending("content", text)) - 2  # its end, and the stop token
        return self._known[key]


def target_text(format: Format, task: Task, text: str) -> str:
    """What a task writes of a row's text; published models take it verbatim."""
    return task.target(text) if task.target and format.name == "instruct" else text


@lru_cache(maxsize=16)  # the same for every row of a corpus
def _wording(format: Format, task: str) -> int:
    """How many ids the longest instruction has more than the first, which `example` writes."""
    if format.name != "instruct":
        return 0
    sizes = [len(format.text_tokenizer.encode(words)) for words in format.task(task).instructions]
    return max(sizes) - sizes[0]


def write(folder: Path, rows: Iterable[Mapping[str, Any]], about: Mapping[str, Any]) -> int:
    """Write rows that are made of ids as a prepared folder of one shard, whole or not at all; how many.

    `about` is prepared.json of the folder whose codec and tokenizer made the ids; the tokenizer's files are
    in `folder` already. Keys that a row lacks are filled in.
    """
    vocab = Vocab.from_file(folder, **about["vocabulary"])
    fmt = get_format(about["format"], vocab, TextTokenizer.from_file(folder))
    rate, made = about["codec"]["frame_rate"], []
    for row in rows:
        filled = {**token_folder.BLANK, "seconds": len(row["semantic"]) / rate, **row}
        able = [name for name, task in fmt.tasks.items() if task.takes(filled["text"])]
        made.append({**filled, "length": longest(fmt, [filled["task"]] if filled["task"] else able, filled)})
    optional = [name for name in token_folder.OPTIONAL if any(len(row[name]) for row in made)]
    token_folder.write_shard(folder / token_folder.shard_name(0, 1), made, folder, optional)
    counts = {"rows": len(made), "seconds": round(sum(row["seconds"] for row in made), 3), "shards": 1}
    kept = {name: about[name] for name in token_folder.LASTING if name in about}
    token_folder.write_json(folder / token_folder.PREPARED, {**kept, **counts, "shard_rows": len(made)})
    return len(made)
