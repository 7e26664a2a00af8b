"""Fundamental frequency by YIN (de Cheveigné and Kawahara 2002): a training target, without gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LOW, HIGH = 60.0, 420.0  # Hz
WINDOW = 1024  # samples at 16 kHz: four periods of LOW


@torch.no_grad()
def yin(wav: Tensor, hop: int, sample_rate: int = 16_000, threshold: float = 0.2) -> tuple[Tensor, Tensor]:
    """f0 (B, T) in Hz and voiced (B, T) as 0 or 1, a frame per `hop` samples of wav (B, S), hop dividing S.

    Frame t looks at the window centred on its hop. Unvoiced frames repeat the last voiced one.
    """
    shortest, longest = int(sample_rate / HIGH), int(sample_rate / LOW)
    side = (WINDOW + longest - hop) // 2
    frames = F.pad(wav, (side, WINDOW + longest - hop - side)).unfold(-1, WINDOW + longest, hop)  # (B, T, N)
    head = frames[..., :WINDOW]
    size = 1 << (WINDOW + longest - 1).bit_length()  # what wraps around is not read
    spectrum = torch.fft.rfft(head, size).conj() * torch.fft.rfft(frames, size)
    product = torch.fft.irfft(spectrum, size)[..., : longest + 1]
    energy = F.pad(frames.square().cumsum(-1), (1, 0))
    shifted = energy[..., WINDOW : WINDOW + longest + 1] - energy[..., : longest + 1]
    difference = (shifted[..., :1] + shifted - 2 * product).clamp_min(0)  # (B, T, lags)
    lags = torch.arange(1, longest + 1, device=wav.device)
    normal = difference[..., 1:] * lags / difference[..., 1:].cumsum(-1).clamp_min(1e-9)
    normal = normal[..., shortest - 1 :]
    lowest, best = normal.min(-1)
    # The first dip below the threshold, not the deepest: multiples of the period dip as well.
    dip = (normal < threshold) & (normal <= F.pad(normal[..., 1:], (0, 1), value=9.0))
    first = torch.where(dip.any(-1), dip.int().argmax(-1), best)
    voiced = (lowest < 0.35) & (shifted[..., 0] > WINDOW * 1e-6)
    last = torch.where(voiced, torch.arange(voiced.shape[-1], device=wav.device), 0).cummax(-1).values
    return (sample_rate / (first + shortest).float()).gather(-1, last), voiced.float()
