"""What a run would take before anybody pays for it: parameters, memory per rank, time and cost.

Arithmetic only: the network is built on the meta device, nothing is allocated. Sources: 6 operations per
parameter and token plus attention (Kaplan et al. 2020, Chowdhery et al. 2022), 16 bytes per parameter of
mixed-precision AdamW and how ZeRO splits them (Rajbhandari et al. 2020), activations with checkpointing as
what is kept per layer plus one layer's working set (Korthikanti et al. 2022).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpa.engine.scheduler import MEMORY, ROWS

if TYPE_CHECKING:
    from gpa.models.gpa.modeling_gpa import Backbone

GIB = 2.0**30


@dataclass(frozen=True)
class GPU:
    """Peak dense bf16 operations per second, memory in bytes, dollars an hour (a guess: give yours)."""

    flops: float
    memory: float
    price: float


GPUS = {
    "a100": GPU(312e12, 80e9, 1.8),
    "h100": GPU(989e12, 80e9, 3.0),
    "h200": GPU(989e12, 141e9, 3.8),
    "rtx4090": GPU(165e12, 24e9, 0.5),
}


def known_peak(name: str) -> float | None:
    """Operations per second in half precision of the GPU in the table that a device's name contains."""
    name = name.lower().replace(" ", "")
    return next((gpu.flops for key, gpu in GPUS.items() if key in name), None)


@dataclass(frozen=True)
class Rates:
    """Ids per second of audio that each task puts into a row, text included.

    `mix` is how often an hour serves each task.
    """

    tts: float = 53.0
    asr: float = 65.5
    vc: float = 100.0
    mix: tuple[float, float, float] = (1.0, 1.0, 0.2)

    def ids_per_hour(self) -> float:
        """Ids that one hour of speech makes per epoch."""
        return 3600 * sum(w * r for w, r in zip(self.mix, (self.tts, self.asr, self.vc), strict=True))


@dataclass(frozen=True)
class Shape:
    """What the arithmetic needs to know of a decoder-only network."""

    parameters: int
    layers: int
    width: int
    inner: int  # heads times head width
    keys: int  # the same of the keys
    wide: int  # of the feed-forward
    vocab: int
    multiplied: int  # parameters that a token is multiplied with: all but embedding rows looked up

    @classmethod
    def of(cls, model: Backbone) -> Shape:
        """Read off a built (meta) network."""
        c = model.config
        count = sum(p.numel() for p in model.parameters())
        keys = (c.num_key_value_heads or c.num_attention_heads) * c.head_dim
        looked_up = 0 if c.tie_word_embeddings else c.vocab_size * c.hidden_size
        inner = c.num_attention_heads * c.head_dim
        multiplied = sum(p.numel() for p in model.parameters() if p.ndim == 2) - looked_up
        layers, wide = c.num_hidden_layers, c.intermediate_size
        return cls(count, layers, c.hidden_size, inner, keys, wide, c.vocab_size, multiplied)

    def flops_per_id(self, length: int) -> float:
        """Operations of forward and backward pass per id in rows of `length`; attention is causal."""
        return self.flops(1, length)

    def flops(self, ids: int, squares: int) -> float:
        """The same of rows with `ids` together, whose squared lengths add up to `squares`."""
        return 6.0 * self.multiplied * ids + 6.0 * self.layers * self.inner * squares

    def row_bytes(self, positions: float, width: int) -> float:
        """Keys and values of one row of an engine's cache, in numbers of `width` bytes."""
        return 2.0 * self.layers * self.keys * width * positions

    def state_bytes(self, stage: int, ranks: int) -> float:
        """Weights, gradients (bf16) and float32 AdamW state on one rank under a ZeRO stage."""
        weights, grads, optim = 2.0 * self.parameters, 2.0 * self.parameters, 12.0 * self.parameters
        return (
            weights / (ranks if stage >= 3 else 1)
            + grads / (ranks if stage >= 2 else 1)
            + optim / (ranks if stage >= 1 else 1)
        )

    def activation_bytes(self, ids: int, checkpointing: bool) -> float:
        """Activations of a micro-batch of `ids`, bf16, with flash or SDPA attention, and float32 logits.

        Norms keep their input in float32 and what they give in bf16; the factors are those that autograd
        shows for transformers' Qwen3 (tests/test_plan.py).
        """
        layer = 2.0 * ids * (8 * self.width + 5 * (self.inner + self.keys) + 4 * self.wide)
        kept = 2.0 * ids * self.width * self.layers + layer if checkpointing else layer * self.layers
        return kept + 2 * 4.0 * ids * self.vocab


