"""Direct preference optimisation of the language model (DPO, Rafailov et al. 2023) on pairs of its own takes.

Of two completions of one prompt the better one should gain probability over the worse one, measured against
the checkpoint that spoke them both. That reference is frozen, so `gpa pairs` has written down how likely it
found each take, and no second network is in memory. `init` has to be that checkpoint.

    P pairs   R rows, two a pair   B sequences   L positions
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpa.data import preferences
from gpa.data.batches import BatchPlan
from gpa.data.preferences import Pair
from gpa.data.rows import LMBatch, Row, collate, pack
from gpa.errors import DataError, UsageError
from gpa.models.gpa.modeling_gpa import Backbone, completion_losses, inference_network, load_backbone
from gpa.prompt.tasks import IGNORE, TTS
from gpa.train import adapters
from gpa.train.adapters import AdapterArgs
from gpa.train.arguments import TrainArgs
from gpa.train.families.base import Loss, to_device
from gpa.train.optim import OptimArgs

if TYPE_CHECKING:
    from gpa.train.corpus_statistics import Clip


@dataclass(frozen=True)
class PreferenceData:
    """Where the pairs are and how batches are cut."""

    pairs: str  # a folder of `gpa pairs`
    batch_ids: int = 4096  # of the rows of a batch, prompts and padding included
    pack_ids: int = 0  # rows share sequences of this many ids; 0: one row each, padded to the longest


@dataclass(frozen=True)
class PreferenceRecipe:
    """A preference recipe: `init` is the checkpoint that spoke the pairs."""

    data: PreferenceData
    init: str
    kind: str = "dpo"
    beta: float = 0.1  # how dearly distance from `init` is bought: the smaller, the farther it may go
    label_smoothing: float = 0.0  # chance that a judge took the worse take for the better one
    adapter: AdapterArgs = field(default_factory=AdapterArgs)  # of `init`, which then stays as it is
    train: TrainArgs = field(default_factory=TrainArgs)
    optim: OptimArgs = field(default_factory=OptimArgs)

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise UsageError(f"beta={self.beta:g}: above 0, such as 0.1")
        if not 0 <= self.label_smoothing < 0.5:
            raise UsageError(f"label_smoothing={self.label_smoothing:g}: at least 0 and below 0.5")


@dataclass(kw_only=True)
class PreferenceBatch(LMBatch):
    """Rows of takes: numbers (P, 2) of the better and the worse row of each pair, counted through the
    sequences, and their log-probabilities (P, 2) under the reference.
    """

    takes: Tensor
    reference: Tensor


class PreferenceFamily:
    """The language model and its pairs, for the training loop."""

    def __init__(self, recipe: PreferenceRecipe) -> None:
        from gpa.models.gpa import GPA, checkpoint_gpa  # here: of inference the prompts are needed, once

        self.recipe, self.init = recipe, checkpoint_gpa.find(recipe.init)
        processor = GPA.from_pretrained(self.init, device="cpu", threads=0).processor
        self.format, self.vocab, self.text = processor.format, processor.vocab, processor.text_tokenizer
        self.tasks = (TTS.name,)
        prints = {**processor.fingerprints(), "network": checkpoint_gpa.network_fingerprint(self.init)}
        folder = Path(recipe.data.pairs)
        self.pairs = preferences.read(folder, self.format, prints)
        self.train = [pair for pair in self.pairs if pair.split != "dev"]
        self.dev = [pair for pair in self.pairs if pair.split == "dev"]
        longest = [2 * max(len(row.ids) for row in rows(pair)) for pair in self.train]
        if not longest:
            raise DataError(f"{folder}: no pair to train on; {preferences.REMEDY}")
        self.plan = BatchPlan(np.array(longest), recipe.data.batch_ids, recipe.train.seed)

    def build(self) -> nn.Module:
        model = load_backbone(self.init)
        if self.recipe.adapter.rank:
            adapters.attach(model, self.recipe.adapter)
        return model

    def parameters(self, module: nn.Module) -> dict[str, list[nn.Parameter]]:
        return {"model": [p for p in module.parameters() if p.requires_grad]}

    def batch(self, step: int) -> PreferenceBatch:
        return self._collate([self.train[i] for i in self.plan.batch(step)])

    def _collate(self, pairs: Sequence[Pair]) -> PreferenceBatch:
        return collated(pairs, self.vocab.control["pad"], self.recipe.data.pack_ids)

    def losses(self, module: nn.Module, batch: PreferenceBatch, step: int) -> Iterator[Loss]:
        value, metrics = self._loss(module, batch)
        yield Loss("model", value, metrics | {"tokens": batch.real, "positions": batch.ids.numel()})

    def _loss(self, module: nn.Module, batch: PreferenceBatch) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(module, Backbone)
        gained = log_probs(module, batch)[batch.takes] - batch.reference  # (P, 2)
        value = preference_loss(gained, self.recipe.beta, self.recipe.label_smoothing)
        better, worse = (self.recipe.beta * gained.detach()).unbind(1)
        told = {"margin": better - worse, "better": better, "worse": worse}
        told["accuracy"] = (better > worse).float()
        return value, {"loss": value.item(), **{name: part.mean().item() for name, part in told.items()}}

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        device = next(module.parameters()).device
        batches = (to_device(self._collate([pair]), device) for pair in self.dev)
        rows = [self._loss(module, batch)[1] for batch in batches]
        return {name: float(np.mean([row[name] for row in rows])) for name in (rows[0] if rows else ())}

    def export(self, module: nn.Module, path: Path) -> None:
        """Write what `GPA.from_pretrained` loads: `init` with other weights, with any adapter folded in."""
        assert isinstance(module, Backbone)
        from gpa import config  # and the rest: what only the end of a run needs
        from gpa.train import assemble, parts

        clips: list[Clip] = [self._clip(pair) for pair in self.pairs]
        facts = assemble.TrainingFacts(
            clips, self.init, self.format.name, config.dump(self.recipe), self.tasks, self.init
        )

        def save_adapter(folder: Path) -> None:
            if self.recipe.adapter.rank:
                adapters.save(module, self.recipe.init, folder / adapters.FOLDER)

        beside = parts.CheckpointParts(self.init)
        assemble.write(inference_network(module), path, beside, facts, save_adapter, module.dtype)

    def _clip(self, pair: Pair) -> dict[str, Any]:
        """A better take as a row of a corpus, for the card and the recorded outputs."""
        said = self.format.parse([*pair.prompt, *pair.better])
        made = {"semantic": said.target, "global": said.global_, "licence": "spoken by the model itself"}
        return {"id": pair.id, "split": pair.split, "speaker": pair.voice, "text": pair.text, **made}


def rows(pair: Pair) -> list[Row]:
    """The better take behind its prompt, and the worse one; only takes have labels."""
    made = []
    for take in (pair.better, pair.worse):
        ids = np.array([*pair.prompt, *take])
        labels = np.where(np.arange(len(ids)) < len(pair.prompt), IGNORE, ids)
        made.append(Row(TTS.name, ids, labels, np.zeros((len(ids), 2), np.int64)))
    return made


def collated(pairs: Sequence[Pair], pad: int, size: int = 0) -> PreferenceBatch:
    """Pairs as a batch: padded rows, or rows that share sequences of `size` ids."""
    made = [row for pair in pairs for row in rows(pair)]
    sequences = pack(made, size) if size else [[row] for row in made]
    place = {id(row): n for n, row in enumerate(row for several in sequences for row in several)}
    return PreferenceBatch(
        **vars(collate(sequences, pad, (TTS.name,))),
        takes=torch.tensor([place[id(row)] for row in made]).view(-1, 2),
        reference=torch.tensor([pair.reference for pair in pairs]),
    )


def log_probs(module: Backbone, batch: LMBatch) -> Tensor:
    """log P (R,) of what each row answers, given its prompt; rows are counted through the sequences."""
    nll, at, _ = completion_losses(module, batch.ids, batch.labels, batch.positions)
    row = (batch.positions == 0).flatten().cumsum(0).view_as(batch.ids) - 1  # (B, L): whose position this is
    return nll.new_zeros(int(row.max()) + 1).index_add(0, row[:, 1:][at], -nll)


def preference_loss(gained: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Mean loss of pairs, of the log-probability (P, 2) that their better and worse takes gained over the
    reference.

    Equation 7 of the paper; with smoothing, conservative DPO (Mitchell 2023), as TRL's `label_smoothing`.
    """
    margin = beta * (gained[:, 0] - gained[:, 1])
    return -((1 - label_smoothing) * F.logsigmoid(margin) + label_smoothing * F.logsigmoid(-margin)).mean()
