"""Samplers as pure functions of `denoise(z, lam) -> v`, and noise that does not depend on the batch.

A sampler walks nodes of rising log-SNR `lam` which is its time: it knows no schedule.
Guidance and composition wrap `denoise` and are unknown here, as are network, prompt and codec. All samplers
are one step rule: first or second order, with or without fresh noise.

    B batch   C latent channels   T frames;  z, v, x (B, C, T), or any shape that `denoise` keeps
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gpa.errors import UsageError
from gpa.models.speechop.diffusion_speechop import x_from_v

Denoise = Callable[[Tensor, float], Tensor]  # noisy z and its log-SNR -> velocity
Noise = Callable[[], Tensor]  # a fresh standard normal tensor like z
Hold = Callable[[Tensor], Tensor]  # z with known frames put back


def nodes(low: float = -12.0, high: float = 12.0, steps: int = 256) -> list[float]:
    """steps + 1 log-SNRs from noise to data, uniform in log-SNR."""
    if steps < 1 or not low < high:
        raise UsageError(f"{steps} steps from {low} to {high}: at least one step, upwards")
    return [low + (high - low) * i / steps for i in range(steps + 1)]


class Step(NamedTuple):
    """z' = keep z + pull x + spread n: the coefficients of one step."""

    keep: float
    pull: float
    spread: float


def step_weights(lam: float, following: float, eta: float) -> Step:
    """Coefficients from one node to the next; eta 0 adds no noise, 1 as much as the reverse SDE.

    From x and eps = (z - alpha x) / sigma the next z is alpha' x + sqrt(sigma'^2 - spread^2) eps + spread n.
    With eta 1 these are the weights of SDE-DPM-Solver++ (arXiv 2211.01095), with eta 0 those of its ODE twin.
    """
    a, s, a_next, s_next = _scale(lam), _scale(-lam), _scale(following), _scale(-following)
    spread = eta * s_next * math.sqrt(-math.expm1(lam - following))  # 1 - exp(-2h), h half the step
    keep = math.sqrt(s_next**2 - spread**2) / s
    return Step(keep, a_next - keep * a, spread)


def _scale(lam: float) -> float:
    return math.sqrt(1 / (1 + math.exp(-lam)))


def ddim(
    denoise: Denoise,
    z: Tensor,
    levels: Sequence[float],
    *,
    eta: float = 0.0,
    noise: Noise | None = None,
    hold: Hold | None = None,
    final: bool = True,
) -> Tensor:
    """First-order sampler; returns the clean latents predicted at the end.

    `noise` is needed if eta > 0. `hold` restores known frames before every evaluation and in the result.
    `final` predicts once more at the last node; without it the result is the prediction one node earlier.
    """
    return _solve(denoise, z, levels, order=1, eta=eta, noise=noise, hold=hold, final=final)


def ode_dpmpp_2m(
    denoise: Denoise, z: Tensor, levels: Sequence[float], *, hold: Hold | None = None, final: bool = True
) -> Tensor:
    """DPM-Solver++(2M), second order, no noise: the deterministic twin (arguments as `ddim`)."""
    return _solve(denoise, z, levels, order=2, eta=0.0, noise=None, hold=hold, final=final)


def sde_dpmpp_2m(
    denoise: Denoise,
    z: Tensor,
    levels: Sequence[float],
    noise: Noise,
    *,
    hold: Hold | None = None,
    final: bool = True,
) -> Tensor:
    """SDE-DPM-Solver++(2M), the paper's sampler: `noise` is drawn once a step (arguments as `ddim`)."""
    return _solve(denoise, z, levels, order=2, eta=1.0, noise=noise, hold=hold, final=final)


def _solve(
    denoise: Denoise,
    z: Tensor,
    levels: Sequence[float],
    *,
    order: int,
    eta: float,
    noise: Noise | None,
    hold: Hold | None,
    final: bool,
) -> Tensor:
    """The loop of all samplers: predict x, extrapolate it, step; returns x at the last node."""
    if eta > 0 and noise is None:
        raise UsageError("a sampler with eta > 0 needs noise")
    if len(levels) < 2:
        raise UsageError("a sampler needs two nodes or more")
    hold = hold or (lambda frames: frames)
    z, previous, x = hold(z), None, z
    for i in range(len(levels) - 1):
        x = x_from_v(z, denoise(z, levels[i]), levels[i])
        target = x if previous is None or order == 1 else x + _extrapolation(levels, i) * (x - previous)
        step = step_weights(levels[i], levels[i + 1], eta)
        z = step.keep * z + step.pull * target
        if noise is not None and eta > 0:
            z = z + step.spread * noise()
        z, previous = hold(z), x
    return hold(x_from_v(z, denoise(z, levels[-1]), levels[-1]) if final else x)


def _extrapolation(levels: Sequence[float], i: int) -> float:
    """Half of this step's length over the last one's."""
    return 0.5 * (levels[i + 1] - levels[i]) / (levels[i] - levels[i - 1])


class SeededNoise:
    """Standard normal latents (B, C, T) float32, a generator for each row: call it for the next draw.

    A row's numbers depend on its seed, its length and how often it was called; not on the batch, the padding,
    which is zero, or the device, as all are drawn on the CPU.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        lengths: Sequence[int],
        channels: int,
        device: torch.device | str = "cpu",
    ) -> None:
        if len(seeds) != len(lengths):
            raise UsageError(f"{len(seeds)} seeds for {len(lengths)} rows")
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.lengths, self.channels, self.device = list(lengths), channels, device

    def __call__(self) -> Tensor:
        shape = (len(self.lengths), self.channels, max(self.lengths, default=0))
        drawn = torch.zeros(shape, dtype=torch.float32)
        for row, length, generator in zip(drawn, self.lengths, self.generators, strict=True):
            row[:, :length] = torch.randn(self.channels, length, generator=generator, dtype=torch.float32)
        return drawn.to(self.device)
