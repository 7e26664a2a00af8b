"""The language model over plain Hugging Face weights of Qwen3: its files, its maths without a cache.

Tensor names and the order of operations are those of transformers' Qwen3ForCausalLM. The engine decodes by
`gpa.engine.packed`, made from these weights; what stands here is its slow twin. Training:
gpa.models.gpa.modeling_gpa.

    B rows   L positions   D width   H heads   Hk key/value heads   Dh head width   V vocabulary
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpa import hub
from gpa.config import Layers, Size, Within, build_stored, shown
from gpa.engine.onnx_network import OnnxNetwork, is_exact
from gpa.engine.packed import Forward, PackedNetwork
from gpa.errors import CheckpointError, PromptError, UsageError

Heads = Annotated[int, Within(1, 1 << 12)]
Rotation = tuple[Tensor, Tensor]  # cosines and sines (L, Dh)


@dataclass(frozen=True)
class Sizes:
    """What config.json says of a network, by its names there; defaults are transformers'."""

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Heads
    num_key_value_heads: Heads
    max_position_embeddings: Size
    head_dim: Annotated[int, Within(2, 1 << 12)] = 128
    rms_norm_eps: Annotated[float, Within(0, 1)] = 1e-6
    rope_theta: Annotated[float, Within(1, 1e12)] = 10000.0
    attention_bias: bool = False
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        if self.head_dim % 2:
            raise UsageError(f"head_dim {self.head_dim} is odd")
        if self.num_attention_heads % self.num_key_value_heads:
            raise UsageError(
                f"num_attention_heads {self.num_attention_heads} is no multiple of num_key_value_heads "
                f"{self.num_key_value_heads}"
            )

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config.json") -> Sizes:
        """From a config; CheckpointError for another architecture, and for what is not implemented here."""
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if not isinstance(rope, Mapping):
            raise CheckpointError(f"{where}: rope_parameters: expected a section of keys, got {shown(rope)}")
        known = {
            "model_type": (config.get("model_type"), "qwen3"),
            "hidden_act": (config.get("hidden_act", "silu"), "silu"),
            "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
            "use_sliding_window": (bool(config.get("use_sliding_window", False)), False),
        }
        for name, (found, only) in known.items():
            if found != only:
                raise CheckpointError(f"{where}: {name} {shown(found)} is not implemented, only {only!r}")
        given = {**config, **{name: value for name, value in rope.items() if name == "rope_theta"}}
        if given.get("num_key_value_heads") is None:
            given["num_key_value_heads"] = given.get("num_attention_heads")
        sizes = {name: given[name] for name in cls.__dataclass_fields__ if name in given}
        return build_stored(cls, sizes, where, "sizes")


class Norm(nn.Module):
    """Root mean square normalisation, in float32 (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:  # (..., D) -> (..., D)
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


class Attention(nn.Module):
    """Causal attention, grouped queries, rotary positions, queries and keys normalised."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        heads, kv = s.num_attention_heads * s.head_dim, s.num_key_value_heads * s.head_dim
        self.q_proj = nn.Linear(s.hidden_size, heads, bias=s.attention_bias)
        self.k_proj = nn.Linear(s.hidden_size, kv, bias=s.attention_bias)
        self.v_proj = nn.Linear(s.hidden_size, kv, bias=s.attention_bias)
        self.o_proj = nn.Linear(heads, s.hidden_size, bias=s.attention_bias)
        self.q_norm, self.k_norm = Norm(s.head_dim, s.rms_norm_eps), Norm(s.head_dim, s.rms_norm_eps)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        split = (*x.shape[:2], -1, self.q_norm.weight.shape[0])  # (B, L, heads, Dh)
        q = rotated(self.q_norm(self.q_proj(x).view(split)).transpose(1, 2), rotation)  # (B, H, L, Dh)
        k = rotated(self.k_norm(self.k_proj(x).view(split)).transpose(1, 2), rotation)  # (B, Hk, L, Dh)
        v = self.v_proj(x).view(split).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).reshape(*x.shape[:2], -1))


def rotated(x: Tensor, rotation: Rotation) -> Tensor:
    """Heads (B, H, L, Dh) turned by their positions (Su et al. 2021)."""
    cos, sin = rotation
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(s.hidden_size, s.intermediate_size, bias=False)
        self.up_proj = nn.Linear(s.hidden_size, s.intermediate_size, bias=False)
        self.down_proj = nn.Linear(s.intermediate_size, s.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and MLP, each on the normalised sum of everything before it."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(s), MLP(s)
        self.input_layernorm = Norm(s.hidden_size, s.rms_norm_eps)
        self.post_attention_layernorm = Norm(s.hidden_size, s.rms_norm_eps)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotation)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Ids to hidden states; a module of its own because tensors are named `model.` in the files."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        # A weight of its own: drawing one on the meta device would import torch._dynamo, a second and more.
        empty = torch.empty(s.vocab_size, s.hidden_size)
        self.embed_tokens = nn.Embedding(s.vocab_size, s.hidden_size, _weight=empty)
        self.layers: list[Layer] = nn.ModuleList(Layer(s) for _ in range(s.num_hidden_layers))  # type: ignore[assignment]
        self.norm = Norm(s.hidden_size, s.rms_norm_eps)

    def forward(self, ids: Tensor, rotation: Rotation) -> Tensor:  # (B, L) -> (B, L, D)
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, rotation)
        return self.norm(x)


