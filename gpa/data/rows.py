"""Clips of ids to supervised rows, rows to batches: side by side, or several in one packed sequence.

Rows come from the same `prompt` object that builds inference prompts. Knows ids only, no network.

    B sequences   L positions
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from gpa.data import sequences
from gpa.data.alignment import frames_to_pieces, piece_spans, respelt_letters
from gpa.data.instructions import Asked, InstructionArgs, Instructor
from gpa.data.sequences import Sizes
from gpa.errors import UsageError
from gpa.prompt.formats import Example, Format, InstructFormat
from gpa.prompt.tasks import DEFAULT, IGNORE
from gpa.text.letters import letters_of

if TYPE_CHECKING:
    from gpa.prompt.tasks import Task
    from gpa.prompt.vocab import Block
    from gpa.text.pronunciations import Pronunciations, Respelt

Clips = Sequence[Mapping[str, Any]]
SPELT = 0.1  # share of words that stay spelt in a text of sounds, as unknown words will


@dataclass
class Row:
    """One supervised sequence; `look` (L, 2) is the span of positions an aligned head should watch, (0, 0)
    for none.
    """

    task: str
    ids: np.ndarray
    labels: np.ndarray
    look: np.ndarray


@dataclass
class LMBatch:
    """Sequences of one or more rows, padded on the right: ids, labels, task index (-1 where nothing is
    supervised) and position within the row, (B, L) each; look (B, L, 2) counts from the sequence's start.
    """

    ids: Tensor
    labels: Tensor
    task: Tensor
    positions: Tensor
    look: Tensor
    real: int  # positions that are not padding
    squares: int  # sum of the squared lengths of rows: what attention costs
    at: Any = None  # where a stream of shards had the rows


def chosen(clips: Clips, numbers: Sequence[int]) -> Clips:
    """Some clips of a sequence, read when asked for."""
    return cast("Clips", Subset(clips, numbers))  # type: ignore[arg-type]


def joined(parts: Iterable[Clips]) -> Clips:
    """The clips of all parts, one after the other, read when asked for."""
    return cast("Clips", ConcatDataset(parts))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Noise:
    """Shares of ids that the network sees replaced by random ones, and of texts that it does not see.

    `speech` ids are heard or just spoken, `text` pieces just recognised; what is to be predicted stays. A
    small corpus is then not learnt by heart (docs/log.md). Speech without its text trains the null of
    guidance by a text. Of texts that could be respelt by a dictionary, a share stays `spelt`. A speech id is
    replaced by one of its neighbours `near` (V, k), if they are known.
    """

    speech: float = 0.0
    text: float = 0.0
    drop_text: float = 0.0
    spelt: float = 0.0
    near: np.ndarray | None = field(default=None, compare=False)


class RowBuilder:
    """Clips to supervised rows, by the same `prompt` object that builds inference prompts.

    What is to be spoken is given by the sounds of a dictionary, if there is one.
    """

    def __init__(
        self,
        clips: Clips,
        fmt: Format,
        noise: Noise | None = None,
        dictionary: Pronunciations | None = None,
        instructions: InstructionArgs | None = None,
    ) -> None:
        self.clips, self.fmt, self.text = clips, fmt, fmt.text_tokenizer
        self.noise, self.dictionary = noise or Noise(), dictionary
        given = {"drop_text": self.noise.drop_text, "pronunciations": dictionary}
        if (asked := [name for name in given if given[name]]) and not isinstance(fmt, InstructFormat):
            raise UsageError(f"data.{asked[0]} needs the instruct format, not {fmt.name}")
        self.instructor = Instructor(clips, fmt, instructions or InstructionArgs())
        self._longer: dict[str, bool] = {}
        self._size = Sizes(fmt)
        self.by_speaker: dict[str, list[int]] = {}
        for i, clip in enumerate(clips):
            self.by_speaker.setdefault(clip["speaker"], []).append(i)

    def length(self, task: str, i: int) -> int:
        """Most ids that the row can have, whichever instruction it gets."""
        clip = {"glm": (), "target": (), **self.clips[i]}
        if self.fmt.task(task).speaks_text and self.dictionary:  # each word in the form that has more ids
            clip["text"] = self.dictionary.respelt(clip["text"], self._longer_spelt).text
        return self._size(task, clip) + self.instructor.most_ids(self.fmt.task(task), i)

    def _longer_spelt(self, word: str) -> bool:
        if word not in self._longer:
            sounds = self.dictionary and self.dictionary.sounds(word)
            ids = [len(self.text.encode(form)) for form in (word, sounds or word)]
            self._longer[word] = ids[0] > ids[1]
        return self._longer[word]

    def row(self, task: str, i: int, rng: np.random.Generator) -> Row:
        """Clip i as a row of `task`, as an instruction asks and, unless the clip names its voice or nobody
        knows who speaks, with another clip of the speaker as the voice.
        """
        clip = {"glm": (), "target": (), **self.clips[i]}
        served = self.fmt.task(task)
        asked = self.instructor.draw(served, i, rng)
        voiced = asked.voiced or "global" in self.fmt.layouts[task].blocks
        if voiced and clip["speaker"] and not clip.get("task"):
            others = self.by_speaker[clip["speaker"]]
            clip["global"] = self.clips[others[int(rng.integers(len(others)))]]["global"]
        if served.speaks_text and self.noise.drop_text and rng.random() < self.noise.drop_text:
            words = served.instructions[0] if asked.attribute else asked.words
            return self._noisy(self._row(task, self._wordless(task, clip, words), None), rng)
        respelt = self._respelt(clip["text"], rng) if served.speaks_text else None
        clip["text"] = respelt.text if respelt else self._written(served, asked, clip["text"])
        pause = self._speech(served, asked, clip, rng)
        n = np.arange(len(self.clips[i]["semantic"]))
        same = np.stack([n, n + 1], 1)
        spans = same if served.converts else self._spans(self.clips[i], clip["text"], respelt)
        example = self._example(task, clip, asked)
        return self._noisy(self._row(task, example, spans, pause, asked.free), rng)

    def _written(self, served: Task, asked: Asked, text: str) -> str:
        """What a row says of its clip's text: as the task writes it, with the attribute that is asked for."""
        text = sequences.target_text(self.fmt, served, text)
        made = asked.attribute.written if asked.attribute else None
        return made(text) if made else text

    def _speech(self, served: Task, asked: Asked, clip: dict[str, Any], rng: np.random.Generator) -> int:
        """Settle what speech a row reads and makes; returns how many ids of a pause begin the latter."""
        own, copies = clip["semantic"], clip.get("copies", ())
        unaltered = asked.attribute is not None and asked.attribute.unaltered
        if served.copies and len(copies) and not unaltered and rng.random() < served.copies:
            clip["semantic"] = copies[int(rng.integers(len(copies)))]
            clip["target"] = own if served.converts else ()
        pause = self.instructor.pause(asked, clip, rng)
        if len(pause):
            spoken = clip["target"] if served.converts and len(clip["target"]) else own
            clip["target" if served.converts else "semantic"] = np.concatenate([pause, spoken])
        return len(pause)

    def _example(self, task: str, clip: Mapping[str, Any], asked: Asked) -> Example:
        if isinstance(self.fmt, InstructFormat):
            if asked.free:
                return sequences.free_example(self.fmt, task, clip, asked)
            return sequences.example(self.fmt, task, clip, asked.words)
        return sequences.example(self.fmt, task, clip)

    def _wordless(self, task: str, clip: Mapping[str, Any], instruction: str) -> Example:
        """Speech of a voice with nothing said about its words."""
        assert isinstance(self.fmt, InstructFormat)
        prompt = self.fmt.wordless(clip["global"], instruction, task)
        completion = self.fmt.completion(task, semantic=clip["semantic"])
        return Example(prompt + completion, [IGNORE] * len(prompt) + completion)

    def _noisy(self, row: Row, rng: np.random.Generator) -> Row:
        vocab = self.fmt.vocab
        for block in filter(None, (vocab.semantic, vocab.glm) if self.noise.speech else ()):
            near = self.noise.near if block is vocab.semantic else None
            row = _replaced(row, block, np.full(len(row.ids), self.noise.speech), rng, near)
        if self.noise.text and self.fmt.task(row.task).writes:
            row = _replaced(row, vocab.text, self.noise.text * (row.labels != IGNORE), rng)
        return row

    def _respelt(self, text: str, rng: np.random.Generator) -> Respelt | None:
        """A text with the sounds of its words, but for some; None where it stays spelt."""
        if self.dictionary and rng.random() >= self.noise.spelt:
            some = SPELT if self.noise.spelt else 0.0
            return self.dictionary.respelt(text, lambda word: rng.random() < some)
        return None

    def _spans(self, clip: Mapping[str, Any], text: str, respelt: Respelt | None) -> np.ndarray | None:
        if not len(clip.get("letters", ())):
            return None
        letters, first = letters_of(clip["text"]), clip["letters"]
        if not respelt and letters_of(text) != letters:
            return None  # written otherwise than it was aligned
        if respelt:
            letters, first = respelt_letters(clip["text"], respelt, first)
        return piece_spans(self.text.pieces(text), letters, first, len(clip["semantic"]))

    def _row(
        self, task: str, example: Example, spans: np.ndarray | None, pause: int = 0, opened: bool = False
    ) -> Row:
        """A sequence whose text or speech watches where it comes from; before it may come a token that is
        `opened`, and ids of a pause.
        """
        ids, labels = np.array(example.input_ids), np.array(example.labels)
        look = np.zeros((len(ids), 2), np.int64)
        if spans is not None:
            before = opened + pause
            begin = int((labels != IGNORE).argmax()) + before  # first id; its prediction sits one before
            content = self._content_start(task, ids)
            if self.fmt.task(task).writes:  # text piece n watches its frames, one frame of slack
                target = content + np.stack([np.maximum(spans[:, 0] - 1, 0), spans[:, 1] + 1], 1)
            else:  # frame t watches the pieces spoken around t
                target = content + frames_to_pieces(spans, int((labels != IGNORE).sum()) - 1 - before)
            n = min(len(target), len(ids) - begin)
            look[begin - 1 : begin - 1 + n] = np.minimum(target[:n], begin)
        return Row(task, ids, labels, look)

    def _content_start(self, task: str, ids: np.ndarray) -> int:
        """Where the last block of the prompt begins: it is the one that is read aloud or written down."""
        opener = self.fmt.vocab.control[f"start_{self.fmt.layouts[task].blocks[-1]}"]
        return int((ids == opener).argmax()) + 1


