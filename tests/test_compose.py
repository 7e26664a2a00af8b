"""Ten invariants, on stand-in networks and on laws whose composition is known.

Invariant 7 is here as far as no trained network is needed: a null of another task cannot be written.
"""

import itertools
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gpa import compose
from gpa.compose import (
    Above,
    Average,
    Branch,
    Fade,
    Guided,
    Plan,
    Term,
    compose_logits,
    composed,
    given,
    tc_avg,
    tc_cfg,
)
from gpa.errors import UsageError
from gpa.models.speechop import diffusion_speechop as diffusion
from gpa.models.speechop.sampling_speechop import nodes, sde_dpmpp_2m
from mixtures import Draws, Mixture, gaussian, wasserstein

ENHANCE = Guided("enhance", given(source="y"))
SPEAK, MUTE = Branch("tts", given(text="w")), Branch("tts")
BASE = Branch("enhance", given(source="y"))
LEVELS = nodes(-12.0, 12.0, 256)[:-1]


class Network:
    """A stand-in: a fixed smooth function for each branch, which counts what it evaluates."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.dtype, self.asked = dtype, []
        self.asked: list[tuple[float, Branch]]

    def one(self, branch: Branch, z: Tensor, level: float) -> Tensor:
        names = "".join(map(str, sorted(branch.given)))
        phase = sum(map(ord, branch.task + names)) % 97 / 97
        return torch.sin(z * (1 + phase) + phase * 7 + 0.1 * level)

    def __call__(self, branches: Sequence[Branch], z: Tensor, level: float) -> list[Tensor]:
        self.asked += [(level, branch) for branch in branches]
        return [self.one(branch, z, level) for branch in branches]

    def count(self, task: str) -> int:
        return sum(branch.task == task for _, branch in self.asked)


def run(plan: Plan, network: Network | None = None, steps: int = 16, n: int = 64) -> Tensor:
    """Samples of a plan from seed 1."""
    network = network or Network()
    noise = Draws(n, 1)
    return sde_dpmpp_2m(composed(plan, network), noise(), nodes(-8.0, 8.0, steps), noise, final=False)


def value(plan: Plan, level: float = 0.0) -> Tensor:
    z = torch.linspace(-1, 1, 11, dtype=torch.float64)
    return composed(plan, Network())(z, level)


# Invariants 1, 3, 4, 5, 6, 7 --------------------------------------------------------------------------------

OFF = {
    "no terms": Plan(ENHANCE),
    "gamma 0": tc_cfg(ENHANCE, "w", gamma=0.0),
    "gamma -0": tc_cfg(ENHANCE, "w", gamma=-0.0),
    "never open": tc_cfg(ENHANCE, "w", gate=Above(math.inf)),
    "no text": tc_cfg(ENHANCE, None, gamma=1.5),
    "empty text": tc_cfg(ENHANCE, "", gamma=1.5),
    "prompt without text": tc_cfg(ENHANCE, None, prompt="p"),
    "kept prompt without text": tc_cfg(ENHANCE, None, prompt="p", keep_prompt=True),
    "guidance 1": tc_cfg(Guided("enhance", given(source="y"), scale=1.0), "w", gamma=0.0),
    "cancelling terms": Plan(
        ENHANCE, (Term("tts", given(text="w"), gamma=0.7), Term("tts", given(text="w"), gamma=-0.7))
    ),
    "average of nothing": tc_avg(ENHANCE, "w", 0.0),
}


@pytest.mark.parametrize("plan", OFF.values(), ids=OFF.keys())
def test_what_is_off_changes_no_bit_and_is_not_evaluated(plan: Plan) -> None:
    alone, network = Network(), Network()
    noise = Draws(64, 1)
    single = sde_dpmpp_2m(
        lambda z, lam: alone.one(BASE, z, lam), noise(), nodes(-8.0, 8.0, 16), noise, final=False
    )
    assert torch.equal(run(plan, network), single)
    assert network.count("tts") == 0 and network.count("enhance") == 16
    assert not torch.equal(run(tc_cfg(ENHANCE, "w")), single)


@pytest.mark.parametrize("gamma", [-1.0, 0.3, 1.5, 7.0])
def test_a_condition_that_equals_its_null_guides_nothing(gamma: float) -> None:
    term = Term("tts", given(text="w", prompt="p"), given(prompt="p", text="w"), gamma)
    assert Plan(ENHANCE, (term,)).weights(0.0) == {BASE: 1.0}


def test_a_base_that_is_the_null_becomes_the_condition_or_ordinary_guidance() -> None:
    null = Guided("tts")
    assert tc_cfg(null, "w", gamma=1.0).weights(0.0) == {SPEAK: 1.0}
    guided = Plan(Guided("tts", given(text="w"), scale=3.0))
    assert tc_cfg(null, "w", gamma=3.0).weights(0.0) == guided.weights(0.0) == {MUTE: -2.0, SPEAK: 3.0}
    z = torch.linspace(-1, 1, 11, dtype=torch.float64)
    conditioned, unconditioned = (Network().one(branch, z, 0.0) for branch in (SPEAK, MUTE))
    torch.testing.assert_close(value(guided), unconditioned + 3.0 * (conditioned - unconditioned))


def test_averages_of_share_0_and_1_are_pure_and_between_them_linear() -> None:
    z = torch.linspace(-1, 1, 11, dtype=torch.float64)
    enhanced, spoken = (Network().one(branch, z, 0.0) for branch in (BASE, SPEAK))
    assert torch.equal(value(tc_avg(ENHANCE, "w", 0.0)), enhanced)
    assert torch.equal(value(tc_avg(ENHANCE, "w", 1.0)), spoken)
    torch.testing.assert_close(value(tc_avg(ENHANCE, "w", 0.3)), 0.7 * enhanced + 0.3 * spoken)
    guided = Average(Guided("enhance", given(source="y"), scale=2.0), Guided("tts", given(text="w")), 0.5)
    assert guided.weights(0.0) == {Branch("enhance"): -0.5, BASE: 1.0, SPEAK: 0.5}


def test_tc_cfg_is_the_formula() -> None:
    z = torch.linspace(-1, 1, 11, dtype=torch.float64)
    base, spoken, mute, lost = (
        Network().one(branch, z, 0.0) for branch in (BASE, SPEAK, MUTE, Branch("enhance"))
    )
    torch.testing.assert_close(value(tc_cfg(ENHANCE, "w", gamma=1.5)), base + 1.5 * (spoken - mute))
    full = tc_cfg(Guided("enhance", given(source="y"), scale=1.4), "w", gamma=0.6)
    torch.testing.assert_close(value(full), lost + 1.4 * (base - lost) + 0.6 * (spoken - mute))


def test_terms_commute_and_add_up() -> None:
    one, two, other = (
        Term("tts", given(text="w"), gamma=0.5),
        Term("tts", given(text="w"), gamma=0.75),
        Term("match", given(prompt="q"), gamma=0.4),
    )
    there, back = Plan(ENHANCE, (one, other, two)), Plan(ENHANCE, (two, other, one))
    assert there.weights(0.0) == pytest.approx(back.weights(0.0))
    torch.testing.assert_close(value(there), value(back))
    both = Plan(ENHANCE, (Term("tts", given(text="w"), gamma=1.25), other))
    assert there.weights(0.0) == pytest.approx(both.weights(0.0))
    assert len(there.branches(0.0)) == 5  # the shared pair is evaluated once


def test_gates_open_by_level_and_cost_what_is_specified() -> None:
    def cost(plan: Plan) -> int:
        return compose.evaluations(plan, LEVELS)

    gated = tc_cfg(ENHANCE, "w", gate=Above(-1.0))
    assert sum(len(gated.branches(level)) == 3 for level in LEVELS) == 138
    assert cost(Plan(ENHANCE)) == 256 and cost(gated) == 532 and cost(tc_cfg(ENHANCE, "w")) == 768
    everything = tc_cfg(Guided("enhance", given(source="y"), scale=1.5), "w")
    assert cost(everything) == 1024
    network = Network()
    noise = Draws(3, 0)
    sde_dpmpp_2m(composed(gated, network), noise(), [*LEVELS, 12.0], noise, final=False)
    assert len(network.asked) == 532 and min(level for level, b in network.asked if b.task == "tts") > -1.0


def test_a_gate_at_minus_infinity_is_none_and_closing_it_never_costs_more() -> None:
    assert torch.equal(run(tc_cfg(ENHANCE, "w", gate=Above(-math.inf))), run(tc_cfg(ENHANCE, "w")))
    thresholds = [-math.inf, -9, -3, -1, 0, 2.5, 11, math.inf]
    costs = [compose.evaluations(tc_cfg(ENHANCE, "w", gate=Above(at)), LEVELS) for at in thresholds]
    assert costs == sorted(costs, reverse=True) and costs[0] == 768 and costs[-1] == 256
    closed_at = Above(0.5)
    assert closed_at(0.5) == 0.0 and closed_at(0.5001) == 1.0  # open above, not at


def test_a_fading_gate_scales_the_strength() -> None:
    fade = Fade(0.0, 10.0)
    plan = tc_cfg(ENHANCE, "w", gamma=2.0, gate=fade)
    assert [plan.guidance(level).get(SPEAK, 0.0) for level in (-1, 0, 2.5, 10, 99)] == [2.0, 2.0, 1.5, 0, 0]


def test_weights_sum_to_one() -> None:
    plans = [
        *OFF.values(),
        tc_cfg(Guided("enhance", given(source="y"), scale=1.7), "w", gamma=2.3, prompt="p"),
        Plan(Average(ENHANCE, Guided("tts"), 0.3), (Term("tts", given(text="w"), gamma=0.9),)),
    ]
    for plan, level in itertools.product(plans, (-3.0, 3.0)):
        assert sum(plan.weights(level).values()) == pytest.approx(1.0, abs=1e-12)
        assert sum(plan.guidance(level).values()) == pytest.approx(0.0, abs=1e-12)


def test_a_null_carries_the_task_of_its_term() -> None:
    for part in (
        Term("tts", given(text="w", prompt="p"), given(prompt="p"), 1.5),
        Guided("tts", given(text="w")),
    ):
        assert {branch.task for branch in part.weights(0.0)} == {"tts"}
    with pytest.raises(TypeError):
        Term("tts", given(text="w"), null_task="enhance")  # type: ignore[call-arg]


# Named plans ------------------------------------------------------------------------------------------------


def test_named_plans_are_those_of_the_paper() -> None:
    spoken_alike = Branch("tts", given(text="w", prompt="p"))
    personal = compose.enhancement("y", "w", "p", gamma=1.5)
    base = Branch("enhance", given(source="y", prompt="p"))
    assert personal.weights(0.0) == {base: 1.0, spoken_alike: 1.5, MUTE: -1.5}
    kept = compose.enhancement("y", "w", "p", keep_prompt=True)
    assert kept.weights(0.0) == {base: 1.0, spoken_alike: 1.5, Branch("tts", given(prompt="p")): -1.5}
    assert compose.enhancement("y").weights(0.0) == {BASE: 1.0}
    wanted = Branch("spk_sep", given(source="y", prompt="p"))
    assert compose.extraction("y", "p", "w", gamma=1.0).weights(0.0) == {wanted: 1.0, SPEAK: 1.0, MUTE: -1.0}
    speech = Branch("iso_fg", given(source="y"))
    assert compose.isolation("y", "w", gamma=1.0).weights(0.0) == {speech: 1.0, SPEAK: 1.0, MUTE: -1.0}
    assert compose.isolation("y", "w", gate=Above(0)).weights(-1.0) == {speech: 1.0}
    strong = compose.extraction("y", "p", guidance=1.5).weights(0.0)
    assert strong == {wanted: 1.5, Branch("spk_sep"): -0.5}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_strengths_that_are_no_numbers_are_errors(bad: float) -> None:
    makers: list[Callable[[], Any]] = [
        lambda: tc_cfg(ENHANCE, "w", gamma=bad),
        lambda: Guided("tts", scale=bad),
        lambda: tc_avg(ENHANCE, "w", bad),
    ]
    for make in makers:
        with pytest.raises(UsageError, match="number"):
            make()


def test_impossible_gates_are_errors() -> None:
    with pytest.raises(UsageError, match="gate"):
        Above(math.nan)
    with pytest.raises(UsageError, match="upwards"):
        Fade(1.0, 1.0)


# Frameworks -------------------------------------------------------------------------------------------------


def test_numpy_and_torch_arrays_compose_alike() -> None:
    rng = np.random.default_rng(0)
    plan = tc_cfg(Guided("enhance", given(source="y"), scale=1.2), "w", gamma=1.5)
    arrays = {branch: rng.standard_normal((3, 9)) for branch in plan.logit_branches()}
    tensors = {branch: torch.from_numpy(array) for branch, array in arrays.items()}
    mixed = compose.combine(plan.weights(0.0), arrays)
    assert isinstance(mixed, np.ndarray)
    np.testing.assert_allclose(compose.combine(plan.weights(0.0), tensors).numpy(), mixed, rtol=1e-13)
    for eos in (None, 0, 4, 8, -1):
        left = compose_logits(plan, arrays, eos=eos, plausibility=0.1)
        right = compose_logits(plan, tensors, eos=eos, plausibility=0.1)
        assert isinstance(left, np.ndarray) and isinstance(right, Tensor)
        np.testing.assert_allclose(right.numpy(), left, rtol=1e-10, atol=1e-12)


def test_the_module_needs_no_framework() -> None:
    code = "import sys, gpa.compose; print(sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    run_ = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run_.stdout.strip() == "[]"


# Known laws: invariants 2, 8, 9, 10 -------------------------------------------------------------------------

SIDES = [-2.1, -0.9, 0.9, 2.1]
SAYS_B, SAYS_A = Mixture([0.5, 0.5], [0.9, 2.1], [0.5, 0.5]), Mixture([0.5, 0.5], [-0.9, -2.1], [0.5, 0.5])
ANYTHING = Mixture([0.25] * 4, SIDES, [0.5] * 4)


def acoustics(certainty_of_b: float) -> Mixture:
    """What the enhancement task believes of the clean value."""
    return Mixture([1 - certainty_of_b, certainty_of_b], [-1.5, 1.5], [0.15, 0.15])


def laws(certainty_of_b: float = 0.4, text: Mixture = SAYS_B) -> dict[Branch, Mixture]:
    return {BASE: acoustics(certainty_of_b), SPEAK: text, MUTE: ANYTHING, Branch("enhance"): ANYTHING}


def of_laws(table: dict[Branch, Mixture]) -> Callable[[Sequence[Branch], Tensor, float], list[Tensor]]:
    return lambda branches, z, lam: [table[branch].v(z, lam) for branch in branches]


def draw(plan: Plan, table: dict[Branch, Mixture], n: int = 4000, steps: int = 64, seed: int = 0) -> Tensor:
    noise = Draws(n, seed)
    return sde_dpmpp_2m(composed(plan, of_laws(table)), noise(), nodes(-12.0, 12.0, steps), noise)


def test_composition_does_not_depend_on_the_parameterisation() -> None:
    """Golden values: z = .3, lambda = .7; the five parameterisations agree to 1e-12."""
    z, lam = torch.tensor([0.3], dtype=torch.float64), 0.7
    table, weights = laws(), tc_cfg(ENHANCE, "w", gamma=1.5).weights(lam)
    scores = {branch: table[branch].score(z, lam) for branch in weights}
    vs = {branch: table[branch].v(z, lam) for branch in weights}
    golden_s, golden_v = [1.592402, 1.147277, 0.246361], [-1.333553, -1.019879, -0.385014]
    assert [float(scores[b]) for b in (BASE, SPEAK, MUTE)] == pytest.approx(golden_s, abs=1e-6)
    assert [float(vs[b]) for b in (BASE, SPEAK, MUTE)] == pytest.approx(golden_v, abs=1e-6)
    v = compose.combine(weights, vs)
    assert float(v) == pytest.approx(-2.285851, abs=1e-6)
    known = {"score_from_v": 2.943777, "x_from_v": 1.561951, "eps_from_v": -1.695708}
    for name in ("score_from_v", "x_from_v", "eps_from_v", "flow_from_v"):
        convert = getattr(diffusion, name)
        inside = compose.combine(weights, {branch: convert(z, part, lam) for branch, part in vs.items()})
        torch.testing.assert_close(inside, convert(z, v, lam), rtol=1e-12, atol=1e-12)
        if name in known:
            assert float(inside) == pytest.approx(known[name], abs=1e-6)


GAUSSIAN = [
    (0.0, -0.5838, -0.6293, 5e-5),
    (4.0, -2.2030, -2.1695, 5e-5),
    (8.0, -2.39605, -2.39525, 5e-6),
    (12.0, -2.399928, -2.399913, 5e-7),
]


def posterior(*observed: tuple[float, float]) -> Mixture:
    """N(0, 1) after observations (value, noise variance)."""
    precision = 1 + sum(1 / var for _, var in observed)
    return gaussian(sum(value / var for value, var in observed) / precision, precision**-0.5)


@pytest.mark.parametrize("lam, composed_score, joint_score, digits", GAUSSIAN)
def test_gaussians_compose_to_the_joint_posterior_as_noise_vanishes(
    lam: float, composed_score: float, joint_score: float, digits: float
) -> None:
    z = torch.tensor([0.4], dtype=torch.float64)
    table = {BASE: posterior((0.8, 0.5)), SPEAK: posterior((-0.3, 0.25)), MUTE: gaussian(0.0, 1.0)}
    joint = posterior((0.8, 0.5), (-0.3, 0.25))
    v = composed(tc_cfg(ENHANCE, "w", gamma=1.0), of_laws(table))(z, lam)
    score, truth = float(diffusion.score_from_v(z, v, lam)), float(joint.score(z, lam))
    assert score == pytest.approx(composed_score, abs=digits) and truth == pytest.approx(
        joint_score, abs=digits
    )
    if lam == 12.0:
        assert score == pytest.approx(truth, abs=1e-4)


def of_mixture(plan: Plan) -> tuple[float, float, float]:
    """P(content B), sd within B, W1 to the truth: means over three seeds of 4,000 samples, 64 steps."""
    grid = np.linspace(-6, 6, 24001)
    truth = acoustics(0.4).density(grid) * SAYS_B.density(grid) / ANYTHING.density(grid)
    rows = []
    for seed in range(3):
        x = draw(plan, laws(), seed=seed)
        right = x[x > 0]
        rows.append((len(right) / len(x), float(right.std()), wasserstein(x, grid, truth)))
    content, sd, distance = (sum(column) / len(rows) for column in zip(*rows, strict=True))
    return content, sd, distance


STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
CFG_TABLE = dict(
    zip(
        STRENGTHS,
        [
            (0.400, 0.150, 1.80),
            (0.670, 0.150, 0.92),
            (0.894, 0.150, 0.28),
            (0.982, 0.150, 0.042),
            (0.998, 0.149, 0.014),
            (1.000, 0.148, 0.018),
        ],
        strict=True,
    )
)
AVERAGE_TABLE = {0.3: (0.595, 0.214, 1.14), 0.5: (0.740, 0.295, 0.73), 0.7: (0.874, 0.428, 0.47)}


@pytest.fixture(scope="module")
def guided_mixtures() -> dict[float, tuple[float, float, float]]:
    return {gamma: of_mixture(tc_cfg(ENHANCE, "w", gamma=gamma)) for gamma in STRENGTHS}


@pytest.fixture(scope="module")
def averaged_mixtures() -> dict[float, tuple[float, float, float]]:
    return {share: of_mixture(tc_avg(ENHANCE, "w", share)) for share in AVERAGE_TABLE}


def test_guidance_moves_content_and_not_style_where_averaging_moves_both(
    guided_mixtures: dict[float, tuple[float, float, float]],
    averaged_mixtures: dict[float, tuple[float, float, float]],
) -> None:
    """The orderings of invariant 9."""
    contents = [guided_mixtures[gamma][0] for gamma in STRENGTHS]
    gains = [b - a for a, b in itertools.pairwise(contents)]
    assert contents == sorted(contents) and min(gains[:3]) > 5 * max(gains[3:]) > 0
    assert [sd for _, sd, _ in guided_mixtures.values()] == pytest.approx([0.15] * 6, abs=0.015)
    spreads = [averaged_mixtures[share][1] for share in (0.3, 0.5, 0.7)]
    assert 0.18 < spreads[0] < spreads[1] < spreads[2]
    nearest = min(distance for _, _, distance in averaged_mixtures.values())
    assert guided_mixtures[1.5][2] < guided_mixtures[1.0][2] < nearest


@pytest.mark.parametrize("gamma", STRENGTHS)
def test_guided_mixture_has_the_specified_values(
    gamma: float, guided_mixtures: dict[float, tuple[float, float, float]]
) -> None:
    content, sd, distance = guided_mixtures[gamma]
    expected = CFG_TABLE[gamma]
    assert content == pytest.approx(expected[0], abs=0.03) and sd == pytest.approx(expected[1], abs=0.015)
    assert distance == pytest.approx(expected[2], abs=0.06)


@pytest.mark.parametrize("share", AVERAGE_TABLE)
def test_averaged_mixture_has_the_specified_values(
    share: float, averaged_mixtures: dict[float, tuple[float, float, float]]
) -> None:
    content, sd, distance = averaged_mixtures[share]
    expected = AVERAGE_TABLE[share]
    assert content == pytest.approx(expected[0], abs=0.03) and sd == pytest.approx(expected[1], abs=0.03)
    assert distance == pytest.approx(expected[2], abs=0.06)


SPEECH_ALONE = Plan(Guided("tts", given(text="w")))
OTHER_ROWS = [  # plan, content, sd, W1, tolerance of content and W1: gates fall between nodes
    (SPEECH_ALONE, 0.982, 0.752, 0.535, 0.03, 0.06),
    (tc_cfg(ENHANCE, "w", gate=Above(-3.0)), 0.978, 0.150, 0.05, 0.05, 0.10),
    (tc_cfg(ENHANCE, "w", gate=Above(-1.0)), 0.937, 0.151, 0.16, 0.05, 0.10),
    (tc_cfg(ENHANCE, "w", gate=Above(1.0)), 0.440, 0.155, 1.39, 0.05, 0.10),
    (tc_cfg(Guided("enhance", given(source="y"), scale=1.5), "w"), 0.964, 0.106, 0.11, 0.03, 0.06),
    (tc_cfg(Guided("enhance", given(source="y"), scale=2.0), "w"), 0.940, 0.086, 0.19, 0.03, 0.06),
]


@pytest.mark.parametrize("plan, content, sd, distance, near, far", OTHER_ROWS)
def test_speech_alone_gates_and_guided_bases_have_the_specified_values(
    plan: Plan, content: float, sd: float, distance: float, near: float, far: float
) -> None:
    found = of_mixture(plan)
    assert found[0] == pytest.approx(content, abs=near)
    assert found[1] == pytest.approx(sd, abs=0.03 if plan is SPEECH_ALONE else 0.015)
    assert found[2] == pytest.approx(distance, abs=far)


WRONG = {  # certainty of the acoustics -> share that keeps their content, by gamma
    0.90: {0.5: 0.76, 0.75: 0.65, 1.0: 0.52, 1.5: 0.27, 3.0: 0.00},
    0.97: {0.5: 0.92, 0.75: 0.87, 1.0: 0.79, 1.5: 0.60, 3.0: 0.08},
    0.995: {0.5: 0.98, 0.75: 0.97, 1.0: 0.96, 1.5: 0.89, 3.0: 0.49},
}


def test_a_wrong_transcript_overrides_by_strength_and_certainty() -> None:
    """Invariant 10: 96 steps, 8,000 samples."""
    kept = {
        certainty: [
            float(
                (draw(tc_cfg(ENHANCE, "w", gamma=g), laws(certainty, SAYS_A), 8000, 96) > 0).double().mean()
            )
            for g in row
        ]
        for certainty, row in WRONG.items()
    }
    for certainty, row in WRONG.items():
        assert kept[certainty] == pytest.approx(list(row.values()), abs=0.04)
        assert kept[certainty] == sorted(kept[certainty], reverse=True)
    assert all(a < b < c for a, b, c in zip(*kept.values(), strict=True))
