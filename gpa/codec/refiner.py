"""A causal network between the spectra of pulses and noise and their sound: what two envelopes cannot say.

Envelopes give a source its power, band by band; a voice also has phases of its own, and detail between
bands. For every bin of every spectrum the network scales the pulses, turns their phase and scales the noise
(compare the filters of HiFTNet, Li et al. 2023, and the head of Vocos, Siuzdak 2023). It begins as the
identity and hears no spectrum ahead.

    B batch   F frequency bins   T spectra
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gpa.nn.convnext import VocosBackbone
from gpa.nn.incremental import Each, Join, Layer, Series, backbone

if TYPE_CHECKING:
    from gpa.codec.bicodec_config import RefinerConfig

LEAST = 1e-3  # of a magnitude that is heard
MOST = 2.0  # nepers, either way, by which a source is scaled at most


class SpectrumRefiner(nn.Module):
    """Spectra of pulses and of noise (B, 2, F, T), shaped by their envelopes, to those of sound (B, F, T)."""

    def __init__(self, bins: int, config: RefinerConfig) -> None:
        super().__init__()
        self.backbone = VocosBackbone(2 * bins, config.dim, config.hidden, config.layers, lookahead=0)
        self.out = nn.Linear(config.dim, 3 * bins)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, spectra: Tensor) -> Tensor:
        return self.streaming().push(spectra, True)

    def streaming(self) -> Layer:
        """`forward`, bit by bit."""
        network = Series(Each(_heard), backbone(self.backbone), Each(self._filters))
        return Join(_refined, Each(lambda x: x), network)

    def _filters(self, x: Tensor) -> Tensor:  # (B, D, T) -> (B, 3, F, T)
        return self.out(x.transpose(1, 2)).transpose(1, 2).float().unflatten(1, (3, -1))


def _heard(spectra: Tensor) -> Tensor:  # (B, 2, F, T) -> (B, 2F, T)
    power = spectra.real.square() + spectra.imag.square()  # abs() has no gradient at 0
    return 0.25 * torch.log(power + LEAST**2).flatten(1, 2)


def _refined(spectra: Tensor, filters: Tensor) -> Tensor:
    scale = torch.exp(MOST * torch.tanh(filters[:, [0, 2]] / MOST))
    turn = torch.polar(scale[:, 0], math.pi * torch.tanh(filters[:, 1] / math.pi))
    return spectra[:, 0] * turn + spectra[:, 1] * scale[:, 1]
