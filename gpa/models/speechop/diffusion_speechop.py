"""The mathematics of training: schedule, parameterisations, loss weights, clean segments, condition dropout.

Pure functions of tensors and of a caller's random generator (docs/speechop.md); knows no
network, no codec and no files. The log-SNR lambda is `lam`, a float or a tensor (B,): alpha^2 = sigmoid(lam),
sigma^2 = sigmoid(-lam), z = alpha x + sigma eps.

    B batch   C latent channels   T frames;  x clean, z noisy, eps noise, v velocity (B, C, T)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from gpa.models.speechop.configuration_speechop import Loss, Schedule, SpeechOpConfig

Level = float | Tensor


# Schedule ---------------------------------------------------------------------------------------------------


def log_snr(t: Tensor, schedule: Schedule) -> Tensor:
    """lambda(t) = -2 ln tan(pi t / 2) + 2 ln s of the shifted cosine schedule, clamped (arXiv 2301.11093).

    t in (0, 1), any shape; 1 is noise.
    """
    t = t.clamp(schedule.t_edge, 1 - schedule.t_edge)
    lam = -2 * torch.tan(math.pi * t / 2).log() + 2 * math.log(schedule.shift)
    return lam.clamp(-schedule.lambda_max, schedule.lambda_max)


def time_of(lam: Tensor, schedule: Schedule) -> Tensor:
    """The t of a log-SNR: inverse of `log_snr` within its clamps."""
    return 2 / math.pi * torch.atan(schedule.shift * torch.exp(-lam / 2))


def slope(lam: Tensor, schedule: Schedule) -> Tensor:
    """-d lambda / dt, at a log-SNR: 2 pi cosh((lambda - 2 ln s) / 2)."""
    return 2 * math.pi * torch.cosh((lam - 2 * math.log(schedule.shift)) / 2)


def _column(lam: Level, like: Tensor) -> Tensor:
    """lam in the precision of `like`, as (B, 1, ..., 1), or (1, ..., 1) for a float."""
    lam = torch.as_tensor(lam, dtype=like.dtype, device=like.device)
    return lam.reshape(-1, *(1,) * (like.ndim - 1))


def alpha(lam: Level, like: Tensor) -> Tensor:
    """The signal's scale at a log-SNR, shaped to multiply `like`."""
    return _column(lam, like).sigmoid().sqrt()


def sigma(lam: Level, like: Tensor) -> Tensor:
    """The noise's scale at a log-SNR, shaped to multiply `like`."""
    return (-_column(lam, like)).sigmoid().sqrt()


# Parameterisations (arXiv 2202.00512): all are affine in each other given z and lambda ---------------------


def diffuse(x: Tensor, eps: Tensor, lam: Level) -> Tensor:
    """Noisy latents z = alpha x + sigma eps."""
    return alpha(lam, x) * x + sigma(lam, x) * eps


def velocity(x: Tensor, eps: Tensor, lam: Level) -> Tensor:
    """The network's target v = alpha eps - sigma x."""
    return alpha(lam, x) * eps - sigma(lam, x) * x


def x_from_v(z: Tensor, v: Tensor, lam: Level) -> Tensor:
    """Clean latents alpha z - sigma v."""
    return alpha(lam, z) * z - sigma(lam, z) * v


def eps_from_v(z: Tensor, v: Tensor, lam: Level) -> Tensor:
    """Noise sigma z + alpha v."""
    return sigma(lam, z) * z + alpha(lam, z) * v


def score_from_v(z: Tensor, v: Tensor, lam: Level) -> Tensor:
    """Score -eps / sigma = -z - (alpha / sigma) v."""
    return -z - alpha(lam, z) / sigma(lam, z) * v


def flow_from_v(z: Tensor, v: Tensor, lam: Level) -> Tensor:
    """Rectified-flow velocity eps - x."""
    return eps_from_v(z, v, lam) - x_from_v(z, v, lam)


def v_from_x(z: Tensor, x: Tensor, lam: Level) -> Tensor:
    """Velocity (alpha z - x) / sigma, the inverse of `x_from_v`."""
    return (alpha(lam, z) * z - x) / sigma(lam, z)


def v_from_eps(z: Tensor, eps: Tensor, lam: Level) -> Tensor:
    """Velocity (eps - sigma z) / alpha, the inverse of `eps_from_v`."""
    return (eps - sigma(lam, z) * z) / alpha(lam, z)


def v_from_score(z: Tensor, score: Tensor, lam: Level) -> Tensor:
    """Velocity -(sigma / alpha) (score + z), the inverse of `score_from_v`."""
    return -sigma(lam, z) / alpha(lam, z) * (score + z)


def v_from_flow(z: Tensor, flow: Tensor, lam: Level) -> Tensor:
    """Velocity (flow - (sigma - alpha) z) / (alpha + sigma), the inverse of `flow_from_v`."""
    a, s = alpha(lam, z), sigma(lam, z)
    return (flow - (s - a) * z) / (a + s)


FROM_V = {"v": lambda z, v, lam: v, "x": x_from_v, "eps": eps_from_v, "score": score_from_v}


