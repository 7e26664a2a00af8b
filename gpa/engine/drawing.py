"""A completion drawn id by id, from one prompt or from several that a plan composes.

Speech that follows its text is speech plus what the text makes likelier than no text does (classifier-free
guidance): `gpa.compose` over the next id.

    R rows, one a prompt   V vocabulary   N ids that are legal
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpa.compose import compose_logits
from gpa.engine.request import Completion, Guidance, Request, Rules
from gpa.engine.sampler import LoopDetector, Masks, choose, masked
from gpa.errors import PromptError

if TYPE_CHECKING:
    from gpa.engine.network import Network

PLAUSIBLE = 0.1  # an id less likely than this share of the likeliest is not promoted by guidance


class Draw:
    """One request that draws: `prompts` are read into a row each, then every row reads the id just drawn."""

    def __init__(self, request: Request, network: Network) -> None:
        """PromptError for a prompt without room in the context, and for legal ids that there are not."""
        self.rules, self.sampling = request.rules, request.sampling
        self.most = min(self.rules.max_new, network.room(request.prompt))
        self.masks = Masks.build(self.rules, network.sizes.vocab_size, network.device)
        self.composition = request.guidance and Composition(request.guidance, self.rules, network)
        self.prompts = self.composition.prompts if self.composition else [request.prompt]
        self.rows = len(self.prompts)
        self.completion, self.done = Completion(), False
        self._generator = torch.Generator().manual_seed(request.seed)
        self._loops = LoopDetector(self.rules.loop)

    @property
    def following(self) -> list[tuple[int, int]]:
        """For each row the id it reads next, and the row that it continues: itself."""
        return [(self.completion.ids[-1], row) for row in range(self.rows)]

    def advance(self, logits: Tensor) -> None:
        """Choose the next id by logits (R, V)."""
        done, ids = self.completion, self.completion.ids
        row = self.composition(logits, len(ids)) if self.composition else logits[0]
        token_id = choose(masked(row, ids, self.rules, self.masks), ids, self.sampling, self._generator)
        ids.append(token_id)
        done.kept = len(ids)
        if token_id in self.rules.stop:
            done.finish_reason = "stop"
        elif self._loops.add(token_id):
            done.finish_reason, done.kept = "loop", len(ids) - self._loops.excess
        self.done = done.finish_reason != "length" or len(ids) == self.most


class Composition:
    """Logits of a plan. The stop id keeps the base's probability: how long it takes is the source's affair.

    With strength 0 there is one row, and the logits are those of the base alone.
    """

    def __init__(self, guidance: Guidance, rules: Rules, network: Network) -> None:
        """PromptError where a prompt leaves less room than the longest completion may need."""
        self.plan = guidance.plan
        self.branches = self.plan.logit_branches()
        self.prompts = [list(guidance.prompts[branch]) for branch in self.branches]
        (self.stop,) = rules.stop
        rounds = rules.cycle or (rules.legal or (range(network.sizes.vocab_size),),)
        legal = [sorted({self.stop, *(i for run in runs for i in run)}) for runs in rounds]
        self.legal = [torch.tensor(ids, device=network.device) for ids in legal]
        left = network.sizes.max_position_embeddings - max(map(len, self.prompts))
        if left < rules.max_new:
            raise PromptError(f"the transcript leaves room for {left} ids, {rules.max_new} may be needed")

    def __call__(self, logits: Tensor, step: int) -> Tensor:
        """Composed logits (V,) of rows (R, V), one a branch; ids that are not legal at minus infinity."""
        legal = self.legal[step % len(self.legal)]
        parts = {branch: row[legal] for branch, row in zip(self.branches, logits, strict=True)}
        stop = int(torch.searchsorted(legal, self.stop))
        found = compose_logits(self.plan, parts, eos=stop, plausibility=PLAUSIBLE)
        return torch.full_like(logits[0], -torch.inf).index_copy(0, legal, found)
