"""Which rows make up batch N: a pure function of (lengths, budget, seed, N); resuming needs only the step."""

from __future__ import annotations

import numpy as np

from gpa.errors import UsageError


class BatchPlan:
    """Length-bucketed batches under a budget of padded positions, reshuffled every epoch.

    `lengths` are positions per row (frames or ids), `budget` the most `rows * longest` of one batch,
    `weights` how often a row appears in an epoch on average (default once). UsageError for rows that no
    batch can hold.
    """

    def __init__(
        self, lengths: np.ndarray, budget: int, seed: int, weights: np.ndarray | None = None
    ) -> None:
        self.lengths = np.asarray(lengths)
        if len(self.lengths) == 0 or self.lengths.max() > budget:
            longest = self.lengths.max() if len(self.lengths) else 0
            raise UsageError(
                f"{len(self.lengths)} training rows, longest {longest}, do not fit a budget of {budget}"
            )
        self.budget, self.seed = budget, seed
        self.weights = np.ones(len(self.lengths)) if weights is None else np.asarray(weights)
        if self.weights.sum() <= 0:
            raise UsageError("every training row has weight 0")
        self._epoch, self._start = -1, 0
        self._batches: list[np.ndarray] = []

    def batch(self, step: int) -> np.ndarray:
        """Row indices of batch `step`, counted from 0."""
        if step < self._start:
            self._epoch, self._start, self._batches = -1, 0, []
        while step >= self._start + len(self._batches):
            self._start += len(self._batches)
            self._epoch += 1
            self._batches = self.epoch(self._epoch)
        return self._batches[step - self._start]

    def epoch(self, epoch: int, *key: int) -> list[np.ndarray]:
        """The batches of an epoch; `key` draws another order of them."""
        rng = np.random.default_rng((self.seed, epoch, *key))
        repeats = np.floor(self.weights + rng.random(len(self.weights))).astype(int)
        rows = rng.permutation(np.repeat(np.arange(len(self.lengths)), repeats))
        batches = []
        pool = max(
            1, 32 * int(self.budget / max(1.0, self.lengths.mean()))
        )  # sort within pools of about 32 batches
        for begin in range(0, len(rows), pool):
            part = rows[begin : begin + pool]
            batches += self._cut(part[np.argsort(self.lengths[part], kind="stable")])
        return [batches[i] for i in rng.permutation(len(batches))]

    def _cut(self, rows: np.ndarray) -> list[np.ndarray]:
        batches, begin = [], 0
        for end in range(1, len(rows) + 1):
            if end == len(rows) or self.lengths[rows[end]] * (end + 1 - begin) > self.budget:
                batches.append(rows[begin:end])
                begin = end
        return batches
