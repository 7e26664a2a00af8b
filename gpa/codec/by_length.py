"""Clips encoded together where they are equally long: nothing is padded, so each is as it is alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

BATCH = 8


def by_length(wavs: Sequence[np.ndarray], encode: Callable[[np.ndarray], Tensor]) -> list[np.ndarray]:
    """Apply `encode` (B, S) -> (B, N) to groups of clips of one length; results in the order of the clips."""
    out: dict[int, np.ndarray] = {}
    groups: dict[int, list[int]] = {}
    for i, wav in enumerate(wavs):
        groups.setdefault(len(wav), []).append(i)
    for members in groups.values():
        for start in range(0, len(members), BATCH):
            chosen = members[start : start + BATCH]
            with torch.inference_mode():
                ids = encode(np.stack([wavs[i] for i in chosen])).cpu().numpy().astype(np.int64)
            out.update(zip(chosen, ids, strict=True))
    return [out[i] for i in range(len(wavs))]
