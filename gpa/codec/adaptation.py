"""What a decoder learns of one voice: its speaker vector, low-rank changes of weights, range of pitch.

A voice's ids name one of the speakers that the decoder knows; an adaptation is what is missing to the one in
the recordings. It belongs to its voice: a decoder with it is a copy, so other voices sound as before to the
bit. Low-rank changes are those of LoRA (Hu et al. 2021), W + B A.

    D vector   R rank
"""

from __future__ import annotations

import base64
import binascii
import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gpa.errors import CheckpointError

if TYPE_CHECKING:
    from gpa.codec.bicodec_model import BiCodecModel

PARTS = ("prenet", "decoder")  # of the network: what draws sound of codes and a speaker vector
VECTOR = "vector"
RANGE, LEVEL = (0.7, 1.5), 0.7  # bounds of a pitch's gain, and of its shift either way, in nepers
ENOUGH = 100  # voiced frames, of 20 ms, from which pitch statistics are taken at their word


@dataclass(frozen=True)
class Adaptation:
    """`weights` are a safetensors file of float16; log pitch x around the centre becomes gain x + shift.

    `decoder` is the fingerprint of the codec that it was learnt with; of another one it says nothing.
    """

    weights: bytes
    decoder: str = ""
    gain: float = 1.0
    shift: float = 0.0

    @classmethod
    def of(
        cls, vector: Tensor, changes: Mapping[str, tuple[Tensor, Tensor]], decoder: str = ""
    ) -> Adaptation:
        """From a speaker vector (D,) and, by the name of a weight, B (out, R) and A (R, in)."""
        tensors = {VECTOR: vector}
        for name, (b, a) in changes.items():
            tensors |= {f"{name}.b": b, f"{name}.a": a}
        half = {name: t.detach().to("cpu", torch.float16).contiguous() for name, t in tensors.items()}
        return cls(write_tensors(half), decoder)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Vector and changes in float32; CheckpointError for bytes that are no safetensors file."""
        try:
            found = {name: t.float() for name, t in read_tensors(self.weights).items()}
        except SafetensorError as error:
            raise CheckpointError(f"an adaptation's weights cannot be read ({error})") from error
        if VECTOR not in found or not all(t.isfinite().all() for t in found.values()):
            raise CheckpointError("an adaptation needs a speaker vector, and finite numbers")
        return found

    @property
    def vector(self) -> Tensor:
        """The speaker vector (D,)."""
        return self.tensors[VECTOR]

    @torch.no_grad()
    def applied(self, network: BiCodecModel) -> BiCodecModel:
        """A network that draws this voice and shares all else; CheckpointError if the weights do not fit."""
        made = _copied(network)
        weights = dict(made.named_parameters())
        expected = tuple(self.vector.shape) == (network.config.speaker_encoder.out_dim,)
        for name in (key.removesuffix(".b") for key in self.tensors if key.endswith(".b")):
            b = self.tensors[f"{name}.b"]
            change = b @ self.tensors.get(f"{name}.a", b.new_zeros(0, 0))
            weight = weights.get(name) if name.startswith(PARTS) else None
            if not expected or weight is None or weight.numel() != change.numel():
                raise CheckpointError("an adaptation does not fit the decoder: it is another codec's")
            weight.add_(change.view_as(weight).to(weight.device))
        return made

    def to_dict(self) -> dict[str, Any]:
        """Plain content for JSON; inverse of `from_dict`."""
        text = base64.b64encode(self.weights).decode("ascii")
        return {"decoder": self.decoder, "pitch": [self.gain, self.shift], "weights": text}

    @classmethod
    def from_dict(cls, raw: Any, where: str = "adaptation") -> Adaptation:
        """Typed content of JSON; CheckpointError for anything else."""
        try:
            gain, shift = (float(value) for value in raw["pitch"])
            made = cls(
                base64.b64decode(raw["weights"], validate=True), str(raw.get("decoder", "")), gain, shift
            )
        except (TypeError, KeyError, ValueError, binascii.Error) as error:
            raise CheckpointError(f"{where}: not an adaptation ({error})") from error
        if not (RANGE[0] <= gain <= RANGE[1] and abs(shift) <= LEVEL):
            raise CheckpointError(f"{where}: a pitch of gain {gain:g} and shift {shift:g} is out of range")
        made.tensors  # noqa: B018 - a file that cannot be read is refused here, not when it is spoken with
        return made


def intonation(real: Tensor, ours: Tensor) -> tuple[float, float]:
    """Gain and shift that bring log pitches (N,) of what is decoded to level and range of the recordings'.

    Of medians and quartiles, since trackers err by octaves; the shorter, the nearer to no change.
    """
    trust = min(1.0, min(len(real), len(ours)) / ENOUGH)
    if not trust:
        return 1.0, 0.0
    quartiles = real.new_tensor([0.25, 0.5, 0.75])
    (low, wanted, high), (own_low, found, own_high) = real.quantile(quartiles), ours.quantile(quartiles)
    width = float((high - low) / (own_high - own_low).clamp_min(1e-3))
    gain = min(max(math.exp(trust * math.log(max(width, 1e-3))), RANGE[0]), RANGE[1])
    shift = float(found + trust * (wanted - found)) - gain * float(found)
    return round(gain, 3), round(min(max(shift, -LEVEL), LEVEL), 3)


class LowRank(nn.Module):
    """W + B A of a weight seen as a matrix (out, in), B zero in the beginning."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        wide = weight[0].numel()
        self.a = nn.Parameter(torch.randn(rank, wide) / wide**0.5)
        self.b = nn.Parameter(torch.zeros(len(weight), rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.b @ self.a).view_as(weight)


class AdaptedDecoder(nn.Module):
    """A network whose speaker vector and low-rank changes learn, and nothing else."""

    def __init__(self, network: BiCodecModel, codes: Tensor, rank: int) -> None:
        """`codes` (G,) of the voice say where the vector starts; `rank` 0 leaves the weights as they are."""
        super().__init__()
        self.network = _copied(network).requires_grad_(False)
        self.vector = nn.Parameter(network.speaker_encoder.decode(codes[None])[0].detach().clone())
        self.changed: dict[str, LowRank] = {}
        for name, layer in list(_matrices(self.network)) if rank else []:
            weight = layer.get_parameter("weight")
            change = LowRank(weight, min(rank, *weight.flatten(1).shape))
            parametrize.register_parametrization(layer, "weight", change)
            self.changed[f"{name}.weight"] = change

    def forward(self, semantic: Tensor) -> Tensor:  # (B, T) -> (B, C, T * n)
        """Frames of codes in the voice."""
        return self.network.drawn(semantic, self.vector.expand(len(semantic), -1))

    def learnt(self) -> list[nn.Parameter]:
        """What learns."""
        return [self.vector, *(p for change in self.changed.values() for p in change.parameters())]

    def adaptation(self, decoder: str) -> Adaptation:
        """What was learnt so far."""
        return Adaptation.of(self.vector, {n: (c.b, c.a) for n, c in self.changed.items()}, decoder)


def _copied(network: BiCodecModel) -> BiCodecModel:
    """A network with `PARTS` of its own; the rest is shared."""
    made = copy.copy(network)
    made._modules = {name: copy.deepcopy(m) if name in PARTS else m for name, m in network._modules.items()}
    return made


def _matrices(network: BiCodecModel) -> Iterator[tuple[str, nn.Module]]:
    """Layers of `PARTS` whose weight is a matrix, by name; depthwise convolutions have none."""
    for name, layer in network.named_modules():
        plain = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv1d) and layer.groups == 1)
        if plain and name.startswith(PARTS):
            yield name, layer
