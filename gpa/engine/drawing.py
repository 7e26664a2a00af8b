"""A completion drawn id by id, from one prompt or from several that a plan composes.

Speech that follows its text is speech plus what the text makes likelier than no text does (classifier-free
guidance): `gpa.compose` over the next id.

    R rows, one a prompt   N ids that may be generated
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gpa.compose import compose_logits
from gpa.engine.request import Completion, Guidance, Request, Rules
from gpa.engine.sampler import Choices, LoopDetector, append, choose, noise
from gpa.errors import PromptError

if TYPE_CHECKING:
    from gpa.engine.network import Network

PLAUSIBLE = 0.1  # an id less likely than this share of the likeliest is not promoted by guidance


class Draw:
    """One request that draws: `prompts` are read into a row each, then every row reads the id just drawn."""

    def __init__(self, request: Request, network: Network) -> None:
        """PromptError for a prompt without room in the context, and for legal ids that there are not."""
        self.rules, self.sampling, self._seed = request.rules, request.sampling, int(request.seed)
        self.most = min(self.rules.max_new, network.room(request.prompt))
        self.choices = Choices.build(self.rules, network.sizes.vocab_size)
        self.composition = request.guidance and Composition(request.guidance, self.rules, network)
        self.prompts = self.composition.prompts if self.composition else [request.prompt]
        self.rows = len(self.prompts)
        self.completion, self.done = Completion(), False
        self._loops = LoopDetector(self.rules.loop)

    @property
    def following(self) -> list[tuple[int, int]]:
        """For each row the id it reads next, and the row that it continues: itself."""
        return [(self.completion.ids[-1], row) for row in range(self.rows)]

    @property
    def made(self) -> list[int]:
        """Ids that will not be taken back."""
        return self.completion.ids

    def advance(self, logits: np.ndarray) -> None:
        """Choose the next id by logits (R, N) of the ids that may be generated."""
        ids = self.completion.ids
        allowed = self.choices.allowed(ids, self.rules)
        legal = self.choices.legal[len(ids) % len(self.choices.legal)]
        row = logits[0]
        if self.composition:
            row = self.composition(logits, legal | self.choices.stop, self.choices.stop)
        row = row if allowed.all() else np.where(allowed, row, -np.inf)
        token_id = choose(row, self.choices, ids, self.sampling, noise(self._seed, len(ids)))
        self.done = append(self.completion, token_id, self.rules, self._loops, self.most)


class Composition:
    """Logits of a plan. The stop id keeps the base's probability: how long it takes is the source's affair.

    With strength 0 there is one row, and the logits are those of the base alone.
    """

    def __init__(self, guidance: Guidance, rules: Rules, network: Network) -> None:
        """PromptError where a prompt leaves less room than the longest completion may need."""
        self.plan = guidance.plan
        self.branches = self.plan.logit_branches()
        self.prompts = [list(guidance.prompts[branch]) for branch in self.branches]
        left = network.sizes.max_position_embeddings - max(map(len, self.prompts))
        if left < rules.max_new:
            raise PromptError(f"the transcript leaves room for {left} ids, {rules.max_new} may be needed")

    def __call__(self, logits: np.ndarray, among: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Composed logits (N,) of rows (R, N), one a branch, over the ids `among` (N,), the rest at -inf.

        `stop` (N,) marks the one that ends.
        """
        if among.all():
            return self._composed(logits, int(stop.argmax()))
        made = np.full_like(logits[0], -np.inf)
        made[among] = self._composed(logits[:, among], int(stop[among].argmax()))
        return made

    def _composed(self, logits: np.ndarray, stop: int) -> np.ndarray:
        parts = dict(zip(self.branches, logits, strict=True))
        found: np.ndarray = compose_logits(self.plan, parts, eos=stop, plausibility=PLAUSIBLE)
        return found
