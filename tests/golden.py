"""Weights of the recorded replicas, drawn again from their specs and so not stored.

`draw_weights` follows the rule of the golden data; compact specs and outputs lie in tests/assets.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

ASSETS = Path(__file__).parent / "assets"


def draw_weights(spec_path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors of a `weights_spec.json`, which is {"seed": s, "tensors": {name: [shape, kind, a, b]}}.

    Each is drawn from RandomState((crc32(name) + s) mod 2^32): kind `normal` has mean a and deviation b,
    `uniform` the range [a, b), both float32; `zeros` is float32, `int_zeros` int64.
    """
    spec = json.loads(Path(spec_path).read_text())
    return {
        name: torch.from_numpy(_draw(name, spec["seed"], *what)) for name, what in spec["tensors"].items()
    }


def _draw(name: str, seed: int, shape: list[int], kind: str, a: float, b: float) -> np.ndarray:
    if kind in ("zeros", "int_zeros"):
        return np.zeros(shape, np.int64 if kind == "int_zeros" else np.float32)
    random = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    if kind == "normal":
        return np.asarray(random.standard_normal(shape) * b + a, np.float32)
    if kind == "uniform":
        return np.asarray(random.uniform(a, b, shape), np.float32)
    raise ValueError(f"{name}: kind {kind!r}")
