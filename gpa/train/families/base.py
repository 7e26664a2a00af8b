"""What the training loop needs of a model family; the loop knows no more of any."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn


class Loss(NamedTuple):
    """One optimiser's share of a step: which optimiser, what to minimise, what to log.

    Of the metrics, `tokens` or `frames`, `positions` (padding too) and `flops` are counts that become rates.
    """

    optimizer: str
    value: Tensor
    metrics: dict[str, float]


class Family(Protocol):
    """What the loop needs of a model family."""

    def build(self) -> nn.Module:
        """The module that is trained, initialised from the seed."""
        ...

    def parameters(self, module: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by optimiser name, e.g. generator and discriminator."""
        ...

    def batch(self, step: int) -> Any:
        """Batch number `step`, on the CPU: a pure function of the seed and the number."""
        ...

    def losses(self, module: nn.Module, batch: Any, step: int) -> Iterator[Loss]:
        """Losses in the order in which their optimisers step."""
        ...

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Held-out metrics."""
        ...

    def export(self, module: nn.Module, path: Path) -> None:
        """Write what inference loads."""
        ...


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on `device`: tensors in dataclasses, sequences and mappings, or alone."""
    if device.type == "cpu":
        return batch
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return dataclasses.replace(batch, **{k: to_device(v, device) for k, v in vars(batch).items()})
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch
