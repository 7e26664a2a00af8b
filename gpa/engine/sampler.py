"""From logits to one id: legal ids, penalty, temperature, top-k, top-p; and what is a loop.

One row at a time, in numpy: nothing a request draws depends on what stands in the rows beside its own. The
noise is a function of seed and step, so there is no generator to share or to restore.

    N ids that may be generated
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gpa.errors import PromptError

if TYPE_CHECKING:
    from gpa.engine.request import Completion, Rules, Sampling

PERIODS = 16  # the longest cycle that counts as a loop
FEW = 3  # distinct ids, in any order, that count as one
FIRST = 64  # of the highest logits, among which those that top-p keeps are looked for
_WORD = (1 << 64) - 1


@dataclass(frozen=True)
class Choices:
    """The ids that a request may ever generate, and which of them may come, by step of a round."""

    ids: np.ndarray  # (N,) int64, ascending
    legal: tuple[np.ndarray, ...]  # (N,) bool each
    unstopped: tuple[np.ndarray, ...]  # (N,) bool each, legal without the stop ids
    stop: np.ndarray  # (N,) bool

    @classmethod
    def build(cls, rules: Rules, size: int) -> Choices:
        """Of rules, for a vocabulary of `size` ids.

        PromptError for legal ids beyond it, and for rules by which no id may come.
        """
        rounds = [_mask(runs, size) for runs in rules.cycle or (rules.legal or (range(size),),)]
        stop = _mask([range(i, i + 1) for i in rules.stop], size)
        ids = np.logical_or.reduce([*rounds, stop]).nonzero()[0]
        legal, stop = [mask[ids] for mask in rounds], stop[ids]
        first = legal[0] | stop if rules.cycle else legal[0]
        unstopped = tuple(mask & ~stop for mask in legal)
        early = unstopped if rules.min_new > 0 else (first, *unstopped[1:])
        if rules.max_new < 1 or not all(mask.any() for mask in early) or (rules.closed and not stop.any()):
            raise PromptError("by the rules of this request no id may come")
        return cls(ids, (first, *(unstopped[1:] if rules.cycle else ())), unstopped, stop)

    def allowed(self, made: Sequence[int], rules: Rules) -> np.ndarray:
        """Which of the ids (N,) may follow those that were made."""
        last = len(made) + 1 == rules.max_new
        if (made and made[-1] in rules.closers) or (rules.closed and last):
            return self.stop
        masks = self.unstopped if len(made) < rules.min_new else self.legal
        return masks[len(made) % len(masks)]


def _mask(runs: Sequence[range], size: int) -> np.ndarray:
    mask = np.zeros(size, bool)
    for run in runs:
        if run.start < 0 or run.stop > size:
            raise PromptError(f"legal ids {run.start} .. {run.stop - 1} are beyond the model's {size} ids")
        mask[run.start : run.stop] = True
    return mask


def choose(
    logits: np.ndarray, choices: Choices, made: Sequence[int], sampling: Sampling, noise: float
) -> int:
    """One id by logits (N,), -inf where it is not allowed; `noise` in [0, 1) decides among what is kept."""
    logits = penalised(logits, choices.ids, made, sampling)
    if sampling.temperature == 0:
        return int(choices.ids[logits.argmax()])
    values, places = filtered(logits, sampling)
    mass = np.exp(values - values[0]).cumsum()
    picked = min(int(mass.searchsorted(noise * mass[-1], "right")), len(places) - 1)
    return int(choices.ids[places[picked]])


def penalised(logits: np.ndarray, ids: np.ndarray, made: Sequence[int], sampling: Sampling) -> np.ndarray:
    """Logits (N,) of ids (N,) with those that were made recently less likely."""
    recent = made[-sampling.penalty_window :] if sampling.penalty_window else []
    if sampling.repetition_penalty == 1.0 or not recent:
        return logits
    places, penalty = ids.searchsorted(sorted(set(recent))), sampling.repetition_penalty
    value, logits = logits[places], logits.copy()
    logits[places] = np.where(value > 0, value / penalty, value * penalty)
    return logits


def filtered(logits: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Tempered logits, float64, that top-k and top-p keep of (N,), highest first, and their places in it.

    As few as are kept are looked at in their order: sorting all takes longer than everything else here.
    """
    few = sampling.top_k or (FIRST if sampling.top_p < 1 else len(logits))
    while True:
        places = highest(logits, few)
        values = logits[places].astype(np.float64) / sampling.temperature
        if sampling.top_p == 1:
            return values, places
        mass = np.exp(values - values[0]).cumsum()
        whole = mass[-1] if sampling.top_k else _mass(logits, sampling.temperature)
        kept = int(mass.searchsorted(sampling.top_p * whole)) + 1  # what reaches that share is the last
        if kept <= few or few >= len(logits):
            return values[:kept], places[:kept]
        few *= 4


def _mass(logits: np.ndarray, temperature: float) -> np.float64:
    """The sum of the probabilities of (N,), that of the likeliest being 1."""
    return np.exp((logits - logits.max()) / max(temperature, 1e-30)).sum(dtype=np.float64)


def highest(values: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` highest of (N,), highest first and of equals the first first; -inf is never."""
    if count < len(values):
        floor = np.partition(values, len(values) - count)[len(values) - count]
        places = (values >= max(floor, np.finfo(values.dtype).min)).nonzero()[0]
    else:
        places = (values > -np.inf).nonzero()[0]
    return places[(-values[places]).argsort(kind="stable")][:count]


def noise(seed: int, step: int) -> float:
    """A number in [0, 1) of a seed and a step, by the mixing function of splitmix64 (Steele et al. 2014)."""
    return (_mixed(_mixed(seed) + step) >> 11) * 2.0**-53


def _mixed(word: int) -> int:
    word = (word + 0x9E3779B97F4A7C15) & _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)


def append(done: Completion, token_id: int, rules: Rules, loops: LoopDetector, most: int) -> bool:
    """Add an id to a completion of at most so many; whether that ends it, by stop, loop or length."""
    done.ids.append(token_id)
    done.kept = len(done.ids)
    if token_id in rules.stop:
        done.finish_reason = "stop"
    elif loops.add(token_id):
        done.finish_reason, done.kept = "loop", len(done.ids) - loops.excess
    return done.finish_reason != "length" or len(done.ids) == most


class LoopDetector:
    """Notices that the last `limit` ids repeat one cycle of up to 16 ids, or hold three values at most."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.excess = 0  # ids at the end that only repeat, once a loop is found
        self._ids: list[int] = []
        self._runs = [0] * (PERIODS + 1)  # how long the sequence has equalled itself, shifted by each period

    def add(self, token_id: int) -> bool:
        """Whether the sequence is a loop now that it has one more id."""
        self._ids.append(token_id)
        if self.limit is None:
            return False
        for period in range(1, min(PERIODS, len(self._ids) - 1) + 1):
            same = self._ids[-1 - period] == token_id
            self._runs[period] = self._runs[period] + 1 if same else 0
            if self._runs[period] + period >= max(self.limit, 2 * period):
                self.excess = self._runs[period]
                return True
        tail = self._ids[-self.limit :]
        if len(tail) == self.limit and len(set(tail)) <= FEW:
            self.excess = self.limit - FEW
            return True
        return False
