"""From logits to one id: legal ids, penalty, temperature, top-k, top-p; and what is a loop.

V vocabulary   N ids that are legal
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpa.errors import PromptError

if TYPE_CHECKING:
    from gpa.engine.request import Rules, Sampling

PERIODS = 16  # the longest cycle that counts as a loop
FEW = 3  # distinct ids, in any order, that count as one


@dataclass(frozen=True)
class Masks:
    """Boolean masks over the vocabulary, made once per request, by step of a round; None lets all pass."""

    legal: tuple[Tensor | None, ...]  # (V,) each
    unstopped: tuple[Tensor, ...]  # (V,) each, legal without the stop ids
    stop: Tensor  # (V,)

    @classmethod
    def build(cls, rules: Rules, size: int, device: torch.device) -> Masks:
        """Of rules, for a vocabulary of `size` ids; PromptError for legal ids beyond it."""
        stop = torch.zeros(size, dtype=torch.bool, device=device)
        stop[sorted(rules.stop)] = True
        if rules.legal is None:
            return cls((None,), (~stop,), stop)
        legal = [_mask(runs, size, device) for runs in rules.cycle or (rules.legal,)]
        unstopped = tuple(mask & ~stop for mask in legal)
        first = unstopped[0] | stop if rules.cycle else legal[0]
        return cls((first, *unstopped[1:]), unstopped, stop)


def _mask(runs: Sequence[range], size: int, device: torch.device) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool, device=device)
    for run in runs:
        if run.start < 0 or run.stop > size:
            raise PromptError(f"legal ids {run.start} .. {run.stop - 1} are beyond the model's {size} ids")
        mask[run.start : run.stop] = True
    return mask


def masked(logits: Tensor, ids: Sequence[int], rules: Rules, masks: Masks) -> Tensor:
    """Logits (V,) with every id that may not follow `ids` at -inf."""
    last = len(ids) + 1 == rules.max_new
    if (ids and ids[-1] in rules.closers) or (rules.closed and last):
        mask: Tensor | None = masks.stop
    else:
        masks_by_step = masks.unstopped if len(ids) < rules.min_new else masks.legal
        mask = masks_by_step[len(ids) % len(masks_by_step)]
    return logits if mask is None else logits.masked_fill(~mask, -math.inf)


def choose(logits: Tensor, ids: Sequence[int], sampling: Sampling, generator: torch.Generator) -> int:
    """One id from logits (V,), `ids` being those generated so far."""
    logits = penalised(logits, ids, sampling)
    if sampling.temperature == 0:
        return int(logits.argmax())
    # Drawn on the CPU: the same seed gives the same ids on every device that gives the same logits.
    logits, order = filtered(logits.cpu(), sampling)
    picked = torch.multinomial(torch.softmax(logits, -1), 1, generator=generator)
    return int(order[picked])


def penalised(logits: Tensor, ids: Sequence[int], sampling: Sampling) -> Tensor:
    """Logits with the recently generated ids made less likely."""
    recent = list(ids[-sampling.penalty_window :]) if sampling.penalty_window else []
    if sampling.repetition_penalty == 1.0 or not recent:
        return logits
    seen = torch.tensor(sorted(set(recent)), device=logits.device)
    value, penalty = logits[seen], sampling.repetition_penalty
    return logits.index_copy(0, seen, torch.where(value > 0, value / penalty, value * penalty))


def filtered(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Tempered logits (N,) of the ids that top-k and top-p keep, highest first, and those ids."""
    finite = logits.isfinite().nonzero()[:, 0]
    values, order = (logits[finite] / sampling.temperature).sort(descending=True, stable=True)
    ids = finite[order]
    if sampling.top_k:
        values, ids = values[: sampling.top_k], ids[: sampling.top_k]
    if sampling.top_p < 1:
        probability = torch.softmax(values, -1)
        kept = int((probability.cumsum(-1) - probability < sampling.top_p).sum())  # the first one always is
        values, ids = values[:kept], ids[:kept]
    return values, ids


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
