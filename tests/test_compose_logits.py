"""Composition of logits: an enumerable case, the stop token, plausibility, annealing."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from gpa.compose import (
    ALWAYS,
    NOTHING,
    Above,
    Branch,
    Fade,
    Guided,
    Plan,
    compose_logits,
    given,
    tc_avg,
    tc_cfg,
)

ENHANCE, SPEECH_ALONE = Guided("enhance", given(source="y")), Plan(Guided("tts", given(text="w")))
BASE = Branch("enhance", given(source="y"))
SPEAK, MUTE = Branch("tts", given(text="w")), Branch("tts")

# Six tokens, five positions, everything enumerated ----------------------------------------------------------

STUDIO, WILD = (0.9, 0.05, 0.05), (0.1, 0.45, 0.45)
STRINGS = list(itertools.product((0, 1), repeat=5))  # 0 is x, 1 is o
TRUE = tuple("xo".index(letter) for letter in "xooxo")


def emission(letter: int, style: tuple[float, ...]) -> np.ndarray:
    p = np.full(6, 0.02)
    p[3 * letter : 3 * letter + 3] += style
    return p / p.sum()


def said(string: Sequence[int], style: tuple[float, ...]) -> np.ndarray:
    """Probability of all token sequences (6, 6, 6, 6, 6) of a string."""
    joint = np.ones(())
    for letter in string:
        joint = joint[..., None] * emission(letter, style)
    return joint


def prior(string: Sequence[int]) -> float:
    return 0.5 * math.prod(0.7 if a == b else 0.3 for a, b in itertools.pairwise(string))


def spoken(string: Sequence[int]) -> np.ndarray:
    return 0.3 * said(string, STUDIO) + 0.7 * said(string, WILD)


def enumerated() -> dict[Branch, np.ndarray]:
    """The joint law of every branch over all 7,776 sequences."""
    belief = (0.8, 0.35, 0.6, 0.55, 0.3)
    weight = {
        w: prior(w) * math.prod(p if c == 0 else 1 - p for c, p in zip(w, belief, strict=True))
        for w in STRINGS
    }
    base = sum(weight[w] * said(w, STUDIO) for w in STRINGS) / sum(weight.values())
    return {BASE: base, SPEAK: spoken(TRUE), MUTE: sum(prior(w) * spoken(w) for w in STRINGS)}


def conditionals(joint: np.ndarray) -> list[np.ndarray]:
    """log p(token | prefix) for prefixes of every length: (6,), (6, 6), ... (6, 6, 6, 6, 6)."""
    sums = [joint.sum(axis=tuple(range(n, 5))) for n in range(6)]
    return [np.log(sums[n + 1] / sums[n][..., None]) for n in range(5)]


def sequence_law(plan: Plan, laws_: dict[Branch, np.ndarray], constant: float = 0.0) -> np.ndarray:
    """The joint law that sampling from composed logits has; `constant` offsets rows, which logits may do."""
    parts = {branch: conditionals(joint) for branch, joint in laws_.items()}
    total = np.ones(())
    for n in range(5):
        offset = {branch: constant * (i + 1) for i, branch in enumerate(parts)}
        logits = {branch: rows[n] + offset[branch] for branch, rows in parts.items()}
        out = np.exp(compose_logits(plan, logits))
        total = total[..., None] * out / out.sum(-1, keepdims=True)
    return total


def judged(law: np.ndarray) -> tuple[float, float, float]:
    """KL from the truth, P(all letters right), mean share of studio tokens."""
    truth = said(TRUE, STUDIO)
    right = law
    for position, letter in enumerate(TRUE):
        right = np.take(right, range(3 * letter, 3 * letter + 3), axis=position)
    shares = [law.sum(axis=tuple(i for i in range(5) if i != k))[[0, 3]].sum() for k in range(5)]
    return float((truth * np.log(truth / law)).sum()), float(right.sum()), float(np.mean(shares))


LOGIT_ROWS = {
    "base": (Plan(ENHANCE), (2.629, 0.031, 0.839)),
    "TTS": (SPEECH_ALONE, (1.110, 0.759, 0.339)),
    "average .3": (tc_avg(ENHANCE, "w", 0.3), (1.065, 0.186, 0.755)),
    "average .5": (tc_avg(ENHANCE, "w", 0.5), (0.667, 0.360, 0.672)),
    "average .7": (tc_avg(ENHANCE, "w", 0.7), (0.651, 0.538, 0.553)),
    "gamma .5": (tc_cfg(ENHANCE, "w", gamma=0.5), (0.382, 0.428, 0.823)),
    "gamma 1": (tc_cfg(ENHANCE, "w", gamma=1.0), (0.131, 0.817, 0.846)),
    "gamma 1.5": (tc_cfg(ENHANCE, "w", gamma=1.5), (0.403, 0.942, 0.866)),
    "gamma 2": (tc_cfg(ENHANCE, "w", gamma=2.0), (0.799, 0.979, 0.879)),
}


@pytest.mark.parametrize("plan, expected", LOGIT_ROWS.values(), ids=LOGIT_ROWS.keys())
def test_composed_logits_have_the_enumerated_laws(plan: Plan, expected: tuple[float, float, float]) -> None:
    law = sequence_law(plan, enumerated())
    assert law.sum() == pytest.approx(1.0)
    assert judged(law) == pytest.approx(expected, abs=0.002)
    np.testing.assert_allclose(sequence_law(plan, enumerated(), constant=3.0), law, rtol=1e-10)


def test_the_reference_rows_of_the_enumerated_case() -> None:
    """What needs no composition: truth, mixture of probabilities, product over whole sequences."""
    table = enumerated()
    product = table[BASE] * table[SPEAK] / table[MUTE]
    assert judged(said(TRUE, STUDIO)) == pytest.approx((0, 0.759, 0.839), abs=0.002)
    assert judged(product / product.sum()) == pytest.approx((0.071, 0.820, 0.856), abs=0.002)
    mixed = [
        0.5 * np.exp(a) + 0.5 * np.exp(b)
        for a, b in zip(*map(conditionals, (table[BASE], table[SPEAK])), strict=True)
    ]
    law = np.ones(())
    for step in mixed:
        law = law[..., None] * step
    assert judged(law) == pytest.approx((1.386, 0.209, 0.644), abs=0.002)


def rows_of_logits(seed: int = 0) -> dict[Branch, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {b: 2 * torch.randn(4, 8, generator=generator, dtype=torch.float64) for b in (BASE, SPEAK, MUTE)}


OFF = [
    Plan(ENHANCE),
    tc_cfg(ENHANCE, "w", gamma=0.0),
    tc_cfg(ENHANCE, "w", gate=Above(0.0)),
    tc_cfg(ENHANCE, None, prompt="p"),
    tc_avg(ENHANCE, "w", 0.0),
]


@pytest.mark.parametrize("plan", OFF)
def test_logits_of_what_is_off_are_the_bases_own(plan: Plan) -> None:
    logits = rows_of_logits()
    assert plan.logit_branches() == (BASE,)
    assert compose_logits(plan, {BASE: logits[BASE]}, eos=3, plausibility=0.1) is logits[BASE]


@pytest.mark.parametrize("eos", [0, 3, 7, -1])
@pytest.mark.parametrize("plausibility", [0.0, 0.1])
def test_the_stop_token_is_the_bases_alone(eos: int, plausibility: float) -> None:
    logits = rows_of_logits()
    logits[SPEAK][:, eos] += 20.0  # guidance that badly wants to stop
    plan = tc_cfg(ENHANCE, "w", gamma=1.5)
    out = compose_logits(plan, logits, eos=eos, plausibility=plausibility)
    assert torch.equal(out[:, eos], logits[BASE][:, eos])
    torch.testing.assert_close(out.softmax(-1)[:, eos], logits[BASE].softmax(-1)[:, eos])
    torch.testing.assert_close(out.logsumexp(-1), logits[BASE].logsumexp(-1))
    rest = [i for i in range(8) if i != eos % 8]
    if not plausibility:
        tokens = {branch: part[:, rest] for branch, part in logits.items()}
        ratio = tokens[BASE] + 1.5 * (tokens[SPEAK] - tokens[MUTE])
        torch.testing.assert_close(out[:, rest].softmax(-1), ratio.softmax(-1))
    free = compose_logits(plan, logits, plausibility=plausibility)
    assert (free[:, eos] > logits[BASE][:, eos] + 1).any()  # what the rule prevents


def test_implausible_tokens_are_not_promoted() -> None:
    base = torch.tensor([0.6, 0.3, 0.06, 0.04], dtype=torch.float64).log()
    spoken_, mute = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    spoken_[3], mute[1] = 4.0, 2.0  # junk is wanted, and a plausible token as well
    logits, plan = {BASE: base, SPEAK: spoken_, MUTE: mute}, tc_cfg(ENHANCE, "w", gamma=1.0)
    free = compose_logits(plan, logits).softmax(-1)
    held = compose_logits(plan, logits, plausibility=0.1).softmax(-1)  # below .06: the last token only
    assert free[3] > 0.5 and free.argmax() == 3
    shift = spoken_.log_softmax(-1) - mute.log_softmax(-1)
    expected = base + torch.where(torch.tensor([False, False, False, True]), shift.clamp(max=0), shift)
    torch.testing.assert_close(held, expected.softmax(-1))
    assert held.argmax() == 0
    demoted = {BASE: base, SPEAK: mute, MUTE: spoken_}
    torch.testing.assert_close(
        compose_logits(plan, demoted, plausibility=0.1)[3], compose_logits(plan, demoted)[3], rtol=0, atol=0.5
    )
    assert (
        compose_logits(plan, demoted, plausibility=0.1).softmax(-1)[3] < base.exp()[3]
    )  # clamped above only


def test_guidance_of_logits_can_be_annealed_over_the_prefix() -> None:
    logits, plan = rows_of_logits(), tc_cfg(ENHANCE, "w", gamma=1.0, gate=Fade(0.0, 10.0))
    half = tc_cfg(ENHANCE, "w", gamma=0.5)
    torch.testing.assert_close(compose_logits(plan, logits, level=5.0), compose_logits(half, logits))
    assert plan.logit_branches(10.0) == (BASE,)
    assert compose_logits(plan, logits, level=10.0) is logits[BASE]
    assert set(plan.logit_branches(5.0)) == {BASE, SPEAK, MUTE}
    assert ALWAYS(-1e9) == 1.0 and NOTHING == given(text=None)
