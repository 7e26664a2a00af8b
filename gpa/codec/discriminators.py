"""Discriminators of codec training, one per window length: 2-D convolutions over a spectrogram.

On log-mels they see what the mel distance sees and punish what it cannot, the blur of averages. On complex
spectra (EnCodec, Défossez et al. 2022, section 3.4) they see phases too, which a buzz is made of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from gpa.codec.losses import MelDistance, spectrum

COMPRESSED = 0.3  # power of a complex spectrum's magnitude that is seen: quiet sound counts, too
LEAST = 1e-3  # of a magnitude that is seen


@dataclass(frozen=True)
class DiscriminatorArgs:
    """What discriminators see, log-mels or complex spectra, by which windows, and how wide they are."""

    spectra: Literal["mel", "complex"] = "mel"
    windows: tuple[int, ...] = (512, 1024, 2048)
    channels: int = 24


class SpectrogramDiscriminator(nn.Module):
    """Convolutions, striding over frequency: (B, C, F, T) -> score map, inner features."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        first = nn.Conv2d(inputs, channels, (7, 5), (2, 1), (3, 2))
        middle = [nn.Conv2d(channels, channels, (5, 3), (2, 1), (2, d), dilation=(1, d)) for d in (1, 2, 4)]
        self.convs = nn.ModuleList(weight_norm(c) for c in (first, *middle))
        self.post = weight_norm(nn.Conv2d(channels, 1, 3, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            features.append(x)
        return self.post(x), features


class Discriminators(nn.Module):
    """One SpectrogramDiscriminator per window length, on wav (B, S)."""

    def __init__(self, args: DiscriminatorArgs | None = None) -> None:
        super().__init__()
        self.args = args = args or DiscriminatorArgs()
        self.mels = MelDistance(windows=args.windows, mels=[w // 16 for w in args.windows])
        inputs = 1 if args.spectra == "mel" else 2
        self.parts = nn.ModuleList(SpectrogramDiscriminator(inputs, args.channels) for _ in args.windows)

    def forward(self, wav: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Scores, and all inner features in order."""
        results = [part(self._seen(wav, n)) for part, n in zip(self.parts, self.args.windows, strict=True)]
        return [score for score, _ in results], [f for _, features in results for f in features]

    def _seen(self, wav: Tensor, n_fft: int) -> Tensor:  # (B, S) -> (B, C, F, T), about of unit size
        if self.args.spectra == "mel":
            return self.mels.log_mel(wav, n_fft)[:, None] / 4 + 1
        x = torch.view_as_real(spectrum(wav, self.mels.window(n_fft))).permute(0, 3, 1, 2)
        power = x.square().sum(1, keepdim=True) + LEAST**2
        return x * power.pow((COMPRESSED - 1) / 2)
