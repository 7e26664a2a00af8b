"""The recording itself, filtered: every band as loud as the network says that the wanted sound is there.

What a network draws has the faults of its codec everywhere, also where the recording is clear; a filter keeps
the recording there, with its phases, and only takes away. Its gain is a parametric Wiener filter's (Lim and
Oppenheim 1979), of band powers, the network's result being the speech. Knows waveforms and no network.

    S samples   K bands   F bins   T frames of 10 ms
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpa.codec.harmonic import mel_interpolation

if TYPE_CHECKING:
    from gpa.models.speechop.configuration_speechop import Filter

WINDOW, STEP = 0.04, 0.01  # seconds
LEAST = 1e-10  # power that counts as none


def filtered(recording: np.ndarray, made: np.ndarray, sample_rate: int, settings: Filter) -> np.ndarray:
    """The recording (S,) float32, turned down where `made` (S,), the network's result for it, is quieter."""
    size, step = round(WINDOW * sample_rate), round(STEP * sample_rate)
    window = torch.hann_window(size, dtype=torch.float32)

    def spectrum(wav: np.ndarray) -> Tensor:
        x = torch.from_numpy(np.asarray(wav, np.float32))
        return torch.stft(x, size, step, window=window, pad_mode="constant", return_complex=True)

    bands = mel_interpolation(settings.bands, size // 2 + 1, sample_rate)  # (F, K)
    heard = spectrum(recording)
    share = _power(spectrum(made), bands, settings) / _power(heard, bands, settings)
    gain = (share.clamp_max(1.0) ** (settings.power / 2)).clamp_min(10 ** (settings.floor / 20))
    left = heard * (bands @ gain)
    return torch.istft(left, size, step, window=window, length=len(recording)).numpy()


def _power(spectrum: Tensor, bands: Tensor, settings: Filter) -> Tensor:
    """Mean power (K, T) of the bands of a spectrum (F, T), over `settings.frames` frames."""
    power = (bands / bands.sum(0).clamp_min(LEAST)).T @ spectrum.abs().square()
    around = settings.frames // 2
    return F.avg_pool1d(F.pad(power, (around, around), mode="replicate"), settings.frames, 1) + LEAST
