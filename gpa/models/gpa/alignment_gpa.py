"""What a transcript says of itself: how likely each id was, and when it was spoken.

A recogniser looks at the sound that it writes down. So the attention of the text on the ids of the audio,
averaged over all heads of all layers, tells the time of each id: the best monotonic path through it, as Whisper
has its word times (openai/whisper, timing.py), but without a choice of heads.

    N text ids   L all ids   T frames of the audio   H heads
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from gpa.engine.network import Network

_HOOKS = threading.Lock()  # a network's hooks hear every pass: one at a time


class Evidence(NamedTuple):
    """Log-probability (N,) of each id after those before it, and its attention (N, P) on chosen positions."""

    log_probs: np.ndarray
    attention: np.ndarray


@torch.inference_mode()
def evidence(network: Network, prompt: Sequence[int], ids: Sequence[int], audio: Sequence[int]) -> Evidence:
    """What one pass over a prompt and its continuation shows; `audio` are the positions of P audio ids."""
    seen: list[Tensor] = []

    def keep(_module: object, _inputs: object, heads: Tensor) -> None:
        seen.append(heads)  # (1, L, H, Dh)

    attentions = [layer.self_attn for layer in network.model.layers]
    with _HOOKS:
        hooks = [norm.register_forward_hook(keep) for a in attentions for norm in (a.q_norm, a.k_norm)]
        try:
            logits = network.logits([*prompt, *ids])[len(prompt) - 1 : -1]
        finally:
            for hook in hooks:
                hook.remove()
    log_probs = logits.log_softmax(-1).gather(-1, torch.tensor(ids, device=logits.device)[:, None])[:, 0]
    rows = slice(len(prompt) - 1, len(prompt) + len(ids) - 1)  # an id is chosen where the one before it stands
    rotation = _rotation(network, len(prompt) + len(ids))
    maps = [_attention(q, k, rotation, rows)[:, audio] for q, k in zip(seen[::2], seen[1::2], strict=True)]
    return Evidence(log_probs.cpu().numpy(), torch.stack(maps).mean(0).cpu().numpy())


def _attention(q: Tensor, k: Tensor, rotation: Tensor, rows: slice) -> Tensor:
    """Attention (N, L) of some rows, the mean over heads, by normalised queries and keys (1, L, H, Dh)."""
    n, m = q.shape[2], k.shape[2]
    turned, keys = _turned(q[0].float(), rotation)[rows], _turned(k[0].float(), rotation)
    scores = torch.einsum("nhd,lhd->hnl", turned, keys.repeat_interleave(n // m, 1)) / q.shape[3] ** 0.5
    later = torch.arange(scores.shape[2], device=q.device) > torch.arange(
        rows.start, rows.stop, device=q.device
    ).unsqueeze(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1).mean(0)


def _rotation(network: Network, length: int) -> Tensor:
    """Angles (L, 1, Dh / 2) of rotary positions (Su et al. 2021)."""
    s, device = network.sizes, network.device
    speeds = s.rope_theta ** -(torch.arange(0, s.head_dim, 2, device=device).float() / s.head_dim)
    return torch.arange(length, device=device)[:, None, None] * speeds


def _turned(x: Tensor, angles: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def first_frames(attention: np.ndarray) -> np.ndarray:
    """The frame (N + 1,) at which each id begins, and where the last one ends, by attention (N, T).

    The path takes every frame and every id in their order and gathers the most attention. Where there are
    more ids than frames, several share one, and frames are fractions.
    """
    n, t = attention.shape
    fine = -(-n // t)
    scores = np.repeat(attention, fine, axis=1).astype(np.float64)
    stays = np.zeros(scores.shape, bool)
    total = np.full(n, -np.inf)
    total[0] = scores[0, 0]
    for now in range(1, fine * t):
        step = np.concatenate([[-np.inf], total[:-1]])
        stays[:, now] = total >= step
        total = np.maximum(total, step) + scores[:, now]
    found, own = np.zeros(n + 1), n - 1
    found[n] = fine * t
    for now in range(fine * t - 1, -1, -1):
        found[own] = now
        own -= not stays[own, now]
    return found / fine
