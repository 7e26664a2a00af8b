"""A checkpoint that is to learn more tasks: their control tokens behind all ids, and rows of the embedding.

A new row is the mean of what the other tasks' tokens have, so that training starts near them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from gpa import disk, hub
from gpa.errors import UsageError
from gpa.models.gpa import checkpoint_gpa as files
from gpa.models.gpa.configuration_gpa import GPAConfig
from gpa.prompt.formats import InstructFormat
from gpa.prompt.tasks import canonical_task
from gpa.prompt.vocab import TASK_TOKEN, Vocab, read_tokenizer_json

ROWS = ("model.embed_tokens.weight", "lm_head.weight")  # (V, D)


def extend(checkpoint: str | os.PathLike, out: str | os.PathLike, tasks: Sequence[str]) -> Path:
    """Write a copy of a checkpoint that knows more tasks of the table, untrained, and return its directory.

    Recorded outputs and pages stay behind: they tell of another vocabulary. UsageError for a checkpoint whose
    format has no task tokens, or that has the tasks already.
    """
    folder, out = files.find(checkpoint), Path(out)
    config = GPAConfig.read(folder)
    new = [name for name in map(canonical_task, tasks) if name not in config.tasks]
    if config.format != InstructFormat.name or not new:
        state = "it has these tasks" if not new else f"the {config.format} format has no task tokens"
        raise UsageError(f"{folder}: {state}, so there is nothing to add")
    with disk.written_whole(out) as made:
        left = shutil.ignore_patterns(files.GOLDEN, *files.PAGES, "*.safetensors.index.json")
        shutil.copytree(folder, made, dirs_exist_ok=True, ignore=left)
        network = hub.read_json(folder / "config.json")
        first = int(network["vocab_size"])
        known = [i for name, i in Vocab.from_file(folder).control.items() if name.startswith("task_")]
        tensors = {
            name: _longer(name, tensor, known, len(new)) for name, tensor in hub.read_state(folder).items()
        }
        for path in (*made.glob("model*.safetensors"), *made.glob("pytorch_model*")):
            path.unlink()
        save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
        _write(made / "config.json", {**network, "vocab_size": first + len(new)})
        spec = read_tokenizer_json(folder)
        usual = {**spec["added_tokens"][-1], "special": True}
        tokens = [TASK_TOKEN.format(name) for name in new]
        spec["added_tokens"] += [{**usual, "id": first + n, "content": t} for n, t in enumerate(tokens)]
        _write(made / "tokenizer.json", spec)
        prints = {
            "tokenizer": hub.fingerprint_files(made / "tokenizer.json"),
            "vocabulary": Vocab.from_file(made, size=first + len(new)).fingerprint(),
        }
        config = replace(config, tasks=(*config.tasks, *new), fingerprints={**config.fingerprints, **prints})
        config.write(made)
    return out


def _longer(name: str, tensor: Tensor, known: Sequence[int], count: int) -> Tensor:
    if name not in ROWS:
        return tensor
    mean = tensor[list(known)].float().mean(0, keepdim=True).to(tensor.dtype)
    return torch.cat([tensor, mean.expand(count, -1)])


def _write(path: Path, tree: dict) -> None:
    path.write_text(json.dumps(tree, ensure_ascii=False), encoding="utf-8")
