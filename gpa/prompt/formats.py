"""The tasks' token layouts, with an inverse: a `Task` of the table (tasks.py) and its inputs to ids and back.

One function, `example`, builds training rows, and its prompt is the one `build` gives at inference, so the
two cannot drift apart. Nothing here cuts a sequence: whoever has a length limit refuses or splits.
Sequences are built from ids, never through strings, so text cannot turn into control or audio tokens.
This file knows ids and text only: no audio, no tensors, no sampling.

Two formats. `published` is the layout of GPA-0.3B (docs/tokens.md). `instruct` is ours: a task token and
a short instruction first, and every block delimited, which lets `compose` order known pieces at will.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from gpa.errors import PromptError, VocabError
from gpa.prompt.tasks import (
    DEFAULT,
    FIELD_OF,
    IGNORE,
    KINDS,
    TASKS,
    TTS,
    Codes,
    Example,
    Fields,
    Layout,
    Parsed,
    Task,
    canonical_task,
)
from gpa.prompt.vocab import CONTROL, Block, Vocab, control_token
from gpa.text.normaliser import normalise_text
from gpa.text.pronunciations import Verbatim
from gpa.text.tokenizer import TextTokenizer

__all__ = ["Example", "Format", "InstructFormat", "Parsed", "PublishedFormat", "canonical_task", "get_format"]


class _Format:
    """What both formats share: block writing, completions, legal ids, reading blocks back."""

    name: ClassVar[str]

    def __init__(self, vocab: Vocab, text_tokenizer: TextTokenizer, tasks: Iterable[str] = DEFAULT) -> None:
        """`tasks` are names of the table, those of the checkpoint; only their control tokens are needed."""
        self.vocab = vocab
        self.text_tokenizer = text_tokenizer
        self.tasks: dict[str, Task] = {name: TASKS[name] for name in map(canonical_task, tasks)}
        if foreign := [name for name, task in self.tasks.items() if self.name not in task.layouts]:
            raise PromptError(f"{', '.join(foreign)}: no layout in the {self.name} format")
        self.layouts: dict[str, Layout] = {n: task.layouts[self.name] for n, task in self.tasks.items()}
        if text_tokenizer.size != vocab.text_size:
            raise VocabError(
                f"text tokenizer has {text_tokenizer.size} ids, the vocabulary {vocab.text_size}"
            )
        missing = [control_token(name) for name in self.required_controls() if name not in vocab.control]
        if missing:
            raise VocabError(
                f"the {self.name} format needs {', '.join(sorted(missing))} for {', '.join(self.tasks)}, "
                "absent from the tokenizer"
            )
        self._control_ids = frozenset(vocab.control.values())

    def task(self, name: str) -> Task:
        """A task of this model by its name or alias; PromptError that lists the model's tasks otherwise."""
        return self.tasks[canonical_task(name, self.tasks)]

    def required_controls(self) -> set[str]:
        """Names of the control tokens this format writes for its tasks."""
        kinds = {kind for layout in self.layouts.values() for kind in (*layout.blocks, layout.output)}
        return {f"{side}_{kind}" for kind in kinds for side in ("start", "end")} | {"im_end"}

    def build(
        self,
        task: str,
        *,
        text: str | None = None,
        semantic: Codes | None = None,
        global_: Codes | None = None,
        glm: Codes | None = None,
        instruction: str | None = None,
    ) -> list[int]:
        """The prompt's ids. `semantic`, `global_` and `glm` are codes of the source or reference, not ids.

        PromptError names a missing, empty or superfluous field; VocabError a code out of range.
        """
        task = self.task(task).name
        layout = self.layouts[task]
        fields: Fields = {"text": text, "semantic": semantic, "global_": global_, "glm": glm}
        needed = [FIELD_OF[kind] for kind in layout.blocks]
        for field, value in fields.items():
            if value is not None and field not in needed:
                raise PromptError(f"{self.name} {task} takes no {field}; it takes {', '.join(needed)}")
        ids = self._head((task,), instruction)
        for kind in layout.blocks:
            ids += self._delimited(kind, fields[FIELD_OF[kind]])
        return ids + ([self.vocab.control[layout.hinge]] if layout.hinge else [])

    def completion(self, task: str, *, text: str | None = None, semantic: Codes | None = None) -> list[int]:
        """The supervised ids that follow the prompt, stop token included."""
        output = self.layouts[self.task(task).name].output
        fields: Fields = {"text": text, "semantic": semantic}
        wanted = FIELD_OF[output]
        for field, value in fields.items():
            if (value is not None) != (field == wanted):
                raise PromptError(
                    f"{task} has the target {wanted} and no other; {field} is {'' if value else 'not '}given"
                )
        return self.ending(output, fields[wanted])

    def example(
        self,
        task: str,
        *,
        target_text: str | None = None,
        target_semantic: Codes | None = None,
        text: str | None = None,
        semantic: Codes | None = None,
        global_: Codes | None = None,
        glm: Codes | None = None,
        instruction: str | None = None,
    ) -> Example:
        """A training row: the prompt that `build` gives, then the completion, and their labels."""
        prompt = self.build(
            task, text=text, semantic=semantic, global_=global_, glm=glm, instruction=instruction
        )
        completion = self.completion(task, text=target_text, semantic=target_semantic)
        return Example(prompt + completion, [IGNORE] * len(prompt) + completion)

    def legal_ids(self, task: str) -> tuple[range, ...]:
        """Disjoint, ascending runs of the ids a completion of `task` may hold, stop token included."""
        return self.legal_output(self.layouts[self.task(task).name].output)

    def legal_output(self, kind: str) -> tuple[range, ...]:
        """As `legal_ids`, for the kind of block that is generated."""
        single = [self.vocab.stop] + ([self.vocab.control["end_content"]] if kind == "content" else [])
        runs = [self._block(kind).span, *(range(token_id, token_id + 1) for token_id in single)]
        return tuple(sorted(runs, key=lambda run: run.start))

    def legal_cycle(self, task: str) -> tuple[tuple[range, ...], ...]:
        """Runs legal at each step of a frame where speech has several codebooks; () where any id may come."""
        speech = self.layouts[canonical_task(task)].output == "semantic"
        return (
            tuple((book,) for book in self.vocab.codebooks) if speech and self.vocab.n_codebooks > 1 else ()
        )

    def stop_ids(self, task: str) -> frozenset[int]:
        """Ids that end generation."""
        self.task(task)
        return frozenset({self.vocab.stop})

    def parse_completion(self, task: str, ids: Sequence[int]) -> Parsed:
        """Generated ids, finished or not, as a `Parsed` without prompt blocks; PromptError if malformed."""
        task = self.task(task).name
        output = self.layouts[task].output
        target, finished = self._read_ending(_Cursor(_plain(ids)), output)
        return Parsed((task,), (), output, target, finished)

    def _head(self, tasks: Sequence[str], instruction: str | None) -> list[int]:
        if instruction is not None:
            raise PromptError(f"the {self.name} format has no instruction; load an instruct model for that")
        return []

    def _clean(self, text: str) -> str:
        return text

    def _block(self, kind: str) -> Block:
        blocks = {"content" if b.name == "text" else b.name: b for b in self.vocab.blocks}
        blocks.setdefault("global", self.vocab.semantic)  # an acoustic prompt
        blocks = {name: b for name, b in blocks.items() if f"start_{name}" in self.vocab.control}
        if kind not in blocks:
            raise PromptError(f"this model has no {kind!r} block; it has {', '.join(blocks)}")
        return blocks[kind]

    def _payload(self, kind: str, value: str | Codes | None, empty: bool = False) -> list[int]:
        """The ids inside a block; an empty one is refused unless `empty`."""
        block = self._block(kind)
        if value is None:
            raise PromptError(f"{FIELD_OF[kind]} is missing")
        if (kind == "content") != isinstance(value, str):
            raise PromptError(f"{FIELD_OF[kind]} cannot be of type {type(value).__name__}")
        ids = self.text_tokenizer.encode(self._clean(value)) if isinstance(value, str) else block.ids(value)
        if not ids and not empty:
            raise PromptError(f"{FIELD_OF[kind]} is empty: {value!r}")
        return ids

    def _delimited(self, kind: str, value: str | Codes | None) -> list[int]:
        ids, control = self._payload(kind, value), self.vocab.control
        return [control[f"start_{kind}"], *ids, control[f"end_{kind}"]]

    def ending(self, kind: str, value: str | Codes | None) -> list[int]:
        """`completion` for a kind of block, which composed prompts need: "content", "semantic", ...

        An empty transcript is legal (silence); empty speech is not.
        """
        ids = self._payload(kind, value, empty=kind == "content")
        return [*ids, *([self.vocab.control["end_content"]] if kind == "content" else []), self.vocab.stop]

    def _value(self, kind: str, ids: list[int]) -> Any:
        block = self._block(kind)
        strange = next((i for i in ids if i not in block), None)
        if strange is not None:
            raise PromptError(f"id {strange} does not belong in a {kind} block")
        return self.text_tokenizer.decode(ids) if kind == "content" else block.codes(ids)

    def _read_blocks(self, cursor: "_Cursor") -> tuple[tuple[str, Any], ...]:
        """Every complete block from here on; stops before one that is left open."""
        blocks = []
        while kind := self._complete_kind(cursor):
            cursor.position += 1
            blocks.append((kind, self._value(kind, cursor.run(self._control_ids))))
            cursor.position += 1
        return tuple(blocks)

    def _complete_kind(self, cursor: "_Cursor") -> str | None:
        """The kind of the delimited block at the cursor, None if there is none or its end is missing."""
        control = self.vocab.control
        kind = next((k for k in KINDS if cursor.at(control.get(f"start_{k}"))), None)
        ahead = _Cursor(cursor.ids, cursor.position + 1)
        ahead.run(self._control_ids)
        return kind if kind and ahead.at(control.get(f"end_{kind}")) else None

    def _read_ending(self, cursor: "_Cursor", kind: str) -> tuple[Any, bool]:
        """The completion at the cursor (None if nothing is there yet) and whether it is finished."""
        ids = cursor.run(self._control_ids)
        closed = kind == "content" and cursor.skip(self.vocab.control["end_content"])
        finished = self._read_stop(cursor)
        return (self._value(kind, ids) if ids or closed or finished else None), finished

    def _read_stop(self, cursor: "_Cursor") -> bool:
        """Whether the stop token comes next; nothing may follow it."""
        finished = cursor.skip(self.vocab.stop)
        if not cursor.done:
            raise PromptError(f"unexpected id {cursor.ids[cursor.position]} at position {cursor.position}")
        return finished


