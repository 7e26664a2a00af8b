"""A decoder that hears all of the future as one that hears little of it, to be trained on from there.

Convolutions keep their weights for what they still hear; those for frames too far ahead are added to that of
the last frame heard, as if the sound stayed as it is.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gpa.nn.convnext import CENTRED, FrameConv, SamplingBlock


def bounded(network: nn.Module, state: Mapping[str, Tensor], start: str = "") -> dict[str, Tensor]:
    """Weights of a network whose convolutions are centred, for `network` of the same sizes, which hears less.

    Those that differ, by their names in `state`, which begin with `start`.
    """
    found = {}
    for name, module in network.named_modules():
        at = f"{start}{name}." if name else start
        if isinstance(module, FrameConv) and module.sides[1] < CENTRED:
            found[f"{at}weight"] = _cut(state[f"{at}weight"], module.sides[1])
        elif isinstance(module, SamplingBlock) and module.up > 1 and module.causal:
            found[f"{at}deconv.weight"] = _delayed(state[f"{at}deconv.weight"], module.up)
    return found


def _cut(weight: Tensor, ahead: int) -> Tensor:
    """Of a convolution over (..., 2 CENTRED + 1) frames, for one that hears `ahead` of them in the future."""
    moved = torch.zeros_like(weight)
    for place in range(2 * CENTRED + 1):
        offset = min(place - CENTRED, ahead)  # frames after the one that is computed
        moved[..., offset + 2 * CENTRED - ahead] += weight[..., place]
    return moved


def _delayed(weight: Tensor, up: int) -> Tensor:
    """Of a centred upsampling by a transposed convolution (..., 2 up), for the causal one.

    The centred one begins `up // 2 + up % 2` samples earlier, with what the frame after says of them.
    """
    early = up // 2 + up % 2
    moved = torch.zeros_like(weight)
    moved[..., : 2 * up - early] = weight[..., early:]
    moved[..., up - early : up] += weight[..., :early]
    return moved
