"""Several takes of one text, of which the one is kept that the model itself understands best.

The network that speaks also writes down what it hears. How likely it finds the text, given the speech ids it
has just made, tells a slip of the tongue from speech: one pass a take, without sound or codec. The decoder
side of a noisy channel (Shannon 1948), as rerankers of translation use it (Yee et al. 2019).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from gpa.errors import UsageError
from gpa.models.gpa.budgets_gpa import Budgets
from gpa.models.gpa.generation_gpa import Completion, Rules, Sampling, generate, generate_several, logits_of
from gpa.prompt import InstructFormat
from gpa.text import without_punctuation

STEP = 7919  # between the seeds of two takes; the first take has the request's own
MOST = 16  # takes


def log_likelihood(lm: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int]) -> float:
    """Of a completion's ids after a prompt, in nats."""
    logits = logits_of(lm, [*prompt, *completion])[len(prompt) - 1 : -1]
    chosen = torch.tensor(list(completion), device=logits.device)[:, None]
    return float(logits.log_softmax(-1).gather(1, chosen).sum())


def understood(lm: PreTrainedModel, budgets: Budgets, take: Completion, text: str) -> float:
    """How likely recognition finds the text after a take's speech; minus infinity for no speech."""
    codes = budgets.codes(take)
    if not codes:
        return -math.inf
    completion = budgets.format.completion("asr", text=without_punctuation(text))
    return log_likelihood(lm, budgets.format.build("asr", semantic=codes), completion)


def best_take(
    lm: PreTrainedModel,
    budgets: Budgets,
    prompt: Sequence[int],
    text: str,
    rules: Rules,
    sampling: Sampling,
    count: int,
    seed: int,
) -> Completion:
    """Of `count` takes the one understood best, among those that stopped if any did.

    UsageError for a count out of range, or where recognition needs more than semantic ids.
    """
    if not 1 <= count <= MOST:
        raise UsageError(f"best_of={count!r}: a number of takes from 1 to {MOST}")
    if count == 1 or sampling.temperature == 0:
        return generate(lm, prompt, rules, sampling, seed=seed)
    if not isinstance(budgets.format, InstructFormat):
        raise UsageError(
            f"best_of={count}: the {budgets.format.name} format recognises with more than semantic ids"
        )
    takes = generate_several(lm, prompt, rules, sampling, [seed + STEP * n for n in range(count)])
    return max(takes, key=lambda take: (take.finish_reason == "stop", understood(lm, budgets, take, text)))
