"""Random networks of a few thousand weights: transformers' own, and ours with the same weights."""

from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from gpa.engine.network import Network
from gpa.models.gpa.modeling_gpa import inference_network

SIZE, CONTEXT = 60, 64
SIZES: dict[str, Any] = {
    "vocab_size": SIZE,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 24,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.5,
}


def reference(**changes: Any) -> Qwen3ForCausalLM:
    """Transformers' network, always with the same weights."""
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**{**SIZES, **changes})).eval()


def network(**changes: Any) -> Network:
    """Ours with the weights of `reference`."""
    return inference_network(reference(**changes))