# Loss ----------------------------------------------------------------------------------------------------


def _error_ratio(lam: Tensor, space: str) -> Tensor:
    """Squared error in `space` over the squared error of v, at the same z."""
    ratios = {
        "v": torch.ones_like(lam),
        "eps": lam.sigmoid(),
        "x": (-lam).sigmoid(),
        "score": lam.exp(),
    }
    return ratios[space]


def _peak(loss: Loss) -> float:
    """The supremum over lambda of the weight of a v-error."""
    if loss.weight == "sigmoid" and loss.space == "eps":
        return (1 / (1 + math.exp(-loss.bias / 2))) ** 2  # at lambda = bias / 2
    return 1.0


def loss_weight(lam: Tensor, loss: Loss, schedule: Schedule, space: str = "v") -> Tensor:
    """What multiplies the squared error of `space` (v, eps, x or score); lam and result (B,).

    The weight of `loss.space` is sigmoid(bias - lambda); those of the other spaces follow so that the loss is
    the same number (Kingma and Gao 2023, arXiv 2303.00848).
    """
    weight = (loss.bias - lam).sigmoid() if loss.weight == "sigmoid" else torch.ones_like(lam)
    weight = weight * _error_ratio(lam, loss.space) / _error_ratio(lam, space)
    if loss.normalise_peak:
        weight = weight / _peak(loss)
    return weight * slope(lam, schedule) if loss.times_minus_dlambda_dt else weight


def diffusion_loss(
    v_hat: Tensor,
    x: Tensor,
    eps: Tensor,
    lam: Tensor,
    frames: Tensor,
    config: SpeechOpConfig,
    space: str = "v",
) -> Tensor:
    """Weighted mean squared error over channels and the marked frames of the batch, a scalar.

    v_hat, x, eps (B, C, T); lam (B,); frames (B, T) bool: noisy frames that are no padding. `space`, where
    the error is measured, does not change the value; others than v are for tests. 0 without marked frames.
    """
    z = diffuse(x, eps, lam)
    measure = FROM_V[space]
    error = (measure(z, v_hat, lam) - measure(z, velocity(x, eps, lam), lam)).square().mean(1)  # (B, T)
    weight = loss_weight(lam, config.loss, config.schedule, space)[:, None] * frames
    return (weight * error).sum() / frames.sum().clamp(min=1)


# Decisions of a training example
# -----------------------------------------------------------------------------


class Choice(NamedTuple):
    """What one training example loses and keeps: nulls, and the clean segment [start, stop) in frames."""

    drop_text: bool
    drop_source: bool
    start: int
    stop: int


def choose(frames: int, task: str, rng: np.random.Generator, config: SpeechOpConfig) -> Choice:
    """Draw one example's decisions: dropped conditions and the segment that stays clean.

    Always draws the same numbers in the same order: a probability that is changed moves no other decision.
    At least one frame stays noisy; an example of one frame has no clean segment.
    """
    text, source, whether, prefix, where = rng.random(5)
    fraction = segment_fraction(rng, config)
    inpaint, is_tts = config.inpaint, task == "tts"
    wanted = whether < (inpaint.tts if is_tts else inpaint.s2s)
    length = min(max(1, round(fraction * frames)), frames - 1) if wanted else 0
    start = 0 if not is_tts or prefix < inpaint.prefix else int(where * (frames - length + 1))
    if length == 0:
        start = 0
    return Choice(text < config.drop.text, source < config.drop.source, start, start + length)


def segment_fraction(rng: np.random.Generator, config: SpeechOpConfig) -> float:
    """A clean segment's share of the frames: Beta with the configured mode and concentration."""
    mode, spread = config.inpaint.mode, config.inpaint.concentration - 2
    return float(rng.beta(1 + mode * spread, 1 + (1 - mode) * spread))


def clean_mask(choices: Sequence[Choice], length: int, device: torch.device | str = "cpu") -> Tensor:
    """The chosen clean segments as a mask (B, T) bool."""
    frame = torch.arange(length, device=device)
    bounds = torch.tensor([(c.start, c.stop) for c in choices], device=device)  # (B, 2)
    return (frame >= bounds[:, :1]) & (frame < bounds[:, 1:])


def inpaint(z: Tensor, x: Tensor, clean: Tensor) -> Tensor:
    """z with the frames marked in clean (B, T) replaced by the clean latents x."""
    return torch.where(clean[:, None], x, z)


def inpaint_source(source: Tensor, x: Tensor, clean: Tensor) -> Tensor:
    """A source (B, C + H, T) whose marked frames have the clean latents x (B, C, T); what is heard stays."""
    latents, heard = source.tensor_split([x.shape[1]], 1)
    return torch.cat([inpaint(latents, x, clean), heard], 1)


def draw_levels(n: int, rng: np.random.Generator, schedule: Schedule) -> Tensor:
    """Log-SNRs (n,) float32 of t drawn uniformly from (0, 1)."""
    return log_snr(torch.from_numpy(rng.random(n)), schedule).float()
