"""Training what carries one voice: its speaker vector and low-rank changes of the codec's decoder.

The ids of the recordings stay what they are, and so do words and timing; what is drawn of them comes nearer
to the recordings, by the losses of codec training. Nothing here is trained towards a judge.

    R crops   S samples   F decoder frames
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gpa.codec.adaptation import AdaptedDecoder
from gpa.codec.bicodec import BiCodec
from gpa.codec.bicodec_config import BiCodecConfig
from gpa.codec.bicodec_model import BiCodecModel
from gpa.codec.feature_encoder import FRAME, FeatureEncoder, WhisperFeatures, load_features
from gpa.codec.harmonic import HarmonicDecoder
from gpa.codec.losses import ASRFeatureDistance, MelDistance
from gpa.codec.pitch import yin
from gpa.codec.recordings import Clip, intonation_of, timbre_of
from gpa.codec.voice import Voice
from gpa.data.sources import open_source
from gpa.data.token_folder import TokenSet
from gpa.errors import DataError, UsageError
from gpa.models.gpa import checkpoint_gpa as files
from gpa.train import checkpoint
from gpa.train.arguments import TrainArgs
from gpa.train.families.base import Loss, to_device
from gpa.train.families.reconstruction import drawn
from gpa.train.optim import OptimArgs

HELD_CROPS = 24  # on which is judged when to stop
FILE = "voice.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VoiceData:
    """Ids (`tokens`, of `gpa prepare`) and sounds (its `manifest`) of a voice, and how batches are cut."""

    tokens: str
    manifest: str
    voice: str  # a voice file: where the speaker vector starts
    crops: int = 6
    crop_ids: int = 32


@dataclass(frozen=True)
class VoiceWeights:
    """Loss weights; `envelope`, `spread` and `pitch` are those of a decoder that draws them."""

    mel: float = 0.5  # distance of the rendered sound
    features: float = 2.0  # the ASR-feature loss, by the codec's own encoder if that is small (Whisper's)
    envelope: float = 0.5
    spread: float = 1.0  # of the envelopes in time: distances alone teach flat ones
    pitch: float = 0.5


@dataclass(frozen=True)
class VoiceRecipe:
    """What is adapted to which voice: `init` is the model, `rank` 0 leaves the decoder's weights alone."""

    init: str
    data: VoiceData
    kind: str = "voice"
    rank: int = 4
    train: TrainArgs = field(default_factory=TrainArgs)
    optim: OptimArgs = field(default_factory=OptimArgs)
    weights: VoiceWeights = field(default_factory=VoiceWeights)


@dataclass
class Crops:
    """Ids (R, n), their recorded sound (R, S) with its pitch in Hz and voicing per frame, (R, F) each."""

    semantic: Tensor
    wav: Tensor
    f0: Tensor
    voiced: Tensor


@dataclass(frozen=True)
class Distances:
    """All losses of what an adapted decoder draws, by the names of `VoiceWeights`."""

    mel: MelDistance
    features: ASRFeatureDistance | None

    @classmethod
    def of(cls, network: BiCodecModel, encoder: FeatureEncoder | None) -> Distances:
        """Features are compared where their encoder is small; wav2vec2's would take most of a step."""
        config = network.config
        scale = network.get_buffer("feature_scale") if config.standardise else None
        small = isinstance(encoder, WhisperFeatures)
        features = ASRFeatureDistance("", config.features, scale, encoder) if small else None
        return cls(MelDistance(config.sample_rate), features)

    def __call__(self, module: AdaptedDecoder, batch: Crops) -> dict[str, Tensor]:
        """Of crops; sound of the source-filter decoder is rendered with the recording's pitch."""
        decoder = module.network.decoder
        frames = module(batch.semantic)
        parts, wav = drawn(decoder, frames, batch, envelope=True, render=True)
        assert wav is not None
        if isinstance(decoder, HarmonicDecoder):
            parts["spread"] = decoder.spread_distance(frames, batch.voiced, batch.wav)
        parts["mel"] = self.mel.to(wav.device)(wav, batch.wav)
        if self.features is not None:
            parts["features"] = self.features(wav, batch.wav)
        return parts