class PublishedFormat(_Format):
    """GPA-0.3B's layout: delimiters alone select the task, text is verbatim (docs/tokens.md)."""

    name = "published"

    def parse(self, ids: Sequence[int]) -> Parsed:
        """A prompt or a whole sequence back to its parts; PromptError if it is not of this format."""
        cursor = _Cursor(_plain(ids))
        blocks = self._read_blocks(cursor)
        kinds = tuple(kind for kind, _ in blocks)
        for task, layout in self.layouts.items():
            if kinds == layout.blocks and (layout.hinge is None or cursor.skip(self._hinge(layout))):
                target, finished = self._read_ending(cursor, layout.output)
                return Parsed((task,), blocks, layout.output, target, finished)
            if kinds == (*layout.blocks, layout.output):  # a closed transcript reads as one more block
                finished = self._read_stop(cursor)
                return Parsed((task,), blocks[:-1], layout.output, blocks[-1][1], finished)
        raise PromptError(f"blocks {kinds} are no {self.name} sequence")

    def _hinge(self, layout: Layout) -> int:
        return self.vocab.control[layout.hinge or ""]


class InstructFormat(_Format):
    """Our layout: task token, instruction, delimited blocks, then the opened output block.

    Text and instructions pass through `normalise_text`, so callers may hand over any spelling; what `parse`
    returns and texts of a pronouncing dictionary are `Verbatim` and do not.
    """

    name = "instruct"

    def required_controls(self) -> set[str]:
        """Names of the control tokens this format writes for its tasks."""
        return super().required_controls() | {f"task_{task}" for task in self.tasks} | {"end_instruction"}

    def ask(self, instruction: str, given: Mapping[str, str | Codes], tasks: Sequence[str] = ()) -> list[int]:
        """A prompt of given blocks by kind that opens no output; which one follows, the instruction tells."""
        ids = self._head([self.task(task).name for task in tasks], instruction)
        return ids + [i for kind in KINDS if kind in given for i in self._delimited(kind, given[kind])]

    def answer(self, output: str, value: str | Codes) -> list[int]:
        """The supervised ids after a prompt of `ask`: the block's opening token, its content, the stop."""
        return [self.vocab.control[f"start_{output}"], *self.ending(output, value)]

    def opened(self, token_id: int) -> str | None:
        """The kind of block that an id opens, if the model has a task with this output; None otherwise."""
        outputs = {layout.output for layout in self.layouts.values()}
        return next((k for k in outputs if self.vocab.control[f"start_{k}"] == token_id), None)

    def compose(
        self,
        tasks: Sequence[str],
        blocks: Sequence[tuple[str, str | Codes]],
        output: str,
        instruction: str | None = None,
    ) -> list[int]:
        """A prompt from any known pieces in any order, trained as such or not; `parse` reads it back.

        `tasks` may be empty or name several, `blocks` are (kind, text or codes) pairs with kinds "global",
        "semantic", "content" (and "glm" where the model has it), `output` is the kind to generate. For
        example `compose([VC.name], [("global", g), ("content", text), ("semantic", s)], "semantic")` is a
        conversion that also knows the words. The default instruction joins those of the tasks.
        """
        self._block(output)
        ids = self._head([self.task(task).name for task in tasks], instruction)
        for kind, value in blocks:
            ids += self._delimited(kind, value)
        return [*ids, self.vocab.control[f"start_{output}"]]

    def wordless(self, global_: Codes, instruction: str | None = None, task: str = TTS.name) -> list[int]:
        """The prompt of speech in a voice with the text left out: the null of guidance by a text."""
        return self.compose([task], [("global", global_)], "semantic", instruction)

    def parse(self, ids: Sequence[int]) -> Parsed:
        """A prompt or a whole sequence back to its parts; PromptError if it is not of this format."""
        cursor, control = _Cursor(_plain(ids)), self.vocab.control
        tasks = []
        while task := next((task for task in self.tasks if cursor.skip(control[f"task_{task}"])), None):
            tasks.append(task)
        instruction = self._value("content", cursor.run(self._control_ids))
        if not cursor.skip(control["end_instruction"]):
            raise PromptError(f"no {CONTROL['end_instruction'].token} at position {cursor.position}")
        blocks = self._read_blocks(cursor)
        output = next((kind for kind in KINDS if cursor.skip(control.get(f"start_{kind}"))), None)
        if output is None and blocks and blocks[-1][0] == "content":  # a closed transcript reads as a block
            finished = self._read_stop(cursor)
            return Parsed(tuple(tasks), blocks[:-1], "content", blocks[-1][1], finished, instruction)
        if output is None:
            raise PromptError(f"no output block is opened at position {cursor.position}")
        target, finished = self._read_ending(cursor, output)
        return Parsed(tuple(tasks), blocks, output, target, finished, instruction)

    def _head(self, tasks: Sequence[str], instruction: str | None) -> list[int]:
        if instruction is None:
            instruction = ", ".join(self.tasks[task].instructions[0] for task in tasks)
        words = self._payload("content", instruction, empty=True)
        control = self.vocab.control
        return [*(control[f"task_{task}"] for task in tasks), *words, control["end_instruction"]]

    def _value(self, kind: str, ids: list[int]) -> Any:
        value = super()._value(kind, ids)
        return Verbatim(value) if kind == "content" else value

    def _clean(self, text: str) -> str:
        return text if isinstance(text, Verbatim) else normalise_text(text)


