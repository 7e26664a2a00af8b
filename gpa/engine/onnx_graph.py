"""A network's decoding step as a graph of onnxruntime, where attention with a cache is one operator.

Operators of the domain com.microsoft: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.

    R rows   L new positions   P positions of the cache   D width   Hk key/value heads   Dh head width
    N ids that may be generated
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from gpa.engine.network import Network, Sizes

OPSET, IR = 18, 9  # of the standard operators, and of the file: onnxruntime 1.20 reads both
MICROSOFT = "com.microsoft"
Port = tuple[str, str, Sequence[Any]]  # name, type, shape of an input or output


def step_session(network: Network) -> InferenceSession:
    """The step of a network, computed with as many threads as torch has now.

    It maps ids (R, L), the lengths of the rows with them, less one (R), the longest of the lengths, and keys
    and values (R, Hk, P, Dh) of every layer to hidden states (R, L, D), normalised, and keys and values.
    Several rows read one id each.
    """
    return _Step(network).session()


def product_session(weight: np.ndarray) -> InferenceSession:
    """The product `y` (R, N) of rows `x` (R, D) with a weight (D, N)."""
    graph = Graph()
    graph.node("MatMul", ["x", graph.constant("weight", weight)], ["y"])
    d, n = weight.shape
    return graph.build([("x", "FLOAT", ["R", d])], [("y", "FLOAT", ["R", n])])


def cache_names(layers: int) -> list[str]:
    """Inputs that are keys and values; the outputs are named `new_` and so."""
    return [f"{kind}_{n}" for n in range(layers) for kind in ("keys", "values")]


class Graph:
    """Nodes and constants as they are laid down."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: dict[str, np.ndarray] = {}

    def constant(self, name: str, values: np.ndarray) -> str:
        """Lay down a tensor; its name."""
        self._constants[name] = np.ascontiguousarray(values)
        return name

    def node(self, kind: str, inputs: Sequence[str], outputs: Sequence[str] = (), **attributes: Any) -> str:
        """Lay down an operator; the name of its first output."""
        from onnx import helper

        outputs = outputs or [f"{len(self._nodes)}"]
        self._nodes.append(helper.make_node(kind, list(inputs), list(outputs), **attributes))
        return outputs[0]

    def build(self, inputs: Sequence[Port], outputs: Sequence[Port]) -> InferenceSession:
        """What computes the graph. Constants are handed over beside it: one file holds 2 GB at most."""
        import onnxruntime
        from onnx import TensorProto, helper

        def ports(side: Sequence[Port]) -> list[Any]:
            return [
                helper.make_tensor_value_info(name, TensorProto.DataType.Value(kind), shape)
                for name, kind, shape in side
            ]

        large = {name: each for name, each in self._constants.items() if each.dtype == np.float32}
        weights = [_declared(name, each, name in large) for name, each in self._constants.items()]
        graph = helper.make_graph(self._nodes, "network", ports(inputs), ports(outputs), weights)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR, producer_name="gpa")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # errors are raised
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(each) for each in large.values()]
        options.add_external_initializers(list(large), values)
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


def _declared(name: str, values: np.ndarray, external: bool) -> Any:
    """A constant in the graph, its numbers elsewhere if `external`."""
    from onnx import TensorProto, numpy_helper

    if not external:
        return numpy_helper.from_array(values, name)
    found = TensorProto(name=name, dims=values.shape, data_type=TensorProto.FLOAT)
    found.data_location = TensorProto.EXTERNAL
    found.external_data.add(key="location", value="weights")
    return found


class _Step(Graph):
    """The layers of a network, laid down."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self._sizes: Sizes = network.sizes
        self._weights = network.state_dict()

    def session(self) -> InferenceSession:
        s = self._sizes
        speeds = 1.0 / (s.rope_theta ** (np.arange(0, s.head_dim, 2, dtype=np.float32) / s.head_dim))
        angles = np.arange(s.max_position_embeddings, dtype=np.float32)[:, None] * speeds.astype(np.float32)
        self.constant("cosines", np.cos(angles))
        self.constant("sines", np.sin(angles))
        x = self.node("Gather", [self._weight("model.embed_tokens.weight"), "ids"])
        for n in range(s.num_hidden_layers):
            x = self._layer(x, n)
        self._norm(x, "model.norm", "hidden")
        shape: list[Any] = ["R", s.num_key_value_heads, "P", s.head_dim]
        caches = cache_names(s.num_hidden_layers)
        inputs: list[Port] = [
            ("ids", "INT64", ["R", "L"]),
            ("lengths", "INT32", ["R"]),
            ("longest", "INT32", []),
        ]
        inputs += [(name, "FLOAT", shape) for name in caches]
        outputs: list[Port] = [("hidden", "FLOAT", ["R", "L", s.hidden_size])]
        outputs += [(f"new_{name}", "FLOAT", shape) for name in caches]
        return self.build(inputs, outputs)

    def _layer(self, x: str, n: int) -> str:
        s, name = self._sizes, f"model.layers.{n}"
        caches = cache_names(s.num_hidden_layers)[2 * n : 2 * n + 2]
        y = self._norm(x, f"{name}.input_layernorm")
        q, k, v = (self._linear(y, f"{name}.self_attn.{part}_proj") for part in "qkv")
        q = self._headed(q, f"{name}.self_attn.q_norm", s.num_attention_heads)
        k = self._headed(k, f"{name}.self_attn.k_norm", s.num_key_value_heads)
        y = self.node(
            "GroupQueryAttention",
            [q, k, v, *caches, "lengths", "longest", "cosines", "sines"],
            [f"{name}.attention", *(f"new_{cache}" for cache in caches)],
            domain=MICROSOFT,
            num_heads=s.num_attention_heads,
            kv_num_heads=s.num_key_value_heads,
            do_rotary=1,
        )
        x = self.node("Add", [x, self._linear(y, f"{name}.self_attn.o_proj")])
        y = self._norm(x, f"{name}.post_attention_layernorm")
        gate, up = (self._linear(y, f"{name}.mlp.{part}_proj") for part in ("gate", "up"))
        gate = self.node("Mul", [gate, self.node("Sigmoid", [gate])])
        return self.node("Add", [x, self._linear(self.node("Mul", [gate, up]), f"{name}.mlp.down_proj")])

    def _headed(self, x: str, norm: str, heads: int) -> str:
        """Every head normalised by itself: (R, L, heads Dh), seen as (R, L, heads, Dh)."""
        apart = self.constant(f"{norm}.apart", np.array([0, 0, heads, self._sizes.head_dim], np.int64))
        joined = self.constant(f"{norm}.joined", np.array([0, 0, heads * self._sizes.head_dim], np.int64))
        return self.node("Reshape", [self._norm(self.node("Reshape", [x, apart]), norm), joined])

    def _norm(self, x: str, name: str, output: str = "") -> str:
        return self.node(
            "SimplifiedLayerNormalization",
            [x, self._weight(f"{name}.weight")],
            [output] if output else (),
            axis=-1,
            epsilon=self._sizes.rms_norm_eps,
        )

    def _linear(self, x: str, name: str) -> str:
        y = self.node("MatMul", [x, self._weight(f"{name}.weight", transposed=True)])
        bias = f"{name}.bias"
        return self.node("Add", [y, self._weight(bias)]) if bias in self._weights else y

    def _weight(self, name: str, transposed: bool = False) -> str:
        weight = self._weights[name].detach().numpy()
        return self.constant(name, weight.T if transposed else weight)
