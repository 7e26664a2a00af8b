"""Quantisers as inverse pairs, codes <-> vectors: factorised VQ (semantic) and FSQ (speaker).

Source: factorised VQ, arXiv 2306.06546; FSQ, arXiv 2309.15505. Shapes: x (B, D, T) for VQ, (B, G, D) for FSQ;
codes int64.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WeightNormConv1d(nn.Module):
    """Conv1d (or its transpose) in the old weight-norm form: w = g * v / |v|, the norm over all dims but
    the first.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        make = nn.ConvTranspose1d if transposed else nn.Conv1d
        conv = make(c_in, c_out, kernel, stride=stride, padding=padding, dilation=dilation)
        assert conv.bias is not None
        self.bias = nn.Parameter(conv.bias.detach())
        self.weight_g = nn.Parameter(conv.weight.detach().flatten(1).norm(dim=1)[:, None, None])
        self.weight_v = nn.Parameter(conv.weight.detach())
        self.stride, self.padding, self.dilation, self.transposed = stride, padding, dilation, transposed

    def weight(self) -> Tensor:
        """The folded weight."""
        return torch._weight_norm(self.weight_v, self.weight_g, 0)

    def forward(self, x: Tensor) -> Tensor:
        if self.transposed:
            return F.conv_transpose1d(
                x, self.weight(), self.bias, self.stride, self.padding, dilation=self.dilation
            )
        return F.conv1d(x, self.weight(), self.bias, self.stride, self.padding, self.dilation)


