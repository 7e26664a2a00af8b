"""The loop from a prompt to new ids: prefill, decode one id at a time, stop.

It knows ids only: no tasks, no text, no audio. Which ids are legal, where to stop and how many ids there may
be are arguments. State is visible: the key/value cache is an argument and a result, randomness one generator
per request.

    L prompt positions   V vocabulary   N ids that are legal
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from inspect import signature
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from gpa.errors import PromptError, UsageError

PERIODS = 16  # the longest cycle that counts as a loop
FEW = 3  # distinct ids, in any order, that count as one


@dataclass(frozen=True)
class Sampling:
    """How an id is drawn. Temperature 0 is greedy; top_k 0 and top_p 1 keep every legal id.

    The repetition penalty divides positive and multiplies negative logits of the last `penalty_window`
    generated ids; ids of the prompt are never penalised, since a conversion has to copy them.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    penalty_window: int = 64

    def __post_init__(self) -> None:
        checks = {
            "temperature": 0 <= self.temperature < math.inf,
            "top_k": self.top_k >= 0 and self.top_k == int(self.top_k),
            "top_p": 0 < self.top_p <= 1,
            "repetition_penalty": 0 < self.repetition_penalty < math.inf,
            "penalty_window": self.penalty_window >= 0,
        }
        for name, good in checks.items():
            if not good:
                raise UsageError(f"{name}={getattr(self, name)!r} is out of range")

    def updated(self, **changes: float | None) -> Sampling:
        """A copy with the given values, None meaning "as it is".

        An explicit temperature of 0 without a penalty of its own also drops the penalty: greedy means the
        argmax.
        """
        if changes.get("temperature") == 0 and changes.get("repetition_penalty") is None:
            changes = {**changes, "repetition_penalty": 1.0}
        given = {name: value for name, value in changes.items() if value is not None}
        return replace(self, **given)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Rules:
    """What a completion may look like.

    `legal` are runs of ids that may be generated (None: any id), `stop` ids end it, after a `closer` only a
    stop may follow, no stop before `min_new` ids, at most `max_new` ids. `loop` ids that repeat a short
    cycle, or hold no more than three values, end it as a loop (None: never). What is `closed` has a stop
    as the last of `max_new` ids, if not before.
    """

    max_new: int
    stop: frozenset[int]
    legal: tuple[range, ...] | None = None
    closers: frozenset[int] = frozenset()
    min_new: int = 0
    loop: int | None = None
    closed: bool = False


@dataclass
class Completion:
    """New ids, the stop id included, and why they end: "stop", "length" or "loop".

    `kept` is how many of them precede the repetitions of a loop.
    """

    ids: list[int] = field(default_factory=list)
    finish_reason: str = "length"
    kept: int = 0


@dataclass(frozen=True)
class Masks:
    """Boolean masks over the vocabulary, made once per request; None lets everything pass."""

    legal: Tensor | None  # (V,)
    unstopped: Tensor | None  # (V,) legal without the stop ids
    stop: Tensor  # (V,)

    @classmethod
    def build(cls, rules: Rules, size: int, device: torch.device) -> Masks:
        stop = torch.zeros(size, dtype=torch.bool, device=device)
        stop[sorted(rules.stop)] = True
        if rules.legal is None:
            return cls(None, ~stop, stop)
        legal = torch.zeros_like(stop)
        for run in rules.legal:
            if run.start < 0 or run.stop > size:
                raise PromptError(
                    f"legal ids {run.start} .. {run.stop - 1} are beyond the model's {size} ids"
                )
            legal[run.start : run.stop] = True
        return cls(legal, legal & ~stop, stop)


def new_cache(lm: PreTrainedModel) -> DynamicCache:
    """An empty key-value cache of a network."""
    return DynamicCache(config=lm.config)


def cached(lm: PreTrainedModel, cache: DynamicCache) -> dict[str, DynamicCache]:
    """The argument that hands a cache to a network."""
    return {_name_of_cache(type(lm).forward): cache}


@lru_cache(maxsize=8)
def _name_of_cache(forward: Callable[..., Any]) -> str:
    """transformers renamed it in 5.24, and takes the old name until 5.40."""
    return "cache" if "cache" in signature(forward).parameters else "past_key_values"


@torch.inference_mode()
def prefill(lm: PreTrainedModel, ids: Sequence[int]) -> tuple[Tensor, DynamicCache]:
    """Logits (V,) after a prompt, and the cache that holds it."""
    cache = new_cache(lm)
    out = lm(
        input_ids=torch.tensor([list(ids)], device=lm.device),
        **cached(lm, cache),
        use_cache=True,
        logits_to_keep=1,
    )
    return out.logits[0, -1].float(), cache


