"""A trial of another engine on this machine: a network of random weights, written for it and asked once."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from gpa.engine.backends import find_engine
from gpa.engine.backends.export_gguf import export_gguf
from gpa.engine.network import Network
from gpa.engine.request import Request, Rules
from gpa.engine.scheduler import Engine


def same_ids() -> bool:
    """Whether llama.cpp completes a prompt as our engine does. MissingExtraError without it."""
    sizes = dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings"), 64)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "num_hidden_layers": 1}
    network = Network({"model_type": "qwen3", **sizes, **heads}).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3, generator=generator)
    asked = [Request([1, 2, 3], Rules(4, frozenset({63})))]
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "trial.gguf"
        export_gguf(network, where, "f32")
        made = find_engine(f"llamacpp:{where}", network)().generate(asked)
    return made == Engine(network).generate(asked)