class FactorizedVQ(nn.Module):
    """Nearest codebook row on the unit sphere of a small space; decoding reads the raw rows.

    Training may go without rounding until `start` has placed the rows: an encoder that already knows what
    to say loses little to a codebook of its own cluster centres (measured in docs/log.md).
    """

    cluster_size: Tensor

    def __init__(self, dim: int, codebook_size: int, codebook_dim: int, decay: float = 0.99) -> None:
        super().__init__()
        self.in_project = WeightNormConv1d(dim, codebook_dim, 1)
        self.out_project = WeightNormConv1d(codebook_dim, dim, 1)
        self.codebook = nn.Embedding(codebook_size, codebook_dim)
        self.register_buffer("cluster_size", torch.zeros(codebook_size))
        self.decay = decay
        with torch.no_grad():  # rows are short, of unit length: what is made of them starts at the usual size
            self.out_project.weight_g.mul_(codebook_dim**0.5)

    def nearest(self, z: Tensor) -> Tensor:  # (B, d, T) -> (B, T)
        """Index of the nearest row by cosine (both sides L2-normalised)."""
        rows = F.normalize(self.codebook.weight.float(), dim=1)  # (V, d)
        z = F.normalize(z.transpose(1, 2).float(), dim=-1)  # (B, T, d)
        # Squared distance, in the order of operations of the reference: ties of random weights break alike.
        with torch.autocast(z.device.type, enabled=False):  # rounded products would choose another row
            distance = (z * z).sum(-1, keepdim=True) - 2 * z @ rows.T + (rows * rows).sum(1)
        return distance.argmin(-1)

    def encode(self, x: Tensor) -> Tensor:  # (B, D, T) -> (B, T)
        """Codes of the features."""
        return self.nearest(self.in_project(x))

    def decode(self, codes: Tensor) -> Tensor:  # (B, T) -> (B, D, T)
        """Features of the codes."""
        return self.out_project(self.codebook(codes).transpose(1, 2))

    @property
    def started(self) -> bool:
        """Whether the rows have been placed; until then the training pass does not round."""
        return bool(self.cluster_size.any())

    @torch.no_grad()
    def start(self, x: Tensor, rounds: int = 10) -> None:
        """Codebook rows become the centres of encoder outputs x (N, D): k-means on the sphere."""
        z = F.normalize(self.in_project(x.T[None])[0].T.float(), dim=1)  # also where products are bf16
        n = len(self.cluster_size)
        self.codebook.weight.copy_(z[torch.randperm(len(z))].repeat(-(-n // len(z)), 1)[:n])
        for _ in range(rounds):
            near = torch.cat([self.nearest(part.T[None])[0] for part in z.split(8192)])
            sums = torch.zeros_like(self.codebook.weight).index_add_(0, near, z)
            filled = sums.square().sum(1) > 0
            self.codebook.weight[filled] = F.normalize(sums[filled], dim=1)
        self.cluster_size.fill_(1.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Training pass: quantised features with a straight-through gradient, codes (B, T), codebook +
        commitment loss.
        """
        z = self.in_project(x).float()  # also where products are bf16
        codes = self.nearest(z)
        if not self.started:
            return self.out_project(F.normalize(z, dim=1)), codes, z.new_zeros(())
        q = self.codebook(codes).transpose(1, 2)
        a, b = F.normalize(z, dim=1), F.normalize(q, dim=1)
        loss = 2.0 * F.mse_loss(b, a.detach()) + 0.25 * F.mse_loss(a, b.detach())
        if self.training:
            self._track(codes, a.detach())
        return self.out_project(a + (q - a).detach()), codes, loss

    @torch.no_grad()
    def _track(self, codes: Tensor, z: Tensor) -> None:
        """Moving usage of each row; rows that nearly never win restart at vectors of this batch."""
        counts = torch.bincount(codes.flatten(), minlength=len(self.cluster_size)).float()
        self.cluster_size.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        dead = (self.cluster_size < 0.02 * counts.sum() / len(counts)).nonzero().flatten()
        pool = z.transpose(1, 2).flatten(0, 1)
        take = dead[: len(pool) // 8]
        stride = max(1, len(pool) // max(1, len(take)))
        self.codebook.weight[take] = pool[::stride][: len(take)]
        self.cluster_size[take] = counts.sum() / len(counts)


class FSQ(nn.Module):
    """Finite scalar quantisation of each of `len(levels)` dimensions, with linear maps in and out."""

    levels: Tensor
    basis: Tensor

    def __init__(self, dim: int, levels: list[int], normalise: int = 0) -> None:
        """`normalise` vectors in a row share one batch norm before rounding (ours); 0 for none, as
        published.
        """
        super().__init__()
        self.project_in = nn.Linear(dim, len(levels))
        # Without it a young encoder drifts into one cell and stays there (1 code in use after 40 steps). Few
        # clips of one speaker hardly vary: a small eps then makes their gradient explode (docs/log.md).
        self.norm = nn.BatchNorm1d(normalise * len(levels), eps=1e-2, affine=False) if normalise else None
        self.project_out = nn.Linear(len(levels), dim)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer(
            "basis", torch.tensor([math.prod(levels[:i]) for i in range(len(levels))]), persistent=False
        )

    @property
    def codebook_size(self) -> int:
        """Number of distinct codes."""
        return int(self.levels.prod())

    def _bounded(self, x: Tensor) -> Tensor:
        z = self.project_in(x)
        if self.norm is not None:
            z = self.norm(z.reshape(-1, self.norm.num_features)).view_as(z)
        half = (self.levels - 1).float() * (1 + 1e-3) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0).float()
        return torch.tanh(z + torch.atanh(offset / half)) * half - offset

    def encode(self, x: Tensor) -> Tensor:  # (..., D) -> (...)
        """Codes; the first dimension is the least significant digit."""
        digits = self._bounded(x).round() + self.levels // 2
        return (digits * self.basis).sum(-1).long()

    def decode(self, codes: Tensor) -> Tensor:  # (...) -> (..., D)
        """Vectors of the codes."""
        digits = codes[..., None] // self.basis % self.levels
        half = self.levels // 2
        return self.project_out((digits - half).float() / half)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        """Training pass: quantised vectors with a straight-through gradient."""
        z = self._bounded(x)
        return self.project_out((z + (z.round() - z).detach()) / (self.levels // 2))
