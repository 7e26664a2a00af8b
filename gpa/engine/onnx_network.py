"""A network made ready to decode on a processor, by onnxruntime: the fast twin of `gpa.engine.packed`.

One graph computes a step of all rows. What it computes for a row depends on that row alone, bit for bit: its
products take the same path for any number of rows, and its attention reads each row's own positions. No
library promises that, so a probe looks (docs/serving.md).

    R rows   M positions   D width   N ids that may be generated
"""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from gpa.engine.cache import Cache
from gpa.engine.onnx_graph import cache_names, product_session, step_session
from gpa.engine.packed import Heads, Past

if TYPE_CHECKING:
    from gpa.engine.network import Network, Sizes

PROBED = 13  # rows in the probe


class OnnxNetwork:
    """The forward pass of a `Network` for decoding, and its head for any choice of ids."""

    kernels = ("onnxruntime",)

    def __init__(self, network: Network) -> None:
        """Of a network in float32 on the CPU, whose weights are copied."""
        self.sizes, self.device, self.dtype = network.sizes, network.device, network.dtype
        self._session = step_session(network)
        self._bindings: WeakKeyDictionary[Cache, tuple[tuple[int, int, int], Any]] = WeakKeyDictionary()
        self._caches = cache_names(self.sizes.num_hidden_layers)
        embedding = network.model.embed_tokens.weight
        unembedding = embedding if self.sizes.tie_word_embeddings else network.lm_head.weight
        self.head = Heads(lambda ids: Product(unembedding[ids]))

    def __call__(self, ids: Tensor, past: Past) -> Tensor:
        """Hidden states (M, D) after ids (M,), normalised."""
        first, end = min(past.rows), max(past.rows) + 1
        if past.rows == list(range(first, end)):
            hidden = self._run(ids.numpy().reshape(len(past.rows), -1), first, past.lengths, past.cache)
            return torch.from_numpy(hidden).flatten(0, 1)
        # Rows between those that read are given an id, too, at a position that is not theirs yet.
        lengths = np.array(past.cache.lengths[first:end]) + 1
        every, places = np.zeros((end - first, 1), np.int64), np.array(past.rows) - first
        lengths[places], every[places, 0] = past.lengths, ids.numpy()
        return torch.from_numpy(self._run(every, first, lengths, past.cache)[places, 0])

    def _run(self, ids: np.ndarray, first: int, lengths: np.ndarray | list[int], cache: Cache) -> np.ndarray:
        """Hidden states (R, L, D) after ids (R, L) of neighbouring rows, whose keys and values stay where
        they are.
        """
        binding = self._bound(first, len(ids), cache)
        binding.bind_cpu_input("ids", ids)
        binding.bind_cpu_input("lengths", np.array(lengths, np.int32) - 1)
        binding.bind_cpu_input("longest", np.array(max(lengths), np.int32))
        binding.bind_output("hidden")
        self._session.run_with_iobinding(binding)
        hidden: np.ndarray = binding.get_outputs()[-1].numpy()
        return hidden

    def _bound(self, first: int, count: int, cache: Cache) -> Any:
        """Where the graph finds and leaves keys and values of rows: looked up anew only if that changes."""
        where = first, count, cache.version
        known, binding = self._bindings.get(cache, (None, None))
        if known != where:
            binding = self._session.io_binding()
            for n, name in enumerate(self._caches):
                rows = (cache.values if n % 2 else cache.keys)[n // 2][first : first + count]
                here = ("cpu", 0, np.float32, list(rows.shape), rows.data_ptr())
                binding.bind_input(name, *here)
                binding.bind_output(f"new_{name}", *here)
            self._bindings[cache] = where, binding
        return binding


class Product:
    """y = x W^T of rows x (R, D) and a weight (N, D)."""

    def __init__(self, weight: Tensor) -> None:
        self._session = product_session(weight.T.numpy())

    def __call__(self, x: Tensor) -> Tensor:
        """(R, D) -> (R, N)."""
        return torch.from_numpy(self._session.run(None, {"x": x.numpy()})[0])


@lru_cache(None)
def is_exact(kind: type[Network], sizes: Sizes, threads: int) -> bool:
    """Whether a row comes out the same alone and with others, by a probe on one layer of random numbers.

    False without onnxruntime, too. `kind` is the class of the network, `threads` are those that torch
    computes with now: the answer is one about them as well.
    """
    config = {**asdict(sizes), "model_type": "qwen3", "num_hidden_layers": 1, "vocab_size": PROBED}
    with torch.random.fork_rng(devices=[]):  # what a module starts with is drawn
        network = kind(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.1, generator=generator)
    try:
        return _rows_are_alike(OnnxNetwork(network))
    except Exception:  # noqa: BLE001 - no package, or one that does not know such sizes
        return False


@torch.inference_mode()
def _rows_are_alike(network: OnnxNetwork) -> bool:
    cache, ids = Cache(network), torch.arange(PROBED)
    for row in cache.take(PROBED):
        count = 9 * (1 + row % 7)
        network(ids[torch.arange(count) % PROBED], cache.prompted(row, count))

    def found(rows: list[int]) -> Tensor:
        hidden = network.head(np.arange(PROBED))(network(ids[rows], cache.extended(rows)))
        for row in rows:
            cache.lengths[row] -= 1
        return hidden

    alone = torch.cat([found([row]) for row in range(PROBED)])
    some = [[*range(begin, end)] for begin, end in ((0, 2), (3, 6), (4, 8), (0, 8), (0, PROBED))]
    return all(torch.equal(found(rows), alone[rows]) for rows in (*some, [1, 3, 4, 9]))
