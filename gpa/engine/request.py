"""What may be asked of the engine, and what it answers: ids, and rules about ids.

Immutable, so that a request may be made here and run elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import TYPE_CHECKING, NamedTuple, Protocol

from gpa.errors import UsageError

if TYPE_CHECKING:
    from gpa.compose import Branch, Plan


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
            "temperature": (0 <= self.temperature < math.inf, "a finite number from 0 on"),
            "top_k": (self.top_k >= 0 and self.top_k == int(self.top_k), "a whole number from 0 on"),
            "top_p": (0 < self.top_p <= 1, "a number above 0, at most 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "a finite number above 0"),
            "penalty_window": (self.penalty_window >= 0, "a whole number from 0 on"),
        }
        for name, (good, needed) in checks.items():
            if not good:
                raise UsageError(f"{name}={getattr(self, name)!r} is out of range: {needed} is needed")

    @property
    def plain(self) -> bool:
        """Whether the likeliest legal id is taken: nothing is drawn, nothing penalised."""
        return self.temperature == 0 and self.repetition_penalty == 1

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
    as the last of `max_new` ids, if not before. Where ids come in rounds, `cycle` are the runs that are legal
    at each step of one, and a stop is legal between rounds only.
    """

    max_new: int
    stop: frozenset[int]
    legal: tuple[range, ...] | None = None
    closers: frozenset[int] = frozenset()
    min_new: int = 0
    loop: int | None = None
    closed: bool = False
    cycle: tuple[tuple[range, ...], ...] = ()


class Guidance(NamedTuple):
    """A plan over several prompts, which all continue with the same ids; `plan` names them as branches."""

    plan: Plan
    prompts: Mapping[Branch, Sequence[int]]


class Prior(Protocol):
    """What an id adds to a hypothesis' score in a state, and the state after it; "" is the first state."""

    def __call__(self, state: str, token_id: int) -> tuple[float, str]: ...


class Beams(NamedTuple):
    """How many hypotheses are kept, and a prior on them: shallow fusion (Gulcehre et al. 2015)."""

    width: int
    prior: Prior | None = None


@dataclass(frozen=True)
class Request:
    """One completion: a prompt of ids, what may follow it, how it is chosen.

    Equal requests have equal completions. `guidance` composes the next id from several prompts, the
    request's own among them; `beams` are searched, which draws nothing.
    """

    prompt: Sequence[int]
    rules: Rules
    sampling: Sampling = Sampling()
    seed: int = 0
    guidance: Guidance | None = None
    beams: Beams | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.seed, Integral):
            raise UsageError(f"seed={self.seed!r}: a whole number is needed")
        if self.beams and self.beams.width < 1:
            raise UsageError(f"{self.beams.width} beams: at least 1 is needed")
        if self.beams and (self.guidance or not self.sampling.plain):
            raise UsageError("beams are searched: no temperature, no penalty and no guidance go with them")
        if self.guidance and len(self.rules.stop) != 1:
            raise UsageError("guidance leaves the end to the base: it needs one stop id, no more and no less")


@dataclass
class Completion:
    """New ids, the stop id included, and why they end: "stop", "length" or "loop".

    `kept` is how many of them precede the repetitions of a loop.
    """

    ids: list[int] = field(default_factory=list)
    finish_reason: str = "length"
    kept: int = 0
