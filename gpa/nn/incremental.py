"""A network of convolutions, bit by bit: every output once, as soon as nothing to come can change it.

A layer takes what its input grows by and returns what its output then grows by; `end` says that no more
comes, and the layer ends its input as the network does, with its own padding. No codec is known here.

    B batch   C channels   n inputs of one push, the last axis; tensors without any are empty and may lack C
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Map = Callable[[Tensor], Tensor]
EMPTY = torch.zeros(0, dtype=torch.float32)


class Layer(ABC):
    """A step of a network with what it must remember of its input; states are replaced, never changed."""

    @abstractmethod
    def push(self, x: Tensor, end: bool) -> Tensor:
        """What becomes final of the output (B, C', m) with x (B, C, n); with `end`, all the rest of it."""

    def fork(self) -> Layer:
        """A copy that goes on from here by itself."""
        made = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Layer):
                setattr(made, name, value.fork())
            elif isinstance(value, tuple):
                setattr(made, name, tuple(v.fork() if isinstance(v, Layer) else v for v in value))
        return made


class Each(Layer):
    """A function of each input alone, which may give several outputs."""

    def __init__(self, function: Map) -> None:
        self._function = function

    def push(self, x: Tensor, end: bool) -> Tensor:
        return self._function(x) if x.shape[-1] else x


class Series(Layer):
    """One layer after another."""

    def __init__(self, *layers: Layer) -> None:
        self._layers = layers

    def push(self, x: Tensor, end: bool) -> Tensor:
        for layer in self._layers:
            x = layer.push(x, end)
        return x


class Join(Layer):
    """A function of what several branches make of one input, each output waiting for the slowest branch.

    What a branch has beyond the shortest in the end is dropped.
    """

    def __init__(self, function: Callable[..., Tensor], *branches: Layer) -> None:
        self._function, self._branches = function, branches
        self._queues = (EMPTY,) * len(branches)

    def push(self, x: Tensor, end: bool) -> Tensor:
        made = zip(self._queues, self._branches, strict=True)
        queues = [joined(queue, branch.push(x, end)) for queue, branch in made]
        n = min(queue.shape[-1] for queue in queues)
        self._queues = tuple(queue[..., n:] for queue in queues)
        return self._function(*(queue[..., :n] for queue in queues)) if n else EMPTY


class Windows(Layer):
    """A function of windows of `span` inputs, `stride` apart: convolutions, means, spectra.

    It gets n windows as (n - 1) * stride + span inputs and gives the same number of outputs for each. `pad`
    is the padding on either side, in a mode of `F.pad`.
    """

    def __init__(
        self, function: Map, span: int, stride: int = 1, pad: tuple[int, int] = (0, 0), mode: str = "constant"
    ) -> None:
        self._function, self._span, self._stride, self._pad, self._mode = function, span, stride, pad, mode
        self._held = EMPTY  # inputs of windows to come
        self._begun = False

    def push(self, x: Tensor, end: bool) -> Tensor:
        held, (left, right) = joined(self._held, x), self._pad
        if not self._begun:
            self._begun = end or held.shape[-1] > (max(left, right) if self._mode == "reflect" else 0)
            left = left if self._begun else 0
        else:
            left = 0
        held = padded(held, (left, right if end else 0), self._mode)
        n = (held.shape[-1] - self._span) // self._stride + 1 if self._begun else 0
        if n <= 0:
            self._held = held
            return EMPTY
        self._held = held[..., n * self._stride :]
        return self._function(held[..., : (n - 1) * self._stride + self._span])


class OverlapAdd(Layer):
    """A function of n inputs to (n - 1) * stride + span outputs, which add up where two pushes overlap.

    For transposed convolutions without bias, and inverse spectra. `trim` is what both ends lose.
    """

    def __init__(self, function: Map, span: int, stride: int, trim: tuple[int, int]) -> None:
        self._function, self._overlap, self._stride, self._trim = function, span - stride, stride, trim
        self._tail = EMPTY
        self._skip = trim[0]

    def push(self, x: Tensor, end: bool) -> Tensor:
        out, n = self._tail[..., :0], x.shape[-1]
        if n:
            y = self._function(x)
            if self._tail.numel():
                y = torch.cat([y[..., : self._overlap] + self._tail, y[..., self._overlap :]], -1)
            out, self._tail = y[..., : n * self._stride], y[..., n * self._stride :]
        if end:
            kept = max(0, self._tail.shape[-1] - self._trim[1])
            out = joined(out, self._tail[..., :kept])
        skip = min(self._skip, out.shape[-1])
        self._skip -= skip
        return out[..., skip:]


def joined(before: Tensor, x: Tensor) -> Tensor:
    """Both in a row; one without inputs may have any shape."""
    if not before.shape[-1]:
        return x
    return torch.cat([before, x], -1) if x.shape[-1] else before


def padded(x: Tensor, pad: tuple[int, int], mode: str) -> Tensor:
    """`F.pad` that reflects short inputs too, with zeros behind them, as EnCodec does."""
    if not any(pad):
        return x
    short = max(pad) - x.shape[-1] + 1 if mode == "reflect" else 0
    if short <= 0:
        return F.pad(x, pad, mode)
    longer = F.pad(F.pad(x, (0, short)), pad, mode)
    return longer[..., : longer.shape[-1] - short]


