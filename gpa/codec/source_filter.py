"""Envelopes and pitch to sound: pulses and noise, each shaped by an envelope in the spectrum, bit by bit.

What runs through a clip is the phase of the pulses and the place in the noise, both counted from its start.
All else hears a few frames (`REACH`). Whole clips, streams and training take this one way.

    B batch   K bands   F frequency bins   T frames   S samples
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gpa.nn.incremental import Each, Join, Layer, Map, Series, Windows, inverse_stft

REACH = 3  # frames behind a frame that its sound hears
STEPS = 2  # spectra per frame


def source_filter(
    gain: Map, noise: Tensor, window: Tensor, hop: int, sample_rate: int, mixed: Layer | None = None
) -> Layer:
    """Frames (B, 2K + 2, T) to sound (B, 1, T * hop), the way of a whole clip in one push.

    A frame is K bands of the pulses' envelope, K of the noise's, pitch in Hz and voicing in 0..1, in float64:
    what is rounded off a pitch adds up over the clip. `gain` makes envelopes (B, K, n) of bands spectra
    (B, F, n); `noise` (N,) is repeated; `window` is two frames long. `mixed` makes spectra of sound (B, F, n)
    of those of pulses and noise (B, 2, F, n): their sum, unless a network knows better.
    """
    size, step = len(window), hop // STEPS

    def spectra(x: Tensor) -> Tensor:  # (B, 2, n) -> (B, 2, F, m)
        return torch.fft.rfft(x.unfold(-1, size, step) * window).transpose(2, 3)

    sources = Series(
        Each(lambda x: x[:, -2:]),
        interpolated(hop),
        Excitation(noise, sample_rate),
        Windows(spectra, size, step, (size // 2, size // 2), "reflect"),
    )
    envelopes = Series(
        Each(lambda x: x[:, :-2].to(noise.dtype)),
        interpolated(STEPS, more=1),  # a centred STFT has one spectrum more
        Each(lambda x: torch.stack([gain(bands) for bands in x.chunk(2, 1)], 1)),
    )
    shaped = Join(torch.mul, sources, envelopes)
    mixed = mixed or Each(lambda x: x.sum(1))
    return Series(shaped, mixed, inverse_stft(window, step, (size // 2, size // 2), 1e-11))


def interpolated(factor: int, more: int = 0) -> Layer:
    """Linear interpolation of (B, C, T) to `factor` times as many, the last of them `more` times again."""

    def between(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=factor, mode="linear", align_corners=False)[..., factor:-factor]

    return Windows(between, 3, pad=(1, 1 + more), mode="replicate")


class Excitation(Layer):
    """Pitch in Hz and voicing, of each sample (B, 2, n) float64, to pulses and noise (B, 2, n)."""

    START = 0.0  # turns of the pulses before the first sample

    def __init__(self, noise: Tensor, sample_rate: int) -> None:
        self._noise, self._sample_rate = noise, sample_rate
        self._turns: Tensor | float = self.START  # of the sample before
        self._at = 0  # in the noise

    def push(self, x: Tensor, end: bool) -> Tensor:
        n = x.shape[-1]
        if not n:
            return x
        f0, gate = x.unbind(1)
        turns = (self._turns + (f0 / self._sample_rate).cumsum(-1)).remainder(1.0)
        place = (self._at + torch.arange(n, device=x.device)) % len(self._noise)
        self._turns, self._at = turns[..., -1:], (self._at + n) % len(self._noise)
        pulses = comb(turns * 2 * math.pi, torch.floor(self._sample_rate / 2 / f0)) * gate
        pulses = pulses.to(self._noise.dtype)
        return torch.stack([pulses, self._noise[place].expand_as(pulses)], 1)


def comb(phase: Tensor, count: Tensor) -> Tensor:
    """Band-limited pulses (B, n) of unit power: the sum of `count` cosines at multiples, in closed form."""
    half = torch.sin(phase / 2)
    safe = torch.where(half.abs() < 1e-6, torch.ones_like(half), half)
    total = torch.where(half.abs() < 1e-6, count, (torch.sin((count + 0.5) * phase) / safe - 1) / 2)
    return total / torch.sqrt(count)
