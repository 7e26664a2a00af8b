"""The three tasks as data: names, instructions, block orders, and what a sequence parses to.

`gpa.prompt.formats` turns these tables into ids; it re-exports what callers need.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gpa.errors import PromptError

IGNORE = -100  # the label of a position without loss
TASKS = ("asr", "tts", "vc")
ALIASES = {"stt": "asr", "tts-a": "tts"}  # names of the published JSONL (docs/data.md)
# Short, as every training row pays for it; the wording is shared across tasks ("speech", "text", "this
# voice") so that an unseen composition can be described in seen words. The first is used at inference.
INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "asr": ("speech to text", "write the speech as text", "write what is said", "transcribe the speech"),
    "tts": ("text to speech", "read the text in this voice", "say the text", "speak the text"),
    "vc": ("speech to speech", "say the speech in this voice", "say it in this voice", "change the voice"),
}

Codes = Sequence[int]
Fields = dict[str, "str | Codes | None"]


@dataclass(frozen=True)
class Layout:
    """One task: the blocks of its prompt, the control token before the completion, and the output's block."""

    blocks: tuple[str, ...]
    hinge: str | None
    output: str


PUBLISHED = {
    "asr": Layout(("glm", "semantic"), "start_content", "content"),
    "tts": Layout(("global", "content"), None, "semantic"),
    "vc": Layout(("global", "semantic"), "end_content", "semantic"),  # sic: never opened, only closed
}
INSTRUCT = {
    "asr": Layout(("semantic",), "start_content", "content"),
    "tts": Layout(("global", "content"), "start_semantic", "semantic"),
    "vc": Layout(("global", "semantic"), "start_semantic", "semantic"),
}
KINDS = ("global", "glm", "semantic", "content")
# A block's keyword in the signatures below.
FIELD_OF = {"glm": "glm", "semantic": "semantic", "global": "global_", "content": "text"}


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


def canonical_task(task: str) -> str:
    """`asr`, `tts` or `vc` for a name or alias; PromptError listing the valid ones otherwise."""
    name = ALIASES.get(task, task) if isinstance(task, str) else task
    if name not in TASKS:
        valid = ", ".join((*TASKS, *ALIASES))
        raise PromptError(f"unknown task {task!r}; valid tasks: {valid}")
    return name