def _replaced(
    row: Row, block: Block, chance: np.ndarray, rng: np.random.Generator, near: np.ndarray | None = None
) -> Row:
    """The row with ids of a block replaced by others of it, each with its chance (L,): any, or one of those
    `near` its code (V, k).
    """
    inside = (row.ids >= block.offset) & (row.ids < block.offset + block.size)
    hit = inside & (rng.random(len(row.ids)) < chance)
    drawn = rng.integers(block.size if near is None else near.shape[1], size=len(row.ids))
    other = drawn if near is None else near[np.where(inside, row.ids - block.offset, 0), drawn]
    return replace(row, ids=np.where(hit, block.offset + other, row.ids))


def nearest(vectors: Tensor, count: int) -> np.ndarray:
    """Of each code those `count` others whose vectors (V, D) are nearest: (V, count)."""
    distances = torch.cdist(vectors, vectors).fill_diagonal_(float("inf"))
    return distances.topk(count, largest=False).indices.cpu().numpy()


def pack(rows: Sequence[Row], size: int) -> list[list[Row]]:
    """Rows into sequences of at most `size` ids, longest first, each into the fullest that has room for it.

    A row longer than `size` gets a sequence of its own.
    """
    bins: list[list[Row]] = []
    room: list[int] = []
    for row in sorted(rows, key=lambda row: -len(row.ids)):
        fitting = [n for n, left in enumerate(room) if left >= len(row.ids)]
        if fitting:
            n = min(fitting, key=lambda n: room[n])
        else:
            n = len(bins)
            bins.append([])
            room.append(size)
        bins[n].append(row)
        room[n] -= len(row.ids)
    return bins


