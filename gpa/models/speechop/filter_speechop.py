"""The recording itself, filtered: every band as loud as the network says that the wanted sound is there.

What a network draws has the faults of its codec everywhere, also where the recording is clear; a filter keeps
the recording there, with its phases, and only takes away. Its gain is a parametric Wiener filter's (Lim and
Oppenheim 1979), of band powers, the network's result being the speech. What a filter takes from speech costs
words, so the usual one acts in the pauses alone: `strong` is the whole. Knows waveforms and no network.

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
QUIET = 25.0  # dB below the result's loud frames (their 95th percentile): there it says that nobody speaks
AROUND, SLOPE = 11, 11  # frames that a moment of speech covers, and over which the gain then falls; odd


def filtered(
    recording: np.ndarray, made: np.ndarray, sample_rate: int, settings: Filter, strong: bool = True
) -> np.ndarray:
    """The recording (S,) float32, turned down where `made` (S,), the network's result for it, is quieter.

    Unless `strong`, only where nobody speaks in `made`.
    """
    size, step = round(WINDOW * sample_rate), round(STEP * sample_rate)
    window = torch.hann_window(size, dtype=torch.float32)

    def spectrum(wav: np.ndarray) -> Tensor:
        x = torch.from_numpy(np.asarray(wav, np.float32))
        return torch.stft(x, size, step, window=window, pad_mode="constant", return_complex=True)

    bands = mel_interpolation(settings.bands, size // 2 + 1, sample_rate)  # (F, K)
    heard, wanted = spectrum(recording), spectrum(made)
    share = _power(wanted, bands, settings) / _power(heard, bands, settings)
    gain = share.clamp_max(1.0) ** (settings.power / 2)
    floor = torch.tensor(settings.floor) if strong else settings.floor * (1 - _speech(wanted))
    gain = torch.maximum(gain, 10 ** (floor / 20))
    left = heard * (bands @ gain)
    return torch.istft(left, size, step, window=window, length=len(recording)).numpy()


def _speech(made: Tensor) -> Tensor:
    """How much each frame of a spectrum (F, T) belongs to speech, (T,) from 0 to 1."""
    level = 10 * torch.log10(made.abs().square().sum(0) + LEAST)
    speech = (level > torch.quantile(level, 0.95) - QUIET).float()[None, None]
    near = F.max_pool1d(F.pad(speech, (AROUND // 2,) * 2), AROUND, 1)
    return F.avg_pool1d(F.pad(near, (SLOPE // 2,) * 2, mode="replicate"), SLOPE, 1)[0, 0]


def _power(spectrum: Tensor, bands: Tensor, settings: Filter) -> Tensor:
    """Mean power (K, T) of the bands of a spectrum (F, T), over `settings.frames` frames."""
    power = (bands / bands.sum(0).clamp_min(LEAST)).T @ spectrum.abs().square()
    around = settings.frames // 2
    return F.avg_pool1d(F.pad(power, (around, around), mode="replicate"), settings.frames, 1) + LEAST