# Modules as layers ------------------------------------------------------------------------------------------


def residual(*layers: Layer) -> Layer:
    """x plus what the layers make of it."""
    return Join(torch.add, Each(lambda x: x), Series(*layers))


def conv(m: Any, pad: tuple[int, int] | None = None, mode: str = "constant") -> Layer:
    """A convolution of stride 1, with the padding of the module unless another is given."""
    weight, dilation, groups = _weight(m), _int(m.dilation), getattr(m, "groups", 1)
    width = (weight.shape[-1] - 1) * dilation
    side = _int(m.padding)
    return Windows(
        lambda x: F.conv1d(x, weight, m.bias, dilation=dilation, groups=groups),
        width + 1,
        pad=getattr(m, "sides", (side, side)) if pad is None else pad,
        mode=mode,
    )


def transposed(m: Any, trim: tuple[int, int] | None = None) -> Layer:
    """A transposed convolution; its bias is added to sums that are final, so once."""
    weight, stride, groups = _weight(m), _int(m.stride), getattr(m, "groups", 1)
    side, more = _int(m.padding), _int(getattr(m, "output_padding", 0))
    add = OverlapAdd(
        lambda x: F.conv_transpose1d(x, weight, None, stride, groups=groups),
        weight.shape[-1],
        stride,
        (side, side - more) if trim is None else trim,
    )
    bias = m.bias
    return add if bias is None else Series(add, Each(lambda x: x + bias[:, None]))


def backbone(m: Any, cond: Tensor | None = None) -> Layer:
    """A `VocosBackbone`, conditioned on a speaker vector (B, D) where it is made for one."""
    blocks = (residual(conv(block.dwconv), Each(block.mixing(cond))) for block in m.convnext)
    return Series(conv(m.embed), Each(m.beginning(cond)), *blocks, Each(m.ended))


def upsampling(stages: Any) -> Layer:
    """What `sampling_stages` makes of ratios up."""

    def raised(m: Any) -> Layer:
        if m.up == 1:
            return Each(lambda x: x + x + x)
        trim = (0, m.up) if m.causal else None
        drawn = Series(Each(lambda x: F.leaky_relu(x, 0.2)), transposed(m.deconv, trim))
        repeated = Each(lambda x: x.repeat_interleave(m.up, -1))
        return Join(lambda y, x: (y + x) + (y + x) + x, drawn, repeated)

    return Series(*(Series(raised(block), backbone(after)) for block, after in stages))


def inverse_stft(window: Tensor, hop: int, trim: tuple[int, int], least: float) -> Layer:
    """Spectra (B, F, T) to sound (B, 1, S) by windowed overlap-add, over the windows' power.

    That is at least `least`; `trim` samples fall away at both ends.
    """
    size = len(window)

    def added(spectra: Tensor) -> Tensor:  # -> (B, 2, S): sound, and power beside it
        frames = torch.fft.irfft(spectra, size, dim=1) * window[:, None]
        both = torch.stack([frames, (window**2)[:, None].expand_as(frames)], 1).flatten(1, 2)  # (B, 2 N, T)
        length = (frames.shape[-1] - 1) * hop + size
        return F.fold(both, (1, length), (1, size), stride=(1, hop))[:, :, 0]

    level = Each(lambda x: x[:, :1] / x[:, 1:].clamp_min(least))
    return Series(OverlapAdd(added, size, hop, trim), level)


def _weight(m: Any) -> Tensor:
    """The weight, folded once where it has a norm."""
    weight = m.weight
    return weight() if callable(weight) and not isinstance(weight, Tensor) else weight


def _int(value: int | tuple[int, ...]) -> int:
    return value[0] if isinstance(value, tuple) else int(value)


class BlockDecoder:
    """Blocks of codes to sound: `network` draws `rate` frames for each frame of codes, `render` their sound.

    `network` takes codes (1, K, n); `render` gives (1, 1, S). Where the future is cut, a fork of the network
    ends there, so its frames are those of a clip that ends there; `render` goes on without a seam.
    """

    def __init__(self, network: Layer, render: Layer, rate: int) -> None:
        self._network, self._render, self._rate = network, render, rate
        self._drawn = torch.zeros(
            0, dtype=torch.float32
        )  # frames of the network that may wait for their block, from `_first` on
        self._first = self._out = 0  # `_out` frames have gone to `render`

    @torch.inference_mode()
    def __call__(self, codes: np.ndarray, until: int | None, last: bool) -> np.ndarray:
        """Sound that codes (K, n) add, `last` for those at the end.

        With `until`, all up to this frame of codes, drawn as if these were the last.
        """
        x = torch.from_numpy(codes)[None]
        self._drawn = drawn = joined(self._drawn, self._network.push(x, last))
        if until is not None:
            drawn = joined(drawn, self._network.fork().push(x[..., :0], True))
            drawn = drawn[..., : until * self._rate - self._first]
        fresh = drawn[..., max(0, self._out - self._first) :]
        self._out = max(self._out, self._first + drawn.shape[-1])
        past = min(self._out - self._first, self._drawn.shape[-1])
        self._drawn, self._first = self._drawn[..., past:], self._first + past
        return self._render.push(fresh, last).flatten().float().cpu().numpy()