@dataclass(frozen=True)
class Budget:
    """The run that is planned: hours of speech, passes over them, ids per rank and step, row length."""

    hours: float
    epochs: float = 1.0
    micro_ids: int = 16_384
    length: int = 1024
    checkpointing: bool = True
    mfu: float = 0.4
    rates: Rates = Rates()


@dataclass(frozen=True)
class Serving:
    """What one server of a network needs, in bytes; `fits` are the rows of `seconds` that have room."""

    dtype: str
    weights: float
    second: float  # keys and values of a second of speech
    seconds: float
    fits: int


def serving(shape: Shape, memory: float, cpu: bool, seconds: float = 30.0) -> Serving:
    """A server that has `memory`: float32 on a processor, which holds weights twice, else bfloat16.

    A tenth of the memory, and a GiB, is for codec, activations and libraries. The engine's keys and values
    take `MEMORY` at most; rows beyond that wait.
    """
    width, copies = (4, 2) if cpu else (2, 1)
    weights, second = shape.parameters * width * copies, shape.row_bytes(Rates.tts, width)
    room = min(0.9 * memory - GIB - weights, MEMORY)
    return Serving(
        "float32" if cpu else "bfloat16", weights, second, seconds, max(0, int(room / second / seconds))
    )


@dataclass(frozen=True)
class Plan:
    """The answer; memory in bytes per rank by ZeRO stage."""

    shape: Shape
    memory: dict[int, float]
    fits: dict[int, bool]
    ids: float
    ids_per_second: float
    days: float
    cost: float


def plan(shape: Shape, budget: Budget, gpu: GPU, ranks: int) -> Plan:
    """Memory, speed, time and cost of `budget` on `ranks` GPUs."""
    activations = shape.activation_bytes(budget.micro_ids, budget.checkpointing)
    memory = {stage: shape.state_bytes(stage, ranks) + activations for stage in range(4)}
    flops = shape.flops_per_id(budget.length)
    speed = gpu.flops * budget.mfu * ranks / flops
    ids = budget.hours * budget.epochs * budget.rates.ids_per_hour()
    seconds = ids / speed
    return Plan(
        shape=shape,
        memory=memory,
        fits={stage: size < 0.92 * gpu.memory for stage, size in memory.items()},  # CUDA and NCCL take theirs
        ids=ids,
        ids_per_second=speed,
        days=seconds / 86_400,
        cost=seconds / 3600 * ranks * gpu.price,
    )


def lines(p: Plan, budget: Budget, name: str, ranks: int) -> Iterator[str]:
    """The plan for people."""
    s = p.shape
    yield f"{s.parameters:,} parameters ({s.multiplied:,} multiplied per id), {s.layers} layers of {s.width}"
    yield f"memory per rank at {budget.micro_ids:,} ids a step and rank, bf16, {ranks} x {name}:"
    for stage, size in p.memory.items():
        title = f"ZeRO-{stage}" if stage else "no ZeRO"
        yield f"  {title:8} {size / GIB:8.1f} GiB  {'fits' if p.fits[stage] else 'does not fit'}"
    yield (
        f"{p.ids:.3g} ids ({budget.hours:,.0f} h of speech x {budget.epochs:g}); "
        f"{p.ids_per_second:,.0f} ids/s at {100 * budget.mfu:.0f} % of peak "
        "(assumed unless you measured it: --mfu)"
    )
    yield f"{p.days:.3g} days, {p.cost:,.0f} dollars at the price per GPU hour above (--price)"


def serving_lines(s: Serving, where: str) -> Iterator[str]:
    """What serving takes, and what to pass to `gpa serve`, for people."""
    second = f"{s.second / 2**20:.2f} MiB a second of a row"
    yield f"serving on {where}, {s.dtype}: weights {s.weights / GIB:.2f} GiB, {second}"
    yield f"  {s.fits:,} rows of {s.seconds:g} s have room; guided speech takes two, a beam search one a beam"
    if not s.fits:
        yield "  it does not fit: take more memory or a smaller network"
        return
    rows = min(s.fits, ROWS)
    voices = max(1, rows // 2)
    wait = f"as many may wait: --requests {2 * voices}"
    yield f"  decoded together: {rows} rows, or {voices} guided voices; {wait}"
