"""Beam search, with a prior on what is written beside the network: shallow fusion (Gulcehre et al. 2015).

A network that has heard a few hours spells by ear. So several spellings are kept side by side, and each is
scored by the network and by a prior. Ids only; what they spell is the prior's business.

    R live hypotheses   N ids that may be generated
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from os.path import commonprefix
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gpa.engine.request import Beams, Completion, Request, Rules
from gpa.engine.sampler import Choices, LoopDetector, highest

if TYPE_CHECKING:
    from gpa.engine.network import Network

PROPOSED = 10  # ids of a hypothesis that are looked at, the network's best ones
NATS = 2.0  # an unfinished hypothesis so much behind a finished one is given up


class Hypothesis(NamedTuple):
    """Ids so far, the sum of their scores, and the prior's state after them."""

    score: float
    ids: list[int]
    state: str


class Search:
    """One request that searches: the prompt is read into one row, then each live hypothesis has its own."""

    def __init__(self, request: Request, beams: Beams, network: Network) -> None:
        """PromptError for a prompt without room in the context, and for legal ids that there are not."""
        self.rules, self.beams = request.rules, beams
        self.most = min(self.rules.max_new, network.room(request.prompt))
        self.choices = Choices.build(self.rules, network.sizes.vocab_size)
        self.prompts, self.rows = [request.prompt], beams.width
        self.completion, self.done = Completion(), False
        self._live, self._ended = [Hypothesis(0.0, [], "")], list[Hypothesis]()
        self._parents = [0]

    @property
    def following(self) -> list[tuple[int, int]]:
        """For each live hypothesis the id it reads next, and the row that it continues."""
        return [(h.ids[-1], parent) for h, parent in zip(self._live, self._parents, strict=True)]

    @property
    def made(self) -> list[int]:
        """Ids that will not be taken back: those on which all hypotheses agree."""
        if self.done:
            return self.completion.ids
        return list(commonprefix([h.ids for h in (*self._live, *self._ended)]))

    def advance(self, logits: np.ndarray) -> None:
        """Replace the live hypotheses by their best continuations, by logits (R, N)."""
        found, width, stop = self._continued(logits), self.beams.width, self.rules.stop
        self._ended += [h for h, _ in found[:width] if h.ids[-1] in stop]
        kept = [(h, parent) for h, parent in found if h.ids[-1] not in stop][:width]
        best = max((h.score for h in self._ended), default=-math.inf)
        kept = [(h, parent) for h, parent in kept if h.score > best - (NATS if width > 1 else 0)]
        self.done = not kept or (width == 1 and bool(self._ended))
        if not self.done:
            self._live, self._parents = [h for h, _ in kept], [parent for _, parent in kept]
            self.done = len(self._live[0].ids) == self.most
        if self.done:
            best_of = self._ended or self._live
            self.completion = _completion(max(best_of, key=lambda h: h.score).ids, self.rules)

    def _continued(self, logits: np.ndarray) -> list[tuple[Hypothesis, int]]:
        """Every live hypothesis with each of its likeliest next ids, and its row; the best first."""
        found, prior = [], self.beams.prior
        for parent, (h, row) in enumerate(zip(self._live, logits, strict=True)):
            row = np.where(self.choices.allowed(h.ids, self.rules), row, -np.inf).astype(np.float64)
            row -= row.max() + np.log(np.exp(row - row.max()).sum())
            places = highest(row, PROPOSED)
            for value, token_id in zip(row[places].tolist(), self.choices.ids[places].tolist(), strict=True):
                more, state = prior(h.state, token_id) if prior else (0.0, h.state)
                found.append((Hypothesis(h.score + value + more, [*h.ids, token_id], state), parent))
        return sorted(found, key=lambda each: -each[0].score)


def _completion(ids: Sequence[int], rules: Rules) -> Completion:
    """With the reason of its end; repetitions at the end of what did not stop are counted off."""
    if ids and ids[-1] in rules.stop:
        return Completion(list(ids), "stop", len(ids))
    loops = LoopDetector(rules.loop)
    looped = any([loops.add(token_id) for token_id in ids])
    return Completion(list(ids), "loop" if looped else "length", len(ids) - loops.excess)