class Network(nn.Module):
    """A decoder-only transformer; `config` is the content of its config.json, `sizes` what it means."""

    def __init__(self, config: Mapping[str, Any], where: str = "config.json") -> None:
        super().__init__()
        self.config, self.sizes = dict(config), Sizes.read(config, where)
        s = self.sizes
        self.model = Decoder(s)
        if not s.tie_word_embeddings:
            self.lm_head = nn.Linear(s.hidden_size, s.vocab_size, bias=False)
        even = torch.arange(0, s.head_dim, 2, dtype=torch.float, device="cpu")
        self.speeds = 1.0 / (s.rope_theta ** (even / s.head_dim))  # (Dh / 2,) radians a position
        self._packed: tuple[object, Forward] | None = None

    @classmethod
    def load(cls, folder: Path) -> tuple[Network, torch.dtype]:
        """The network of a directory in float32 on the CPU, and the precision of its file.

        Remote code is never run. CheckpointError for what is missing, superfluous or not implemented.
        """
        config, state = hub.read_json(folder / "config.json"), hub.read_state(folder)
        return cls.of(config, state, str(folder)), hub.stored_precision(state)

    @classmethod
    def of(cls, config: Mapping[str, Any], state: Mapping[str, Tensor], where: str = "") -> Network:
        """The network of tensors that are already read; float32 ones are shared, not copied."""
        with hub.sizes_checked(state, where), torch.device("meta"):
            network = cls(config, f"{where}/config.json" if where else "config.json")
        state = dict(state)
        embedding = state.get("model.embed_tokens.weight")
        if network.sizes.tie_word_embeddings and "lm_head.weight" in state:
            head = state.pop("lm_head.weight")
            if embedding is not None and head is not embedding and not torch.equal(head, embedding):
                raise CheckpointError(
                    f"{where}: lm_head.weight differs from the embedding although config.json ties them"
                )
        hub.load_strict(network, state, where=where)
        return network.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return self.model.norm.weight.dtype

    @property
    def packed(self) -> Forward:
        """What decodes: made once, and anew if the weights have changed since.

        It is onnxruntime's graph where that is installed and exact, and torch's layers elsewhere.
        """
        state = tuple((w.data_ptr(), 0 if w.is_inference() else w._version) for w in self.parameters())
        if self._packed is None or self._packed[0] != state:
            self._packed = None  # its memory is free before the next is made
            with torch.no_grad():
                self._packed = state, self._graph() or PackedNetwork(self)
        return self._packed[1]

    def _graph(self) -> Forward | None:
        if self.device.type != "cpu" or self.dtype != torch.float32:
            return None
        return OnnxNetwork(self) if is_exact(Network, self.sizes, torch.get_num_threads()) else None

    def room(self, prompt: Sequence[int]) -> int:
        """How many ids fit into the context after a prompt; PromptError, with the numbers, if there is
        none.
        """
        size, context = self.sizes.vocab_size, self.sizes.max_position_embeddings
        if not prompt:
            raise PromptError("the prompt is empty")
        if len(prompt) >= context:
            raise PromptError(
                f"the prompt has {len(prompt)} ids, the model's context {context}: shorten the input"
            )
        if min(prompt) < 0 or max(prompt) >= size:
            raise PromptError(f"the prompt holds ids outside 0 .. {size - 1}")
        return context - len(prompt)

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> Tensor:
        """Logits (L, V) at every position of one sequence, without a cache: the slow twin of the engine."""
        return self.head(
            self.model(torch.tensor([list(ids)], device=self.device), self.rotation(len(ids)))[0]
        )

    def rotation(self, count: int) -> Rotation:
        """Cosines and sines of the first L positions."""
        angles = torch.arange(count, device=self.device)[:, None].float() * self.speeds.to(self.device)
        angles = torch.cat((angles, angles), -1)  # (L, Dh)
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)

    def head(self, x: Tensor) -> Tensor:
        """Logits (..., V), in float32, of normalised hidden states (..., D)."""
        tied = self.sizes.tie_word_embeddings
        return F.linear(x, self.model.embed_tokens.weight if tied else self.lm_head.weight).float()
