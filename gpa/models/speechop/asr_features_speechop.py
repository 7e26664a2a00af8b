"""What the audio encoder may be given of a source beside its latents: what a recogniser's encoder hears.

Latents of a small codec lose words of noisy speech, as they must draw the noise too; an encoder that learnt
to recognise keeps them. Knows waveforms and latent frames; no network of this family, no sampling.

    B recordings   S samples   H channels of the ASR encoder   T latent frames
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gpa import hub
from gpa.codec.feature_encoder import FRAME, WhisperFeatures, load_whisper_features, state_digest
from gpa.errors import CheckpointError, UsageError
from gpa.models.speechop.configuration_speechop import ASRFeatureSettings, SpeechOpConfig

SAMPLE_RATE = 16_000  # Hz, Whisper's


class ASRFeatures:
    """States of a Whisper encoder, those of one latent frame joined. Computes in float32.

    A recording is heard in stretches of equal length, at most `longest` seconds: a state depends on where it
    stands and on what is around it, and training hears seconds, not minutes.
    """

    def __init__(
        self,
        features: WhisperFeatures,
        hop: int,
        device: str | torch.device = "cpu",
        longest: float = ASRFeatureSettings.longest,
    ) -> None:
        """`hop` is the latents', in samples at 16 kHz; UsageError if it is no whole number of states."""
        if hop % FRAME:
            raise UsageError(f"an ASR encoder needs latents of whole {FRAME} samples, not {hop}")
        self.features = features.to(device, torch.float32).eval().requires_grad_(False)
        self.device, self.hop = torch.device(device), hop
        self.most = max(1, round(longest * SAMPLE_RATE / hop))  # latent frames of a stretch
        self.channels = hop // FRAME * features.channels

    @torch.no_grad()
    def __call__(self, wav: Tensor) -> Tensor:
        """What is heard (B, H, ceil(S / hop)) of wav (B, S); zeros fill the last frame."""
        wav = F.pad(wav.to(self.device).float(), (0, -wav.shape[1] % self.hop))
        frames = wav.shape[1] // self.hop
        count = -(-frames // self.most)
        edges = [self.hop * (i * frames // count) for i in range(count + 1)]
        with torch.autocast(self.device.type, enabled=False):
            parts = [self.features(wav[:, a:b]) for a, b in pairwise(edges)]
        x = torch.cat(parts, 2)  # (B, H / joined, joined * T)
        return x.unflatten(2, (-1, self.hop // FRAME)).transpose(2, 3).flatten(1, 2)

    def fingerprint(self) -> str:
        """SHA-256 over the weights as loaded."""
        return state_digest({}, self.features.encoder.state_dict())


def load_asr_features(
    config: SpeechOpConfig, shipped: Path, device: str | torch.device = "cpu", offline: bool = False
) -> ASRFeatures | None:
    """The ASR encoder that a model was trained with, None for one that hears latents alone.

    `asr_features.weights` is a folder of `shipped`, a path or a repository; CheckpointError if what is there
    is another ASR encoder.
    """
    settings, latent = config.asr_features, config.latent
    if settings.kind == "none":
        return None
    if latent.sample_rate != SAMPLE_RATE:
        raise CheckpointError(
            f"an ASR encoder hears {SAMPLE_RATE} Hz, the latents are of {latent.sample_rate} Hz"
        )
    inside = shipped / settings.weights
    try:
        folder = inside if inside.is_dir() else hub.resolve(settings.weights, None, offline)
    except CheckpointError as error:
        raise CheckpointError(
            f"the ASR encoder that the network needs (asr_features.weights) is not here: {error}"
        ) from error
    asr_features = ASRFeatures(load_whisper_features(folder), latent.hop, device, settings.longest)
    if asr_features.channels != settings.channels:
        wanted = f"{settings.channels} channels a latent frame, the network's asr_features.channels"
        raise CheckpointError(f"{folder}: hears {asr_features.channels} channels, not {wanted}")
    if (mark := config.about.get("asr_features")) and mark != asr_features.fingerprint():
        raise CheckpointError(f"{folder}: not the ASR encoder that the network was trained with")
    return asr_features
