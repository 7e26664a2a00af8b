"""Which rows of prepared folders make up batch N: of all rows at once, or of a stream of shards.

A stream reads the Arrow shards of its folders one group after another, in an order that each epoch shuffles,
and shuffles rows within the group: the block shuffle of MosaicML's streaming (`shuffle_algo: py1b`). Both
are pure functions of (recipe, N), so processes that take turns by N see different rows, and together all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gpa.data.batches import BatchPlan
from gpa.errors import UsageError
from gpa.prompt.tasks import TASKS

if TYPE_CHECKING:
    from gpa.data.rows import Clips, RowBuilder
    from gpa.data.token_folder import TokenSet

log = logging.getLogger(__name__)
Item = tuple[str, int, float]  # task, number of the clip, how often per epoch


@dataclass(frozen=True)
class Budget:
    """Ids of a row and of a batch at most, the seed, and how often a clip serves a task per epoch."""

    max_ids: int
    batch_ids: int
    seed: int
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Position:
    """Where a stream stands: batch `batch` is number `offset` of the group that begins with the epoch's
    shard number `shard`.
    """

    epoch: int = 0
    shard: int = 0
    offset: int = 0
    batch: int = 0


class RowPlan:
    """Batches of rows at hand; the clips from `own` on are replayed ones, which make up `replay_share`.

    UsageError if no row fits.
    """

    def __init__(self, rows: RowBuilder, budget: Budget, own: int | None = None, replay_share: float = 0.0):
        self.rows = rows
        clips = [(clip.get("task"), clip["text"]) for clip in rows.clips]
        items = [
            (name, i, share)
            for name, share in budget.shares.items()
            for i, (task, text) in enumerate(clips)
            if (task == name if task else TASKS[name].takes(text))
        ]
        lengths = np.array([rows.length(task, i) for task, i, _ in items])
        fits = lengths <= budget.max_ids
        self.left_out, self.of = int((~fits).sum()), len(fits)
        if not fits.any():
            raise UsageError(f"none of {len(clips)} training clips fits data.max_ids={budget.max_ids}")
        self.items = [item for item, ok in zip(items, fits, strict=True) if ok]
        weights = np.array([share for _, _, share in self.items])
        replayed = np.array([own is not None and i >= own for _, i, _ in self.items])
        weights = _shared(weights, replayed, replay_share)
        self.batches = BatchPlan(lengths[fits], budget.batch_ids, budget.seed, weights)

    def draw(self, number: int) -> tuple[RowBuilder, list[Item], Position | None]:
        """The rows of batch `number`, which no position helps to find."""
        return self.rows, [self.items[i] for i in self.batches.batch(number)], None

    def tell(self) -> None:
        """Warn of rows that are left out."""
        if self.left_out:
            log.warning("%d of %d rows are longer than data.max_ids: left out", self.left_out, self.of)


def _shared(weights: np.ndarray, replayed: np.ndarray, share: float) -> np.ndarray:
    """Weights of rows, those of replayed ones scaled so that they are `share` of all that is drawn."""
    if not replayed.any():
        return weights
    if not 0 < share < 1:
        raise UsageError(f"data.replay_share={share}: above 0 and below 1")
    factor = share / (1 - share) * weights[~replayed].sum() / max(weights[replayed].sum(), 1e-9)
    return np.where(replayed, weights * factor, weights)


class RowStream:
    """Batches of training rows read shard by shard; `group` shards are in memory and shuffled at once.

    With all shards in one group the batches are those of a `RowPlan`. `plan` makes the plan of some clips.
    UsageError if no shard has a row that fits.
    """

    def __init__(
        self, sets: Sequence[TokenSet], plan: Callable[[Clips], RowPlan], group: int, seed: int
    ) -> None:
        self.plan, self.group, self.seed = plan, group, seed
        self.shards = [(part, first, end) for part in sets for first, end in part.shards]
        self.held: RowPlan | None = None
        self._told = False
        self._go(Position())

    def draw(self, number: int) -> tuple[RowBuilder, list[Item], Position]:
        """The rows of batch `number` and where it stands; quick for numbers that follow each other."""
        self._find(number)
        assert self.held is not None
        offset = number - self._start
        items = [self.held.items[i] for i in self._batches[offset]]
        return self.held.rows, items, Position(self._epoch, self._shard, offset, number)

    def seek(self, position: Position) -> None:
        """Go where a position says, without reading what is before."""
        if position.batch - position.offset != self._start:
            self._go(position)

    def _find(self, number: int) -> None:
        if number < self._start:
            self._go(Position())
        without = 0  # shards in a row without a batch
        while number >= self._start + len(self._batches):
            without = 0 if self._batches else without + self.group
            if without > len(self.shards) + self.group:
                raise UsageError(f"none of {len(self.shards)} shards has a training row that fits")
            epoch, shard = self._epoch, self._shard + self.group
            if shard >= len(self.shards):
                epoch, shard = epoch + 1, 0
            self._go(Position(epoch, shard, 0, self._start + len(self._batches)))

    def _go(self, at: Position) -> None:
        """Read the group of shards there."""
        self._epoch, self._shard, self._start = at.epoch, at.shard, at.batch - at.offset
        self._batches: list[np.ndarray] = []
        order = np.random.default_rng((self.seed, at.epoch, len(self.shards))).permutation(len(self.shards))
        self.held = None  # freed before the next is read
        clips = [
            clip for n in sorted(order[at.shard : at.shard + self.group]) for clip in _read(*self.shards[n])
        ]
        if not clips:
            return
        try:
            self.held = self.plan(clips)
        except UsageError as error:  # these rows are too long; others may fit
            log.warning("shard %d of epoch %d: %s", at.shard, at.epoch, error)
            return
        if not self._told:
            self.held.tell()
            self._told = bool(self.held.left_out)
        self._batches = self.held.batches.epoch(at.epoch, *([at.shard] if at.shard else []))


def _read(part: TokenSet, first: int, end: int) -> Iterator[dict[str, Any]]:
    """Training rows of one shard."""
    return (part.row(int(i)) for i in part.training(first, end))
