"""`gpa lab double_codebook EXPORT -o OUT`: a trained codec, or language model, with every code
twice.

Pairs of codes that start almost alike can part where more than before is asked of them (Linde, Buzo, Gray
1980). A language model follows with twice the rows: what it knew of a code it knows of both.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from pathlib import Path

import torch

from gpa import hub
from gpa.codec import trained
from gpa.errors import CheckpointError
from gpa.prompt.vocab import Vocab
from gpa.text.tokenizer import copy_tokenizer

log = logging.getLogger(__name__)
APART = 0.15  # how far either half goes from the code, in mean lengths of a code


def split_codec(export: Path, out: Path, seed: int = 0) -> None:
    """Write the codec export with codes n and n + size in place of code n; its heads stay."""
    sizes = trained.read_config(export).to_dict()
    state = trained.load_network(export).state_dict()
    codes = state["quantizer.codebook.weight"]
    way = torch.randn(codes.shape, generator=torch.Generator().manual_seed(seed))
    way *= APART * codes.norm(dim=1).mean() / way.norm(dim=1, keepdim=True)
    state["quantizer.codebook.weight"] = torch.cat([codes + way, codes - way])
    state["quantizer.cluster_size"] = state["quantizer.cluster_size"].repeat(2)
    sizes["quantizer"]["codebook_size"] *= 2
    hub.write_model(out, state, sizes)
    shutil.copy(export / trained.HEADS, out / trained.HEADS)


def split_lm(export: Path, tokens: Path, out: Path) -> None:
    """Write the language model for the ids of `tokens`, a folder made with the codec that was split.

    CheckpointError unless its vocabulary is the model's with twice the semantic codes.
    """
    old, new = Vocab.from_file(export), Vocab.from_file(tokens)
    wanted = [(b.name, b.size * (2 if b is old.semantic else 1)) for b in old.blocks]
    if wanted != [(b.name, b.size) for b in new.blocks] or set(old.control) != set(new.control):
        raise CheckpointError(f"{tokens}: its ids are not those of {export} with twice the semantic codes")
    source = torch.zeros(new.size, dtype=torch.long)
    for before, after in zip(old.blocks, new.blocks, strict=True):
        source[after.offset : after.offset + after.size] = (
            before.offset + torch.arange(after.size) % before.size
        )
    for name, token_id in new.control.items():
        source[token_id] = old.control[name]
    state = hub.read_state(export)
    rows = {name for name in ("model.embed_tokens.weight", "lm_head.weight") if name in state}
    state = {name: t[source].contiguous() if name in rows else t for name, t in state.items()}
    sizes = hub.read_json(export / "config.json")
    stop = {"eos_token_id": new.stop, "pad_token_id": new.control["pad"], "vocab_size": new.size}
    hub.write_model(out, state, sizes | stop)
    copy_tokenizer(tokens, out)


def main(argv: list[str] | None = None) -> None:
    """`gpa lab double_codebook EXPORT [--tokens TOKENS] -o OUT`."""
    parser = argparse.ArgumentParser(prog="gpa lab double_codebook", description=__doc__)
    parser.add_argument(
        "export", type=Path, help="export folder of a codec; of a language model with --tokens"
    )
    parser.add_argument("--tokens", type=Path, help="token folder made with the codec that was split")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args(argv)
    if args.tokens:
        split_lm(args.export, args.tokens, args.out)
    else:
        split_codec(args.export, args.out)
    log.info("written to %s", args.out)
