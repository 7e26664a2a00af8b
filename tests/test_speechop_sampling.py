"""Samplers against laws with known answers, their steps, held frames, noise that ignores the batch."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gpa.errors import UsageError
from gpa.models.speechop import sampling_speechop
from gpa.models.speechop.diffusion_speechop import eps_from_v, x_from_v
from gpa.models.speechop.sampling_speechop import (
    SeededNoise,
    ddim,
    nodes,
    ode_dpmpp_2m,
    sde_dpmpp_2m,
    step_weights,
)
from mixtures import Draws, Mixture, gaussian

NARROW = gaussian(1.0, 0.3)
LEVELS = [(-12.0, -11.0), (-3.0, -1.0), (0.0, 0.1), (2.0, 5.0), (9.0, 12.0)]


def test_nodes_are_uniform_and_as_many_lie_above_the_gate_as_specified() -> None:
    levels = nodes(-12.0, 12.0, 256)
    assert len(levels) == 257 and levels[0] == -12 and levels[-1] == 12
    assert {round(b - a, 12) for a, b in zip(levels, levels[1:], strict=False)} == {0.09375}
    assert sum(level > -1.0 for level in levels[:-1]) == 138


@pytest.mark.parametrize("now, following", LEVELS)
def test_step_weights_are_the_specified_ones(now: float, following: float) -> None:
    """SDE-DPM-Solver++ in the notation of its paper."""
    alpha = math.sqrt(1 / (1 + math.exp(-following)))
    sigma, sigma_next = math.sqrt(1 / (1 + math.exp(now))), math.sqrt(1 / (1 + math.exp(following)))
    h = (following - now) / 2
    left = 1 - math.exp(-2 * h)
    sde = (sigma_next / sigma * math.exp(-h), alpha * left, sigma_next * math.sqrt(left))
    ode = (sigma_next / sigma, alpha * (1 - math.exp(-h)), 0.0)
    assert step_weights(now, following, 1.0) == pytest.approx(sde, rel=1e-9)
    assert step_weights(now, following, 0.0) == pytest.approx(ode, rel=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_a_step_keeps_the_marginal_of_what_it_predicts(eta: float) -> None:
    """If x is right, z at one level becomes z at the next, equally distributed, whatever eta."""
    for now, following in LEVELS:
        keep, pull, spread = step_weights(now, following, eta)
        alpha, sigma2 = (sampling_speechop._scale(now), sampling_speechop._scale(-now) ** 2)
        assert keep * alpha + pull == pytest.approx(sampling_speechop._scale(following), rel=1e-9)
        assert keep**2 * sigma2 + spread**2 == pytest.approx(
            sampling_speechop._scale(-following) ** 2, rel=1e-9
        )


def test_ddim_is_the_formula_of_its_paper() -> None:
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)
    levels = [-1.5, 0.5]
    out = ddim(NARROW.v, z, levels)
    v = NARROW.v(z, levels[0])
    x, eps = x_from_v(z, v, levels[0]), eps_from_v(z, v, levels[0])
    expected = sampling_speechop._scale(0.5) * x + sampling_speechop._scale(-0.5) * eps
    torch.testing.assert_close(out, x_from_v(expected, NARROW.v(expected, 0.5), 0.5), rtol=1e-12, atol=1e-12)


def second_order_by_hand(z: Tensor, levels: list[float]) -> Tensor:
    """DPM-Solver++ (2M) written out, uneven nodes included."""
    kept: list[Tensor] = []
    for i in range(len(levels) - 1):
        now, following = levels[i], levels[i + 1]
        kept.append(x_from_v(z, NARROW.v(z, now), now))
        h = (following - now) / 2
        bent = kept[-1]
        if i:
            bent = bent + 0.5 * h / ((now - levels[i - 1]) / 2) * (kept[-1] - kept[-2])
        sigma, sigma_next = math.sqrt(1 / (1 + math.exp(now))), math.sqrt(1 / (1 + math.exp(following)))
        alpha = math.sqrt(1 / (1 + math.exp(-following)))
        z = sigma_next / sigma * z + alpha * (1 - math.exp(-h)) * bent
    return x_from_v(z, NARROW.v(z, levels[-1]), levels[-1])


def test_second_order_extrapolates_over_uneven_nodes() -> None:
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)
    levels = [-4.0, -3.0, -1.5, -1.0, 1.0, 2.5, 3.0]
    torch.testing.assert_close(
        ode_dpmpp_2m(NARROW.v, z, levels), second_order_by_hand(z, levels), rtol=1e-12, atol=1e-12
    )


def exact_end(law: Mixture, z: Tensor, low: float, high: float) -> Tensor:
    """Where the probability flow of a Gaussian takes z: its standardised value never changes."""
    (mean,), (sd,) = law.means, law.sds

    def spread(lam: float) -> float:
        return math.hypot(sampling_speechop._scale(lam) * sd, sampling_speechop._scale(-lam))

    u = (z - sampling_speechop._scale(low) * mean) / spread(low)
    end = sampling_speechop._scale(high) * mean + spread(high) * u
    return x_from_v(end, law.v(end, high), high)


@pytest.mark.parametrize("solve, order", [(ddim, 1), (ode_dpmpp_2m, 2)])
def test_deterministic_samplers_converge_at_their_order(solve: Callable, order: int) -> None:
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)
    truth = exact_end(NARROW, z, -6.0, 6.0)
    errors = [
        float((solve(NARROW.v, z, nodes(-6.0, 6.0, steps)) - truth).abs().max()) for steps in (32, 64, 128)
    ]
    orders = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert orders == pytest.approx([order, order], abs=0.25), errors
    assert errors[-1] < (2e-2 if order == 1 else 1e-3)


TABLE = [(16, 0.316, 0.307), (32, 0.308, 0.301), (128, 0.301, 0.299)]  # steps, sd of SDE and of ODE


@pytest.mark.parametrize("steps, sde, ode", TABLE)
def test_samples_of_a_gaussian_have_the_specified_spread(steps: int, sde: float, ode: float) -> None:
    noise = Draws(20_000, 1)
    z, levels = noise(), nodes(-12.0, 12.0, steps)
    drawn = sde_dpmpp_2m(NARROW.v, z, levels, noise)
    walked = ode_dpmpp_2m(NARROW.v, z, levels)
    assert float(drawn.mean()) == pytest.approx(1.0, abs=0.01)
    assert float(walked.mean()) == pytest.approx(1.0, abs=0.01)
    assert float(drawn.std()) == pytest.approx(sde, abs=0.005)
    assert float(walked.std()) == pytest.approx(ode, abs=0.005)


def test_every_sampler_finds_both_parts_of_a_mixture() -> None:
    law = Mixture([0.3, 0.7], [-1.0, 1.0], [0.1, 0.2])
    noise = Draws(4000, 2)
    z, levels = noise(), nodes(-12.0, 12.0, 64)
    outs = (
        ddim(law.v, z, levels),
        ddim(law.v, z, levels, eta=1.0, noise=noise),
        ode_dpmpp_2m(law.v, z, levels),
        sde_dpmpp_2m(law.v, z, levels, noise),
    )
    for x in outs:
        assert float((x > 0).double().mean()) == pytest.approx(0.7, abs=0.03)
        assert float(x[x > 0].std()) == pytest.approx(0.2, abs=0.03)
        assert float(x[x < 0].std()) == pytest.approx(0.1, abs=0.03)


class Counted:
    """A denoiser that records the levels it was asked for and what it was given."""

    def __init__(self, law: Mixture) -> None:
        self.law, self.levels, self.seen = law, [], []
        self.levels: list[float]
        self.seen: list[Tensor]

    def __call__(self, z: Tensor, lam: float) -> Tensor:
        self.levels.append(lam)
        self.seen.append(z)
        return self.law.v(z, lam)


def test_the_final_prediction_is_one_more_evaluation_and_noise_is_drawn_once_a_step() -> None:
    levels = nodes(-8.0, 8.0, 10)
    z = Draws(5, 0)()
    full, cheap, noise, same = Counted(NARROW), Counted(NARROW), Draws(5, 3), Draws(5, 3)
    sde_dpmpp_2m(full, z, levels, noise)
    last = sde_dpmpp_2m(cheap, z, levels, same, final=False)
    assert full.levels == levels and cheap.levels == levels[:-1]
    assert noise.calls == same.calls == 10
    at = levels[-2]
    assert torch.equal(last, x_from_v(cheap.seen[-1], NARROW.v(cheap.seen[-1], at), at))  # not a noisy z


def test_the_result_is_clean_where_the_last_z_is_not() -> None:
    """Stopped at a noisy level, samplers return the predicted x, which for a point mass is that point."""
    point = gaussian(0.7, 1e-9)
    noise = Draws(50, 0)
    out = sde_dpmpp_2m(point.v, noise(), nodes(-10.0, -2.0, 8), noise)
    torch.testing.assert_close(out, torch.full((50,), 0.7, dtype=torch.float64), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["ddim", "ode", "sde"])
def test_held_frames_are_restored_before_every_evaluation(name: str) -> None:
    seen = Counted(NARROW)
    noise = Draws(4, 5)

    def hold(z: Tensor) -> Tensor:
        return torch.cat([torch.tensor([9.0, -9.0], dtype=z.dtype), z[2:]])

    levels = nodes(-8.0, 8.0, 6)
    if name == "sde":
        out = sde_dpmpp_2m(seen, noise(), levels, noise, hold=hold)
    else:
        out = (ddim if name == "ddim" else ode_dpmpp_2m)(seen, noise(), levels, hold=hold)
    assert [z[:2].tolist() for z in (*seen.seen, out)] == [[9.0, -9.0]] * 8
    assert not torch.equal(seen.seen[0][2:], seen.seen[-1][2:])


def test_impossible_requests_are_errors() -> None:
    z = torch.zeros(3)
    with pytest.raises(UsageError, match="noise"):
        ddim(NARROW.v, z, [0.0, 1.0], eta=0.5)
    with pytest.raises(UsageError, match="two nodes"):
        ode_dpmpp_2m(NARROW.v, z, [0.0])
    with pytest.raises(UsageError, match="upwards"):
        nodes(1.0, -1.0, 4)
    with pytest.raises(UsageError, match="2 seeds for 1"):
        SeededNoise([1, 2], [5], 3)


# Noise -----------------------------------------------------------------------------------------------------


def test_a_row_of_noise_does_not_depend_on_the_batch_or_its_padding() -> None:
    together = SeededNoise([7, 8, 9], [20, 33, 5], 4)
    alone = SeededNoise([8], [33], 4)
    short = SeededNoise([9], [5], 4)
    for _ in range(3):
        batch = together()
        assert batch.shape == (3, 4, 33)
        assert torch.equal(batch[1], alone()[0])
        assert torch.equal(batch[2, :, :5], short()[0])
        assert not batch[2, :, 5:].any() and not batch[0, :, 20:].any()


def test_noise_is_standard_normal_new_at_every_call_and_set_by_the_seed() -> None:
    noise = SeededNoise([1, 2], [5000, 5000], 4)
    first, second = noise(), noise()
    assert not torch.equal(first, second) and not torch.equal(first[0], first[1])
    assert float(first.mean()) == pytest.approx(0, abs=0.02) and float(first.std()) == pytest.approx(
        1, abs=0.02
    )
    assert torch.equal(first, SeededNoise([1, 2], [5000, 5000], 4)())
