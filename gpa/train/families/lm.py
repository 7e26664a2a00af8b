"""Training the language model on a recipe's tasks: next-token loss on the completion of `prompt.example`.

With little data the hard part is learning where to look. So `alignment` pulls one attention head to the ids
whose letters the codec's CTC alignment hears. Inference is untouched; the network is transformers' Qwen3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from gpa.data import rows, token_folder
from gpa.data.row_plan import Budget, Position, RowPlan, RowStream
from gpa.data.rows import Clips, LMBatch, Noise, Row, RowBuilder, chosen, collate, joined, nearest, pack
from gpa.data.token_folder import TokenSet, read_about
from gpa.errors import CheckpointError, UsageError
from gpa.models.gpa import checkpoint_gpa as files
from gpa.models.gpa.checkpoint_gpa import save_network
from gpa.models.gpa.modeling_gpa import (
    Backbone,
    alignment_loss,
    completion_losses,
    inference_network,
    load_backbone,
    new_backbone,
    start_embeddings,
)
from gpa.prompt.formats import PublishedFormat, get_format
from gpa.prompt.tasks import DEFAULT, TASKS, canonical_task
from gpa.text import pronunciations as pronounce
from gpa.text.tokenizer import TextTokenizer, copy_tokenizer
from gpa.train import adapters
from gpa.train.adapters import AdapterArgs
from gpa.train.arguments import TrainArgs
from gpa.train.families.base import Loss, to_device
from gpa.train.families.speech_samples import SpeechSamples
from gpa.train.families.validation import ValidateArgs, prepare
from gpa.train.optim import OptimArgs
from gpa.train.parts import CheckpointParts, code_vectors
from gpa.train.planning import Shape

if TYPE_CHECKING:
    from gpa.prompt.vocab import Vocab
    from gpa.train.assemble import TrainingFacts
    from gpa.train.samples import Sample

WHOLE, NETWORK = "whole", "network"


@dataclass(frozen=True)
class LMData:
    """Where the ids are and how batches are cut."""

    tokens: str | tuple[str, ...]  # a prepared folder, or several with one tokenizer and codec
    replay: str | tuple[str, ...] = ""  # likewise, of what the model could do before: it then forgets less
    replay_share: float = 0.5  # of all rows drawn
    max_ids: int = 640
    batch_ids: int = 4096
    noise: float = 0.0  # share of speech ids that are seen replaced by random ones
    noise_near: int = 0  # these are drawn among so many codes whose vectors are nearest; 0: among all
    text_noise: float = 0.0  # the same of the pieces that recognition has just written
    drop_text: float = 0.0  # share of speech that is learnt without its text, for guidance of conversion
    pronunciations: str = ""  # dictionary by which speech is asked for; unset: that of `init`, if it has one
    spelt: float = 0.3  # share of texts that stay spelt nevertheless
    dev_rows: int = 64
    shuffle_shards: int = 0  # stream the shards, so many in memory at once and shuffled; 0: all rows
    pack_ids: int = 0  # rows share sequences of this many ids; 0: one row each, padded to the longest

    @property
    def folders(self) -> tuple[Path, ...]:
        """Those of `tokens`."""
        return _paths(self.tokens)

    @property
    def replayed(self) -> tuple[Path, ...]:
        """Those of `replay`."""
        return _paths(self.replay)


@dataclass(frozen=True)
class TaskArgs:
    """How often a clip serves a task per epoch, and the weight of its mean loss; unset: as the table says."""

    share: float | None = None
    weight: float | None = None

    def __post_init__(self) -> None:
        if not all(value is None or value >= 0 for value in (self.share, self.weight)):
            raise UsageError(f"tasks: share={self.share}, weight={self.weight}: at least 0")


@dataclass(frozen=True)
class LMWeights:
    """Loss weight of the alignment loss, on the input of `alignment_layer`; the tasks' are in `tasks`."""

    alignment: float = 0.3
    alignment_layer: int = 2


