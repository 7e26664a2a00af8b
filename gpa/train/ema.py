"""An exponential moving average of weights, kept beside them and exchanged with them when it is wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class Average:
    """v <- decay * v + (1 - decay) * weights at every `update`, from the weights at construction on.

    The tensors may be shards: nothing here needs more than their elements.
    """

    def __init__(self, tensors: Sequence[Tensor], decay: float) -> None:
        self.tensors, self.decay = list(tensors), decay
        self.values = [tensor.detach().float().clone() for tensor in self.tensors]

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights in."""
        now = [tensor.detach().float() for tensor in self.tensors]
        torch._foreach_lerp_(self.values, now, 1 - self.decay)

    @torch.no_grad()
    def exchange(self) -> None:
        """The weights become their average and the other way round."""
        for tensor, value in zip(self.tensors, self.values, strict=True):
            kept = tensor.detach().float().clone()
            tensor.copy_(value)
            value.copy_(kept)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the weights are their average."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    def state_dict(self) -> dict[str, list[Tensor]]:
        """The averages, in the order of the tensors."""
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Inverse of `state_dict`."""
        for value, saved in zip(self.values, state["values"], strict=True):
            value.copy_(saved)
