"""Waveform decoders, latents (B, C, T) -> wav (B, 1, S): the published DAC-style one, a Vocos-style ISTFT.

Both are deterministic; `streaming` computes them bit by bit, waiting for the reach of their
convolutions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gpa.nn.convnext import VocosBackbone
from gpa.nn.incremental import Each, Layer, Series, backbone, conv, inverse_stft, residual, transposed
from gpa.nn.quantize import WeightNormConv1d


class Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.sin(self.alpha * x).pow(2) / (self.alpha + 1e-9)


class ResidualUnit(nn.Module):
    """Snake, dilated conv k7, Snake, conv k1, residual."""

    def __init__(self, dim: int, dilation: int) -> None:
        super().__init__()
        wide = WeightNormConv1d(dim, dim, 7, dilation=dilation, padding=3 * dilation)
        self.block = nn.Sequential(Snake(dim), wide, Snake(dim), WeightNormConv1d(dim, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)

    def streaming(self) -> Layer:
        """As `WaveGenerator.streaming`."""
        first, wide, second, point = self.block
        return residual(Each(first), conv(wide), Each(second), conv(point))


class UpsampleBlock(nn.Module):
    """Snake, transposed conv, three residual units."""

    def __init__(self, c_in: int, c_out: int, kernel: int, rate: int) -> None:
        super().__init__()
        up = WeightNormConv1d(c_in, c_out, kernel, stride=rate, padding=(kernel - rate) // 2, transposed=True)
        self.block = nn.Sequential(Snake(c_in), up, *(ResidualUnit(c_out, d) for d in (1, 3, 9)))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)

    def streaming(self) -> Layer:
        """As `WaveGenerator.streaming`."""
        snake, up, *rest = self.block
        units: Any = rest
        return Series(Each(snake), transposed(up), *(unit.streaming() for unit in units))


class WaveGenerator(nn.Module):
    """The published decoder (Spark-TTS, arXiv 2503.01710): one upsampling block per rate, tanh at the end."""

    def __init__(self, input_channel: int, channels: int, rates: list[int], kernel_sizes: list[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = [WeightNormConv1d(input_channel, channels, 7, padding=3)]
        for i, (rate, kernel) in enumerate(zip(rates, kernel_sizes, strict=True)):
            layers.append(UpsampleBlock(channels // 2**i, channels // 2 ** (i + 1), kernel, rate))
        last = channels // 2 ** len(rates)
        self.model = nn.Sequential(*layers, Snake(last), WeightNormConv1d(last, 1, 7, padding=3), nn.Tanh())
        self.hop = math.prod(rates)
        self.rates, self.kernels = rates, kernel_sizes

    def reach(self) -> tuple[int, int]:
        """Samples behind and ahead of an input frame's own hop that it hears."""
        reach, step = 3 * self.hop, self.hop  # first conv k7
        for rate, kernel in zip(self.rates, self.kernels, strict=True):
            step //= rate
            reach += (kernel - rate) // 2 * step + 3 * (1 + 3 + 9) * step  # transposed conv, residual units
        return reach + 3, reach + 3  # last conv k7

    def render_reach(self) -> int:
        """As `HarmonicDecoder.render_reach`: samples are what is drawn."""
        return 0

    @property
    def rate(self) -> int:
        """Output frames, here samples, per latent frame."""
        return self.hop

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def streaming(self) -> Layer:
        """`forward`, bit by bit."""
        first, *rest, snake, last, tanh = self.model
        blocks: Any = rest
        drawn = (block.streaming() for block in blocks)
        return Series(conv(first), *drawn, Each(snake), conv(last), Each(tanh))

    def render(self, frames: Tensor) -> Tensor:  # (B, 1, S) -> (B, S)
        """The samples, which `forward` has made already."""
        return frames[:, 0]

    def renderer(self) -> Layer:
        """`render`, bit by bit."""
        return Each(self.render)


class ISTFTDecoder(nn.Module):
    """Vocos backbone, magnitude and phase of an STFT, overlap-add: exactly `hop` samples per frame."""

    window: Tensor

    def __init__(
        self,
        input_channel: int,
        dim: int,
        hidden: int,
        layers: int,
        n_fft: int,
        hop: int,
        lookahead: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone = VocosBackbone(input_channel, dim, hidden, layers, lookahead=lookahead)
        self.out = nn.Linear(dim, n_fft + 2)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.n_fft, self.hop = n_fft, hop

    def reach(self) -> tuple[int, int]:
        """As `WaveGenerator.reach`."""
        side = (self.n_fft - self.hop) // 2
        behind, ahead = self.backbone.reach()
        return behind * self.hop + side, ahead * self.hop + side

    def render_reach(self) -> int:
        """As `WaveGenerator.render_reach`."""
        return 0

    @property
    def rate(self) -> int:
        """As `WaveGenerator.rate`."""
        return self.hop

    def render(self, frames: Tensor) -> Tensor:  # (B, 1, S) -> (B, S)
        """As `WaveGenerator.render`."""
        return frames[:, 0]

    def renderer(self) -> Layer:
        """As `WaveGenerator.renderer`."""
        return Each(self.render)

    def forward(self, x: Tensor) -> Tensor:
        return self._sound().push(self.backbone(x), True)

    def streaming(self) -> Layer:
        """As `WaveGenerator.streaming`."""
        return Series(backbone(self.backbone), self._sound())

    def _sound(self) -> Layer:
        side = (self.n_fft - self.hop) // 2
        return Series(Each(self._spectrum), inverse_stft(self.window, self.hop, (side, side), 1e-3))

    def _spectrum(self, x: Tensor) -> Tensor:  # (B, D, T) -> (B, F, T), complex
        magnitude, phase = self.out(x.transpose(1, 2)).transpose(1, 2).float().chunk(2, 1)
        return torch.polar(torch.exp(magnitude.clamp(max=6.0)), phase)
