"""The same words as others would be heard to say them: invented voices, noise, rooms, devices.

Milder than what an enhancer is trained on, since the words must survive. Used where a network shall hear
words and not their circumstances: in training the codec's encoder and the language model.

    S samples   C feature channels   T frames
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gpa.data.augment import DegradeArgs, Degrader

if TYPE_CHECKING:
    from gpa.codec.feature_encoder import WhisperFeatures

# Stretches of the frequency axis that make another voice of the same words; 1 leaves the voice.
WARPS = ((0.84, 0.93), (1.0, 1.0), (1.08, 1.2))
CHANCES = {"eq": 0.5, "reverb": 0.25, "noise": 0.6, "band": 0.2}
SNR_DB = (5.0, 30.0)


class AugmentedCopies:
    """Features (C, T) of degraded sound, functions of a number; `noise` and `rooms` as in `DegradeArgs`."""

    def __init__(self, features: WhisperFeatures, noise: str = "", rooms: str = "", seed: int = 0) -> None:
        self.features, self.seed = features, seed
        self.degrader = Degrader(DegradeArgs(noise, rooms, chances=CHANCES, snr_db=SNR_DB), seed)

    @torch.inference_mode()
    def __call__(self, wav: np.ndarray, number: int) -> Tensor:
        """Of wav (S,); as many frames as it has otherwise."""
        rng = np.random.default_rng((self.seed, number))
        warp = float(rng.uniform(*WARPS[rng.integers(len(WARPS))]))
        degraded = self.degrader.apply(wav, self.degrader.chain(number))
        return self.features(torch.from_numpy(degraded)[None], warp)[0]