class VoiceFamily:
    """One voice for the training loop."""

    def __init__(self, recipe: VoiceRecipe) -> None:
        self.recipe = recipe
        codec, _ = files.load_parts(files.find(recipe.init), torch.device("cpu"))
        if not isinstance(codec, BiCodec):
            raise UsageError(
                f"{recipe.init}: a decoder that draws voices of ids learns one, {codec.spec.name} has none"
            )
        self.codec = codec
        self.voice = Voice.load(recipe.data.voice)
        self.clips, held = recordings(recipe.data, self.codec.spec.sample_rate)
        hop = self.codec.spec.hop_length
        self.sounds, judged = ([Sound.of(*clip, hop) for clip in part] for part in (self.clips, held))
        longest = [max(len(sound.semantic) for sound in part) for part in (self.sounds, judged)]
        self.length = min(recipe.data.crop_ids, *longest)
        self.held = crops(judged, HELD_CROPS, self.length, np.random.default_rng(0))
        self.distances = Distances.of(self.codec.model, self.codec.features)

    def build(self) -> nn.Module:
        return AdaptedDecoder(self.codec.model, torch.tensor(self.voice.codes), self.recipe.rank)

    def unlearnt(self) -> dict[str, float]:
        """`evaluate` of what has learnt nothing."""
        with torch.inference_mode():
            return self.evaluate(self.build())

    def parameters(self, module: nn.Module) -> dict[str, list[nn.Parameter]]:
        assert isinstance(module, AdaptedDecoder)
        return {"voice": module.learnt()}

    def batch(self, step: int) -> Crops:
        rng = np.random.default_rng((self.recipe.train.seed, step))
        return crops(self.sounds, self.recipe.data.crops, self.length, rng)

    def losses(self, module: nn.Module, batch: Crops, step: int) -> Iterator[Loss]:
        value, metrics = self._loss(module, batch)
        yield Loss("voice", value, metrics)

    def _loss(self, module: nn.Module, batch: Crops) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(module, AdaptedDecoder)
        parts = self.distances(module, batch)
        value = torch.stack([getattr(self.recipe.weights, name) * part for name, part in parts.items()]).sum()
        return value, {name: part.item() for name, part in parts.items()}

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Losses of the held-out crops, and their weighted sum."""
        value, metrics = self._loss(module, to_device(self.held, next(module.parameters()).device))
        return {**metrics, "loss": value.item()}

    def export(self, module: nn.Module, path: Path) -> None:
        """Write the voice with what was best on held-out crops; timbre and pitch are measured with it.

        Of the plain voice the timbre alone, measured on all recordings, where learning made nothing better.
        """
        assert isinstance(module, AdaptedDecoder)
        best, voice = path.parent / checkpoint.FOLDER / checkpoint.BEST, self.voice
        if best.is_file():
            module.load_state_dict(checkpoint.read(best)["module"])
        with torch.inference_mode():
            after, before = self.evaluate(module)["loss"], self.unlearnt()["loss"]
        if after < before:
            voice = replace(voice, adaptation=module.adaptation(self.codec.decoder_fingerprint()))
        else:
            log.warning("held-out loss %.4f, %.4f before: nothing that was learnt is kept", after, before)
        path.mkdir(parents=True, exist_ok=True)
        completed(self.codec, voice, self.clips).save(path / FILE)


def completed(codec: BiCodec, voice: Voice, clips: Sequence[Clip]) -> Voice:
    """A voice with the timbre of all recordings and, if it was adapted, level and range of their pitch."""
    if voice.adaptation is not None:
        gain, shift = intonation_of(codec, clips, voice)
        voice = replace(voice, adaptation=replace(voice.adaptation, gain=gain, shift=shift))
    return replace(voice, timbre=timbre_of(codec, clips, voice))


def recordings(data: VoiceData, rate: int) -> tuple[list[Clip], list[Clip]]:
    """Sound (S,) and ids (T,) of the clips to learn from, and of those that are held out, at least one."""
    sources = {row.id: row.audio for row in open_source(data.manifest).check()}
    learnt: list[Clip] = []
    held: list[Clip] = []
    for row in TokenSet.open(Path(data.tokens)):
        clip = sources[row["id"]].wav(rate), np.asarray(row["semantic"], np.int64)
        (learnt if row["split"].startswith("train") else held).append(clip)
    if not held:  # the doctor has dropped them
        held = [learnt.pop()] if learnt else []
    if not learnt:
        raise DataError(f"{data.tokens}: too few clips are left to learn from some and judge by others")
    return learnt, held


class Sound(NamedTuple):
    """One clip: ids (T,), samples, pitch in Hz and voicing per frame, whole frames of each."""

    semantic: np.ndarray
    wav: np.ndarray
    f0: np.ndarray
    voiced: np.ndarray

    @classmethod
    def of(cls, wav: np.ndarray, semantic: np.ndarray, hop: int) -> Sound:
        """With `hop` samples per id; what the last id lacks is silence."""
        samples = len(semantic) * hop
        wav = np.pad(wav, (0, max(0, samples - len(wav))))[:samples]
        f0, voiced = yin(torch.from_numpy(wav)[None], FRAME)
        return cls(semantic, wav, f0[0].numpy(), voiced[0].numpy())

    def cut(self, begin: int, length: int) -> Iterator[Tensor]:
        """The stretch of `length` ids from number `begin` on, of each."""
        for whole in self:
            per_id = len(whole) // len(self.semantic)
            yield torch.from_numpy(whole[begin * per_id : (begin + length) * per_id])


def crops(sounds: Sequence[Sound], count: int, length: int, rng: np.random.Generator) -> Crops:
    """Stretches of `length` ids, every one of all clips equally likely."""
    room = np.array([max(0, len(sound.semantic) - length + 1) for sound in sounds], float)
    chosen = rng.choice(len(sounds), count, p=room / room.sum())
    parts = [sounds[i].cut(int(rng.integers(room[i])), length) for i in chosen]
    return Crops(*(torch.stack(part) for part in zip(*parts, strict=True)))


def step_seconds(codec: Path) -> float:
    """Seconds of a training step on this machine, of a codec's decoder with random weights."""
    config = BiCodecConfig.read(codec)
    network = BiCodecModel(config)
    small = config.features == "whisper"
    encoder = load_features(codec / "features", config.features) if small else None
    distances = Distances.of(network, encoder)
    codes = torch.zeros(config.speaker_encoder.token_num, dtype=torch.long)
    module = AdaptedDecoder(network, codes, VoiceRecipe.rank)
    count, length = VoiceData.crops, VoiceData.crop_ids
    samples = length * config.latent_hop_length
    frames = torch.full((count, samples // FRAME), 100.0)
    ids = torch.zeros(count, length, dtype=torch.long)
    batch = Crops(ids, torch.randn(count, samples), frames, torch.ones_like(frames))
    took = 0.0
    for _ in range(2):
        began = time.perf_counter()
        torch.stack([*distances(module, batch).values()]).sum().backward()
        took = time.perf_counter() - began
    return took
