"""Linear layers whose rows do not depend on each other: the ground of exact batching on a processor.

A product of matrices picks its kernel by the number of rows, and another kernel rounds differently; so a
request's ids would depend on who shares its batch. `Linear` computes with a kernel that a probe has found to
give each row the same bits in every batch (docs/serving.md).

    M rows   K inputs   N outputs
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Then = Literal["none", "swish", "mul", "add"]
MOST = 32  # rows that are computed together
COUNTS = (1, 2, 3, 4, 5, 7, 8, 13, 16, 31, MOST)  # of rows, as the probe tries them


class Kernel(NamedTuple):
    """How a product is computed: oneDNN's packed weights or torch's own, rows padded to a multiple of
    `rows`, or one row at a time (`rows` 0).
    """

    packed: bool
    rows: int

    def __str__(self) -> str:
        name = "oneDNN with packed weights" if self.packed else "torch"
        return name + {0: ", row by row", 1: ""}.get(self.rows, f", rows padded to {self.rows}")


KERNELS = (Kernel(True, 1), Kernel(True, 2), Kernel(True, 4), *(Kernel(False, n) for n in (4, 8, 16)))
ROW_BY_ROW = Kernel(False, 0)


class Linear:
    """y = x W^T + b, and what becomes of y: its swish, or its product or sum with another tensor (M, N)."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, then: Then = "none", kernel: Kernel | None = None
    ) -> None:
        """Of a weight (N, K) and a bias (N,). Without a kernel it is the probe's choice, and torch's own for
        devices other than the CPU, about which nothing is promised.
        """
        self.bias, self.then = bias, then
        exact = weight.device.type == "cpu"
        if kernel is None:
            here = then, weight.dtype, torch.get_num_threads()
            kernel = exact_kernel(*weight.shape, *here) if exact else Kernel(False, 1)
        self.kernel = kernel
        self._rows, self._most = kernel.rows or 1, min(MOST, MOST * kernel.rows or 1) if exact else 0
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None) if kernel.packed else weight

    def __call__(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """(M, K) -> (M, N)."""
        m = x.shape[0]
        if self._most and m > self._most:
            others = [None] * -(-m // self._most) if other is None else other.split(self._most)
            return torch.cat([self(*parts) for parts in zip(x.split(self._most), others, strict=True)])
        if pad := -m % self._rows:
            other = None if other is None else F.pad(other, (0, 0, 0, pad))
            return self._compute(F.pad(x, (0, 0, 0, pad)), other)[:m]
        return self._compute(x, other)

    def _compute(self, x: Tensor, other: Tensor | None) -> Tensor:
        if self.kernel.packed and other is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, self.then)
        if self.kernel.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.then, [], "")
        y = F.linear(x, self.weight, self.bias)
        if other is None:
            return F.silu(y) if self.then == "swish" else y
        return y * other if self.then == "mul" else y + other


@lru_cache(None)
def exact_kernel(n: int, k: int, then: Then, dtype: torch.dtype, threads: int) -> Kernel:
    """The first kernel that gives rows of a product (N, K) the same bits in every batch.

    `threads` are those that torch computes with now: the choice is one of them as well.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = (n, k), (MOST, k), (MOST, n)
    weight, x, other = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    also = other if then in ("mul", "add") else None
    return next((kernel for kernel in KERNELS if _is_exact(weight, then, kernel, x, also)), ROW_BY_ROW)


def _is_exact(weight: Tensor, then: Then, kernel: Kernel, x: Tensor, other: Tensor | None) -> bool:
    """Whether each row comes out the same alone and with others, wherever among them; not where there is no
    such kernel.
    """

    def some(begin: int, end: int) -> Tensor:
        return linear(x[begin:end], None if other is None else other[begin:end])

    try:
        linear = Linear(weight, None, then, kernel)
        alone = torch.cat([some(i, i + 1) for i in range(len(x))])
        return all(torch.equal(some(0, m), alone[:m]) for m in COUNTS)
    except (AttributeError, RuntimeError):
        return False