Format = PublishedFormat | InstructFormat
FORMATS: dict[str, type[PublishedFormat] | type[InstructFormat]] = {
    "published": PublishedFormat,
    "instruct": InstructFormat,
}


def get_format(
    name: str, vocab: Vocab, text_tokenizer: TextTokenizer, tasks: Iterable[str] = DEFAULT
) -> Format:
    """The format of that name, "published" or "instruct", over a model's id space and text tokenizer.

    `tasks` are the model's, by their names in the table.
    """
    if name not in FORMATS:
        raise PromptError(f"unknown prompt format {name!r}; known: {', '.join(FORMATS)}")
    return FORMATS[name](vocab, text_tokenizer, tasks)


def _plain(ids: Sequence[int]) -> list[int]:
    try:
        return [operator.index(token_id) for token_id in ids]
    except TypeError as error:
        raise PromptError(f"ids must be one flat sequence of integers: {error}") from error


class _Cursor:
    """A reading position in a sequence of ids."""

    def __init__(self, ids: list[int], position: int = 0) -> None:
        self.ids = ids
        self.position = position

    @property
    def done(self) -> bool:
        return self.position >= len(self.ids)

    def at(self, token_id: int | None) -> bool:
        return not self.done and self.ids[self.position] == token_id

    def skip(self, token_id: int | None) -> bool:
        """Move past the id if it is the next one."""
        found = self.at(token_id)
        self.position += found
        return found

    def run(self, ends: frozenset[int]) -> list[int]:
        """Move to the next id in `ends` (or the end) and return what was passed."""
        start = self.position
        while not self.done and self.ids[self.position] not in ends:
            self.position += 1
        return self.ids[start : self.position]
