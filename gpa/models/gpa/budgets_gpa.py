"""What a completion may look like, how long it may grow, and what of it counts: rules over ids.

Knows the prompt format and how many semantic ids make a second; no codec, no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpa.engine.request import Completion, Rules
from gpa.engine.sampler import LoopDetector
from gpa.errors import PromptError, UsageError
from gpa.models.gpa.segmentation_gpa import speech_seconds
from gpa.prompt.tasks import ASR, Length, Task

if TYPE_CHECKING:
    from gpa.prompt.formats import Format

LOOP_SECONDS = 4.0  # of speech that only repeats: endless silence or a stuck word
LOOP_TEXT_IDS = 32


class Budgets:
    """Legal ids and length budgets of one format, at `frame_rate` semantic ids per second (all codebooks)."""

    def __init__(self, format: Format, frame_rate: float) -> None:
        self.format, self.frame_rate = format, frame_rate

    def spoken_ids(self, text: str) -> tuple[int, int]:
        """The least and the most semantic ids that speaking the text can take."""
        least, most = (seconds * self.frame_rate for seconds in speech_seconds(text))
        return max(1, int(least)), int(most)

    def span(self, task: Task, n_source: int) -> tuple[int, int]:
        """The least and the most ids that a task may make of so many semantic ids of its source."""
        if task.writes:
            return 0, self.transcript_ids(n_source / self.frame_rate, task)
        length = _length(task)
        return int(length.least * n_source), int(length.most * n_source + length.slack * self.frame_rate)

    def transcript_ids(self, seconds: float, task: Task = ASR) -> int:
        """The most ids that a task may write of so many seconds of speech."""
        return _length(task).text_ids(seconds)

    def rules(
        self, task: str, max_new: int, min_new: int = 0, *, loop: bool = True, closed: bool = False
    ) -> Rules:
        """What a completion may look like; a `closed` one stops after `max_new` ids if not before."""
        text = self.format.task(task).writes
        limit = LOOP_TEXT_IDS if text else int(LOOP_SECONDS * self.frame_rate)
        cycle = self.format.legal_cycle(task)
        max_new += -max_new % max(1, len(cycle))  # whole frames
        return Rules(
            max_new=max_new + closed,
            stop=self.format.stop_ids(task),
            legal=self.format.legal_ids(task),
            closers=frozenset({self.format.vocab.control["end_content"]}) if text else frozenset(),
            min_new=min(min_new, max_new - 1),
            loop=limit if loop else None,
            closed=closed,
            cycle=cycle,
        )

    def is_monotonous(self, ids: Sequence[int]) -> bool:
        """Whether a source repeats itself (silence, say), so that its copy would be taken for a loop."""
        detector = LoopDetector(int(LOOP_SECONDS * self.frame_rate))
        return any([detector.add(i) for i in ids if i in self.format.vocab.semantic])

    def text_ids(self, done: Completion) -> list[int]:
        """The text ids of a completion, a loop's repetitions cut off."""
        return [i for i in done.ids[: done.kept] if i in self.format.vocab.text]

    def codes(self, done: Completion) -> list[int]:
        """The semantic codes (T,) of a completion in whole frames, a loop's repetitions cut off."""
        semantic = self.format.vocab.semantic
        found = semantic.codes(i for i in done.ids[: done.kept] if i in semantic)
        return found[: len(found) - len(found) % self.format.vocab.n_codebooks]


def _length(task: Task) -> Length:
    if task.length is None:
        raise PromptError(f"{task.name} reads no speech, so its length follows from its text")
    return task.length


def budget(max_new_tokens: int | None, otherwise: int) -> int:
    """How many ids may be generated: as asked, else `otherwise`; UsageError for what is no count."""
    if max_new_tokens is None:
        return otherwise
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise UsageError(f"max_new_tokens={max_new_tokens!r}: a positive whole number is needed")
    return max_new_tokens
