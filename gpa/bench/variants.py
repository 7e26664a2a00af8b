"""The rows that every variant of `gpa bench train` takes, and how each variant makes batches of them.

Which rows, their wording and their voices are drawn once, from a seed. The variants differ in where the codes
come from (a folder of ids, or the codec when a batch is made) and in how rows share a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

from gpa.data import token_folder
from gpa.data.batches import BatchPlan
from gpa.data.rows import LMBatch, Row, RowBuilder, chosen, collate
from gpa.data.sources import open_source
from gpa.errors import CheckpointError, DataError, UsageError
from gpa.models.gpa import checkpoint_gpa
from gpa.models.gpa.modeling_gpa import Backbone
from gpa.train.families.lm import LMFamily, LMRecipe

if TYPE_CHECKING:
    from gpa.codec.base import LinguisticTokenizer, TokenCodec
    from gpa.data.manifest import Clip, ManifestRow

Maker = Callable[[], LMBatch]


class Pick(NamedTuple):
    """A row to be built: its task, the clip's number, and the seed of its wording and voice."""

    task: str
    clip: int
    seed: tuple[int, ...]


class Given(LMFamily):
    """The recipe's own family, with batches that are put into `makers` instead of drawn.

    `vocab_size` is that of the network where it is larger than the tokens': a shape can be measured on the
    ids of another model. UsageError if it is smaller.
    """

    def __init__(self, recipe: LMRecipe, vocab_size: int = 0) -> None:
        super().__init__(recipe)
        self.makers: Sequence[Maker] = ()
        self.vocab_size = vocab_size or self.vocab.size
        if self.vocab_size < self.vocab.size:
            raise UsageError(f"model.vocab_size is {vocab_size}, the tokens have {self.vocab.size} ids")

    def build(self) -> nn.Module:
        """The network, of `vocab_size` ids."""
        model = super().build()
        if isinstance(model, Backbone) and self.vocab_size > model.config.vocab_size:
            model.resize_token_embeddings(self.vocab_size, mean_resizing=False)
        return model

    def batch(self, step: int) -> LMBatch:
        """Make batch number `step` of those given, now: what that takes belongs to the step."""
        return self.makers[step]()

    def padded(self, rows: list[Row]) -> LMBatch:
        """One row a sequence, padded on the right to the longest."""
        return collate([[row] for row in rows], self.vocab.control["pad"], self.tasks)

    def packed(self, rows: list[Row]) -> LMBatch:
        """As the recipe says: sequences of `data.pack_ids`."""
        return self._collate(rows)


class Rows:
    """Rows drawn as often as the recipe's shares say, from ids and, where there is sound, from a codec.

    With sound, only clips that it has are used; DataError if it has none of them.
    """

    def __init__(self, family: Given, sound: Sound | None) -> None:
        clips, fmt = family.train_rows.clips, family.train_rows.fmt
        self.family, self.live = family, None
        usable = list(range(len(clips)))
        if sound:
            usable = [i for i, clip in enumerate(clips) if (clip["id"], clip["split"]) in sound.found]
            self.live = RowBuilder(LiveClips([clips[i] for i in usable], sound), fmt)
        self.cached = RowBuilder(chosen(clips, usable), fmt)
        number = {i: n for n, i in enumerate(usable)}
        kept = [k for k, (_, i, _) in enumerate(family.items) if i in number]
        self.items = [(family.items[k][0], number[family.items[k][1]]) for k in kept]
        self.lengths = family.plan.lengths[kept]
        weights = family.plan.weights[kept]
        if not weights.sum() > 0:
            raise DataError(
                f"{sound.name if sound else 'the recipe'}: no row has the id and split of a training clip in "
                f"{family.recipe.data.tokens} that is used; give the manifest that the ids were made from"
            )
        self.chances = weights / weights.sum()

    @property
    def mean_length(self) -> float:
        """Ids of a row on average, at most."""
        return float(self.lengths @ self.chances)

    def draw(self, count: int, *seed: int) -> list[tuple[Pick, int]]:
        """Rows in random order, each with the most ids it can have."""
        chosen = np.random.default_rng(seed).choice(len(self.items), count, p=self.chances)
        picks = [Pick(task, clip, (*seed, n)) for n, (task, clip) in enumerate(self.items[k] for k in chosen)]
        return list(zip(picks, self.lengths[chosen].tolist(), strict=True))

    def row(self, pick: Pick) -> Row:
        """A row from the ids in the folder."""
        return self.cached.row(pick.task, pick.clip, np.random.default_rng(pick.seed))

    def live_row(self, pick: Pick) -> Row:
        """The same row, with the codec's ids made now."""
        if self.live is None or not isinstance(self.live.clips, LiveClips):
            raise UsageError("live ids need --audio")
        self.live.clips.forget()
        return self.live.row(pick.task, pick.clip, np.random.default_rng(pick.seed))

    def padded(self, drawn: Sequence[tuple[Pick, int]], size: int, *, live: bool = False) -> list[Maker]:
        """Batches of `size` rows as they come, as the reference has them."""
        row, picks = (self.live_row if live else self.row), [pick for pick, _ in drawn]
        return [self._maker(picks[n : n + size], row, self.family.padded) for n in range(0, len(picks), size)]

    def packed(self, drawn: Sequence[tuple[Pick, int]], *, pack: bool = True) -> list[Maker]:
        """The same rows in the batches of the recipe: of like lengths, under its budget, packed or padded."""
        if not drawn:
            return []
        lengths = np.array([length for _, length in drawn])
        plan = BatchPlan(lengths, self.family.recipe.data.batch_ids, self.family.recipe.train.seed)
        makers: list[Maker] = []
        seen = 0
        while seen < len(drawn):  # one epoch has every row once
            chosen = plan.batch(len(makers))
            together = self.family.packed if pack else self.family.padded
            makers.append(self._maker([drawn[k][0] for k in chosen], self.row, together))
            seen += len(chosen)
        return makers

    @staticmethod
    def _maker(
        picks: list[Pick], row: Callable[[Pick], Row], together: Callable[[list[Row]], LMBatch]
    ) -> Maker:
        return lambda: together([row(pick) for pick in picks])


