"""The network while it is trained: transformers' own Qwen3, and what training adds to its loss.

Nothing here is needed to use a checkpoint: inference runs `gpa.engine.network`.

    B rows   L positions   D width   Dh head width
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

from gpa import hub
from gpa.codec.feature_encoder import OLD_NAMES, library_config, library_model
from gpa.engine.network import Network, Sizes
from gpa.errors import CheckpointError, UsageError
from gpa.models.gpa import packed_attention_gpa  # noqa: F401 (makes its attention known by name)

if TYPE_CHECKING:
    from gpa.prompt.vocab import Block, Vocab

Backbone = Qwen3ForCausalLM
ADAPTER = "default"  # what peft calls an adapter that nobody named


def new_backbone(sizes: dict[str, Any], vocab: Vocab) -> Backbone:
    """A network with fresh weights; `sizes` are Qwen3Config fields, ids and vocabulary size come from
    `vocab`.

    UsageError for a size that Qwen3 does not have, or a `vocab_size` (only a plan needs it) unlike `vocab`'s.
    """
    if sizes.get("vocab_size", vocab.size) != vocab.size:
        raise UsageError(f"model.vocab_size is {sizes['vocab_size']}, the tokens have {vocab.size} ids")
    ids: dict[str, Any] = {
        "bos_token_id": None,
        "eos_token_id": vocab.stop,
        "pad_token_id": vocab.control["pad"],
    }
    return Qwen3ForCausalLM(_config({**ids, **sizes, "vocab_size": vocab.size}))


def _config(sizes: dict[str, Any]) -> Qwen3Config:
    """The config of a recipe's sizes; UsageError for unknown and impossible ones."""
    known = sorted(name for name in Qwen3Config.__annotations__ if not name.startswith("_"))
    if unknown := sorted(set(sizes) - {*known, *OLD_NAMES}, key=str):
        raise UsageError(f"model: unknown keys {unknown}; choose from transformers' Qwen3Config: {known}")
    try:
        config = library_config(Qwen3Config, sizes, "model")
        Sizes.read(config.to_dict(), "model")
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    return config


def meta_backbone(sizes: dict[str, Any]) -> Backbone:
    """The network of `sizes`, with its `vocab_size`, on the meta device: shapes without memory."""
    if not isinstance(sizes, dict):
        raise UsageError(f"model: expected a section of keys, got {sizes!r:.80}")
    if "vocab_size" not in sizes:
        raise UsageError("model.vocab_size is missing: without tokens nothing else tells it")
    with torch.device("meta"):
        return Qwen3ForCausalLM(_config(sizes))


@torch.no_grad()
def start_embeddings(model: Backbone, block: Block, vectors: Tensor) -> None:
    """Ids of a block start where the codec's code vectors (V, D) are: ids which sound alike start alike."""
    vectors = (vectors - vectors.mean(0)) / vectors.std()
    mix = torch.randn(vectors.shape[1], model.config.hidden_size) / vectors.shape[1] ** 0.5
    rows = model.model.embed_tokens.weight[block.offset : block.offset + block.size]
    rows.mul_(0.5).add_(vectors @ mix, alpha=model.config.initializer_range)


def load_backbone(path: str | Path) -> Backbone:
    """The float32 network of a Hugging Face directory; CheckpointError for what does not fit."""
    file = Path(path) / "config.json"
    raw = hub.read_json(file)
    Sizes.read(raw, str(file))
    config = library_config(Qwen3Config, raw, str(file))
    network: Backbone = library_model(Qwen3ForCausalLM, config, Path(path))
    return network


def inference_network(lm: Backbone) -> Network:
    """The network that computes the same without gradients, an adapter of peft's folded in.

    Tensors that are float32 and that no adapter changes are shared, not copied.
    """
    state = {}
    for name, tensor in lm.state_dict().items():
        owner, wrapped, leaf = name.partition(".base_layer.")
        if wrapped and leaf == "weight":
            layer: Any = lm.get_submodule(owner)
            tensor = tensor + layer.get_delta_weight(ADAPTER)
        if ".lora_" not in name:
            state[f"{owner}.{leaf}" if wrapped else name] = tensor
    return Network.of(lm.config.to_diff_dict(), state)


def completion_losses(
    model: Backbone, ids: Tensor, labels: Tensor, positions: Tensor, hidden: bool = False
) -> tuple[Tensor, Tensor, Any]:
    """-log P of every id of `labels` (B, L), in their order; where they are predicted (B, L - 1), and hidden
    states if asked for.

    `positions` (B, L) start again with every packed row. There is no mask: such a start ends the row before,
    and causal attention never sees right padding.
    """
    out = model.model(ids, position_ids=positions, use_cache=False, output_hidden_states=hidden)
    at = labels[:, 1:] >= 0  # what has no label is below
    logits = model.lm_head(out.last_hidden_state[:, :-1][at])
    return F.cross_entropy(logits, labels[:, 1:][at], reduction="none"), at, out.hidden_states


def alignment_loss(model: Backbone, hidden: Tensor, positions: Tensor, look: Tensor, layer: int) -> Tensor:
    """-log of the attention that head 0 of `layer` gives to the spans `look` (B, L, 2); rows of (0, 0) are
    left out.

    `hidden` (B, L, D) is the layer's input, `positions` (B, L) start again with every packed row. Queries and
    keys are computed once more, as the library's attention does.
    """
    block = model.model.layers[layer]
    attention, width = block.self_attn, block.self_attn.head_dim
    x = block.input_layernorm(hidden)
    shape = (*x.shape[:2], 1, width)
    q = attention.q_norm(F.linear(x, attention.q_proj.weight[:width]).view(shape)).transpose(
        1, 2
    )  # (B, 1, L, Dh)
    k = attention.k_norm(F.linear(x, attention.k_proj.weight[:width]).view(shape)).transpose(1, 2)
    key = torch.arange(x.shape[1], device=x.device)
    q, k = apply_rotary_pos_emb(q, k, *model.model.rotary_emb(x, positions))
    scores = (q @ k.transpose(2, 3))[:, 0] * attention.scaling  # (B, L, L)
    row = (positions == 0).cumsum(1)  # which row of the sequence
    unseen = (key[None, :] > key[:, None]) | (row[:, None, :] != row[:, :, None])
    scores = scores.masked_fill(unseen, float("-inf"))
    wanted = (key >= look[..., :1]) & (key < look[..., 1:])  # (B, L, L)
    rows = wanted.any(-1)
    if not rows.any():
        return scores.new_zeros(())
    inside = scores[rows].masked_fill(~wanted[rows], float("-inf")).logsumexp(-1)
    return (scores[rows].logsumexp(-1) - inside).mean()
