"""Attention of packed rows, row by row: what a kernel for variable lengths does, with plain SDPA.

The library's own way, one dense mask over the whole sequence, computes and masks out what rows cannot see of
each other: seven times the work for rows of a seventh of the sequence. Importing this module makes the
implementation known to transformers by its name; networks choose it with `set_attn_implementation`.

    B sequences   H heads   L positions   Dh head width
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "segments"


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    position_ids: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within rows: query (B, H, L, Dh), fewer heads of key and value -> (B, L, H, Dh).

    A row begins where `position_ids` (B, L) are 0.
    """
    grouped = query.shape[1] != key.shape[1]
    options: dict[str, Any] = {"scale": scaling, "dropout_p": dropout, "enable_gqa": grouped}
    sequences = []
    for n, positions in enumerate(position_ids.expand(len(query), -1)):
        begins = [0, *((positions[1:] == 0).nonzero()[:, 0] + 1).tolist(), len(positions)]
        sizes = [b - a for a, b in zip(begins, begins[1:], strict=False)]
        parts = zip(*(x[n : n + 1].split(sizes, 2) for x in (query, key, value)), strict=True)
        rows = [F.scaled_dot_product_attention(q, k, v, is_causal=True, **options) for q, k, v in parts]
        sequences.append(torch.cat(rows, 2))
    return torch.cat(sequences).transpose(1, 2), None


def _no_mask(*_: Any, **__: Any) -> None:
    """None: positions say which row is whose."""


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, _no_mask)
