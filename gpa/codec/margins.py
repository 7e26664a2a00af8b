"""How close recorded codes are to having won: the fair way to compare codes computed by different kernels.

Rounding differs between machines, and where two codebook rows are almost equally near, so may the code. Each
function returns the largest amount by which a recorded code loses to ours: 0 if all are equal, tiny for a
near tie, infinite for another length.
"""

from __future__ import annotations

import math
<<<<<<< HEAD
from typing import Any
=======
>>>>>>> main

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpa.nn.quantize import FSQ, FactorizedVQ

<<<<<<< HEAD
Decoder = Any  # a BiCodec, which imports this module


@torch.inference_mode()
def semantic_excess(codec: Decoder, audio: AudioLike, codes: np.ndarray) -> float:
    """For semantic codes (T,): squared distance on the unit sphere (VQ), or quantisation steps (FSQ)."""
    wav = sound.load(audio, codec.spec.sample_rate)
    latents, quantizer = codec.latents(wav[None]), codec.model.quantizer
=======

@torch.inference_mode()
def semantic_excess(latents: Tensor, quantizer: nn.Module, codes: np.ndarray) -> float:
    """For semantic codes (T,) of latents (1, D, T): squared distance on the unit sphere (VQ), or quantisation
    steps (FSQ).
    """
>>>>>>> main
    if isinstance(quantizer, FactorizedVQ):
        z = F.normalize(quantizer.in_project(latents)[0].T, dim=1)  # (T, d)
        rows = F.normalize(quantizer.codebook.weight, dim=1)
        return _distance_excess(2 - 2 * z @ rows.T, codes)
<<<<<<< HEAD
    return _fsq_excess(quantizer.fsq, latents[0].T, codes)


@torch.inference_mode()
def global_excess(codec: Decoder, audio: AudioLike, codes: np.ndarray) -> float:
    """For global codes (G,), in quantisation steps."""
    clip = codec.reference_clip(sound.load(audio, codec.spec.sample_rate))
    speaker = codec.model.speaker_encoder
    frames = speaker.speaker_encoder.frames(codec.model.mel(torch.from_numpy(clip)[None].to(codec.device)))
    latents = speaker.perceiver_sampler(frames.transpose(1, 2))[0]  # (G, latent)
    return _fsq_excess(speaker.quantizer, latents, codes)
=======
    return fsq_excess(quantizer.get_submodule("fsq"), latents[0].T, codes)  # type: ignore[arg-type]
>>>>>>> main


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
