"""How close recorded codes are to having won: the fair way to compare codes computed by different kernels.

Rounding differs between machines, and where two codebook rows are almost equally near, so may the code. Each
function returns the largest amount by which a recorded code loses to ours: 0 if all are equal, tiny for a
near tie, infinite for another length.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpa.nn.quantize import FSQ, FactorizedVQ


@torch.inference_mode()
def semantic_excess(latents: Tensor, quantizer: nn.Module, codes: np.ndarray) -> float:
    """For semantic codes (T,) of latents (1, D, T): squared distance on the unit sphere (VQ), or quantisation
    steps (FSQ).
    """
    if isinstance(quantizer, FactorizedVQ):
        z = F.normalize(quantizer.in_project(latents)[0].T, dim=1)  # (T, d)
        rows = F.normalize(quantizer.codebook.weight, dim=1)
        return _distance_excess(2 - 2 * z @ rows.T, codes)
    return fsq_excess(quantizer.get_submodule("fsq"), latents[0].T, codes)  # type: ignore[arg-type]


def _distance_excess(distances: Tensor, codes: np.ndarray) -> float:  # (T, V)
    if len(distances) != len(codes) or codes.min() < 0 or codes.max() >= distances.shape[1]:
        return math.inf
    chosen = distances.gather(1, torch.from_numpy(codes.astype(np.int64)).to(distances.device)[:, None])
    return float((chosen[:, 0] - distances.amin(1)).max())


@torch.inference_mode()
def fsq_excess(quantizer: FSQ, x: Tensor, codes: np.ndarray) -> float:
    """For codes (N,) of x (N, D), in quantisation steps."""
    if len(x) != len(codes) or codes.min() < 0 or codes.max() >= quantizer.codebook_size:
        return math.inf
    recorded = torch.from_numpy(codes.astype(np.int64)).to(x.device)
    digits = recorded[:, None] // quantizer.basis % quantizer.levels - quantizer.levels // 2
    return float(((quantizer._bounded(x) - digits).abs() - 0.5).clamp_min(0).max())
