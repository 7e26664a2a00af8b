"""Training a CTC network on cached features: clean, degraded and invented copies of every clip.

What is learnt by heart is the danger, with hours of speech instead of thousands: features are masked in
stretches of time and by channels (SpecAugment, Park et al. 2019, on features instead of mel bands).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gpa.codec.ctc import CTCConfig, CTCNetwork, letter_loss
from gpa.config import Share
from gpa.data.batches import BatchPlan
from gpa.data.feature_cache import FeatureCache
from gpa.errors import UsageError
from gpa.text.edit_distance import edits
from gpa.text.letters import LETTERS, letter_targets, spelt, spelt_by
from gpa.train.arguments import TrainArgs
from gpa.train.families.base import Loss, to_device
from gpa.train.optim import OptimArgs


@dataclass(frozen=True)
class CTCData:
    """Feature caches as the codec's recipes name them, and how features are masked.

    A clip without `text` is read by its `machine_text`, a column with another recogniser's transcript; one
    with neither is left out. `masks` stretches of up to `mask_frames` are hidden of every clip, and
    `mask_channels` of the channels.
    """

    cache: str
    degraded: str = ""
    degraded_share: Share = 0.5
    train: tuple[str, ...] = ("train", "train-notext", "train-synthetic", "invented")
    dev: tuple[str, ...] = ("dev-many",)
    machine_text: str = "text_whisper_tiny_en"
    max_frames: int = 1000
    batch_frames: int = 3000
    masks: int = 4
    mask_frames: int = 30
    mask_channels: Share = 0.1


@dataclass(frozen=True)
class CTCRecipe:
    """Letters from the features that a codec's encoder gives."""

    data: CTCData
    model: dict[str, Any] = field(default_factory=dict)  # CTCConfig; empty: that of `init`
    kind: str = "ctc"
    init: str = ""  # an exported network to start from: an export, or codec/ctc of a checkpoint
    train: TrainArgs = field(default_factory=TrainArgs)
    optim: OptimArgs = field(default_factory=OptimArgs)


@dataclass
class CTCBatch:
    """Features (B, C, T) and their lengths; which times (B, 1, T) and channels (B, C, 1) are seen, 1 or 0;
    the letters of all clips, joined.
    """

    features: Tensor
    frames: Tensor
    times: Tensor
    channels: Tensor
    targets: Tensor
    target_lengths: Tensor


