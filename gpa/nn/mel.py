"""Triangular mel filters, in numpy: what every log-mel of the package is made with.

F frequency bins   M bands
"""

from __future__ import annotations

import numpy as np

_LINEAR, _STEP = (
    1000.0,
    27.0 / np.log(6.4),
)  # Slaney's scale: linear below 1 kHz, 27 logarithmic steps to 6.4 kHz


def mel_filters(
    bins: int, bands: int, low: float, high: float, rate: int, *, slaney: bool = True
) -> np.ndarray:
    """Filters (F, M) float64 over `bins` frequencies from 0 to half of `rate` Hz, between `low` and `high`
    Hz.

    `slaney` filters stand on Slaney's scale and have equal areas, as librosa's do by default; others stand on
    O'Shaughnessy's scale, 2595 log10(1 + f / 700), and are 1 at their centres.
    """
    ends = (
        _slaney_mel(np.array([low, high]))
        if slaney
        else 2595.0 * np.log10(1.0 + np.array([low, high]) / 700.0)
    )
    mels = np.linspace(ends[0], ends[1], bands + 2)
    edges = _slaney_hertz(mels) if slaney else 700.0 * (np.power(10, mels / 2595.0) - 1.0)  # (M + 2,)
    slopes = edges[None] - np.linspace(0, rate // 2, bins)[:, None]  # (F, M + 2)
    widths = np.diff(edges)
    filters = np.maximum(0, np.minimum(-slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]))
    return filters * (2.0 / (edges[2:] - edges[:-2])) if slaney else filters


def _slaney_mel(hertz: np.ndarray) -> np.ndarray:
    above = 15.0 + np.log(np.maximum(hertz, _LINEAR) / _LINEAR) * _STEP
    return np.where(hertz < _LINEAR, 3.0 * hertz / 200.0, above)


def _slaney_hertz(mels: np.ndarray) -> np.ndarray:
    return np.where(mels < 15.0, 200.0 * mels / 3.0, _LINEAR * np.exp((mels - 15.0) / _STEP))
