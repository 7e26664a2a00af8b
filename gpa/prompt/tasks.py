"""The table of tasks: what each takes and gives, its layout in every prompt format, and what training needs.

`gpa.prompt.formats` turns a `Task` into ids; whoever else needs to know about one asks this table
(docs/add-a-task.md). Also here: what a sequence parses to.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gpa.errors import PromptError
from gpa.prompt import wordings
from gpa.text.edit_distance import without_punctuation

IGNORE = -100  # the label of a position without loss
KINDS = ("global", "glm", "semantic", "content")
# A block's keyword in the signatures of a format.
FIELD_OF = {"glm": "glm", "semantic": "semantic", "global": "global_", "content": "text"}
SPEECH_INPUTS, INPUTS = ("audio", "source"), ("audio", "source", "text", "voice")

Codes = Sequence[int]
Fields = dict[str, "str | Codes | None"]


@dataclass(frozen=True)
class Layout:
    """In one format: the prompt's blocks, the control token before the completion, the output's block."""

    blocks: tuple[str, ...]
    hinge: str | None
    output: str


@dataclass(frozen=True)
class Length:
    """How long a completion may be: `least` and `most` per second of the source's speech, `slack` beyond.

    Text ids, control ids included, of a task that writes; seconds of speech of a task that speaks.
    """

    most: float
    slack: float
    least: float = 0.0

    def text_ids(self, seconds: float) -> int:
        """The most text ids for speech of this length."""
        return int(self.slack) + int(self.most * seconds)


@dataclass(frozen=True)
class Task:
    """One task of a model, whole.

    `inputs` are those of `GPA.prompt`: audio, source, text, voice. `layouts` are by the prompt format's name.
    Of the `instructions` inference uses the first and training all; they are short, as every row pays for
    them, and share their wording across tasks ("speech", "text", "this voice"), so that an unseen composition
    can be described in seen words. Those `held_out` are never drawn in training: evaluation asks by them
    whether a wording alone selects the task. `length` is needed by tasks that read speech; without one a
    completion is as long as speaking the text takes. `sampling` holds what differs from greedy `Sampling`.

    Training: `share` is how often a clip serves the task per epoch, `weight` that of its loss, `copies` how
    often the source is one of the clip's augmented copies. `target` makes what is written of a clip's text,
    in formats that normalise text. PromptError for a task that contradicts itself.
    """

    name: str
    inputs: tuple[str, ...]
    layouts: Mapping[str, Layout]
    instructions: tuple[str, ...]
    held_out: tuple[str, ...] = ()
    length: Length | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)
    share: float = 1.0
    weight: float = 1.0
    copies: float = 0.0
    target: Callable[[str], str] | None = None
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise PromptError(f"task {self.name!r}: a name of letters, digits and _ is needed")
        if strange := sorted(set(self.inputs) - set(INPUTS)):
            raise PromptError(f"task {self.name}: unknown inputs {strange}; known: {', '.join(INPUTS)}")
        if len({layout.output for layout in self.layouts.values()}) != 1 or not self.instructions:
            raise PromptError(f"task {self.name}: layouts of one output and an instruction are needed")
        if both := sorted(set(self.instructions) & set(self.held_out)):
            raise PromptError(f"task {self.name}: {both} are trained and held out")
        if (self.length is None) == self.reads_speech:
            state = "is needed by" if self.reads_speech else "is per second of speech, and not for"
            raise PromptError(f"task {self.name}: length {state} a task with the inputs {self.inputs}")

    @property
    def writes(self) -> bool:
        """Whether the output is text; otherwise it is speech."""
        return next(iter(self.layouts.values())).output == "content"

    @property
    def reads_speech(self) -> bool:
        """Whether the prompt holds speech beside that of the voice."""
        return any(name in self.inputs for name in SPEECH_INPUTS)

    @property
    def uses_text(self) -> bool:
        """Whether a clip needs its text to serve the task."""
        return self.writes or "text" in self.inputs

    def takes(self, text: str) -> bool:
        """Whether a clip with this text, perhaps none, can serve the task."""
        return bool(text) or not self.uses_text

    @property
    def converts(self) -> bool:
        """Whether speech becomes speech: then the target is a recording of its own, or the source again."""
        return self.reads_speech and not self.writes

    @property
    def speaks_text(self) -> bool:
        """Whether text becomes speech."""
        return "text" in self.inputs and not self.writes


_SPOKEN = {"temperature": 0.2, "repetition_penalty": 1.2}  # of the published model's own server
TTS = Task(
    name="tts",
    inputs=("text", "voice"),
    layouts={
        "published": Layout(("global", "content"), None, "semantic"),
        "instruct": Layout(("global", "content"), "start_semantic", "semantic"),
    },
    instructions=wordings.TTS,
    held_out=wordings.TTS_HELD_OUT,
    sampling=_SPOKEN,
    aliases=("tts-a",),  # of the published training rows, as stt below
)
ASR = Task(
    name="asr",
    inputs=("audio",),
    layouts={
        "published": Layout(("glm", "semantic"), "start_content", "content"),
        "instruct": Layout(("semantic",), "start_content", "content"),
    },
    instructions=wordings.ASR,
    held_out=wordings.ASR_HELD_OUT,
    length=Length(most=25, slack=16),  # also where a letter takes several ids, as bytes
    copies=0.5,
    target=without_punctuation,
    aliases=("stt",),
)
VC = Task(
    name="vc",
    inputs=("source", "voice"),
    layouts={
        "published": Layout(("global", "semantic"), "end_content", "semantic"),  # sic: closed, never opened
        "instruct": Layout(("global", "semantic"), "start_semantic", "semantic"),
    },
    instructions=wordings.VC,
    held_out=wordings.VC_HELD_OUT,
    length=Length(least=0.25, most=1.25, slack=1.0),
    sampling=_SPOKEN,
    share=0.4,
    weight=0.5,
    copies=0.75,
)
TASKS: dict[str, Task] = {task.name: task for task in (TTS, ASR, VC)}
DEFAULT = (TTS.name, ASR.name, VC.name)  # of a checkpoint or a recipe that names none


def add(task: Task) -> Task:
    """Put a task into the table, for this process; PromptError if its name or an alias is taken."""
    taken = {*TASKS, *(alias for known in TASKS.values() for alias in known.aliases)}
    if clash := sorted(taken & {task.name, *task.aliases}):
        raise PromptError(f"task {task.name}: {', '.join(clash)} stands in the table already")
    TASKS[task.name] = task
    return task


class Example(NamedTuple):
    """A training row: `labels` equals `input_ids` on the completion and is -100 on the prompt."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Parsed:
    """What a sequence says; `target` is None for a prompt, `finished` whether the stop token was there.

    `blocks` holds the prompt's (kind, value) pairs in order: text for "content", codes for the rest.
    """

    tasks: tuple[str, ...]
    blocks: tuple[tuple[str, Any], ...]
    output: str
    target: Any = None
    finished: bool = False
    instruction: str | None = None

    def _block(self, kind: str) -> Any:
        return next((value for name, value in self.blocks if name == kind), None)

    @property
    def task(self) -> str | None:
        """The task, or None for a composition of none or several."""
        return self.tasks[0] if len(self.tasks) == 1 else None

    @property
    def text(self) -> str | None:
        """The text of the prompt."""
        return self._block("content")

    @property
    def semantic(self) -> list[int] | None:
        """The source's semantic codes (T,)."""
        return self._block("semantic")

    @property
    def global_(self) -> list[int] | None:
        """The reference voice's codes (G,)."""
        return self._block("global")

    @property
    def glm(self) -> list[int] | None:
        """The source's linguistic codes."""
        return self._block("glm")

    @property
    def target_text(self) -> str | None:
        """The transcript, for sequences that write text."""
        return self.target if self.output == "content" else None

    @property
    def target_semantic(self) -> list[int] | None:
        """The generated semantic codes (T,), for sequences that speak."""
        return self.target if self.output == "semantic" else None


def canonical_task(task: str, known: Mapping[str, Task] = TASKS) -> str:
    """The name of a task by its name or an alias; PromptError that lists the known ones otherwise."""
    for name, each in known.items():
        if task == name or task in each.aliases:
            return name
    valid = ", ".join([*known, *(alias for each in known.values() for alias in each.aliases)])
    raise PromptError(f"unknown task {task!r}; valid tasks: {valid}")
