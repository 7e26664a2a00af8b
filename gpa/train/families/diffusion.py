"""Training SpeechOp: a diffusion transformer on latents of a frozen codec, for TTS alone or for all tasks.

A step's rows go through the network in up to three batches that pad little: TTS, pairs without and pairs with
a prompt; the loss is the mean over all their noisy frames. Source: SpeechOp, arXiv 2509.14298.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpa import hub
from gpa.codec.kl import KLCodec
from gpa.config import build
from gpa.data.augment import DegradeArgs, Degrader
from gpa.data.batches import BatchPlan
from gpa.data.diffusion_rows import (
    PAIRED,
    PROMPTED,
    DiffusionBatch,
    Example,
    Pairs,
    SpeechLatents,
    collate,
    looks_of,
    texts_of,
)
from gpa.errors import CheckpointError, UsageError
from gpa.models.speechop import checkpoint_speechop as files
from gpa.models.speechop import diffusion_speechop
from gpa.models.speechop.asr_features_speechop import load_asr_features
from gpa.models.speechop.configuration_speechop import TTS, SpeechOpConfig
from gpa.models.speechop.diffusion_speechop import Choice
from gpa.models.speechop.modeling_speechop import SpeechOpModel
from gpa.models.speechop.sizes_speechop import SIZES
from gpa.train.arguments import TrainArgs
from gpa.train.families.base import Loss, to_device
from gpa.train.optim import OptimArgs

if TYPE_CHECKING:
    from gpa.models.speechop.layers_speechop import CrossAttention

LATENT = "latent"  # folder of the codec in an export
ENCODER = ("encoder.", "encoder_into.")  # how names of the audio encoder's parameters start
LISTEN = "encoder.listen.weight"  # may be new: it starts from zero
ABSENT = tuple(f"{start}*" for start in ENCODER)
ALIKE = 8  # held-out clips of similar length that share a batch
WHOLE = Choice(drop_text=False, drop_source=False, start=0, stop=0)  # of held-out examples: nothing is lost


@dataclass(frozen=True)
class DiffusionData:
    """Where the speech is (a cache of `gpa.data.feature_cache`) and how batches are cut.

    `share_tts` is that of TTS in a step's frames; the other tasks are drawn by the model's `tasks.weights`.
    `tokens` is a folder of `gpa prepare --align` of the same clips, for the times of their letters.
    """

    cache: str
    tokens: str = ""
    train: tuple[str, ...] = ("train", "train-notext", "train-synthetic")
    dev: tuple[str, ...] = ("dev",)
    dev_clips: int = 24
    batch_frames: int = 3000  # latent frames of a step, padding included
    share_tts: float = 0.5
    longest_s: float = 8.0  # of TTS clips
    crop_s: float = 5.0  # of pairs
    prompt_s: float = 3.0  # the longest sample of a voice or of acoustics

    def __post_init__(self) -> None:
        if not 0 <= self.share_tts <= 1:
            raise UsageError(f"data.share_tts={self.share_tts}: a share from 0 to 1")
        for name in ("dev_clips", "batch_frames", "longest_s", "crop_s", "prompt_s"):
            if getattr(self, name) <= 0:
                raise UsageError(f"data.{name}={getattr(self, name)}: above 0")


@dataclass(frozen=True)
class DiffusionRecipe:
    """A whole recipe of SpeechOp; `model` holds settings of SpeechOpConfig over those of `size` or `init`."""

    data: DiffusionData
    codec: str  # an exported latent codec
    kind: str = "speechop"
    size: str = ""  # one of SIZES
    model: dict[str, Any] = field(default_factory=dict)
    init: str = ""  # an export to go on from
    fresh_encoder: bool = False  # do not take the audio encoder of `init`
    alignment: float = 0.0  # weight of showing one head which letters a frame speaks; needs data.tokens
    alignment_layer: int = 2
    degrade: DegradeArgs = field(default_factory=DegradeArgs)
    train: TrainArgs = field(default_factory=TrainArgs)
    optim: OptimArgs = field(default_factory=OptimArgs)


class DiffusionFamily:
    """SpeechOp for the training loop."""

    def __init__(self, recipe: DiffusionRecipe) -> None:
        self.recipe, data = recipe, recipe.data
        if recipe.alignment and not (data.tokens and data.share_tts):
            raise UsageError("alignment needs TTS rows, and the times of their letters in data.tokens")
        self.codec = KLCodec.from_pretrained(recipe.codec)
        self.config = settings(recipe, self.codec)
        if recipe.alignment and not 0 <= recipe.alignment_layer < self.config.dit.layers:
            raise UsageError(f"alignment_layer={recipe.alignment_layer}: of {self.config.dit.layers} layers")
        rate = self.config.latent.frame_rate
        self.crop, self.prompt = (max(1, round(seconds * rate)) for seconds in (data.crop_s, data.prompt_s))
        self.pairs_a_step = round((1 - data.share_tts) * data.batch_frames / self.crop)
        if data.share_tts < 1:
            if not self.pairs_a_step:
                raise UsageError("data.batch_frames leaves no room for a crop beside TTS: raise it")
            self.tasks, self.chances = _drawn_tasks(self.config)
        self.asr_features = load_asr_features(self.config, files.SHIPPED)
        if self.asr_features is not None:
            about = {**self.config.about, "asr_features": self.asr_features.fingerprint()}
            self.config = replace(self.config, about=about)
        self.speech = SpeechLatents(data.cache, self.codec, self.asr_features)
        rows = self._rows(data.train)
        if data.share_tts:
            self.texts = self._texts(rows, data.train)
            self.tts = list(self.texts)
            self.looks = looks_of(data.tokens, self.speech, self.texts) if recipe.alignment else {}
            lengths = np.array([self.speech.frames(i) for i in self.tts])
            self.plan = BatchPlan(lengths, round(data.share_tts * data.batch_frames), recipe.train.seed)
        if self.pairs_a_step:
            babble = partial(self.speech.stretch, rows)
            degrader = Degrader(recipe.degrade, recipe.train.seed, speech=babble)
            self.pairs = Pairs(self.speech, rows, degrader, self.crop, self.prompt)

    def _rows(self, splits: tuple[str, ...]) -> list[int]:
        rows = list(self.speech.cache.select(splits))
        if not rows:
            raise UsageError(f"{self.recipe.data.cache}: no clips of {', '.join(splits)}")
        return rows

    def _texts(self, rows: Sequence[int], splits: tuple[str, ...]) -> dict[int, str]:
        """Texts of rows that are short enough; UsageError if there are none."""
        data = self.recipe.data
        longest = data.longest_s * self.config.latent.frame_rate
        texts = texts_of(self.speech, [i for i in rows if self.speech.frames(i) <= longest])
        if not texts:
            raise UsageError(
                f"{data.cache}: no clip of {', '.join(splits)} has a text and lasts at most "
                f"data.longest_s={data.longest_s:g}, which TTS needs"
            )
        return texts

    def build(self) -> nn.Module:
        model, init = SpeechOpModel(self.config), self.recipe.init
        if init:
            folder, fresh = hub.resolve(init), self.recipe.fresh_encoder
            state = hub.read_state(folder)
            kept = {name: t for name, t in state.items() if not (fresh and name.startswith(ENCODER))}
            deaf = SpeechOpConfig.read(folder).asr_features.kind == "none"
            absent = ABSENT if fresh else (LISTEN,) if deaf else ()
            hub.load_strict(model, kept, optional=absent, where=init)
        return model

    def parameters(self, module: nn.Module) -> dict[str, list[nn.Parameter]]:
        """All, but for the audio encoder where no example has a source."""
        used = (p for n, p in module.named_parameters() if self.pairs_a_step or not n.startswith(ENCODER))
        return {"model": list(used)}

    # Batches ------------------------------------------------------------------------------------------------

    def batch(self, step: int) -> tuple[DiffusionBatch, ...]:
        rng = np.random.default_rng((self.recipe.train.seed, 3, step))
        examples = []
        if self.recipe.data.share_tts:
            examples += [self._tts(int(i), self.texts) for i in np.array(self.tts)[self.plan.batch(step)]]
        for n in range(self.pairs_a_step):
            task, i = str(rng.choice(self.tasks, p=self.chances)), int(rng.choice(self.pairs.rows))
            examples.append(self.pairs.example(task, i, step * self.pairs_a_step + n, rng))
        return tuple(self._collate(part, rng) for part in _alike(examples))

    def _tts(self, i: int, texts: dict[int, str]) -> Example:
        return Example(TTS, self.speech.clean(i), texts[i], self.looks.get(i))

    def _collate(self, examples: list[Example], rng: np.random.Generator) -> DiffusionBatch:
        choices = [diffusion_speechop.choose(e.target.shape[1], e.task, rng, self.config) for e in examples]
        levels = diffusion_speechop.draw_levels(len(examples), rng, self.config.schedule)
        return collate(examples, choices, levels, rng, self.config)

    # Losses -------------------------------------------------------------------------------------------------

    def losses(self, module: nn.Module, batch: tuple[DiffusionBatch, ...], step: int) -> Iterator[Loss]:
        found, aligned = [], torch.zeros(())
        for one in batch:
            with _watched(self._taught(module, one)) as seen:
                found += list(self._by_task(module, one))
            for cross, inputs in seen:
                aligned = _alignment(cross, inputs, one)
        total = torch.stack([value * frames for _, value, frames in found]).sum()
        metrics = {f"loss/{task}": value.item() for task, value, _ in found}
        metrics |= {f"tokens/{task}": frames for task, _, frames in found}
        metrics["tokens"] = sum(int(one.mask.sum()) for one in batch)
        metrics["positions"] = sum(one.mask.numel() for one in batch)
        loss = total / max(1, sum(frames for *_, frames in found))
        if self.recipe.alignment:
            metrics["alignment"] = aligned.item()
            loss = loss + self.recipe.alignment * aligned.to(loss.device)
        yield Loss("model", loss, metrics)

    def _taught(self, module: nn.Module, batch: DiffusionBatch) -> nn.Module | None:
        """The block whose attention is shown the letters of a batch, if they are known."""
        assert isinstance(module, SpeechOpModel)
        return None if batch.look is None else module.blocks[self.recipe.alignment_layer]

    def _by_task(self, module: nn.Module, batch: DiffusionBatch) -> Iterator[tuple[str, Tensor, int]]:
        """Each task of a batch with its loss, the mean over its noisy frames, and their number."""
        z = diffusion_speechop.inpaint(
            diffusion_speechop.diffuse(batch.x, batch.eps, batch.lam), batch.x, batch.clean
        )
        with _attention(z.device):
            v = module(z, batch.lam, batch.conditions, batch.clean).float()
        for n in batch.task.unique().tolist():
            mine = batch.task == n
            frames = batch.frames[mine]
            x, eps, lam = batch.x[mine], batch.eps[mine], batch.lam[mine]
            loss = diffusion_speechop.diffusion_loss(v[mine], x, eps, lam, frames, self.config)
            yield self.config.tasks.names[n], loss, int(frames.sum())

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Losses per task of held-out clips at fixed levels, with all conditions; `tts_null` has no text."""
        device = next(module.parameters()).device
        sums: dict[str, list[tuple[float, int]]] = {}
        for batch in self._held_out:
            batch = to_device(batch, device)
            nulls = replace(batch, text=None, text_mask=None)
            found = [(task, loss, n) for task, loss, n in self._by_task(module, batch)]
            if batch.text is not None:
                found += [(f"{task}_null", loss, n) for task, loss, n in self._by_task(module, nulls)]
            for task, loss, n in found:
                sums.setdefault(task, []).append((loss.item(), n))
        return {task: sum(v * n for v, n in part) / sum(n for _, n in part) for task, part in sums.items()}

    @cached_property
    def _held_out(self) -> list[DiffusionBatch]:
        """Batches of held-out clips, noise and rooms; the same for every run with the same codec and data."""
        data, rng = self.recipe.data, np.random.default_rng(0)
        rows = self._rows(data.dev)
        groups = []
        if data.share_tts:
            texts = self._texts(rows, data.dev)
            kept = sorted(_spread(list(texts), data.dev_clips), key=self.speech.frames)
            groups += [[self._tts(i, texts) for i in kept[n : n + ALIKE]] for n in range(0, len(kept), ALIKE)]
        if self.pairs_a_step:
            degrader = Degrader(self.recipe.degrade, self.recipe.train.seed + 1, held_out=True)
            pairs = Pairs(self.speech, rows, degrader, self.crop, self.prompt, self.pairs.every)
            kept = _spread(pairs.rows, data.dev_clips)
            groups += [[pairs.example(task, i, i, rng) for i in kept] for task in self.tasks]
        return [self._whole(group, rng) for group in groups]

    def _whole(self, examples: list[Example], rng: np.random.Generator) -> DiffusionBatch:
        """Examples that lose nothing, at levels spread evenly over t."""
        n = len(examples)
        lam = diffusion_speechop.log_snr(
            torch.from_numpy((rng.permutation(n) + 0.5) / n), self.config.schedule
        )
        return collate(examples, [WHOLE] * n, lam.float(), rng, self.config)

    def export(self, module: nn.Module, path: Path) -> None:
        """Write speechop.json and model.safetensors in float32, and the codec in a folder of its own."""
        from safetensors.torch import save_file

        path.mkdir(parents=True, exist_ok=True)
        state = {name: t.detach().cpu().float().contiguous() for name, t in module.state_dict().items()}
        save_file(state, path / "model.safetensors", metadata={"format": "pt"})
        self.config.write(path)
        self.codec.save_pretrained(path / LATENT)


