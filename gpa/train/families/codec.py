"""Training a small BiCodec: recognition (CTC), reconstruction and, late, adversarial losses on one encoder
and decoder.

The semantic ids must serve recognition and synthesis alike: the quantised latents are asked for letters by
a linear CTC head and for sound by the decoder, while the voice is only to be had from the global ids of
another stretch of the clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpa import hub
from gpa.codec import trained
from gpa.codec.bicodec import BiCodecConfig, BiCodecModel
from gpa.codec.ctc import letter_loss
from gpa.codec.discriminators import DiscriminatorArgs, Discriminators
from gpa.codec.feature_encoder import FRAME
from gpa.codec.lookahead import bounded
from gpa.codec.losses import ASRFeatureDistance, LetterHead, MelDistance
from gpa.data.batches import BatchPlan
from gpa.data.feature_cache import FeatureCache
from gpa.errors import CheckpointError, UsageError
from gpa.text.letters import letter_targets
from gpa.train.arguments import TrainArgs
from gpa.train.families.base import Loss, to_device
from gpa.train.families.reconstruction import contest, drawn
from gpa.train.optim import OptimArgs
from gpa.train.samples import Sample, SampleArgs


@dataclass(frozen=True)
class CodecData:
    """Where the feature cache is and how batches are cut; `encoder` is that of the features, to hear with.

    `degraded` is a second cache of the same clips (`gpa.data.feature_cache --degraded`); a clip's features
    come from there as often as `degraded_share` says, what is to be decoded never does. Clips that are
    invented may be missing there.
    """

    cache: str
    degraded: str = ""
    degraded_share: float = 0.5
    encoder: str = ""
    train: tuple[str, ...] = ("train", "train-notext", "train-synthetic")
    dev: tuple[str, ...] = ("dev",)
    dev_clips: int = 24
    max_frames: int = 1000
    batch_frames: int = 4200
    crops: int = 14
    crop_ids: int = 32  # ids decoded per crop
    reference_frames: int = 150  # 50/s

    def __post_init__(self) -> None:
        if not 0 <= self.degraded_share <= 1:
            raise UsageError(f"data.degraded_share={self.degraded_share}: a share from 0 to 1")


@dataclass(frozen=True)
class CodecWeights:
    """Loss weights; `adversarial_from` is the step at which discriminators join (negative: never)."""

    mel: float = 1.0  # distance of the rendered waveform; 0: not rendered in training
    envelope: float = 0.0  # distance of the drawn envelopes: the source-filter decoder without rendering
    stft: float = 0.0  # distance of its magnitudes, at the resolution of the STFT
    asr_features: float = 0.0  # distance of the features of the rendered waveform; needs data.encoder
    ctc: float = 1.0
    vq: float = 1.0
    speaker: float = 0.5
    pitch: float = 0.5  # of decoders that predict it
    adversarial: float = 0.1
    matching: float = 0.2
    adversarial_from: int = -1


@dataclass(frozen=True)
class CodecRecipe:
    """A whole codec recipe; `freeze_ids` trains the decoder only: ids already extracted stay valid.

    An `init` whose decoder hears all of the future may be given a `lookahead` by `model`, or a new refiner.
    """

    data: CodecData
    model: dict[str, Any] = field(default_factory=dict)  # BiCodecConfig; with `init` what of its is changed
    kind: str = "codec"
    init: str = ""  # an exported codec folder to start from
    freeze_ids: bool = False
    quantize_from: int = 0  # step at which the codebook starts, at the encoder's cluster centres
    train: TrainArgs = field(default_factory=TrainArgs)
    optim: OptimArgs = field(default_factory=OptimArgs)
    weights: CodecWeights = field(default_factory=CodecWeights)
    validate: SampleArgs = field(default_factory=SampleArgs)
    discriminators: DiscriminatorArgs = field(default_factory=DiscriminatorArgs)


class CodecModule(nn.Module):
    """The codec, with the heads that ids are learnt by (none where ids are frozen) and discriminators."""

    def __init__(self, config: BiCodecConfig, speakers: int, critic: DiscriminatorArgs | None) -> None:
        super().__init__()
        self.codec = BiCodecModel(config)
        self.heads = nn.ModuleDict()
        if speakers:
            self.heads["letters"] = LetterHead(config.quantizer.input_dim)
            self.heads["speakers"] = nn.Linear(config.speaker_encoder.out_dim, speakers)
        self.mel_distance = MelDistance(config.sample_rate)
        self.discriminators = Discriminators(critic) if critic else None


@dataclass
class CodecBatch:
    """Features (B, C, T) of whole clips with their letters, and R crops: row of the clip, positions of the
    ids (R, n), their wav with its pitch and voicing per frame, a reference wav from the same clip, the
    speaker's number (-1: not in training).
    """

    features: Tensor
    frames: Tensor
    targets: Tensor
    target_lengths: Tensor
    crop_row: Tensor
    crop: Tensor
    wav: Tensor
    f0: Tensor
    voiced: Tensor
    reference: Tensor
    speaker: Tensor


class CodecFamily:
    """The codec for the training loop."""

    def __init__(self, recipe: CodecRecipe) -> None:
        self.recipe = recipe
        if not recipe.model and not recipe.init:
            raise UsageError(
                "a codec recipe needs the sizes in `model`, or an export to go on from in `init`"
            )
        self.config = trained.settings_of(vars(recipe))
        if recipe.weights.asr_features and not recipe.data.encoder:
            raise UsageError("weights.asr_features needs the feature encoder's folder in data.encoder")
        self.cache = FeatureCache(recipe.data.cache)
        self.cache.measure_pitch()
        self.encoder = _encoder(recipe.data, self.cache)
        trained.load_encoder(self.encoder, self.config)  # before training rather than after it
        self.degraded = self.cache.degraded(recipe.data.degraded) if recipe.data.degraded else None
        self._ear = ASRFeatureDistance(recipe.data.encoder, self.config.features)
        self.ratio = self.config.latent_hop_length // FRAME
        least = max(recipe.data.crop_ids * self.ratio, 50)
        most = recipe.data.max_frames
        fits = [i for i, row in enumerate(self.cache.rows) if least <= row["frames"] <= most]
        split = {i: self.cache.rows[i]["split"] for i in fits}
        self.rows = [i for i in fits if split[i] in recipe.data.train]
        self.dev_rows = [i for i in fits if split[i] in recipe.data.dev]
        self.dev_rows = self.dev_rows[:: max(1, len(self.dev_rows) // recipe.data.dev_clips)]
        everybody = self.cache.select(recipe.data.train)  # whatever the crops: an export's head fits
        self.speaker_names = sorted({self.cache.rows[i]["speaker"] for i in everybody} - {""})
        lengths = np.array([self.cache.rows[i]["frames"] for i in self.rows])
        self.plan = BatchPlan(lengths, recipe.data.batch_frames, recipe.train.seed)

    def build(self) -> nn.Module:
        critic = self.recipe.discriminators if self.recipe.weights.adversarial_from >= 0 else None
        module = CodecModule(self.config, 0 if self.recipe.freeze_ids else len(self.speaker_names), critic)
        if self.recipe.init:
            self._start_from(module, Path(self.recipe.init))
            return module
        if self.config.standardise:
            self._measure_features(module.codec)
        return module

    def _start_from(self, module: CodecModule, export: Path) -> None:
        before, codec = trained.load_network(export), module.codec
        state = {k: t for k, t in codec.state_dict().items() if k.startswith("decoder.refiner.")}
        state |= before.state_dict()
        for name in ("prenet", "decoder"):
            ours, theirs = getattr(self.config, name), getattr(before.config, name)
            if ours.lookahead is not None and theirs.lookahead is None:
                state |= bounded(codec.get_submodule(name), state, f"{name}.")
        hub.load_strict(codec, state, where=str(export))
        if not module.heads:
            return
        heads = trained.read_heads(export)
        if len(heads["speakers"]["bias"]) != len(self.speaker_names):
            raise CheckpointError(
                f"{export}: was trained on {len(heads['speakers']['bias'])} speakers, this recipe has "
                f"{len(self.speaker_names)}; keep data.cache and data.train"
            )
        for name, head in module.heads.items():
            hub.load_strict(head, heads[name], where=str(export / trained.HEADS))

    def _some_clips(self, count: int) -> list[int]:
        rng = np.random.default_rng(self.recipe.train.seed)
        return [int(i) for i in rng.choice(self.rows, min(count, len(self.rows)), replace=False)]

    @torch.no_grad()
    def _start_codebook(self, codec: BiCodecModel) -> None:
        features = (torch.from_numpy(self.cache.features(i)).T[None] for i in self._some_clips(512))
        device = next(codec.parameters()).device
        codec.quantizer.start(torch.cat([codec.latents(x.to(device))[0].T for x in features]))

    def _measure_features(self, codec: BiCodecModel) -> None:
        """Whisper's states hold a few huge constant channels; centred and scaled, every channel is heard."""
        mean, scale = self.cache.scaling(self._some_clips(64))
        codec.get_buffer("feature_mean").copy_(mean)
        codec.get_buffer("feature_scale").copy_(scale)

    def parameters(self, module: nn.Module) -> dict[str, list[nn.Parameter]]:
        assert isinstance(module, CodecModule)
        codec = module.codec
        if self.recipe.freeze_ids:
            trained = [*codec.prenet.parameters(), *codec.decoder.parameters()]
        else:
            trained = [*codec.parameters(), *module.heads.parameters()]
        groups = {"generator": trained}
        if module.discriminators is not None:
            groups["discriminator"] = list(module.discriminators.parameters())
        return groups

    def batch(self, step: int) -> CodecBatch:
        rng = np.random.default_rng((self.recipe.train.seed, 1, step))
        rows = rng.permutation([self.rows[i] for i in self.plan.batch(step)])
        return self._collate(list(rows), rng, self.degraded)

    def _collate(
        self, rows: list[int], rng: np.random.Generator, degraded: FeatureCache | None = None
    ) -> CodecBatch:
        data, cache = self.recipe.data, self.cache
        longest = max(cache.rows[i]["frames"] for i in rows)
        features = np.zeros((len(rows), longest, self.config.encoder.input_channels), np.float32)
        for n, i in enumerate(rows):
            features[n, : cache.rows[i]["frames"]] = cache.heard(i, degraded, data.degraded_share, rng)
        targets = [letter_targets(cache.rows[i].get("text") or "") for i in rows]
        # Always as many: batch norm must not see two clips.
        crop_rows = np.resize(np.arange(len(rows)), data.crops)
        crops, wavs, f0, voiced, references = zip(*(self._crop(rows[n], rng) for n in crop_rows), strict=True)
        names = [cache.rows[rows[n]]["speaker"] for n in crop_rows]
        known = {name: number for number, name in enumerate(self.speaker_names)}
        return CodecBatch(
            features=torch.from_numpy(features).transpose(1, 2),
            frames=torch.tensor([cache.rows[i]["frames"] for i in rows]),
            targets=torch.tensor([c for t in targets for c in t]),
            target_lengths=torch.tensor([len(t) for t in targets]),
            crop_row=torch.from_numpy(crop_rows),
            crop=torch.from_numpy(np.stack(crops)),
            wav=torch.from_numpy(np.stack(wavs)),
            f0=torch.from_numpy(np.stack(f0)),
            voiced=torch.from_numpy(np.stack(voiced)),
            reference=torch.from_numpy(np.stack(references)),
            speaker=torch.tensor([known.get(name, -1) for name in names]),
        )

    def _crop(self, i: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """A random stretch of clip i: positions of its ids (n,), its samples, their pitch and voicing; a
        reference from anywhere."""
        data, frames = self.recipe.data, self.cache.rows[i]["frames"]
        begin = int(rng.integers(0, frames // self.ratio - data.crop_ids + 1))
        stretch = (i, begin * self.ratio, (begin + data.crop_ids) * self.ratio)
        at = int(rng.integers(0, max(1, frames - data.reference_frames)))
        reference = self.cache.wav(i, at, min(frames, at + data.reference_frames))
        ids = np.arange(begin, begin + data.crop_ids)
        f0, voiced = self.cache.pitch(*stretch)
        return ids, self.cache.wav(*stretch), f0, voiced, np.resize(reference, data.reference_frames * FRAME)

    def losses(self, module: nn.Module, batch: CodecBatch, step: int) -> Iterator[Loss]:
        assert isinstance(module, CodecModule)
        w, codec = self.recipe.weights, module.codec
        if step >= self.recipe.quantize_from and not codec.quantizer.started:
            self._start_codebook(codec)
        learns = not self.recipe.freeze_ids
        codec.speaker_encoder.train(learns).requires_grad_(learns)
        codec.quantizer.train(learns)
        loss, metrics, wav = self._reconstruct(module, batch)
        metrics["frames"] = float(batch.frames.sum())
        metrics["positions"] = float(batch.features[:, 0].numel())
        critic = module.discriminators
        if critic is None or step < w.adversarial_from:
            yield Loss("generator", loss, metrics)
            return
        yield from contest(critic, batch.wav, wav, loss, metrics, (w.adversarial, w.matching))

    def _reconstruct(self, module: CodecModule, batch: CodecBatch) -> tuple[Tensor, dict[str, float], Tensor]:
        w, codec = self.recipe.weights, module.codec
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.recipe.freeze_ids):
            z_q, codes, vq = codec.quantizer(codec.latents(batch.features))
            speaker = codec.speaker_encoder(codec.mel(batch.reference))
        crop = z_q.transpose(1, 2)[batch.crop_row[:, None], batch.crop].transpose(1, 2)  # (R, D, n)
        frames = codec.decoder(codec.condition(crop, speaker))
        sound, wav = self._sound(module, frames, batch)
        parts = dict(sound)
        if module.heads:
            letters, speakers = self._ctc(module, z_q, batch), self._speaker(module, speaker, batch)
            parts |= {"ctc": letters, "vq": vq, "speaker": speakers}
        metrics = {name: part.item() for name, part in parts.items()}
        metrics["used_codes"] = float(codes.unique().numel())
        loss = torch.stack([getattr(w, name) * part for name, part in parts.items()]).sum()
        return loss, metrics, wav

    def _sound(
        self, module: CodecModule, frames: Tensor, batch: CodecBatch
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Losses of the decoder's frames, and samples where a loss (or an evaluation) needs them."""
        w, real = self.recipe.weights, batch.wav
        unrendered = not (w.mel or w.stft or w.asr_features) and module.discriminators is None
        render = not (unrendered and module.training)
        parts, wav = drawn(module.codec.decoder, frames, batch, envelope=bool(w.envelope), render=render)
        if wav is None:
            return parts, real
        if w.mel or not module.training or not parts:
            parts["mel"] = module.mel_distance(wav, real)
        if w.stft:
            parts["stft"] = module.mel_distance.stft(wav, real)
        if w.asr_features:
            scale = module.codec.get_buffer("feature_scale") if self.config.standardise else None
            self._ear.scale = scale  # the codec's own
            parts["asr_features"] = self._ear(wav, real)
        return parts, wav

    def _ctc(self, module: CodecModule, z_q: Tensor, batch: CodecBatch) -> Tensor:
        """CTC loss per letter over the clips that have a transcript; the others would teach silence."""
        known = batch.target_lengths > 0
        if not known.any():
            return z_q.new_zeros(())
        log_probs = module.heads["letters"](z_q[known]).log_softmax(-1)
        frames, counts = batch.frames[known] // self.ratio, batch.target_lengths[known]
        return letter_loss(log_probs, frames, batch.targets, counts)

    def _speaker(self, module: CodecModule, speaker: Tensor, batch: CodecBatch) -> Tensor:
        """Cross-entropy of the training speakers; a held-out clip's speaker may be unknown."""
        total = F.cross_entropy(
            module.heads["speakers"](speaker), batch.speaker, ignore_index=-1, reduction="sum"
        )
        return total / (batch.speaker >= 0).sum().clamp_min(1)

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        assert isinstance(module, CodecModule)
        device = next(module.parameters()).device
        rng = np.random.default_rng(0)
        batches = (to_device(self._collate([i], rng), device) for i in self.dev_rows)
        found = [self._reconstruct(module, batch)[1] for batch in batches]
        names = ("mel", "pitch", "envelope", "stft", "asr_features", "ctc")
        return {key: float(np.mean([m[key] for m in found])) for key in names if found and key in found[0]}

    def sound_samples(self, module: nn.Module) -> list[Sample]:
        """Held-out clips, and what they sound like when the codec has encoded and decoded them."""
        assert isinstance(module, CodecModule)
        codec, made, rate = module.codec, list[Sample](), self.config.sample_rate
        most = self.recipe.data.reference_frames * FRAME
        device = next(module.parameters()).device
        for number, i in enumerate(self.dev_rows[: self.recipe.validate.samples]):
            real = torch.from_numpy(self.cache.wav(i))[None].to(device)
            features = torch.from_numpy(self.cache.features(i)).T[None].to(device)
            wav = codec.decode(codec.encode_semantic(features), codec.encode_global(real[:, :most])).float()
            same = min(wav.shape[1], real.shape[1])
            scores = {"mel": module.mel_distance(wav[:, :same], real[:, :same]).item()}
            caption = self.cache.rows[i].get("text") or ""
            made.append(Sample(f"clip-{number}", real[0].cpu().numpy(), rate, caption))
            made.append(Sample(f"resynthesis-{number}", wav[0].cpu().numpy(), rate, caption, scores))
        return made

    def export(self, module: nn.Module, path: Path) -> None:
        assert isinstance(module, CodecModule)
        heads = {name: dict(head.state_dict()) for name, head in module.heads.items()}
        init = Path(self.recipe.init)
        if self.recipe.freeze_ids and self.recipe.init and (init / trained.HEADS).is_file():
            heads = trained.read_heads(init)  # ids that stay are spelt as before
        trained.write(module.codec, heads, path, trained.load_encoder(self.encoder, self.config))


def _encoder(data: CodecData, cache: FeatureCache) -> Path:
    """Folder of the feature encoder, which the export holds; UsageError if there is none."""
    folder = data.encoder or cache.encoder
    if not folder or not Path(folder).is_dir():
        where = f"{folder} is not there" if folder else f"{data.cache} does not say where it is"
        raise UsageError(f"a codec's export holds the feature encoder: {where}; give data.encoder=DIR")
    return Path(folder)
