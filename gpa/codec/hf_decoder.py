"""The decoders of EnCodec, Mimi and DAC as layers that compute bit by bit; modules are those of transformers.

Every layer carries its state: past inputs of convolutions, tails of transposed ones, EnCodec's LSTM, keys and
values of Mimi's transformer within its window. B batch, C channels, K codebooks, T frames.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from gpa.nn.incremental import Each, Join, Layer, Series, conv, residual, transposed


def decoder(model: Any, hop: int) -> Layer:
    """Codes (1, K, T) to sound (1, 1, T * hop)."""
    kind, quantizer = model.config.model_type, model.quantizer
    device = next(model.parameters()).device
    first = Each(lambda codes: codes.to(device))
    mono = Each(lambda x: x.mean(1, keepdim=True))
    if kind == "encodec":
        latents = Each(lambda codes: quantizer.decode(codes.transpose(0, 1)))
        return Series(first, latents, _seanet(model.decoder.layers), mono)
    if kind == "dac":
        latents = Each(lambda codes: quantizer.from_codes(codes)[0])
        return Filled(Series(first, latents, _dac(model.decoder), mono), hop)
    inner = model.decoder  # of a model that transformers wrote before 5.20, the convolutions alone
    whole = inner if hasattr(inner, "decoder_seanet") else model
    upsample = [] if whole.upsample is None else [_layer(whole.upsample)]
    layers = getattr(inner, "decoder_seanet", inner).layers
    attention = Attention(whole.decoder_transformer)
    return Series(first, Each(quantizer.decode), *upsample, attention, _seanet(layers), mono)


class Recurrent(Layer):
    """An LSTM with a residual connection, (B, C, T)."""

    def __init__(self, lstm: nn.LSTM) -> None:
        self._lstm = lstm
        self._state: tuple[Tensor, Tensor] | None = None

    def push(self, x: Tensor, end: bool) -> Tensor:
        if not x.shape[-1]:
            return x
        rows = x.permute(2, 0, 1)
        y, self._state = self._lstm(rows, self._state)
        return (y + rows).permute(1, 2, 0)


class Attention(Layer):
    """A causal transformer, (B, C, T), which keeps keys and values of its window."""

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer
        self._cache = DynamicCache(config=transformer.config)

    def push(self, x: Tensor, end: bool) -> Tensor:
        if not x.shape[-1]:
            return x
        # By position: mask, positions, cache (which releases name differently), and that it is used.
        made = self._transformer(x.transpose(1, 2), None, None, self._cache, True)
        return made.last_hidden_state.transpose(1, 2)


class Filled(Layer):
    """A layer that gives too little in the end: zeros make it `hop` outputs per input (DAC's odd strides)."""

    def __init__(self, layer: Layer, hop: int) -> None:
        self._layer, self._hop = layer, hop
        self._missing = 0

    def push(self, x: Tensor, end: bool) -> Tensor:
        y = self._layer.push(x, end)
        self._missing += x.shape[-1] * self._hop - y.shape[-1]
        return nn.functional.pad(y, (0, max(0, self._missing))) if end else y


def _seanet(layers: Any) -> Layer:
    return Series(*(_layer(m) for m in layers))


def _layer(m: Any) -> Layer:
    """A layer of EnCodec or Mimi, by what it holds."""
    inner = getattr(m, "conv", None)
    if isinstance(inner, nn.ConvTranspose1d):
        total = inner.kernel_size[0] - inner.stride[0]
        right = math.ceil(total * m.trim_right_ratio) if m.causal else total // 2
        return transposed(inner, (total - right, right))
    if isinstance(inner, nn.Conv1d):
        total = (inner.kernel_size[0] - 1) * inner.dilation[0]
        right = 0 if m.causal else total // 2
        return conv(inner, (total - right, right), m.pad_mode)
    if hasattr(m, "lstm"):
        return Recurrent(m.lstm)
    if hasattr(m, "block"):
        return Join(torch.add, _layer(m.shortcut), _seanet(m.block))
    return Each(m)


def _dac(m: Any) -> Layer:
    def unit(u: Any) -> Layer:
        return residual(Each(u.snake1), conv(u.conv1), Each(u.snake2), conv(u.conv2))

    def block(b: Any) -> Layer:
        units = (unit(u) for u in (b.res_unit1, b.res_unit2, b.res_unit3))
        return Series(Each(b.snake1), transposed(b.conv_t1), *units)

    return Series(conv(m.conv1), *map(block, m.block), Each(m.snake1), conv(m.conv2), Each(m.tanh))