@torch.inference_mode()
def decode_one(lm: PreTrainedModel, token_id: int, cache: DynamicCache) -> Tensor:
    """Logits (V,) after one more id; the cache grows by it."""
    return decode_several(lm, [token_id], cache)[0]


@torch.inference_mode()
def decode_several(lm: PreTrainedModel, token_ids: Sequence[int], cache: DynamicCache) -> Tensor:
    """Logits (B, V) after one more id in each row of the cache."""
    ids = torch.tensor(token_ids, device=lm.device)[:, None]
    out = lm(input_ids=ids, **cached(lm, cache), use_cache=True, logits_to_keep=1)
    return out.logits[:, -1].float()


@torch.inference_mode()
def logits_of(lm: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """Logits (L, V) at every position of a sequence, without a cache: the slow twin of the two above."""
    return lm(input_ids=torch.tensor([list(ids)], device=lm.device), use_cache=False).logits[0].float()


class NextLogits(Protocol):
    """Logits (V,) of what follows a prompt and the ids so far; asked for after every id."""

    def __call__(self, ids: Sequence[int]) -> Tensor: ...


class Cached:
    """One prompt, every id of it and after it read once."""

    def __init__(self, lm: PreTrainedModel, prompt: Sequence[int]) -> None:
        self.lm, self.prompt = lm, prompt

    def __call__(self, ids: Sequence[int]) -> Tensor:
        if not ids:
            logits, self.cache = prefill(self.lm, self.prompt)
            return logits
        return decode_one(self.lm, ids[-1], self.cache)


def stream(
    lm: PreTrainedModel,
    prompt: Sequence[int],
    rules: Rules,
    sampling: Sampling,
    *,
    seed: int = 0,
    cached: bool = True,
    completion: Completion | None = None,
    logits: NextLogits | None = None,
) -> Iterator[int]:
    """New ids one at a time, the stop id included. `completion` is filled on the way and says how it ended.

    Equal arguments give equal ids. Without `cached` every step runs the whole sequence: slow, and the same
    ids. `logits` come from elsewhere than the prompt alone. Raises PromptError, with the numbers, for a
    prompt that leaves no room in the context.
    """
    completion = Completion() if completion is None else completion
    most = min(rules.max_new, room(lm, prompt))
    masks = Masks.build(rules, lm.config.vocab_size, lm.device)
    generator = torch.Generator().manual_seed(seed)
    loops = LoopDetector(rules.loop)
    following = logits or (Cached(lm, prompt) if cached else lambda ids: logits_of(lm, [*prompt, *ids])[-1])
    ids = completion.ids
    for _ in range(most):
        token_id = choose(masked(following(ids), ids, rules, masks), ids, sampling, generator)
        ids.append(token_id)
        completion.kept = len(ids)
        yield token_id
        if token_id in rules.stop:
            completion.finish_reason = "stop"
            return
        if loops.add(token_id):
            completion.finish_reason, completion.kept = "loop", len(ids) - loops.excess
            return


def generate(
    lm: PreTrainedModel,
    prompt: Sequence[int],
    rules: Rules,
    sampling: Sampling,
    *,
    seed: int = 0,
    cached: bool = True,
    logits: NextLogits | None = None,
) -> Completion:
    """`stream`, run to its end."""
    completion = Completion()
    options: dict[str, Any] = {"seed": seed, "cached": cached, "logits": logits}
    for _ in stream(lm, prompt, rules, sampling, completion=completion, **options):
        pass
    return completion


def room(lm: PreTrainedModel, prompt: Sequence[int]) -> int:
    """How many ids fit into the context after a prompt; PromptError, with the numbers, if there is none."""
    context = lm.config.max_position_embeddings
    if not prompt:
        raise PromptError("the prompt is empty")
    if len(prompt) >= context:
        raise PromptError(
            f"the prompt has {len(prompt)} ids, the model's context {context}: shorten the input"
        )
    if min(prompt) < 0 or max(prompt) >= lm.config.vocab_size:
        raise PromptError(f"the prompt holds ids outside 0 .. {lm.config.vocab_size - 1}")
    return context - len(prompt)


def masked(logits: Tensor, ids: Sequence[int], rules: Rules, masks: Masks) -> Tensor:
    """Logits with every id that may not come next at -inf."""
    last = len(ids) + 1 == rules.max_new
    if (ids and ids[-1] in rules.closers) or (rules.closed and last):
        mask: Tensor | None = masks.stop
    else:
        mask = masks.unstopped if len(ids) < rules.min_new else masks.legal
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
    """Tempered logits of the ids that top-k and top-p keep, highest first, and those ids."""
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
