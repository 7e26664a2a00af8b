"""What recordings have that is not in what a BiCodec makes of their ids: timbre and range of pitch.

S samples   T semantic ids   K bands   C feature channels   N frames
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gpa.codec import adaptation
from gpa.codec.feature_encoder import FRAME
from gpa.codec.harmonic import CENTRE, FLOOR, HEIGHT
from gpa.codec.pitch import yin
from gpa.codec.timbre import Timbre, measure

if TYPE_CHECKING:
    from gpa.codec.bicodec import BiCodec
    from gpa.codec.voice import Voice

PASSES = 2  # a timbre is measured with, the second on what the first has left
Clip = tuple[np.ndarray, np.ndarray]  # a recording (S,) and its ids (T,)


def timbre_of(codec: BiCodec, clips: Sequence[Clip], voice: Voice) -> Timbre | None:
    """Of recordings with their ids, against what is decoded of these, equally loud.

    None where the decoder draws no bands. What the voice has for a timbre does not count.
    """
    if codec.harmonic is None:
        return None
    found, floor, mark = None, math.log(FLOOR) / 2, codec.decoder_fingerprint()
    for _ in range(PASSES):
        pairs = [_compared(codec, wav, ids, replace(voice, timbre=found)) for wav, ids in clips]
        real, ours = (torch.cat(sides, -1) for sides in zip(*pairs, strict=True))
        found = measure(real, ours, floor, mark, found)
    return found


def _compared(codec: BiCodec, wav: np.ndarray, ids: np.ndarray, voice: Voice) -> tuple[Tensor, Tensor]:
    """Log-mels (K, T) of a recording and of what is decoded of its ids."""
    assert codec.harmonic is not None
    ours = codec.decode(ids, voice)
    real = np.pad(wav, (0, len(ours) - len(wav)))
    real = real * float(np.sqrt(np.square(ours).mean() / np.square(real).mean().clip(1e-12)))
    pair = torch.from_numpy(np.stack([real, ours]).astype(np.float32)).to(codec.device)
    found = codec.harmonic.log_mel(pair).cpu()
    return found[0], found[1]


def intonation_of(codec: BiCodec, clips: Sequence[Clip], voice: Voice) -> tuple[float, float]:
    """Gain and shift of log pitch that the recordings have and what is decoded of their ids has not."""
    if codec.harmonic is None:
        return 1.0, 0.0
    real, ours = [], []
    for wav, ids in clips:
        drawn = torch.from_numpy(codec.frames(ids, replace(voice, timbre=None)))[None]
        log_f0, logit = codec.harmonic.pitch(drawn)
        length = len(ids) * codec.spec.hop_length
        padded = np.pad(wav, (0, max(0, length - len(wav))))
        f0, voiced = yin(torch.from_numpy(padded[:length])[None], FRAME)
        real.append(f0[voiced > 0].log() - CENTRE)
        ours.append(log_f0[logit > 0].clamp(*HEIGHT))
    return adaptation.intonation(torch.cat(real), torch.cat(ours))
