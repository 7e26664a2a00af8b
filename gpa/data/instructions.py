"""Which instruction a row gets, and the clip that is as it asks: the step from `gpa.prompt.wordings` to rows.

A draw is `Asked`: a wording of the task, perhaps with an attribute (`gpa.prompt.attributes`), and whether the
task's token is there. Row and loss follow in rows.py and in the family: what a free row supervises begins
with the token that opens its output block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpa.errors import UsageError
from gpa.prompt.attributes import ATTRIBUTES, Attribute

if TYPE_CHECKING:
    from gpa.prompt.formats import Format
    from gpa.prompt.tasks import Task

Clips = Sequence[Mapping[str, Any]]
FEWEST = 4  # clips of a speaker, by which some are fast and some are slow


@dataclass(frozen=True)
class InstructionArgs:
    """How a recipe teaches instructions, as shares of rows from 0 to 1.

    A `free` row has no task token and no opened output block: its wording alone tells the task, and the model
    opens the block. Of free rows, so many are `contrary`: headed by another task's token, which the wording
    overrules; and so many of a task without a voice are `voiced` all the same, lest the blocks tell the task.
    Of the rows that can serve one, `attributes` ask for an attribute.
    """

    free: float = 0.0
    contrary: float = 0.2
    voiced: float = 0.5
    attributes: float = 0.0

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"instructions.{name}={getattr(self, name)}: a share from 0 to 1 is needed")


class Asked(NamedTuple):
    """What a row is asked for. `tasks` are those whose tokens head it where it is `free`."""

    words: str
    attribute: Attribute | None = None
    free: bool = False
    voiced: bool = False
    tasks: tuple[str, ...] = ()


class Instructor:
    """Draws instructions for clips by a recipe's shares, and makes clips as asked for."""

    def __init__(self, clips: Clips, fmt: Format, args: InstructionArgs) -> None:
        """UsageError for shares that the format has no use for."""
        if (args.free or args.attributes) and fmt.name != "instruct":
            raise UsageError(f"instructions need the instruct format, not {fmt.name}")
        self.clips, self.fmt, self.args = clips, fmt, args

    def draw(self, task: Task, i: int, rng: np.random.Generator) -> Asked:
        """The instruction of clip i as a row of a task: half of the time by the first wording."""
        options, args = task.instructions, self.args
        words = options[0] if rng.random() < 0.5 else _one(options, rng)
        attribute = None
        if args.attributes and rng.random() < args.attributes and (able := self.attributes(task, i)):
            attribute = _one(able, rng)
            words = attribute.instruction(_one(options, rng), _one(attribute.phrases, rng))
        if not (args.free and rng.random() < args.free):
            return Asked(words, attribute)
        wording = words if attribute else _one(options, rng)
        others = [name for name in self.fmt.tasks if name != task.name]
        contrary = bool(others) and rng.random() < args.contrary
        voiced = rng.random() < args.voiced and "global" not in self.fmt.layouts[task.name].blocks
        return Asked(wording, attribute, True, voiced, (_one(others, rng),) if contrary else ())

    def attributes(self, task: Task, i: int) -> list[Attribute]:
        """Those that clip i can serve as a row of a task."""
        able = [attribute for attribute in ATTRIBUTES.values() if task.name in attribute.tasks]
        return [attribute for attribute in able if self._serves(attribute, i)]

    def _serves(self, attribute: Attribute, i: int) -> bool:
        if attribute.rate:
            low, high = attribute.rate
            return low <= self._ranks[i] <= high
        if attribute.pause:
            return bool(self._silences)
        return not (attribute.unaltered and len(self.clips[i].get("target", ())))

    def pause(self, asked: Asked, clip: Mapping[str, Any], rng: np.random.Generator) -> np.ndarray:
        """Codes (T,) of the silence that a clip's speech shall begin with; none unless it is asked for."""
        if not (asked.attribute and asked.attribute.pause):
            return np.zeros(0, np.int64)
        length = round(rng.uniform(*asked.attribute.pause) * _rate(clip))
        own = self._silences.get(clip["speaker"]) or [one for each in self._silences.values() for one in each]
        return np.resize(_one(own, rng), length)

    def most_ids(self, task: Task, i: int) -> int:
        """How many ids an instruction may add to clip i's row, beyond a wording of the task alone."""
        clip, more = self.clips[i], [0]
        if self.args.attributes:
            more += [self._adds(attribute, task, clip) for attribute in self.attributes(task, i)]
        layout = self.fmt.layouts[task.name]
        voice = len(clip["global"]) + 2 if self.args.free and "global" not in layout.blocks else 0
        return max(more) + voice

    def _adds(self, attribute: Attribute, task: Task, clip: Mapping[str, Any]) -> int:
        ids = _phrase_ids(self.fmt, task.name, attribute.name)
        if attribute.written:
            plain = task.target(clip["text"]) if task.target else clip["text"]
            sizes = [len(self.fmt.completion(task.name, text=t)) for t in (plain, attribute.written(plain))]
            ids += max(0, sizes[1] - sizes[0])
        return ids + (math.ceil(attribute.pause[1] * _rate(clip)) if attribute.pause else 0)

    @cached_property
    def _ranks(self) -> np.ndarray:
        """Where each clip's speech rate ranks among its speaker's, 0 to 1 (N,); NaN where nobody can say."""
        own: dict[str, list[int]] = {}
        letters = np.zeros(len(self.clips))
        for i, clip in enumerate(self.clips):
            if clip["text"] and clip["speaker"]:
                own.setdefault(clip["speaker"], []).append(i)
                letters[i] = sum(map(str.isalpha, clip["text"])) / max(1, len(clip["semantic"]))
        ranks = np.full(len(self.clips), np.nan)
        for mine in own.values():
            if len(mine) >= FEWEST:
                ranks[np.array(mine)[np.argsort(letters[mine], kind="stable")]] = np.linspace(0, 1, len(mine))
        return ranks

    @cached_property
    def _silences(self) -> dict[str, list[np.ndarray]]:
        """Silences, codes (T,), of each speaker's clips; none where speech has several codebooks."""
        found: dict[str, list[np.ndarray]] = {}
        for clip in self.clips if self.fmt.vocab.n_codebooks == 1 else ():
            if len(where := clip.get("silence", ())):
                found.setdefault(clip["speaker"], []).append(np.array(clip["semantic"][where[0] : where[1]]))
        return found


def _one(options: Sequence[Any], rng: np.random.Generator) -> Any:
    return options[int(rng.integers(len(options)))]


def _rate(clip: Mapping[str, Any]) -> float:
    """Ids of speech a second."""
    return len(clip["semantic"]) / clip["seconds"]


@lru_cache(maxsize=64)  # the same for every row of a corpus
def _phrase_ids(fmt: Format, task: str, attribute: str) -> int:
    """How many ids the longest wording with a phrase has more than the longest without."""
    options, asked = fmt.task(task).instructions, ATTRIBUTES[attribute]
    full = (asked.instruction(words, phrase) for words in options for phrase in asked.phrases)
    sizes = [max(len(fmt.text_tokenizer.encode(text)) for text in texts) for texts in (full, options)]
    return sizes[0] - sizes[1]