def _attention(device: torch.device) -> AbstractContextManager[None]:
    """On a CPU attention as plain products: the fused kernel's backward pass takes twice as long there."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


@contextmanager
def _watched(block: nn.Module | None) -> Iterator[list[tuple[CrossAttention, Any]]]:
    """What the block's cross-attention is given while this lasts, nothing without a block."""
    seen: list[tuple[CrossAttention, Any]] = []
    if block is None:
        yield seen
        return
    cross = block.get_submodule("cross.inner")
    hook = cross.register_forward_pre_hook(lambda module, inputs: seen.append((module, inputs)))
    try:
        yield seen
    finally:
        hook.remove()


def _alignment(cross: CrossAttention, inputs: Any, batch: DiffusionBatch) -> Tensor:
    """-log of the attention that the first head gives to the letters spoken around a noisy frame."""
    assert batch.look is not None
    scores = cross.scores(*inputs).float()  # (B, T, 1 + N), the null's slot first
    key = torch.arange(scores.shape[2], device=scores.device)
    wanted = (key > batch.look[..., :1]) & (key <= batch.look[..., 1:])
    rows = wanted.any(-1) & batch.frames
    if not rows.any():
        return scores.new_zeros(())
    inside = scores[rows].masked_fill(~wanted[rows], float("-inf")).logsumexp(-1)
    return (scores[rows].logsumexp(-1) - inside).mean()


