"""Beam search for recognition, with a prior on what is written beside the network.

A network that has heard a few hours spells by ear. So several spellings are kept side by side, and each is
scored by the network and by a prior: shallow fusion (Gulcehre et al. 2015). Ids only; what they spell is the
prior's business.

    W hypotheses   V vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gpa.errors import UsageError
from gpa.models.gpa import generation_gpa as generation
from gpa.models.gpa.generation_gpa import Completion, LoopDetector, Rules, Sampling
from gpa.text.bigrams import Wording
from gpa.text.lexicon import END

PROPOSED = 10  # ids of a hypothesis that are looked at, the network's best ones
NATS = 2.0  # an unfinished hypothesis so much behind a finished one is given up


@dataclass(frozen=True)
class Beams:
    """How recognition searches: `width` hypotheses (1: greedily, without a prior), `words` times the
    prior's log-probability, and `letter` for every letter, without which short texts win.
    """

    width: int = 1
    words: float = 0.0
    letter: float = 0.0

    def __post_init__(self) -> None:
        good = self.width == int(self.width) >= 1 and math.isfinite(self.words) and math.isfinite(self.letter)
        if not good or self.words < 0:
            raise UsageError(f"{self}: a width of at least 1 and finite weights are needed")


class Prior(Protocol):
    """What an id adds to a hypothesis' score in a state, and the state after it; "" is the first state."""

    def __call__(self, state: str, token_id: int) -> tuple[float, str]: ...


class Spelling:
    """Words as a prior on text ids; the state is the word before and the word so far. Other ids end one."""

    def __init__(self, wording: Wording, pieces: dict[int, str], beams: Beams) -> None:
        """`pieces` are the text ids and what they spell, spaces included."""
        self.wording, self.pieces, self.beams = wording, pieces, beams

    def __call__(self, state: str, token_id: int) -> tuple[float, str]:
        before, _, word = state.partition(END)
        piece = self.pieces.get(token_id)
        spelt = END if piece is None else piece
        score = 0.0 if piece is None else self.beams.letter * len(piece)
        for letter in spelt:
            if word or letter != END:  # a space after a space ends no word
                score += self.beams.words * self.wording.log_prob(before, word, letter)
            if letter == END:
                before, word = word or before, ""
            else:
                word += letter
        return score, before + END + word


class Search(NamedTuple):
    """How many hypotheses, and the prior on them."""

    width: int = 1
    prior: Prior | None = None


class _Hypothesis(NamedTuple):
    score: float
    ids: list[int]
    state: str


class _Batch:
    """Logits (W, V) after hypotheses, each of which continues one of those asked for before."""

    def __init__(self, lm: PreTrainedModel, prompt: Sequence[int], cached: bool) -> None:
        self.lm, self.prompt, self.cached = lm, prompt, cached
        self.cache: Any = None

    def __call__(self, hypotheses: Sequence[_Hypothesis], parents: Sequence[int]) -> Tensor:
        if not self.cached:
            return torch.stack(
                [generation.logits_of(self.lm, [*self.prompt, *h.ids])[-1] for h in hypotheses]
            )
        if self.cache is None:
            logits, self.cache = generation.prefill(self.lm, self.prompt)
            return logits[None]
        self.cache.batch_select_indices(torch.tensor(parents, device=self.lm.device))
        return generation.decode_several(self.lm, [h.ids[-1] for h in hypotheses], self.cache)


def transcribe(
    lm: PreTrainedModel, prompt: Sequence[int], rules: Rules, sampling: Sampling, search: Search, seed: int
) -> Completion:
    """By beam search where nothing is drawn or penalised and there is more than one beam."""
    plain = sampling.temperature == 0 and sampling.repetition_penalty == 1
    if plain and search.width > 1:
        return beam_search(lm, prompt, rules, *search)
    return generation.generate(lm, prompt, rules, sampling, seed=seed)


def beam_search(
    lm: PreTrainedModel,
    prompt: Sequence[int],
    rules: Rules,
    width: int,
    prior: Prior | None = None,
    *,
    cached: bool = True,
) -> Completion:
    """The best completion among `width` at a time. Without `cached` every step runs whole sequences: slow,
    and the same ids. PromptError for a prompt that leaves no room in the context.
    """
    most = min(rules.max_new, generation.room(lm, prompt))
    masks = generation.Masks.build(rules, lm.config.vocab_size, lm.device)
    following = _Batch(lm, prompt, cached)
    live, parents, done = [_Hypothesis(0.0, [], "")], [0], []
    for _ in range(most):
        logits = following(live, parents)
        found = sorted(_continued(logits, live, rules, masks, prior), key=lambda each: -each[0].score)
        done += [h for h, _ in found[:width] if h.ids[-1] in rules.stop]
        kept = [(h, parent) for h, parent in found if h.ids[-1] not in rules.stop][:width]
        best = max((h.score for h in done), default=-math.inf)
        kept = [(h, parent) for h, parent in kept if h.score > best - (NATS if width > 1 else 0)]
        if not kept or (width == 1 and done):
            break
        live, parents = [h for h, _ in kept], [parent for _, parent in kept]
    return _completion(max(done or live, key=lambda h: h.score).ids, rules)


def _continued(
    logits: Tensor, live: Sequence[_Hypothesis], rules: Rules, masks: Any, prior: Prior | None
) -> list[tuple[_Hypothesis, int]]:
    """Every hypothesis with each of its likeliest next ids, and which one it was."""
    found = []
    for parent, (h, row) in enumerate(zip(live, logits, strict=True)):
        values, ids = generation.masked(row, h.ids, rules, masks).log_softmax(-1).topk(PROPOSED)
        for value, token_id in zip(values.tolist(), ids.tolist(), strict=True):
            if value > -math.inf:
                more, state = prior(h.state, token_id) if prior else (0.0, h.state)
                found.append((_Hypothesis(h.score + value + more, [*h.ids, token_id], state), parent))
    return found


def _completion(ids: list[int], rules: Rules) -> Completion:
    """With the reason of its end; repetitions at the end of what did not stop are counted off."""
    if ids and ids[-1] in rules.stop:
        return Completion(ids, "stop", len(ids))
    loops = LoopDetector(rules.loop)
    looped = any([loops.add(token_id) for token_id in ids])
    return Completion(ids, "loop" if looped else "length", len(ids) - loops.excess)
