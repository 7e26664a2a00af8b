"""A network as a graph for onnxruntime, which knows Qwen3's attention and its cache as one operator.

Operators of the domain com.microsoft: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.

    R rows   L new positions   P positions of the cache   D width   Hk key/value heads   Dh head width
    V vocabulary
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpa.errors import MissingExtraError

if TYPE_CHECKING:
    from gpa.engine.network import Network, Sizes

FILE = "network.onnx"
OPSET, IR = 18, 9  # of the standard operators, and of the file: onnxruntime 1.17 reads both
MICROSOFT = "com.microsoft"


def export_onnx(network: Network, folder: Path) -> None:
    """Write the graph and, beside it, its float32 weights into a folder.

    It maps ids (R, L), the lengths of the rows with them, less one (R), the longest of the lengths, and keys
    and values (R, Hk, P, Dh) of every layer to logits (R, V) after the last id, and keys and values.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("onnx", "onnx") from error
    graph = _Graph(network)
    model = onnx.helper.make_model(
        graph.build(),
        opset_imports=[onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(MICROSOFT, 1)],
        ir_version=IR,
        producer_name="gpa",
    )
    onnx.save(model, folder / FILE, save_as_external_data=True, location=f"{FILE}_data", size_threshold=1024)


def cache_names(layers: int) -> list[str]:
    """Inputs that are keys and values; the outputs are named `new_` and so."""
    return [f"{kind}_{n}" for n in range(layers) for kind in ("keys", "values")]


class _Graph:
    """Nodes and weights as they are laid down."""

    def __init__(self, network: Network) -> None:
        self.sizes: Sizes = network.sizes
        self.weights = {
            name: weight.detach().float().cpu().numpy() for name, weight in network.state_dict().items()
        }
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def build(self) -> Any:
        from onnx import TensorProto, helper

        s = self.sizes
        cosines, sines = self._rotation()
        self._constant("cosines", cosines)
        self._constant("sines", sines)
        self._constant("embedding", self.weights["model.embed_tokens.weight"])
        x = self._node("Gather", ["embedding", "ids"])
        for n in range(s.num_hidden_layers):
            x = self._layer(x, n)
        self._constant("last", np.array(-1, np.int64))
        x = self._node("Gather", [self._norm(x, "model.norm", s.hidden_size), "last"], axis=1)
        head = (
            "embedding" if s.tie_word_embeddings else self._constant("head", self.weights["lm_head.weight"])
        )
        self._node("Gemm", [x, head], ["logits"], transB=1)
        caches = cache_names(s.num_hidden_layers)
        shape: list[Any] = ["R", s.num_key_value_heads, "P", s.head_dim]
        inputs: list[tuple[str, int, list[Any]]] = [
            ("ids", TensorProto.INT64, ["R", "L"]),
            ("lengths", TensorProto.INT32, ["R"]),
        ]
        inputs += [("longest", TensorProto.INT32, []), *((name, TensorProto.FLOAT, shape) for name in caches)]
        outputs: list[tuple[str, int, list[Any]]] = [("logits", TensorProto.FLOAT, ["R", s.vocab_size])]
        outputs += [(f"new_{name}", TensorProto.FLOAT, shape) for name in caches]
        begin, end = ([helper.make_tensor_value_info(*port) for port in side] for side in (inputs, outputs))
        return helper.make_graph(self.nodes, "network", begin, end, self.constants)

    def _layer(self, x: str, n: int) -> str:
        s, name = self.sizes, f"model.layers.{n}"
        y = self._norm(x, f"{name}.input_layernorm", s.hidden_size)
        q, k, v = (self._linear(y, f"{name}.self_attn.{part}_proj") for part in "qkv")
        q = self._headed(q, f"{name}.self_attn.q_norm", s.num_attention_heads)
        k = self._headed(k, f"{name}.self_attn.k_norm", s.num_key_value_heads)
        caches = cache_names(s.num_hidden_layers)[2 * n : 2 * n + 2]
        y = self._node(
            "GroupQueryAttention",
            [q, k, v, *caches, "lengths", "longest", "cosines", "sines"],
            [f"{name}.attention", *(f"new_{cache}" for cache in caches)],
            domain=MICROSOFT,
            num_heads=s.num_attention_heads,
            kv_num_heads=s.num_key_value_heads,
            do_rotary=1,
        )
        x = self._node("Add", [x, self._linear(y, f"{name}.self_attn.o_proj")])
        y = self._norm(x, f"{name}.post_attention_layernorm", s.hidden_size)
        gate, up = (self._linear(y, f"{name}.mlp.{part}_proj") for part in ("gate", "up"))
        gate = self._node("Mul", [gate, self._node("Sigmoid", [gate])])
        return self._node("Add", [x, self._linear(self._node("Mul", [gate, up]), f"{name}.mlp.down_proj")])

    def _rotation(self) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and sines (positions, Dh / 2)."""
        s = self.sizes
        speeds = 1.0 / (s.rope_theta ** (np.arange(0, s.head_dim, 2, dtype=np.float32) / s.head_dim))
        angles = np.arange(s.max_position_embeddings, dtype=np.float32)[:, None] * speeds.astype(np.float32)
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def _headed(self, x: str, norm: str, heads: int) -> str:
        """Every head normalised by itself: (R, L, heads * Dh), seen as (R, L, heads, Dh)."""
        apart = self._constant(f"{norm}.apart", np.array([0, 0, heads, self.sizes.head_dim], np.int64))
        joined = self._constant(f"{norm}.joined", np.array([0, 0, heads * self.sizes.head_dim], np.int64))
        y = self._norm(self._node("Reshape", [x, apart]), norm, self.sizes.head_dim)
        return self._node("Reshape", [y, joined])

    def _norm(self, x: str, name: str, width: int) -> str:
        weight = self._constant(f"{name}.weight", self.weights[f"{name}.weight"].reshape(width))
        return self._node(
            "SimplifiedLayerNormalization", [x, weight], axis=-1, epsilon=self.sizes.rms_norm_eps
        )

    def _linear(self, x: str, name: str) -> str:
        weight = self._constant(f"{name}.weight", np.ascontiguousarray(self.weights[f"{name}.weight"].T))
        y = self._node("MatMul", [x, weight])
        bias = self.weights.get(f"{name}.bias")
        return y if bias is None else self._node("Add", [y, self._constant(f"{name}.bias", bias)])

    def _constant(self, name: str, values: np.ndarray) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def _node(self, kind: str, inputs: list[str], outputs: list[str] | None = None, **attributes: Any) -> str:
        """Lay down an operator; the name of its first output."""
        from onnx import helper

        outputs = outputs or [f"{len(self.nodes)}"]
        self.nodes.append(helper.make_node(kind, inputs, outputs, **attributes))
        return outputs[0]