def collate(sequences: Sequence[Sequence[Row]], pad: int, tasks: Sequence[str] = DEFAULT) -> LMBatch:
    """Sequences of rows as tensors; a task's index is its place in `tasks`.

    A row's labels begin with ignored ids, so no row is asked to predict the next one's first.
    """
    shape = (len(sequences), max(sum(len(row.ids) for row in rows) for rows in sequences))
    ids, labels, task = np.full(shape, pad), np.full(shape, IGNORE), np.full(shape, -1)
    positions = np.zeros(shape, np.int64)
    look = np.zeros((*shape, 2), np.int64)
    real = squares = 0
    for n, rows in enumerate(sequences):
        at = 0
        for row in rows:
            here = np.s_[n, at : at + len(row.ids)]
            ids[here], labels[here] = row.ids, row.labels
            task[here] = np.where(row.labels == IGNORE, -1, tasks.index(row.task))
            positions[here] = np.arange(len(row.ids))
            look[here] = row.look + at * row.look.any(1, keepdims=True)
            at += len(row.ids)
            squares += len(row.ids) ** 2
        positions[n, at:] = np.arange(len(rows[-1].ids), len(rows[-1].ids) + shape[1] - at)
        real += at
    ids_, labels_, task_, positions_, look_ = map(torch.from_numpy, (ids, labels, task, positions, look))
    return LMBatch(ids_, labels_, task_, positions_, look_, real, squares)