class CTCFamily:
    """The CTC network for the training loop."""

    def __init__(self, recipe: CTCRecipe) -> None:
        self.recipe, data = recipe, recipe.data
        if recipe.model and recipe.init:
            raise UsageError("init: its network brings its own sizes; add model={}")
        if not recipe.model and not recipe.init:
            raise UsageError("a ctc recipe needs the sizes in `model`, or a network to go on from in `init`")
        self.config = self._start().config if recipe.init else CTCConfig.from_dict(recipe.model)
        if self.config.classes != len(LETTERS) + 1:
            raise UsageError(f"classes: {len(LETTERS) + 1}, the letters and the blank")
        self.cache = FeatureCache(data.cache)
        self.degraded = self.cache.degraded(data.degraded) if data.degraded else None
        self.targets = {i: letter_targets(self._text(row)) for i, row in enumerate(self.cache.rows)}
        self.rows, self.dev_rows = self._fit(data.train), self._fit(data.dev)
        lengths = np.array([self.cache.rows[i]["frames"] for i in self.rows])
        self.plan = BatchPlan(lengths, data.batch_frames, recipe.train.seed)

    def _text(self, row: dict[str, Any]) -> str:
        return row.get("text") or row.get(self.recipe.data.machine_text) or ""

    def _fit(self, splits: tuple[str, ...]) -> list[int]:
        """Rows of splits whose letters are known and fit into their frames."""
        most, ratio = self.recipe.data.max_frames, self.config.ratio
        frames = {i: self.cache.rows[i]["frames"] for i in self.cache.select(splits)}
        return [i for i, n in frames.items() if n <= most and 0 < len(self.targets[i]) <= n // ratio]

    def build(self) -> nn.Module:
        if self.recipe.init:
            return self._start()
        network = CTCNetwork(self.config)
        rng = np.random.default_rng(self.recipe.train.seed)
        some = rng.choice(self.rows, min(64, len(self.rows)), replace=False)
        mean, scale = self.cache.scaling(map(int, some))
        network.feature_mean.copy_(mean)
        network.feature_scale.copy_(scale)
        return network

    def _start(self) -> CTCNetwork:
        return CTCNetwork.from_pretrained(self.recipe.init).train()

    def parameters(self, module: nn.Module) -> dict[str, list[nn.Parameter]]:
        return {"ctc": list(module.parameters())}

    def batch(self, step: int) -> CTCBatch:
        rng = np.random.default_rng((self.recipe.train.seed, 1, step))
        return self._collate([self.rows[i] for i in self.plan.batch(step)], rng)

    def _collate(self, rows: list[int], rng: np.random.Generator | None = None) -> CTCBatch:
        """Rows as one batch; with a generator as in training, degraded and masked."""
        data, cache = self.recipe.data, self.cache
        frames = [cache.rows[i]["frames"] for i in rows]
        size = self.config.input_channels
        features = np.zeros((len(rows), max(frames), size), np.float32)
        times = np.zeros((len(rows), max(frames)), np.float32)
        channels = np.ones((len(rows), size), np.float32)
        for n, (i, length) in enumerate(zip(rows, frames, strict=True)):
            times[n, :length] = 1.0
            if rng is None:
                features[n, :length] = cache.features(i)
                continue
            features[n, :length] = cache.heard(i, self.degraded, data.degraded_share, rng)
            self._mask(times[n, :length], rng)
            channels[n] = rng.random(size) >= data.mask_channels
        return CTCBatch(
            features=torch.from_numpy(features).transpose(1, 2),
            frames=torch.tensor(frames),
            times=torch.from_numpy(times)[:, None],
            channels=torch.from_numpy(channels)[..., None],
            targets=torch.tensor([c for i in rows for c in self.targets[i]]),
            target_lengths=torch.tensor([len(self.targets[i]) for i in rows]),
        )

    def _mask(self, times: np.ndarray, rng: np.random.Generator) -> None:
        """Hide stretches of a clip (T,)."""
        for _ in range(self.recipe.data.masks):
            length = int(rng.integers(0, self.recipe.data.mask_frames + 1))
            begin = int(rng.integers(0, max(1, len(times) - length)))
            times[begin : begin + length] = 0.0

    def _log_probs(self, module: nn.Module, batch: CTCBatch) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, L, V) and how many frames of each clip they are."""
        assert isinstance(module, CTCNetwork)
        x = module.standardised(batch.features) * batch.times * batch.channels
        return module.read(x), batch.frames // self.config.ratio

    def losses(self, module: nn.Module, batch: CTCBatch, step: int) -> Iterator[Loss]:
        log_probs, lengths = self._log_probs(module, batch)
        loss = letter_loss(log_probs, lengths, batch.targets, batch.target_lengths)
        metrics = {"ctc": loss.item(), "frames": float(batch.frames.sum())}
        yield Loss("ctc", loss, {**metrics, "positions": float(batch.features[:, 0].numel())})

    @torch.no_grad()
    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Nats a letter, and shares of wrong letters and words of the likeliest path, over held-out clips."""
        nats, letters = 0.0, 0
        wrong = {"letters": [0, 0], "words": [0, 0]}
        device = next(module.parameters()).device
        for i in self.dev_rows:
            batch = to_device(self._collate([i]), device)
            log_probs, lengths = self._log_probs(module, batch)
            count = len(self.targets[i])
            loss = letter_loss(log_probs, lengths, batch.targets, batch.target_lengths)
            nats, letters = nats + loss.item() * count, letters + count
            said, heard = spelt(self.targets[i]), spelt_by(log_probs[0].argmax(-1).tolist())
            for name, (a, b) in {"letters": (said, heard), "words": (said.split(), heard.split())}.items():
                wrong[name][0] += edits(a, b)
                wrong[name][1] += len(a)
        shares = {f"wrong_{name}": errors / max(1, of) for name, (errors, of) in wrong.items()}
        return {"ctc": nats / max(1, letters), **shares} if self.dev_rows else {}

    def export(self, module: nn.Module, path: Path) -> None:
        assert isinstance(module, CTCNetwork)
        module.save_pretrained(path)
