"""Multi-resolution STFT discriminators for codec training; small, as most of a step's cost on CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class STFTDiscriminator(nn.Module):
    """2-D convolutions over the complex STFT, striding over frequency: wav (B, S) -> scores, features."""

    window: Tensor

    def __init__(self, n_fft: int, channels: int) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        first = nn.Conv2d(2, channels, (7, 5), (2, 1), (3, 2))
        middle = [nn.Conv2d(channels, channels, (5, 3), (2, 1), (2, d), dilation=(1, d)) for d in (1, 2, 4)]
        self.convs = nn.ModuleList(weight_norm(c) for c in (first, *middle))
        self.post = weight_norm(nn.Conv2d(channels, 1, 3, 1, 1))

    def forward(self, wav: Tensor) -> tuple[Tensor, list[Tensor]]:
        spec = torch.stft(
            wav, self.n_fft, self.n_fft // 4, window=self.window, normalized=True, return_complex=True
        )
        x = torch.view_as_real(spec).permute(0, 3, 1, 2)  # (B, 2, F, T)
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            features.append(x)
        return self.post(x), features


class Discriminators(nn.Module):
    """One STFTDiscriminator per window length."""

    def __init__(self, windows: tuple[int, ...] = (2048, 1024, 512), channels: int = 16) -> None:
        super().__init__()
        self.parts = nn.ModuleList(STFTDiscriminator(n, channels) for n in windows)

    def forward(self, wav: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Scores, and all inner features in order."""
        results = [part(wav) for part in self.parts]
        return [score for score, _ in results], [f for _, features in results for f in features]
