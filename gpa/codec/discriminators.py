"""Log-mel discriminators for codec training, one per window length.

They see what the mel distance sees and punish what it cannot: the blur of averaging over unknown pitch. On a
CPU they cost a tenth of discriminators on the full complex STFT.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from gpa.codec.losses import MelDistance


class SpectrogramDiscriminator(nn.Module):
    """2-D convolutions over a log-mel, striding over frequency: (B, M, T) -> score map, inner features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first = nn.Conv2d(1, channels, (7, 5), (2, 1), (3, 2))
        middle = [nn.Conv2d(channels, channels, (5, 3), (2, 1), (2, d), dilation=(1, d)) for d in (1, 2, 4)]
        self.convs = nn.ModuleList(weight_norm(c) for c in (first, *middle))
        self.post = weight_norm(nn.Conv2d(channels, 1, 3, 1, 1))

    def forward(self, mel: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = mel[:, None] / 4 + 1  # about zero mean, unit size
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            features.append(x)
        return self.post(x), features


class Discriminators(nn.Module):
    """One SpectrogramDiscriminator per window length, on wav (B, S)."""

    def __init__(self, windows: tuple[int, ...] = (512, 1024, 2048), channels: int = 24) -> None:
        super().__init__()
        self.windows = windows
        self.mels = MelDistance(windows=windows, mels=[w // 16 for w in windows])
        self.parts = nn.ModuleList(SpectrogramDiscriminator(channels) for _ in windows)

    def forward(self, wav: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Scores, and all inner features in order."""
        mels = [self.mels.log_mel(wav, n) for n in self.windows]
        results = [part(mel) for part, mel in zip(self.parts, mels, strict=True)]
        return [score for score, _ in results], [f for _, features in results for f in features]