@dataclass(frozen=True)
class LMRecipe:
    """A language-model recipe; `model` holds Qwen3Config fields, the tokenizer gives the vocabulary size.

    `tasks` are all that is trained, by their names in the table of `gpa.prompt.tasks`.
    """

    data: LMData
    model: dict[str, Any]
    kind: str = "gpa"
    codec: str = ""  # whose ids these are, where the tokens do not say: a checkpoint, its codec/, an export
    init: str = ""  # a checkpoint, or a Hugging Face directory, to start from
    export: str = WHOLE  # a whole checkpoint; "network": the language model alone, for steps that go on
    adapter: AdapterArgs = field(default_factory=AdapterArgs)  # of `init`, which then stays as it is
    format: str = "instruct"  # of the prompts; "published" for a published checkpoint
    tasks: dict[str, TaskArgs] = field(default_factory=lambda: {name: TaskArgs() for name in DEFAULT})
    instructions: rows.InstructionArgs = field(default_factory=rows.InstructionArgs)  # wordings that decide
    train: TrainArgs = field(default_factory=TrainArgs)
    optim: OptimArgs = field(default_factory=OptimArgs)
    weights: LMWeights = field(default_factory=LMWeights)
    validate: ValidateArgs = field(default_factory=ValidateArgs)  # by generation

    def __post_init__(self) -> None:
        found = dict(_resolved(name, args) for name, args in self.tasks.items())
        in_order = {name: found[name] for name in TASKS if name in found}  # whatever the recipe's
        object.__setattr__(self, "tasks", in_order)
        if not any(args.share for args in self.tasks.values()):
            raise UsageError("tasks: no task has a share, so there is nothing to train")
        if not self.data.folders:
            raise UsageError("data.tokens: name a folder of `gpa prepare`")
        if self.data.shuffle_shards and self.data.replayed:
            raise UsageError("data.shuffle_shards: needs data.replay to be empty: a stream has none")


