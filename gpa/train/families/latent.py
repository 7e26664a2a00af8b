"""Training a latent codec: reconstruction of clean and degraded speech through latents of limited
information.

Whatever the encoder is given is also what the decoder must give back, noise and room included: a model that
diffuses these latents reads its noisy source in them. The decoder's pitch is always that of the clean speech.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gpa import hub
from gpa.codec.discriminators import Discriminators
from gpa.codec.feature_encoder import FRAME
from gpa.codec.kl import KLCodec, LatentConfig, LatentModel, kl
from gpa.codec.losses import ASRFeatureDistance, MelDistance
from gpa.config import build
from gpa.data.augment import DegradeArgs, Degrader
from gpa.data.feature_cache import FeatureCache
from gpa.errors import UsageError
from gpa.train.arguments import TrainArgs
from gpa.train.families.base import Loss, to_device
from gpa.train.families.reconstruction import contest, drawn
from gpa.train.optim import OptimArgs

MEASURED = 8  # batches from which the statistics of the latents are taken


@dataclass(frozen=True)
class LatentData:
    """Where the sound is (a cache of `gpa.data.feature_cache`) and how it is cut.

    `encoder` is a Whisper encoder to hear with; `noisy` the share of crops that are degraded.
    """

    cache: str
    encoder: str = ""
    train: tuple[str, ...] = ("train", "train-notext", "train-synthetic")
    dev: tuple[str, ...] = ("dev",)
    dev_clips: int = 24
    crops: int = 14
    crop_latents: int = 64  # latent frames per crop
    noisy: float = 0.5
    jitter: float = 0.0  # noise on latents, at most this share of their spread: generated ones are not exact

    def __post_init__(self) -> None:
        if not 0 <= self.noisy <= 1:
            raise UsageError(f"data.noisy={self.noisy}: a share from 0 to 1")
        if self.jitter < 0:
            raise UsageError(f"data.jitter={self.jitter}: 0 or more")


@dataclass(frozen=True)
class LatentWeights:
    """Loss weights. `render_from` is the step from which `rendered` crops a step become sound; the losses of
    sound (mel, ASR features and the adversarial ones) begin there. ISTFT decoders render from the start.
    """

    kl: float = 0.01
    free_nats: float = 0.3  # per channel and frame
    envelope: float = 1.0  # of the source-filter decoder
    pitch: float = 0.3
    mel: float = 1.0
    asr_features: float = 0.0  # needs data.encoder
    adversarial: float = 0.1
    matching: float = 0.2
    render_from: int = 0
    rendered: int = 0  # 0: all
    adversarial_from: int = -1  # step at which discriminators join; negative: never


@dataclass(frozen=True)
class LatentRecipe:
    """A whole recipe of a latent codec; `freeze_latents` trains what decodes them only, so that models of
    the latents of `init` stay valid.
    """

    data: LatentData
    model: dict[str, Any] = field(default_factory=dict)  # LatentConfig; empty: that of `init`
    kind: str = "latent"
    init: str = ""  # an exported latent codec to go on from
    freeze_latents: bool = False
    degrade: DegradeArgs = field(default_factory=DegradeArgs)
    train: TrainArgs = field(default_factory=TrainArgs)
    optim: OptimArgs = field(default_factory=OptimArgs)
    weights: LatentWeights = field(default_factory=LatentWeights)


class LatentModule(nn.Module):
    """The codec with what only training needs."""

    def __init__(self, config: LatentConfig, discriminators: bool) -> None:
        super().__init__()
        self.codec = LatentModel(config)
        self.mel_distance = MelDistance(config.sample_rate)
        self.discriminators = Discriminators() if discriminators else None


@dataclass
class LatentBatch:
    """Crops (R, S) as the codec hears them, with pitch and voicing of their clean speech per frame (R, F)."""

    wav: Tensor
    f0: Tensor
    voiced: Tensor

    def first(self, crops: int) -> LatentBatch:
        """The first so many crops, all of them for 0."""
        n = crops or len(self.wav)
        return LatentBatch(self.wav[:n], self.f0[:n], self.voiced[:n])


class LatentFamily:
    """The latent codec for the training loop."""

    def __init__(self, recipe: LatentRecipe) -> None:
        self.recipe = recipe
        if not recipe.model and not recipe.init:
            raise UsageError(
                "a latent recipe needs the sizes in `model`, or an export to go on from in `init`"
            )
        if recipe.weights.asr_features and not recipe.data.encoder:
            raise UsageError("weights.asr_features needs the feature encoder's folder in data.encoder")
        if recipe.freeze_latents and not recipe.init:
            raise UsageError("freeze_latents keeps the latents of an export: name it in `init`")
        self.config = _settings(recipe)
        if self.config.frame != FRAME or self.config.sample_rate != 16_000:
            raise UsageError(
                f"latent training needs a frame of {FRAME} samples at 16000 Hz, those of the cache"
            )
        self.frames = recipe.data.crop_latents * self.config.hop_length // FRAME  # of the cache, per crop
        self.cache = FeatureCache(recipe.data.cache, sound_only=True)
        self.cache.measure_pitch()
        self.rows = self._fitting(recipe.data.train)
        dev = self._fitting(recipe.data.dev)
        self.dev_rows = dev[:: max(1, len(dev) // recipe.data.dev_clips)][: recipe.data.dev_clips]
        seed = recipe.train.seed
        self.degrader = Degrader(recipe.degrade, seed, speech=self._speech)
        self.asr_features = ASRFeatureDistance(recipe.data.encoder)

    def _fitting(self, splits: tuple[str, ...]) -> list[int]:
        rows = [i for i in self.cache.select(splits) if self.cache.rows[i]["frames"] >= self.frames]
        if not rows:
            raise UsageError(f"no clips of {', '.join(splits)} hold data.crop_latents: lower it")
        return rows

    def _speech(self, rng: np.random.Generator, samples: int) -> np.ndarray:
        """A stretch of some training clip, for babble."""
        i = int(rng.choice(self.rows))
        frames = -(-samples // FRAME)
        begin = int(rng.integers(0, max(1, self.cache.rows[i]["frames"] - frames + 1)))
        wav = self.cache.wav(i, begin, min(begin + frames, self.cache.rows[i]["frames"]))
        return np.resize(wav, samples)

    @cached_property
    def held_out(self) -> Degrader:
        """Noise and rooms for evaluation, which training does not hear."""
        return Degrader(self.recipe.degrade, self.recipe.train.seed + 1, held_out=True)

    def build(self) -> nn.Module:
        module = LatentModule(self.config, self.recipe.weights.adversarial_from >= 0)
        if self.recipe.init:
            hub.load_strict(module.codec, hub.read_state(self.recipe.init), where=self.recipe.init)
        if self.recipe.freeze_latents:
            module.codec.encoder.requires_grad_(False)
        return module

    def parameters(self, module: nn.Module) -> dict[str, list[nn.Parameter]]:
        assert isinstance(module, LatentModule)
        groups = {"generator": [p for p in module.codec.parameters() if p.requires_grad]}
        if module.discriminators is not None:
            groups["discriminator"] = list(module.discriminators.parameters())
        return groups

    def batch(self, step: int) -> LatentBatch:
        data = self.recipe.data
        rng = np.random.default_rng((self.recipe.train.seed, 1, step))
        rows = rng.choice(self.rows, data.crops)
        degraded = rng.random(data.crops) < data.noisy
        numbers = [step * data.crops + n if degraded[n] else None for n in range(data.crops)]
        return self._collate([int(i) for i in rows], numbers, rng, self.degrader)

    def _collate(
        self, rows: list[int], numbers: list[int | None], rng: np.random.Generator, degrader: Degrader
    ) -> LatentBatch:
        """A random crop of each row, degraded by the chain of its number unless that is None."""
        wavs, f0, voiced = [], [], []
        for i, number in zip(rows, numbers, strict=True):
            begin = int(rng.integers(0, self.cache.rows[i]["frames"] - self.frames + 1))
            wav = self.cache.wav(i, begin, begin + self.frames)
            wavs.append(wav if number is None else degrader.enhance(wav, number).source)
            height, voicing = self.cache.pitch(i, begin, begin + self.frames)
            f0.append(height)
            voiced.append(voicing)
        return LatentBatch(*(torch.from_numpy(np.stack(part)) for part in (wavs, f0, voiced)))

    def losses(self, module: nn.Module, batch: LatentBatch, step: int) -> Iterator[Loss]:
        assert isinstance(module, LatentModule)
        w, codec = self.recipe.weights, module.codec
        mean, log_variance = codec.posterior(batch.wav)
        z = self._drawn(codec, mean, log_variance)
        frames = codec.frames(z)
        few, render = batch.first(w.rendered), step >= w.render_from
        parts, _ = drawn(codec.decoder, frames, batch, envelope=bool(w.envelope), render=False)
        if not self.recipe.freeze_latents:
            parts["kl"] = kl(mean, log_variance, w.free_nats)
        wav = None
        if render or not parts.keys() - {"kl"}:
            _, wav = drawn(codec.decoder, frames[: len(few.wav)], few, envelope=False, render=True)
            parts |= self._sound_parts(module, wav, few.wav)
        metrics = {name: part.item() for name, part in parts.items()} | {"frames": float(batch.f0.numel())}
        loss = torch.stack([getattr(w, name) * part for name, part in parts.items()]).sum()
        critic = module.discriminators
        if critic is None or wav is None or step < w.adversarial_from:
            yield Loss("generator", loss, metrics)
            return
        yield from contest(critic, few.wav, wav, loss, metrics, (w.adversarial, w.matching))

    def _drawn(self, codec: LatentModel, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Latents (B, C, T) of a posterior, each row with as much `data.jitter` as chance gives it."""
        noise = torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        if jitter := self.recipe.data.jitter:
            share = jitter * torch.rand(len(mean), 1, 1, device=mean.device)
            noise = noise + share * codec.spread * torch.randn_like(mean)
        return mean + noise

    def _sound_parts(self, module: LatentModule, wav: Tensor | None, real: Tensor) -> dict[str, Tensor]:
        """Losses of sound."""
        assert wav is not None
        parts = {"mel": module.mel_distance(wav, real)} if self.recipe.weights.mel else {}
        if self.recipe.weights.asr_features:
            if self.asr_features.scale is None:  # from the same clips after a resume
                self.asr_features.measure(
                    torch.from_numpy(self.cache.wav(i)).to(wav.device) for i in self.rows[:16]
                )
            parts["asr_features"] = self.asr_features(wav, real)
        return parts

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Losses of held-out clips, clean and degraded; mel distance (nepers) is of what a user would
        hear.
        """
        assert isinstance(module, LatentModule)
        device = next(module.parameters()).device
        values: dict[str, float] = {}
        for name, noisy in (("clean", False), ("noisy", True)):
            numbers = [n if noisy else None for n in range(len(self.dev_rows))]
            rng = np.random.default_rng(0)  # the same crops
            batch = to_device(self._collate(self.dev_rows, numbers, rng, self.held_out), device)
            mean, log_variance = module.codec.posterior(batch.wav)
            frames = module.codec.frames(mean)
            wav = module.codec.decoder.render(frames)
            values[f"mel_{name}"] = module.mel_distance(wav, batch.wav).item()
            values[f"kl_{name}"] = kl(mean, log_variance).item()
            parts, _ = drawn(module.codec.decoder, frames, batch, envelope=True, render=False)
            values |= {f"{part}_{name}": value.item() for part, value in parts.items()}
        values["used_channels"] = float((mean.std((0, 2)) > 0.1).sum())
        return values

    def export(self, module: nn.Module, path: Path) -> None:
        """Write what `KLCodec` loads, with the statistics of latents of the first batches, or those of
        `init` where the latents are its own.
        """
        assert isinstance(module, LatentModule)
        model = copy.deepcopy(module.codec).float()
        device = next(model.parameters()).device
        if not self.recipe.freeze_latents:
            batches = (self.batch(step).wav for step in range(MEASURED))
            model.measure(crop.to(device) for wav in batches for crop in wav)
        KLCodec(model, device).save_pretrained(path, torch.float32)


def _settings(recipe: LatentRecipe) -> LatentConfig:
    """Sizes of the recipe, over those of the export it starts from."""
    before: dict[str, Any] = {}
    if recipe.init:
        path = Path(recipe.init) / "config.json"
        before = asdict(LatentConfig.from_dict(hub.read_json(path), str(path)))
    return build(LatentConfig, {**before, **recipe.model}, "model")
