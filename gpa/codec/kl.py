"""A small KL autoencoder: speech, clean or noisy, <-> continuous latents, for models that diffuse them.

It shares the token codec's networks: its encoder on a log-mel instead of recognition features, its prenet
and waveform decoders after the latents. In place of a quantiser stands a Gaussian whose information training
limits; inference takes its mean, each channel brought to mean 0 and spread 1 by statistics stored with the
weights, the same for all tasks. Source: docs/speechop.md.

    B clips of equal length   S samples   M mel bins   C latent channels   T latent frames
    R frames of the networks per latent frame
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpa import hub
from gpa.codec.base import LatentSpec
from gpa.codec.bicodec_config import BackboneConfig, Bands, Hop, WaveConfig
from gpa.codec.bicodec_model import Decoder, Encoder, wave_decoder
from gpa.codec.feature_encoder import half_where_it_fits, state_digest
from gpa.codec.losses import MelDistance
from gpa.config import Rate, Size, Within, build_stored, require, stated
from gpa.errors import AudioError, CheckpointError, UsageError

KIND = "latent"  # model_type of its config.json
LOG_VARIANCE = (-12.0, 4.0)  # of the posterior; beyond it nothing is gained and exp overflows
Depth = Annotated[int, Within(1, 512)]
START = -4.0  # log-variance before training: latents are heard through little noise


@dataclass(frozen=True)
class LatentConfig:
    """Sizes. The networks run at one frame per `frame` samples, the latents at one per `hop_length`.

    `bands` asks for the source-filter decoder, `n_fft` for the ISTFT decoder; exactly one of them.
    """

    channels: Size = 64
    sample_rate: Rate = 16_000  # Hz
    hop_length: Rate = 640  # samples
    frame: Hop = 320  # samples
    mels: Annotated[int, Within(1, 1024)] = 100
    mel_window: Annotated[int, Within(4, 1 << 14)] = 640  # samples; four mel frames a window
    width: Size = 192
    hidden: Size = 512  # of the ConvNeXt blocks
    encoder_layers: Depth = 4
    prenet_layers: Depth = 1
    decoder_layers: Depth = 4
    bands: Bands = 0
    n_fft: Annotated[int, Within(0, 1 << 14)] = 0
    sharpen: tuple[float, float] = (0.0, 0.0)  # of the source-filter decoder, at inference
    voiced_to: Annotated[float, Within(0, 1 << 20)] = 0.0  # Hz, of the same

    def __post_init__(self) -> None:
        step = self.mel_window // 4
        require(
            self.mel_window % 4 == 0 and self.frame % step == 0,
            "latent codec: frame is a multiple of mel_window / 4",
        )
        require(self.hop_length % self.frame == 0, "latent codec: hop_length is a multiple of frame")
        require((self.bands > 0) != (self.n_fft > 0), "latent codec: one of bands and n_fft is given")

    @property
    def joined(self) -> int:
        """Mel frames that make one frame of the encoder."""
        return self.frame // (self.mel_window // 4)

    @property
    def backbone(self) -> dict[str, Any]:
        """What encoder and prenet have in common."""
        sizes = {"vocos_dim": self.width, "vocos_intermediate_dim": self.hidden}
        return {**sizes, "sample_ratios": (self.hop_length // self.frame,)}

    @classmethod
    def from_dict(cls, raw: dict[str, Any], where: str = "config.json") -> LatentConfig:
        """Typed content of config.json; CheckpointError for unknown or impossible settings."""
        return build_stored(cls, {key: value for key, value in raw.items() if key != "model_type"}, where)

    def to_dict(self) -> dict[str, Any]:
        """Inverse of `from_dict`."""
        return {"model_type": KIND, **dataclasses.asdict(self)}


class LatentModel(nn.Module):
    """The networks: wav -> posterior -> latents -> decoder frames -> wav. Latents here are not normalised."""

    mean: Tensor
    spread: Tensor

    def __init__(self, config: LatentConfig) -> None:
        super().__init__()
        self.config = c = config
        self.mel = MelDistance(c.sample_rate, windows=(c.mel_window,), mels=(c.mels,))
        self.encoder = Encoder(
            BackboneConfig(
                input_channels=c.mels * c.joined,
                vocos_num_layers=c.encoder_layers,
                out_channels=2 * c.channels,
                **c.backbone,
            )
        )
        nn.init.constant_(self.encoder.project.bias[c.channels :].detach(), START)
        self.prenet = Decoder(
            BackboneConfig(
                input_channels=c.channels,
                vocos_num_layers=c.prenet_layers,
                out_channels=c.width,
                **c.backbone,
            )
        )
        wave = WaveConfig(
            c.width,
            c.width,
            hidden=c.hidden,
            layers=c.decoder_layers,
            bands=c.bands,
            n_fft=c.n_fft,
            hop_length=c.frame,
            sharpen=c.sharpen,
            voiced_to=c.voiced_to,
        )
        self.decoder = wave_decoder(wave, c.sample_rate)
        self.register_buffer("mean", torch.zeros(c.channels, 1))
        self.register_buffer("spread", torch.ones(c.channels, 1))

    def posterior(self, wav: Tensor) -> tuple[Tensor, Tensor]:  # (B, S)
        """Mean and log-variance (B, C, T) of wav (B, T * hop)."""
        mel = self.mel.log_mel(wav, self.config.mel_window)[..., :-1]  # (B, M, T * R * joined)
        x = mel.unflatten(-1, (-1, self.config.joined)).movedim(-1, 1).flatten(1, 2)
        mean, log_variance = self.encoder(x / 4 + 1).float().chunk(2, 1)
        return mean, log_variance.clamp(*LOG_VARIANCE)

    def frames(self, z: Tensor) -> Tensor:  # (B, C, T) -> (B, C', T * R)
        """What the waveform decoder draws; its `render` makes samples of them."""
        return self.decoder(self.prenet(z))

    @torch.no_grad()
    def measure(self, clips: Iterable[Tensor]) -> None:
        """Set the statistics from the posterior means of clips (S,), S a multiple of the hop."""
        z = torch.cat([self.posterior(clip[None])[0][0] for clip in clips], 1).double()  # (C, T)
        self.mean.copy_(z.mean(1, keepdim=True))
        self.spread.copy_(z.std(1, keepdim=True, unbiased=False).clamp_min(1e-4))


def kl(mean: Tensor, log_variance: Tensor, free_nats: float = 0.0) -> Tensor:
    """Nats per channel and frame by which posteriors (B, C, T) differ from N(0, 1), as the mean of channels.

    A channel below `free_nats` on average counts as that much and is not pushed further (free bits, Kingma
    et al. 2016).
    """
    nats = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return nats.mean((0, 2)).clamp_min(free_nats).mean()


class KLCodec:
    """A loaded latent autoencoder: a `LatentCodec`, in float32."""

    def __init__(self, model: LatentModel, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.config = c = model.config
        self.model = model.to(self.device, torch.float32).eval().requires_grad_(False)
        self.precision = torch.float32  # of the files, which saving keeps
        self._spec = LatentSpec(KIND, c.sample_rate, c.hop_length, c.channels)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike,
        *,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        offline: bool = False,
    ) -> KLCodec:
        """Load a directory or repository: config.json, model.safetensors.

        Raises CheckpointError for settings this code does not know, or with a readable difference of tensors.
        """
        folder = hub.resolve(path, revision, offline)
        raw = hub.read_json(folder / "config.json")
        if raw.get("model_type") != KIND:
            found = raw.get("model_type")
            raise CheckpointError(f"{folder}: model_type {found!r}, a latent codec has {KIND!r}")
        made = partial(LatentModel, LatentConfig.from_dict(raw, str(folder / "config.json")))
        state = hub.read_state(folder)
        model = hub.build_strict(made, state, where=str(folder))
        codec = cls(model, device)
        codec.precision = hub.stored_precision(state)
        return codec

    def save_pretrained(self, path: str | os.PathLike, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors; `dtype` defaults to that of the loaded files."""
        state = half_where_it_fits(self.model.state_dict(), dtype or self.precision)
        hub.write_model(Path(path), state, self.config.to_dict())

    @property
    def spec(self) -> LatentSpec:
        """Rates and sizes."""
        return self._spec

    def fingerprint(self) -> str:
        """SHA-256 over settings and weights as loaded."""
        return state_digest(stated(self.config), self.model.state_dict())

    @torch.no_grad()
    def encode(self, wav: Tensor) -> Tensor:
        """Normalised latents (B, C, ceil(S / hop)) of wav (B, S); zeros fill the last frame.

        AudioError for another rank, no samples, or samples that are not finite.
        """
        if wav.ndim != 2 or wav.shape[1] == 0 or not wav.is_floating_point():
            raise AudioError(f"encode needs float wav (B, S), got {wav.dtype} {tuple(wav.shape)}")
        if not wav.isfinite().all():
            raise AudioError("encode got NaN or infinite samples")
        hop = self.config.hop_length
        mean, _ = self.model.posterior(F.pad(wav.to(self.device).float(), (0, -wav.shape[1] % hop)))
        return (mean - self.model.mean) / self.model.spread

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Wav (B, T * hop) of normalised latents (B, C, T); UsageError for another number of channels."""
        if latents.ndim != 3 or latents.shape[1] != self.config.channels or latents.shape[2] == 0:
            wanted = f"(B, {self.config.channels}, T)"
            raise UsageError(f"decode needs latents {wanted}, got {tuple(latents.shape)}")
        z = latents.to(self.device).float() * self.model.spread + self.model.mean
        return self.model.decoder.render(self.model.frames(z))
