"""Composition of tasks at inference: a base, plus guidance borrowed from other tasks.

Pure arithmetic on whatever arrays the caller has, torch tensors or numpy arrays alike; knows no model, no
sampler and no framework. For a diffusion model the composed quantity is the score or anything affine in it,
such as the velocity; `compose_logits` is the counterpart for autoregressive models. SpeechOp,
arXiv 2509.14298:

    s = base + sum_k gamma_k gate_k(level) (s_k(condition_k) - s_k(null_k))

At a level (the log-SNR) a plan is a linear combination of branches whose weights sum to one. Branches of
weight zero are not in it, so they are never evaluated; a branch that several terms use is evaluated once.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gpa.errors import UsageError

Array = Any  # torch.Tensor or numpy.ndarray
Given = frozenset[tuple[str, Hashable]]
Gate = Callable[[float], float]
Weights = dict["Branch", float]

NOTHING: Given = frozenset()
GAMMA_LOGITS = 1.0  # exact under the Bayes assumption


def _number(name: str, value: float, finite: bool = True) -> None:
    if math.isnan(value) or (finite and math.isinf(value)):
        raise UsageError(f"{name} {value}: a number is needed")


def given(**slots: Hashable | None) -> Given:
    """What a branch is conditioned on: slot -> name of the condition; None and "" are null, as if left out.

    Names stand for arrays that the caller keeps; two branches are the same if task and names are.
    """
    return frozenset((slot, name) for slot, name in slots.items() if name is not None and name != "")


class Branch(NamedTuple):
    """One evaluation of the network: the task whose embedding it carries, and its conditions."""

    task: str
    given: Given = NOTHING


@dataclass(frozen=True)
class Above:
    """A gate, open where the level exceeds `threshold`: the later, less noisy part of sampling."""

    threshold: float

    def __post_init__(self) -> None:
        _number("gate", self.threshold, finite=False)

    def __call__(self, level: float) -> float:
        return float(level > self.threshold)


@dataclass(frozen=True)
class Fade:
    """A gate that falls linearly from 1 at `start` to 0 at `stop`: annealing over a growing sequence."""

    start: float
    stop: float

    def __post_init__(self) -> None:
        if not self.start < self.stop:
            raise UsageError(f"a fade from {self.start} to {self.stop}: it runs upwards")

    def __call__(self, level: float) -> float:
        return min(max((self.stop - level) / (self.stop - self.start), 0.0), 1.0)


ALWAYS = Above(-math.inf)


@dataclass(frozen=True)
class Guided:
    """One task with classifier-free guidance: s(null) + scale (s(given) - s(null)); scale 1 is off.

    The null is a branch of the same task.
    """

    task: str
    given: Given = NOTHING
    null: Given = NOTHING
    scale: float = 1.0

    def __post_init__(self) -> None:
        _number("guidance scale", self.scale)

    def weights(self, level: float) -> Weights:
        """Branch -> weight; they sum to one at every level."""
        if self.given == self.null:
            return {Branch(self.task, self.given): 1.0}
        return _merge(
            [(Branch(self.task, self.null), 1 - self.scale), (Branch(self.task, self.given), self.scale)]
        )


@dataclass(frozen=True)
class Average:
    """The TC-Avg baseline: (1 - share) first + share second, which mixes two priors."""

    first: Guided
    second: Guided
    share: float

    def __post_init__(self) -> None:
        _number("average share", self.share)

    def weights(self, level: float) -> Weights:
        """Branch -> weight; they sum to one at every level."""
        shares = ((self.first, 1 - self.share), (self.second, self.share))
        return _merge((b, share * w) for part, share in shares for b, w in part.weights(level).items())


@dataclass(frozen=True)
class Term:
    """Guidance of one task: gamma gate(level) (s(given) - s(null)), nothing if the two conditions are equal.

    There is one task: a null that carries another task's embedding cannot be written.
    """

    task: str
    given: Given
    null: Given = NOTHING
    gamma: float = 1.5
    gate: Gate = ALWAYS

    def __post_init__(self) -> None:
        _number("gamma", self.gamma)

    def weights(self, level: float) -> Weights:
        """Branch -> weight; they sum to zero. Empty at gamma 0, at a closed gate and for a null condition."""
        strength = self.gamma * self.gate(level)
        return _merge([(Branch(self.task, self.given), strength), (Branch(self.task, self.null), -strength)])


@dataclass(frozen=True)
class Plan:
    """A base and the terms added to it."""

    base: Guided | Average
    terms: tuple[Term, ...] = ()

    def guidance(self, level: float) -> Weights:
        """Branch -> weight of all terms together; they sum to zero."""
        return _merge(pair for term in self.terms for pair in term.weights(level).items())

    def weights(self, level: float) -> Weights:
        """Branch -> weight of the composition; they sum to one, none is zero."""
        return _merge([*self.base.weights(level).items(), *self.guidance(level).items()])

    def branches(self, level: float) -> tuple[Branch, ...]:
        """What `compose` needs evaluated at a level; its length is the cost of a step."""
        return tuple(self.weights(level))

    def logit_branches(self, level: float = 0.0) -> tuple[Branch, ...]:
        """What `compose_logits` needs evaluated: base and terms, which it treats apart."""
        return tuple(dict.fromkeys([*self.base.weights(level), *self.guidance(level)]))


def _merge(pairs: Iterable[tuple[Branch, float]]) -> Weights:
    """Weights of equal branches added up; branches that cancel or weigh nothing are left out."""
    total: Weights = {}
    for branch, weight in pairs:
        total[branch] = total.get(branch, 0.0) + weight
    return {branch: weight for branch, weight in total.items() if weight != 0}


# Evaluation -------------------------------------------------------------------------------------------------


def combine(weights: Weights, outputs: Mapping[Branch, Array]) -> Array:
    """The weighted sum of the branches' outputs; a single branch of weight one is returned as it is."""
    parts = [
        outputs[branch] if weight == 1 else weight * outputs[branch] for branch, weight in weights.items()
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def composed(
    plan: Plan, evaluate: Callable[[Sequence[Branch], Array, float], Sequence[Array]]
) -> Callable[[Array, float], Array]:
    """A plan as one denoiser (z, level) -> output, for any sampler.

    `evaluate(branches, z, level)` returns the branches' outputs in order; it is called once a step with just
    the branches that the level needs, so it can run them as one batch.
    """

    def denoise(z: Array, level: float) -> Array:
        weights = plan.weights(level)
        branches = tuple(weights)
        return combine(weights, dict(zip(branches, evaluate(branches, z, level), strict=True)))

    return denoise


def evaluations(plan: Plan, levels: Iterable[float]) -> int:
    """How many times the network runs over these levels."""
    return sum(len(plan.branches(level)) for level in levels)


# Plans of the paper ----------------------------------------------------------------------------------------


def tc_cfg(
    base: Guided,
    text: Hashable | None,
    *,
    prompt: Hashable | None = None,
    keep_prompt: bool = False,
    gamma: float = 1.5,
    gate: Gate = ALWAYS,
    task: str = "tts",
) -> Plan:
    """Text guidance of a base by the TTS task: base + gamma (s_T(text, prompt) - s_T(null)).

    The null drops text and prompt together, or the text alone with `keep_prompt`. A null text guides nothing,
    whatever the prompt.
    """
    condition = given(text=text, prompt=prompt)
    null = given(prompt=prompt) if keep_prompt else NOTHING
    spoken = text is not None and text != ""
    return Plan(base, (Term(task, condition if spoken else null, null, gamma, gate),))


def tc_avg(base: Guided, text: Hashable | None, share: float, *, task: str = "tts") -> Plan:
    """The baseline (1 - share) base + share s_T(text)."""
    return Plan(Average(base, Guided(task, given(text=text)), share))


def enhancement(
    source: Hashable,
    text: Hashable | None = None,
    prompt: Hashable | None = None,
    *,
    keep_prompt: bool = False,
    guidance: float = 1.0,
    gamma: float = 1.5,
    gate: Gate = ALWAYS,
) -> Plan:
    """Enhancement of a source, guided by its transcript, personalised by a prompt of the speaker's voice.

    With a recogniser's transcript this is implicit task composition.
    """
    base = Guided("enhance", given(source=source, prompt=prompt), scale=guidance)
    return tc_cfg(base, text, prompt=prompt, keep_prompt=keep_prompt, gamma=gamma, gate=gate)


def extraction(
    source: Hashable,
    prompt: Hashable,
    text: Hashable | None = None,
    *,
    guidance: float = 1.0,
    gamma: float = 1.5,
    gate: Gate = ALWAYS,
) -> Plan:
    """The prompt's speaker out of a mixture, guided by what that speaker says; the term has no prompt."""
    base = Guided("spk_sep", given(source=source, prompt=prompt), scale=guidance)
    return tc_cfg(base, text, gamma=gamma, gate=gate)


def isolation(
    source: Hashable,
    text: Hashable | None = None,
    *,
    guidance: float = 1.0,
    gamma: float = 1.5,
    gate: Gate = ALWAYS,
) -> Plan:
    """The speech in a mixture without its background, guided by its transcript."""
    return tc_cfg(Guided("iso_fg", given(source=source), scale=guidance), text, gamma=gamma, gate=gate)


# Autoregressive models --------------------------------------------------------------------------------------


def compose_logits(
    plan: Plan,
    logits: Mapping[Branch, Array],
    *,
    eos: int | None = None,
    plausibility: float = 0.0,
    level: float = 0.0,
) -> Array:
    """Logits of the next token under a plan: the base's, plus the normalised guidance of the terms.

    `logits` (..., V) of every branch in `plan.logit_branches(level)` over the same allowed tokens, all
    finite: slice the vocabulary first. Temperature and top-p come after. `eos` is the stop token's index; it
    keeps the base's logit and probability exactly, as the base alone knows the length. A token whose base
    probability is below `plausibility` times the largest is not promoted (.05 to .1 is usual, 0 is off). The
    sum of exp(result) over the tokens is the base's; without open terms the result is the base itself.
    """
    base = combine(plan.base.weights(level), logits)
    weights = plan.guidance(level)
    if not weights:
        return base
    xp = sys.modules[type(base).__module__.partition(".")[0]]  # torch or numpy, whichever made the array
    if eos is None:
        return base + _shift(xp, base, weights, logits, plausibility)
    at = eos % base.shape[-1]
    tokens = {branch: _without(xp, logits[branch], at) for branch in weights}
    shift = _shift(xp, _without(xp, base, at), weights, tokens, plausibility)
    return base + _insert_zero(xp, shift, at)


def _shift(
    xp: Any, base: Array, weights: Weights, logits: Mapping[Branch, Array], plausibility: float
) -> Array:
    """What guidance adds to the base's logits, normalised to keep their total probability."""
    log_p = _log_softmax(xp, base)
    shift = combine(weights, {branch: _log_softmax(xp, logits[branch]) for branch in weights})
    if plausibility > 0:
        junk = log_p < xp.amax(log_p, axis=-1, keepdims=True) + math.log(plausibility)
        shift = xp.where(junk & (shift > 0), 0, shift)
    return shift - _log_sum_exp(xp, log_p + shift)


def _log_sum_exp(xp: Any, x: Array) -> Array:  # (..., V) -> (..., 1)
    top = xp.amax(x, axis=-1, keepdims=True)
    return top + xp.log(xp.sum(xp.exp(x - top), axis=-1, keepdims=True))


def _log_softmax(xp: Any, x: Array) -> Array:
    return x - _log_sum_exp(xp, x)


def _without(xp: Any, x: Array, at: int) -> Array:  # (..., V) -> (..., V - 1)
    if at in (0, x.shape[-1] - 1):
        return x[..., 1:] if at == 0 else x[..., :-1]  # nothing is copied
    return xp.concatenate([x[..., :at], x[..., at + 1 :]], axis=-1)


def _insert_zero(xp: Any, x: Array, at: int) -> Array:  # (..., V - 1) -> (..., V)
    return xp.concatenate([x[..., :at], xp.zeros_like(x[..., :1]), x[..., at:]], axis=-1)
