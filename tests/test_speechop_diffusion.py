"""Schedule, parameterisations, loss weights and the seeded decisions of training, against recorded values."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gpa.models.speechop import diffusion_speechop
from gpa.models.speechop.configuration_speechop import Inpaint, Loss, Schedule, SpeechOpConfig
from gpa.models.speechop.diffusion_speechop import Choice, choose

SCHEDULE = Schedule()
CONFIG = SpeechOpConfig()


def wide(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Schedule --------------------------------------------------------------------------------------------------


def test_schedule_has_the_specified_values() -> None:
    lam = diffusion_speechop.log_snr(wide([0.10, 0.25, 0.50, 0.75]), SCHEDULE)
    torch.testing.assert_close(lam, wide([2.29917, 0.37645, -1.38629, -3.14904]), rtol=0, atol=6e-6)
    squares = diffusion_speechop.alpha(lam, lam) ** 2
    torch.testing.assert_close(squares, wide([0.908808, 0.593017, 0.2, 0.041129]), rtol=0, atol=6e-7)
    slopes = diffusion_speechop.slope(lam, SCHEDULE)
    torch.testing.assert_close(slopes, wide([20.3328, 8.8858, 6.2832, 8.8858]), rtol=0, atol=6e-5)


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0])
def test_slope_and_inverse_belong_to_the_schedule(shift: float) -> None:
    schedule = Schedule(shift=shift)
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64).requires_grad_()
    lam = diffusion_speechop.log_snr(t, schedule)
    (gradient,) = torch.autograd.grad(lam.sum(), t)
    torch.testing.assert_close(diffusion_speechop.slope(lam.detach(), schedule), -gradient)
    torch.testing.assert_close(diffusion_speechop.time_of(lam, schedule), t)
    ratio = diffusion_speechop.sigma(lam, lam) / diffusion_speechop.alpha(lam, lam)
    torch.testing.assert_close(ratio, torch.tan(math.pi * t / 2) / shift)


def test_schedule_is_clamped_and_falls() -> None:
    lam = diffusion_speechop.log_snr(wide([0.0, 1e-9, 0.3, 0.6, 1.0]), SCHEDULE)
    assert lam[0] == lam[1] == 12 and lam[-1] == -12
    assert (lam.diff()[1:] < 0).all()
    free = Schedule(lambda_max=100.0, t_edge=1e-2)
    edge, beyond = diffusion_speechop.log_snr(wide([1e-2, 1e-3]), free)
    assert edge == beyond and torch.isfinite(edge)


# Parameterisations -----------------------------------------------------------------------------------------

PAIRS = [
    (diffusion_speechop.x_from_v, diffusion_speechop.v_from_x),
    (diffusion_speechop.eps_from_v, diffusion_speechop.v_from_eps),
    (diffusion_speechop.score_from_v, diffusion_speechop.v_from_score),
    (diffusion_speechop.flow_from_v, diffusion_speechop.v_from_flow),
]


def example() -> tuple[Tensor, Tensor, Tensor]:
    """x and eps (B, C, T), and one level for each row."""
    generator = torch.Generator().manual_seed(0)
    x, eps = (torch.randn(5, 3, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    return x, eps, wide([-6.0, -1.25, 0.0, 3.0, 6.0])


@pytest.mark.parametrize("there, back", PAIRS)
def test_conversions_are_inverse(there, back) -> None:  # type: ignore[no-untyped-def]
    z, v, lam = example()
    torch.testing.assert_close(back(z, there(z, v, lam), lam), v, rtol=1e-12, atol=1e-12)
    one = there(z[3], v[3], 3.0)  # a float level and a row's own level agree
    torch.testing.assert_close(there(z, v, lam)[3], one, rtol=1e-12, atol=1e-12)


def test_conversions_mean_what_they_say() -> None:
    x, eps, lam = example()
    z, v = diffusion_speechop.diffuse(x, eps, lam), diffusion_speechop.velocity(x, eps, lam)
    a, s = ((k * lam).sigmoid().sqrt()[:, None, None] for k in (1, -1))
    torch.testing.assert_close(z, a * x + s * eps)
    torch.testing.assert_close(v, a * eps - s * x)
    torch.testing.assert_close(diffusion_speechop.x_from_v(z, v, lam), x)
    torch.testing.assert_close(diffusion_speechop.eps_from_v(z, v, lam), eps)
    torch.testing.assert_close(diffusion_speechop.score_from_v(z, v, lam), -eps / s)
    torch.testing.assert_close(diffusion_speechop.flow_from_v(z, v, lam), eps - x)
    score = diffusion_speechop.score_from_v(z, v, lam)
    torch.testing.assert_close((z + s**2 * score) / a, x)  # Tweedie


# Loss ------------------------------------------------------------------------------------------------------


def test_weights_have_the_specified_values() -> None:
    lam = wide([-6, -2.5, -1.25, 0, 2])
    eps = diffusion_speechop.loss_weight(lam, Loss(), SCHEDULE, "eps")
    v = diffusion_speechop.loss_weight(lam, Loss(), SCHEDULE, "v")
    torch.testing.assert_close(eps, wide([0.970688, 0.5, 0.2227, 0.075858, 0.010987]), rtol=0, atol=6e-7)
    torch.testing.assert_close(v, wide([0.0024, 0.037929, 0.049595, 0.037929, 0.009677]), rtol=0, atol=6e-7)
    x, score = (diffusion_speechop.loss_weight(lam, Loss(), SCHEDULE, space) for space in ("x", "score"))
    torch.testing.assert_close(x, math.exp(-2.5) * (lam + 2.5).sigmoid())
    torch.testing.assert_close(score, (-lam).sigmoid() * (-2.5 - lam).sigmoid())


@pytest.mark.parametrize("bias", [-4.0, -2.5, 0.0, 3.0])
def test_the_weight_of_v_peaks_at_half_the_bias(bias: float) -> None:
    lam = torch.linspace(-12, 12, 2401, dtype=torch.float64)
    weight = diffusion_speechop.loss_weight(lam, Loss(bias=bias, normalise_peak=True), SCHEDULE)
    assert float(lam[weight.argmax()]) == pytest.approx(bias / 2, abs=0.01)
    assert float(weight.max()) == pytest.approx(1.0, abs=1e-6)


SETTINGS = [
    Loss(space=space, weight=weight, times_minus_dlambda_dt=factor)
    for space, weight, factor in itertools.product(("v", "eps", "x"), ("sigmoid", "none"), (False, True))
]


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_loss_is_the_same_number_in_every_space(setting: Loss) -> None:
    x, eps, lam = example()
    frames = torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) > 0.3
    config = dataclasses.replace(CONFIG, loss=setting)
    guess = 0.3 * eps - 0.1
    losses = [
        float(diffusion_speechop.diffusion_loss(guess, x, eps, lam, frames, config, space))
        for space in ("v", "eps", "x", "score")
    ]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)
    assert losses[0] > 1e-3


def test_the_factor_is_the_slope_of_the_schedule() -> None:
    lam = wide([-3.0, 0.0, 4.0])
    plain = diffusion_speechop.loss_weight(lam, Loss(), SCHEDULE)
    scaled = diffusion_speechop.loss_weight(lam, Loss(times_minus_dlambda_dt=True), SCHEDULE)
    torch.testing.assert_close(scaled / plain, diffusion_speechop.slope(lam, SCHEDULE))


def test_plain_v_loss_is_the_mean_over_marked_frames_only() -> None:
    x, eps, lam = example()
    config = dataclasses.replace(CONFIG, loss=Loss(space="v", weight="none"))
    frames = torch.zeros(5, 7, dtype=torch.bool)
    frames[1, 2:5] = frames[4, 0] = True
    guess = torch.ones_like(x).requires_grad_()
    loss = diffusion_speechop.diffusion_loss(guess, x, eps, lam, frames, config)
    error = (1 - diffusion_speechop.velocity(x, eps, lam)).square()
    expected = (error[1, :, 2:5].sum() + error[4, :, 0].sum()) / (4 * 3)
    torch.testing.assert_close(loss.detach(), expected)
    loss.backward()
    assert guess.grad is not None
    assert torch.equal(guess.grad.abs().sum(1) > 0, frames)
    none = diffusion_speechop.diffusion_loss(guess, x, eps, lam, torch.zeros_like(frames), config)
    assert float(none.detach()) == 0


# Decisions -------------------------------------------------------------------------------------------------


def many(task: str, frames: int = 1000, n: int = 6000, config: SpeechOpConfig = CONFIG) -> list[Choice]:
    return [choose(frames, task, np.random.default_rng((3, i)), config) for i in range(n)]


def test_tts_decisions_have_the_specified_rates() -> None:
    drawn = many("tts")
    clean = [c for c in drawn if c.stop > c.start]
    assert len(clean) / len(drawn) == pytest.approx(0.75, abs=0.02)
    assert sum(c.start == 0 for c in clean) / len(clean) == pytest.approx(0.5, abs=0.02)
    fractions = np.array([(c.stop - c.start) / 1000 for c in clean])
    assert fractions.mean() == pytest.approx(0.206, abs=0.01)
    assert fractions.std() == pytest.approx(math.sqrt(1.03 * 3.97 / (25 * 6)), abs=0.01)  # Beta(1.03, 3.97)
    for name in ("drop_text", "drop_source"):
        assert np.mean([getattr(c, name) for c in drawn]) == pytest.approx(0.1, abs=0.015)


def test_decisions_are_independent_of_each_other() -> None:
    drawn = many("tts")
    dropped = [c for c in drawn if c.drop_text]
    assert np.mean([c.drop_source for c in dropped]) == pytest.approx(0.1, abs=0.05)
    assert np.mean([c.stop > c.start for c in dropped]) == pytest.approx(0.75, abs=0.08)


def test_other_tasks_keep_only_beginnings_and_rarely() -> None:
    drawn = many("enhance")
    clean = [c for c in drawn if c.stop > c.start]
    assert len(clean) / len(drawn) == pytest.approx(0.1, abs=0.02)
    assert {c.start for c in clean} == {0}


def test_decisions_are_seeded_and_one_probability_moves_no_other_decision() -> None:
    never = dataclasses.replace(CONFIG, drop=dataclasses.replace(CONFIG.drop, text=0.0))
    first, again, other = many("tts", n=300), many("tts", n=300), many("tts", n=300, config=never)
    assert first == again
    assert not any(c.drop_text for c in other) and any(c.drop_text for c in first)
    assert [c[1:] for c in first] == [c[1:] for c in other]


@pytest.mark.parametrize("frames", [1, 2, 3, 10])
def test_at_least_one_frame_stays_noisy(frames: int) -> None:
    greedy = dataclasses.replace(CONFIG, inpaint=Inpaint(tts=1.0, mode=0.99, concentration=300.0))
    for c in many("tts", frames, 200, greedy):
        assert 0 <= c.start <= c.stop <= frames
        assert c.stop - c.start == frames - 1


def test_spans_reach_both_ends() -> None:
    spans = dataclasses.replace(CONFIG, inpaint=Inpaint(tts=1.0, prefix=0.0))
    drawn = many("tts", 4, 600, spans)
    assert {c.start for c in drawn} == {0, 1, 2, 3} and max(c.stop for c in drawn) == 4


def test_masks_mark_the_chosen_frames_and_those_alone_are_replaced() -> None:
    choices = [Choice(False, False, 0, 2), Choice(True, False, 1, 4), Choice(False, True, 0, 0)]
    clean = diffusion_speechop.clean_mask(choices, 4)
    assert clean.tolist() == [[True, True, False, False], [False, True, True, True], [False] * 4]
    z, x = torch.zeros(3, 2, 4), torch.ones(3, 2, 4)
    assert torch.equal(diffusion_speechop.inpaint(z, x, clean), clean[:, None].expand(3, 2, 4).float())


def test_levels_follow_uniform_times() -> None:
    lam = diffusion_speechop.draw_levels(20_000, np.random.default_rng(0), SCHEDULE)
    assert lam.dtype == torch.float32 and torch.equal(
        lam, diffusion_speechop.draw_levels(20_000, np.random.default_rng(0), SCHEDULE)
    )
    quarters = torch.quantile(lam.double(), wide([0.25, 0.5, 0.75]))  # of t .75, .5, .25
    torch.testing.assert_close(quarters, wide([-3.14904, -1.38629, 0.37645]), rtol=0, atol=0.08)
