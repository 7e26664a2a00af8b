"""`gpa train --dry-run`: what a run would do, from its real data, without a step and without a run folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gpa import config
from gpa.data.rows import LMBatch
from gpa.models.gpa.modeling_gpa import Backbone, meta_backbone
from gpa.prompt.tasks import IGNORE
from gpa.train.planning import GIB, Shape

if TYPE_CHECKING:
    from gpa.prompt.vocab import Vocab
    from gpa.text.tokenizer import TextTokenizer
    from gpa.train.arguments import TrainArgs
    from gpa.train.families.base import Family


def lines(family: Family, recipe: Any, world: int) -> Iterator[str]:
    """Resolved recipe, steps, memory of each of `world` processes, and the first batch, for people."""
    yield from ("the recipe, resolved:", "", *config.dump(recipe).splitlines(), "")
    args: TrainArgs = recipe.train
    world = args.world or world
    yield (
        f"steps: {args.steps}, each of {world * args.accumulate} micro-batches ({world} processes x "
        f"{args.accumulate}); held-out metrics every {args.eval_every}, a checkpoint every {args.save_every}"
    )
    batch = family.batch(0)
    yield from _memory(family, recipe, world, batch)
    yield from ("", "the first batch:")
    yield from _rows(batch, family) if isinstance(batch, LMBatch) else _tensors(batch, "")


def _memory(family: Any, recipe: Any, world: int, batch: Any) -> Iterator[str]:
    """The planner's arithmetic where it knows the network, else what AdamW holds."""
    fresh = isinstance(batch, LMBatch) and not family.init
    module = meta_backbone({**recipe.model, "vocab_size": family.vocab.size}) if fresh else family.build()
    held = sum(p.numel() for p in module.parameters())
    trained = held if fresh else sum(p.numel() for ps in family.parameters(module).values() for p in ps)
    yield f"parameters: {held:,}, {trained:,} of them trained"
    if isinstance(batch, LMBatch) and isinstance(module, Backbone) and trained == held:
        shape, args = Shape.of(module), recipe.train
        state = shape.state_bytes(3 if args.fsdp else args.zero, world)
        kind = "FSDP2" if args.fsdp else f"ZeRO stage {args.zero}"
        kept = shape.activation_bytes(batch.ids.numel(), args.gradient_checkpointing)
        yield (
            f"memory of a process, {kind}: {_size(state + kept)}: weights, gradients and "
            f"AdamW {_size(state)}, activations of {batch.ids.numel():,} ids {_size(kept)} (planned for "
            "bf16; fp32 keeps up to twice the activations)"
        )
    else:
        state = 16.0 * trained + 4.0 * (held - trained)
        yield f"memory of a process: {_size(state)} for weights, gradients and AdamW; activations come on top"


def _size(count: float) -> str:
    return f"{count / GIB:.2f} GiB" if count > 0.1 * GIB else f"{count / 2**20:.1f} MiB"


def _rows(batch: LMBatch, family: Any) -> Iterator[str]:
    """Every row: its task, how many ids, and the ids as words and counts; `=>` is where it has to answer."""
    pad, padded = family.vocab.control["pad"], batch.ids.numel()
    yield f"  {len(batch.ids)} sequences, {batch.real:,} ids and {padded - batch.real:,} of padding"
    for ids, labels, task, positions in zip(
        batch.ids, batch.labels, batch.task, batch.positions, strict=True
    ):
        starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
        for begin, end in zip(starts, starts[1:], strict=False):
            while int(ids[end - 1]) == pad:
                end -= 1
            asked = int((labels[begin:end] != IGNORE).int().argmax())
            name = family.tasks[int(task[begin:end].max())]
            row = ids[begin:end].tolist()
            yield f"  {name}, {len(row)} ids, {len(row) - asked} of them to be answered"
            shown = (words(part, family.vocab, family.text) for part in (row[:asked], row[asked:]))
            yield "    " + " => ".join(shown)


def words(ids: list[int], vocab: Vocab, text: TextTokenizer) -> str:
    """Ids as what they mean: text in quotes, control tokens by name, codes by their kind and number."""
    names = {token: name for name, token in vocab.control.items()}

    def kind(token: int) -> str:
        block = next((block.name for block in vocab.blocks if token in block), "unnamed")
        return f"<{names[token]}>" if token in names else block

    parts = ((name, list(run)) for name, run in groupby(ids, kind))
    return " ".join(
        repr(text.decode(run))
        if name == vocab.text.name
        else name
        if name[0] == "<"
        else f"{name} x {len(run)}"
        for name, run in parts
    )


def _tensors(value: Any, name: str) -> Iterator[str]:
    """Name, shape and type of every tensor in a batch."""
    if isinstance(value, Tensor):
        yield f"  {name.lstrip('.')} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
        return
    if dataclasses.is_dataclass(value):
        value = vars(value)
    elif isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    for key, part in value.items() if isinstance(value, Mapping) else ():
        yield from _tensors(part, f"{name}.{key}")