def _alike(examples: Sequence[Example]) -> list[list[Example]]:
    """TTS, pairs without a prompt and pairs with one, where there are any."""
    kinds = [0 if e.task == TTS else 1 + (e.task in PROMPTED) for e in examples]
    return [part for n in range(3) if (part := [e for e, k in zip(examples, kinds, strict=True) if k == n])]


def _spread(rows: list[int], count: int) -> list[int]:
    return rows[:: max(1, len(rows) // count)][:count]


def _drawn_tasks(config: SpeechOpConfig) -> tuple[list[str], np.ndarray]:
    """Speech-to-speech tasks and their probabilities; UsageError for tasks that no pairs are made for."""
    weights = {task: weight for task, weight in config.tasks.weights.items() if weight}
    if strange := sorted(set(weights) - set(PAIRED)):
        raise UsageError(f"tasks.weights: no pairs are made for {strange}; known: {sorted(PAIRED)}")
    if not weights:
        raise UsageError("tasks.weights are all 0: give one a weight, or set data.share_tts=1")
    chances = np.array(list(weights.values()), float)
    return list(weights), chances / chances.sum()


def settings(recipe: DiffusionRecipe, codec: KLCodec) -> SpeechOpConfig:
    """The recipe's settings over those of its size or `init`, its latents those of the codec.

    UsageError for settings that cannot be, CheckpointError for an `init` with latents of another codec.
    """
    spec, mark = codec.spec, codec.fingerprint()
    latent = {"channels": spec.channels, "sample_rate": spec.sample_rate, "hop": spec.hop_length}
    base = _base(recipe)
    before = base.get("about", {}).get("codec", mark)
    if recipe.init and (base["latent"] != latent or before != mark):
        raise CheckpointError(f"{recipe.init}: made for latents of another codec than {recipe.codec}")
    wanted = recipe.model.get("latent", {})
    if isinstance(wanted, dict) and (wrong := {k: v for k, v in wanted.items() if latent.get(k, v) != v}):
        raise UsageError(f"model.latent: {wrong}, but {recipe.codec} has {latent}; leave the section out")
    sections = {name: _laid_over(base.get(name, {}), value) for name, value in recipe.model.items()}
    raw = {**base, **sections}
    raw["latent"] = {**raw.get("latent", {}), **latent}
    raw["about"] = {**raw.get("about", {}), "codec": mark}
    config = build(SpeechOpConfig, raw, "model")
    if (
        recipe.fresh_encoder or config.asr_features.kind == "none"
    ):  # nothing is kept that was trained with an ASR encoder
        about = {name: value for name, value in config.about.items() if name != "asr_features"}
        config = replace(config, about=about)
    if config.text.kind != "bytes":
        raise UsageError("model.text.kind: this recipe trains its own text encoder, which is bytes")
    return config


def _base(recipe: DiffusionRecipe) -> dict[str, Any]:
    if recipe.init and recipe.size:
        raise UsageError("a recipe starts from `init` or from a `size`, not from both")
    if recipe.init:
        return asdict(SpeechOpConfig.read(hub.resolve(recipe.init)))
    if recipe.fresh_encoder:
        raise UsageError("fresh_encoder needs an export in `init`")
    if recipe.size and recipe.size not in SIZES:
        raise UsageError(f"size={recipe.size!r}: choose one of {', '.join(SIZES)}")
    if not recipe.size and not recipe.model:
        raise UsageError("a recipe of SpeechOp needs a `size`, sizes in `model`, or an export in `init`")
    return dict(SIZES[recipe.size]) if recipe.size else {}


def _laid_over(base: Any, section: Any) -> Any:
    return {**base, **section} if isinstance(base, dict) and isinstance(section, dict) else section