# Live codec -------------------------------------------------------------------------------------------------


class Sound:
    """Recordings of clips by (id, split), and the codec that makes ids of them."""

    def __init__(
        self, name: str, found: Mapping[tuple[str, str], ManifestRow], codec: TokenCodec,
        glm: LinguisticTokenizer | None = None,
    ) -> None:  # fmt: skip
        self.name, self.found, self.codec, self.glm = name, found, codec, glm

    @classmethod
    def open(
        cls, audio: Path, model: str, tokens: Path, *, device: torch.device, offline: bool = False
    ) -> Sound:
        """Read a manifest, or a folder of recordings, and load a model's codec.

        DataError for a source without rows, CheckpointError if `tokens` was made with another codec.
        """
        source = open_source(audio)
        found = {(row.id, row.split): row for row in source.rows()}
        folder = checkpoint_gpa.find(model, offline=offline)
        codec, glm = checkpoint_gpa.load_parts(folder, device)
        fingerprints = {"codec": codec.fingerprint()} | ({"glm": glm.fingerprint()} if glm else {})
        token_folder.check_fits(tokens, fingerprints)
        return cls(source.name, found, codec, glm)

    def check(self, family: LMFamily) -> None:
        """CheckpointError unless the codec's codes have ids in the family's vocabulary."""
        spec, vocab = self.codec.spec, family.vocab
        pairs = {
            "semantic": (spec.pattern.n_ids, vocab.semantic.size),
            "global": (spec.global_size, vocab.global_.size if vocab.global_ else 0),
        }
        for what, (codes, ids) in pairs.items():
            if codes != ids:
                raise CheckpointError(
                    f"{family.recipe.data.tokens} has {ids} {what} codes, the codec of --model "
                    f"{codes}: give the model whose codec made the ids"
                )

    def clip(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """A stored clip with codes that are made from its recording when they are first read.

        One clip at a time, as the reference does it; further copies stay those of the folder.
        """
        row, rate = self.found[stored["id"], stored["split"]], self.codec.spec.sample_rate
        codes: dict[str, Any] = {
            "semantic": Later(lambda: self.codec.codes((row.audio.wav(rate), rate))),
            "global": Later(lambda: self.codec.voice_codes((_voice(row, stored).wav(rate), rate))),
        }
        target, glm = row.target, self.glm
        if target is not None and len(stored.get("target", ())):
            codes["target"] = Later(lambda: self.codec.codes((target.wav(rate), rate)))
        if glm is not None:
            codes["glm"] = Later(lambda: glm.tokens((row.audio.wav(rate), rate)))
        return {**stored, **codes}


def _voice(row: ManifestRow, stored: Mapping[str, Any]) -> Clip:
    return row.voice if stored.get("task") else row.audio


class LiveClips(Sequence[Mapping[str, Any]]):
    """Stored clips whose codes come from their recordings; a clip is the same until it is forgotten."""

    def __init__(self, stored: Sequence[Mapping[str, Any]], sound: Sound) -> None:
        self.stored, self.sound = stored, sound
        self.made: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, i: Any) -> Any:
        if i >= len(self.stored):
            raise IndexError(i)
        if i not in self.made:
            self.made[i] = self.sound.clip(self.stored[i])
        return self.made[i]

    def forget(self) -> None:
        """Make everything anew from here on."""
        self.made = {}


class Later(Sequence[int]):
    """Codes (T,) that are computed when they are first read, and not at all if nobody reads them."""

    def __init__(self, compute: Callable[[], np.ndarray]) -> None:
        self.compute = compute

    @cached_property
    def codes(self) -> list[int]:
        """The codes."""
        return self.compute().tolist()

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, i: Any) -> Any:
        return self.codes[i]

    def __iter__(self) -> Iterator[int]:
        return iter(self.codes)