class LMFamily:
    """The language model for the training loop."""

    def __init__(self, recipe: LMRecipe) -> None:
        if recipe.export not in (WHOLE, NETWORK):
            raise UsageError(f"export={recipe.export}: choose {WHOLE} or {NETWORK}")
        self.recipe = recipe
        self.init = files.find(recipe.init) if recipe.init else None
        folder = recipe.data.folders[0]
        self.vocab = token_folder.read_vocab(folder)
        self.at: Position | None = None
        self.shape: Shape | None = None  # of the network that was built
        _check_format(recipe, self.vocab)
        if self.init:
            self._check_fingerprints(self.init)
        self.tasks = tuple(recipe.tasks)
        fmt = get_format(recipe.format, self.vocab, TextTokenizer.from_file(folder), self.tasks)
        sets = [self._read(path) for path in recipe.data.folders]
        self.clips = joined(sets)
        dev = joined([chosen(part, part.held_out().tolist()) for part in sets])
        self.text = fmt.text_tokenizer
        self.parts = CheckpointParts.find(folder, self.init, recipe.codec) if recipe.export == WHOLE else None
        d = recipe.data
        near = self._neighbours(d.noise_near) if d.noise_near else None
        noise = Noise(d.noise, d.text_noise, d.drop_text, d.spelt, near)
        path = _dictionary(d.pronunciations, self.init)
        dictionary = pronounce.Pronunciations.read(path) if path else None
        self.dev = RowBuilder(dev, fmt, dictionary=dictionary)
        shares = {name: args.share or 0.0 for name, args in recipe.tasks.items()}
        budget = Budget(recipe.data.max_ids, recipe.data.batch_ids, recipe.train.seed, shares)

        def plan(clips: Clips, **replay: Any) -> RowPlan:
            return RowPlan(RowBuilder(clips, fmt, noise, dictionary, recipe.instructions), budget, **replay)

        self.source: RowPlan | RowStream
        if recipe.data.shuffle_shards:
            self.source = RowStream(sets, plan, recipe.data.shuffle_shards, recipe.train.seed)
            self.source.draw(0)
            at_hand = self.source.held
            assert at_hand is not None
        else:
            train = joined(map(_training, sets))
            old = [_training(self._read(path)) for path in recipe.data.replayed]
            self.source = at_hand = plan(
                joined([train, *old]), own=len(train), replay_share=recipe.data.replay_share
            )
            at_hand.tell()
        self.train_rows, self.items, self.plan = at_hand.rows, at_hand.items, at_hand.batches
        folders = {"tokens": str(folder), "init": str(self.init or "")}
        self.validation = prepare(recipe.validate, self.dev, recipe.data.max_ids, **folders)
        asked = replace(recipe.validate, rows=recipe.validate.samples)
        self.spoken = SpeechSamples(prepare(asked, self.dev, recipe.data.max_ids, **folders), self.parts)

    def _read(self, folder: Path) -> TokenSet:
        """A folder; CheckpointError if its tokenizer or codec is another than that of the first."""
        first, clips = self.recipe.data.folders[0], TokenSet.open(folder)
        if token_folder.read_vocab(folder).tokens_digest != self.vocab.tokens_digest:
            raise CheckpointError(f"{folder}: its ids are not those of {first}")
        made, codec = (about["fingerprints"].get("codec") for about in (clips.about, read_about(first)))
        if made != codec:
            raise CheckpointError(f"{folder}: its ids are of another codec than those of {first}")
        return clips

    def build(self) -> nn.Module:
        w = self.recipe.weights
        if self.recipe.adapter.rank and (w.alignment or not self.recipe.init):
            raise UsageError("an adapter needs a model in `init`, and weights.alignment=0")
        model = self._start()
        if w.alignment and w.alignment_layer >= model.config.num_hidden_layers:
            raise UsageError(
                f"weights.alignment_layer={w.alignment_layer}: the network has only "
                f"{model.config.num_hidden_layers} layers; weights.alignment=0 does without"
            )
        self.shape = None if self.recipe.adapter.rank else Shape.of(model)  # what is frozen costs less
        if self.recipe.adapter.rank:
            adapters.attach(model, self.recipe.adapter)
        return model

    def _start(self) -> Backbone:
        if self.init:
            model = load_backbone(self.init)
            if model.config.vocab_size != self.vocab.size:
                raise CheckpointError(
                    f"{self.recipe.init}: {model.config.vocab_size} ids, "
                    f"{self.recipe.data.tokens} has {self.vocab.size}"
                )
            return model
        model = new_backbone(self.recipe.model, self.vocab)
        if self._code_vectors is not None:
            start_embeddings(model, self.vocab.semantic, self._code_vectors)
        return model

    @cached_property
    def _code_vectors(self) -> Tensor | None:
        return code_vectors(self.parts, self.recipe.codec, self.vocab.semantic.size)

    def _neighbours(self, count: int) -> np.ndarray:
        if self._code_vectors is None or not 0 < count < len(self._code_vectors):
            raise UsageError(
                f"data.noise_near={count}: needs a known codec whose codes have vectors, and more codes"
            )
        return nearest(self._code_vectors, count)

    def _check_fingerprints(self, init: Path) -> None:
        """Ids of another codec or tokenizer than the model's own would be noise to it."""
        known = files.fingerprints(init)
        for folder in (*self.recipe.data.folders, *self.recipe.data.replayed):
            if known:
                token_folder.check_fits(folder, known)

    def parameters(self, module: nn.Module) -> dict[str, list[nn.Parameter]]:
        return {"model": [p for p in module.parameters() if p.requires_grad]}

    def batch(self, step: int) -> LMBatch:
        rng = np.random.default_rng((self.recipe.train.seed, 2, step))
        builder, items, at = self.source.draw(step)
        return replace(self._collate([builder.row(task, i, rng) for task, i, _ in items]), at=at)

    def position(self) -> dict[str, int]:
        """Where the stream had the rows of the last loss, nothing for a plan of all rows."""
        return asdict(self.at) if self.at else {}

    def seek(self, position: Mapping[str, int]) -> None:
        """Go where a stream stood, without reading what is before."""
        if isinstance(self.source, RowStream):
            self.source.seek(Position(**position))

    def _collate(self, rows: list[Row]) -> LMBatch:
        size = self.recipe.data.pack_ids
        sequences = pack(rows, size) if size else [[row] for row in rows]
        return collate(sequences, self.vocab.control["pad"], self.tasks)

    def losses(self, module: nn.Module, batch: LMBatch, step: int) -> Iterator[Loss]:
        self.at = batch.at
        value, metrics = self._loss(module, batch)
        yield Loss("model", value, metrics)

    def _loss(self, module: nn.Module, batch: LMBatch) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(module, Backbone)
        w = self.recipe.weights
        nll, at, states = completion_losses(module, batch.ids, batch.labels, batch.positions, True)
        task = batch.task[:, 1:][at]
        total, metrics = nll.new_zeros(()), {}
        for n, (name, args) in enumerate(self.recipe.tasks.items()):
            if (mine := task == n).any():
                mean = nll[mine].mean()
                total = total + (args.weight or 0.0) * mean * mine.float().mean() ** 0.5
                metrics[name] = mean.item()
        if w.alignment:
            layer, hidden = w.alignment_layer, states[w.alignment_layer]
            aligned = alignment_loss(module, hidden, batch.positions, batch.look, layer)
            total = total + w.alignment * aligned
            metrics["alignment"] = aligned.item()
        metrics |= {f"tokens/{name}": int((task == n).sum()) for n, name in enumerate(self.tasks)}
        metrics |= {"tokens": batch.real, "positions": batch.ids.numel()}
        return total, metrics | ({"flops": self.shape.flops(batch.real, batch.squares)} if self.shape else {})

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        assert isinstance(module, Backbone)
        sums: dict[str, list[float]] = {}
        device = next(module.parameters()).device
        rng = np.random.default_rng(0)
        for i in range(0, len(self.dev.clips), max(1, len(self.dev.clips) // self.recipe.data.dev_rows)):
            for task in self.tasks:
                if self.dev.length(task, i) <= self.recipe.data.max_ids:
                    batch = to_device(self._collate([self.dev.row(task, i, rng)]), device)
                    _, metrics = self._loss(module, batch)
                    sums.setdefault(task, []).append(metrics[task])
                    sums.setdefault("alignment", []).append(metrics.get("alignment", 0.0))
        losses = {name: float(np.mean(values)) for name, values in sums.items()}
        return losses | (self.validation(inference_network(module)) if self.validation else {})

    def sound_samples(self, module: nn.Module) -> list[Sample]:
        assert isinstance(module, Backbone)
        return self.spoken(inference_network(module))

    def export(self, module: nn.Module, path: Path) -> None:
        """Write what `GPA.from_pretrained` loads, or the bare network; an adapter folded in and beside it."""
        assert isinstance(module, Backbone)
        network = inference_network(module)

        def save_adapter(folder: Path) -> None:
            if self.recipe.adapter.rank:
                adapters.save(module, self.recipe.init, folder / adapters.FOLDER)

        if self.parts is not None:
            from gpa.train import assemble  # the whole of inference, which only the end of a run needs

            return assemble.write(network, path, self.parts, self._facts(), save_adapter, module.dtype)
        from gpa import disk

        with disk.written_whole(path, overwrite=True) as folder:
            save_network(network, folder, module.dtype)
            copy_tokenizer(self.recipe.data.folders[0], folder)
            save_adapter(folder)

    def _facts(self) -> TrainingFacts:
        from gpa import config
        from gpa.train.assemble import TrainingFacts

        r = self.recipe
        return TrainingFacts(
            self.clips,
            r.data.folders[0],
            r.format,
            config.dump(r),
            tasks=self.tasks,
            init=self.init,
            speech=r.validate.speech,
            guided=r.data.drop_text > 0,
            instructed=r.instructions.free > 0,
            pronunciations=r.data.pronunciations,
        )


def _dictionary(stated: str, init: Path | None) -> Path | None:
    """The file by which speech is asked for, as afterwards: the one that is stated, or that of `init`."""
    own = init / pronounce.FILE if init else None
    return Path(stated) if stated else own if own and own.is_file() else None


def _paths(names: str | tuple[str, ...]) -> tuple[Path, ...]:
    return tuple(map(Path, filter(None, (names,) if isinstance(names, str) else names)))


def _training(part: TokenSet) -> Clips:
    """Rows of training splits."""
    return chosen(part, part.training().tolist())


def _resolved(name: str, args: TaskArgs) -> tuple[str, TaskArgs]:
    """A task of a recipe, under its own name and with the table's numbers where the recipe has none."""
    task = TASKS[canonical_task(name)]
    share = task.share if args.share is None else args.share
    return task.name, TaskArgs(share, task.weight if args.weight is None else args.weight)


def _check_format(recipe: LMRecipe, vocab: Vocab) -> None:
    """UsageError, with the setting to change, for tokens or weights that do not suit the recipe's format."""
    folder, name = recipe.data.folders[0], recipe.format
    made = read_about(folder)["format"]
    if made != name:
        raise UsageError(
            f"{folder}: prepared for the {made} format, the recipe has {name}: set format={made}"
        )
    if name != PublishedFormat.name:
        return
    if vocab.glm is None:
        raise UsageError(
            f"{folder}: has no linguistic (GLM) codes, which recognition in the published format reads; "
            f"prepare it for a published checkpoint:  {token_folder.COMMAND} {folder} --model PUBLISHED"
        )
    if recipe.weights.alignment:
        raise UsageError(
            f"weights.alignment={recipe.weights.alignment:g}: published models were trained without, and "
            "their rows do not say when a letter is spoken; set weights.alignment=0"
        )
