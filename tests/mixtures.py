"""Gaussian mixtures on a line, whose scores at any noise level are known: the truth samplers are held to."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpa.models.speechop import diffusion_speechop


@dataclass(frozen=True)
class Mixture:
    """Weights, means and standard deviations of the parts."""

    weights: Sequence[float]
    means: Sequence[float]
    sds: Sequence[float]

    def score(self, z: Tensor, lam: float) -> Tensor:
        """d log p(z) / dz of the law noised to a log-SNR; z (n,) float64."""
        a, s = diffusion_speechop.alpha(lam, z), diffusion_speechop.sigma(lam, z)
        mean = a * torch.tensor(self.means, dtype=z.dtype)[:, None]  # (parts, 1)
        var = (a * torch.tensor(self.sds, dtype=z.dtype)[:, None]) ** 2 + s**2
        part = torch.tensor(self.weights, dtype=z.dtype)[:, None].log() - var.log() / 2
        part = part - (z - mean) ** 2 / (2 * var)
        return (torch.softmax(part, 0) * (mean - z) / var).sum(0)

    def v(self, z: Tensor, lam: float) -> Tensor:
        """The velocity that a perfect network would predict."""
        return diffusion_speechop.v_from_score(z, self.score(z, lam), lam)

    def density(self, x: np.ndarray) -> np.ndarray:
        """p(x) of the clean law, not necessarily normalised."""
        parts = zip(self.weights, self.means, self.sds, strict=True)
        return sum(w / s * np.exp(-((x - m) ** 2) / (2 * s * s)) for w, m, s in parts)


def gaussian(mean: float, sd: float) -> Mixture:
    """One part."""
    return Mixture([1.0], [mean], [sd])


def wasserstein(samples: Tensor, x: np.ndarray, density: np.ndarray) -> float:
    """W1 between samples and a density given on a grid: the mean distance of equal quantiles."""
    cdf = np.cumsum(density) / density.sum()
    ranks = (np.arange(len(samples)) + 0.5) / len(samples)
    return float(np.abs(np.sort(samples.numpy()) - np.interp(ranks, cdf, x)).mean())


class Draws:
    """A sampler's noise on the line; counts its calls."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.calls = n, 0
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self) -> Tensor:
        self.calls += 1
        return torch.randn(self.n, generator=self.generator, dtype=torch.float64)
