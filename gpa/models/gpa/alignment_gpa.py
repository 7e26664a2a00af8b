"""What a transcript says of itself: how likely each id was, and when it was spoken.

A recogniser looks at the sound that it writes down. So the attention of the text on the ids of the audio
tells the time of each id: the best monotonic path through it, as Whisper has its word times (openai/whisper,
timing.py), though averaged over all heads of all layers, so that none has to be chosen.

    N text ids   L all ids   P ids of the audio   T frames   H heads   Hk key/value heads   Dh head width
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gpa.engine.network import rotated

if TYPE_CHECKING:
    from gpa.engine.network import Attention, Network, Rotation
    from gpa.prompt.vocab import Vocab

DRAWN = 0.3  # seconds that the first and the last id of a word may take: the rest is a pause


class Evidence(NamedTuple):
    """Log-probability (N,) of each id after those before it, and its attention (N, P) on ids of the audio."""

    log_probs: np.ndarray
    attention: np.ndarray


Read = Callable[[Sequence[int], Sequence[int], Sequence[int]], Evidence]  # of prompt, ids, positions of audio
Timed = tuple[str, float, float]


@torch.inference_mode()
def evidence(network: Network, prompt: Sequence[int], ids: Sequence[int], audio: Sequence[int]) -> Evidence:
    """What one pass over a prompt and its continuation shows; `audio` are the positions of P ids of audio."""
    sequence = torch.tensor([[*prompt, *ids]], device=network.device)
    rows = slice(len(prompt) - 1, sequence.shape[1] - 1)  # an id is chosen where the one before it stands
    rotation = network.rotation(sequence.shape[1])
    x, maps = network.model.embed_tokens(sequence), []
    for layer in network.model.layers:
        maps.append(_attention(layer.self_attn, layer.input_layernorm(x), rotation, rows)[:, list(audio)])
        x = layer(x, rotation)
    log_probs = (
        network.head(network.model.norm(x)[0, rows])
        .log_softmax(-1)
        .gather(-1, sequence[0, len(prompt) :, None])[:, 0]
    )
    return Evidence(log_probs.cpu().numpy(), torch.stack(maps).mean(0).cpu().numpy())


def _attention(attention: Attention, x: Tensor, rotation: Rotation, rows: slice) -> Tensor:
    """Attention (N, L) of some rows of normalised states (1, L, D), the mean over heads."""
    split = (*x.shape[:2], -1, attention.q_norm.weight.shape[0])
    q = rotated(attention.q_norm(attention.q_proj(x).view(split)).transpose(1, 2), rotation)[0, :, rows]
    k = rotated(attention.k_norm(attention.k_proj(x).view(split)).transpose(1, 2), rotation)[0]
    scores = (
        q.unflatten(0, (len(k), -1)).float() @ k[:, None].float().mT / q.shape[2] ** 0.5
    )  # (Hk, H / Hk, N, L)
    place = torch.arange(x.shape[1], device=x.device)
    return scores.masked_fill(place > place[rows, None], -torch.inf).softmax(-1).mean((0, 1))


def spread(attention: np.ndarray) -> float:
    """How evenly ids look at frames, by attention (N, T): the mean entropy over its maximum, from 0 to 1.

    Text that was heard is looked up in few frames; invented text looks everywhere.
    """
    shares = attention / attention.sum(1, keepdims=True)
    entropy = -(shares * np.log(shares + 1e-9)).sum(1)
    return float(entropy.mean() / np.log(attention.shape[1] + 1))


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


def looked_up(
    read: Read, vocab: Vocab, prompt: Sequence[int], ids: Sequence[int]
) -> tuple[Evidence, np.ndarray]:
    """What the network shows of ids after a prompt of recognition, and their attention (N, T) on frames."""
    audio = [n for n, i in enumerate(prompt) if i in vocab.semantic]
    shown = read(prompt, ids, audio)
    return shown, shown.attention.reshape(len(ids), -1, vocab.n_codebooks).sum(-1)


def letters(decode: Callable[[Sequence[int]], str], tokens: Sequence[int], text: str) -> list[int]:
    """Where in a text each id (N,) ends; one that leaves a character unfinished ends before it."""
    told = [len(decode(tokens[: n + 1]).lstrip().rstrip("\ufffd")) for n in range(len(tokens) - 1)]
    return [*np.minimum(told, len(text)).astype(int).tolist(), len(text)]


def word_times(text: str, ends: Sequence[int], times: np.ndarray) -> Iterator[Timed]:
    """Words of a text, each with its start and its end, by the times (N + 1,) of its ids.

    These end (N,) at the characters `ends`. A word begins with its first letter, not with the space.
    """
    begin = 0
    for word in text.split():
        begin = text.index(word, begin)
        first, last = np.searchsorted(ends, [begin + 1, begin + len(word)]).clip(0, len(ends) - 1)
        start = max(times[first], times[first + 1] - DRAWN)
        end = max(start, min(times[last + 1], times[last] + DRAWN))
        yield word, round(float(start), 3), round(float(end), 3)
        begin += len(word)
