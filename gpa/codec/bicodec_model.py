"""The network of BiCodec at any size: features -> semantic ids, mel -> global ids, ids -> waveform.

Knows tensors and codes only; audio, windows and files are the business of `gpa.codec.bicodec`. Source:
Spark-TTS, arXiv 2503.01710, section 3. State names are the published ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gpa.codec.harmonic import HarmonicDecoder
from gpa.codec.speaker import SpeakerEncoder
from gpa.codec.waveform import ISTFTDecoder, WaveGenerator
from gpa.nn.convnext import VocosBackbone, sampling_stages
from gpa.nn.incremental import Each, Layer, Series, backbone, upsampling
from gpa.nn.mel import mel_filters
from gpa.nn.quantize import FactorizedVQ

if TYPE_CHECKING:
    from gpa.codec.bicodec_config import BackboneConfig, BiCodecConfig, WaveConfig


class Encoder(nn.Module):
    """Features (B, C, T) -> (B, D, T / ratio): Vocos backbone, downsampling stages, projection."""

    def __init__(self, c: BackboneConfig) -> None:
        super().__init__()
        self.encoder = VocosBackbone(
            c.input_channels, c.vocos_dim, c.vocos_intermediate_dim, c.vocos_num_layers
        )
        self.downsample = sampling_stages(c.vocos_dim, c.vocos_intermediate_dim, down=list(c.sample_ratios))
        self.project = nn.Linear(c.vocos_dim, c.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(self.encoder(x))
        return self.project(x.transpose(1, 2)).transpose(1, 2)


class Decoder(nn.Module):
    """Latents (B, D, T) [+ speaker vector] -> (B, D', T * ratio): the prenet and the postnet."""

    def __init__(self, c: BackboneConfig) -> None:
        super().__init__()
        self.linear_pre = nn.Linear(c.input_channels, c.vocos_dim)
        sizes = (c.vocos_dim, c.vocos_intermediate_dim)
        causal = c.lookahead is not None
        self.downsample = sampling_stages(*sizes, up=list(c.sample_ratios), causal=causal)
        self.vocos_backbone = VocosBackbone(
            c.vocos_dim, *sizes, c.vocos_num_layers, c.condition_dim, c.lookahead
        )
        self.linear = nn.Linear(c.vocos_dim, c.out_channels)
        self.tanh = c.use_tanh_at_final

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        x = self.downsample(self.linear_pre(x.transpose(1, 2)).transpose(1, 2))
        return self._out(self.vocos_backbone(x, cond))

    def reach(self) -> tuple[int, int]:
        """Frames of its own, behind and ahead, that one of them hears."""
        behind, ahead = self.vocos_backbone.reach()
        step = 1  # frames of the output in one of the stage's
        stages: list[Any] = list(self.downsample)
        for block, after in reversed(stages):
            more = after.reach()
            behind, ahead = behind + more[0] * step, ahead + more[1] * step
            step *= block.up
            behind, ahead = behind + (block.up > 1) * step, ahead + (block.up > 1 and not block.causal) * step
        return behind, ahead

    def streaming(self, cond: Tensor | None = None) -> Layer:
        """`forward`, bit by bit."""
        first = Each(lambda x: self.linear_pre(x.transpose(1, 2)).transpose(1, 2))
        stages = upsampling(self.downsample)
        return Series(first, stages, backbone(self.vocos_backbone, cond), Each(self._out))

    def _out(self, x: Tensor) -> Tensor:
        x = self.linear(x.transpose(1, 2)).transpose(1, 2)
        return torch.tanh(x) if self.tanh else x


WaveDecoder = WaveGenerator | ISTFTDecoder | HarmonicDecoder


def wave_decoder(c: WaveConfig, sample_rate: int) -> WaveDecoder:
    """The waveform decoder that the sizes ask for: source-filter, ISTFT, or the published one."""
    if c.bands:
        return HarmonicDecoder(c, sample_rate)
    if c.n_fft:
        sizes = (c.input_channel, c.channels, c.hidden, c.layers)
        return ISTFTDecoder(*sizes, c.n_fft, c.hop_length, c.lookahead)
    return WaveGenerator(c.input_channel, c.channels, list(c.rates), list(c.kernel_sizes))


class BiCodecModel(nn.Module):
    """The network: features -> semantic ids, mel -> global ids, ids -> waveform. State names as published."""

    mel_filters: Tensor
    mel_window: Tensor
    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(self, config: BiCodecConfig) -> None:
        super().__init__()
        self.config = config
        s = config.speaker_encoder
        self.encoder = Encoder(config.encoder)
        q = config.quantizer
        self.quantizer = FactorizedVQ(q.input_dim, q.codebook_size, q.codebook_dim)
        self.speaker_encoder = SpeakerEncoder(
            n_mels=s.input_dim,
            out_dim=s.out_dim,
            latent_dim=s.latent_dim,
            token_num=s.token_num,
            levels=list(s.fsq_levels),
            channels=s.channels,
            normalise=s.normalise,
            x_vector=s.x_vector,
            pre_norm=s.pre_norm,
        )
        self.prenet = Decoder(config.prenet)
        if config.postnet:
            self.postnet = Decoder(config.postnet)
        self.decoder = wave_decoder(config.decoder, config.sample_rate)
        if config.standardise:
            self.register_buffer("feature_mean", torch.zeros(config.encoder.input_channels, 1))
            self.register_buffer("feature_scale", torch.ones(config.encoder.input_channels, 1))
        m = config.mel_params
        top = m.mel_fmax or m.sample_rate / 2
        filters = mel_filters(m.n_fft // 2 + 1, m.num_mels, m.mel_fmin, top, m.sample_rate)
        self.register_buffer("mel_filters", torch.from_numpy(filters).float(), persistent=False)  # (F, M)
        self.register_buffer("mel_window", torch.hann_window(m.win_length), persistent=False)

    def mel(self, wav: Tensor) -> Tensor:  # (B, S) -> (B, M, T)
        """Mel of the reference clip: magnitude, Slaney, linear (or log, ours)."""
        m = self.config.mel_params
        spec = torch.stft(
            wav, m.n_fft, m.hop_length, m.win_length, self.mel_window, return_complex=True
        ).abs()
        mel = self.mel_filters.T @ spec
        return torch.log(mel.clamp_min(1e-5)) if m.log else mel

    def latents(self, features: Tensor) -> Tensor:  # (B, C, T) -> (B, D, T / r)
        """Encoder output before quantisation."""
        if self.config.standardise:
            features = (features - self.feature_mean) * self.feature_scale
        return self.encoder(features)

    def code_vectors(self) -> Tensor:
        """Vectors (V, D) of all semantic ids."""
        return self.quantizer.decode(torch.arange(self.config.quantizer.codebook_size)[None])[0].T

    def encode_semantic(self, features: Tensor) -> Tensor:  # (B, C, T) -> (B, T / r)
        """Semantic ids of encoder features."""
        return self.quantizer.encode(self.latents(features))

    def encode_global(self, reference: Tensor) -> Tensor:  # (B, S) -> (B, G)
        """Global ids of reference clips."""
        return self.speaker_encoder.encode(self.mel(reference))

    def condition(self, z_q: Tensor, speaker: Tensor) -> Tensor:
        """Prenet on quantised semantics with the speaker vector, which is also added to every frame."""
        return self.prenet(z_q, speaker) + speaker[..., None]

    def frames(self, semantic: Tensor, global_: Tensor) -> Tensor:  # (B, T), (B, G) -> (B, C, T * n)
        """What the decoder draws, by finite convolutions: samples, or what `render` makes them of."""
        return self.drawn(semantic, self.speaker_encoder.decode(global_))

    def drawn(self, semantic: Tensor, speaker: Tensor) -> Tensor:  # (B, T), (B, D) -> (B, C, T * n)
        """The same for a speaker vector."""
        return self.decoder(self.condition(self.quantizer.decode(semantic), speaker))

    def streaming(self, speaker: Tensor) -> Layer:  # (1, T), (1, D) -> (1, C, T * n)
        """`drawn`, bit by bit."""
        return Series(
            Each(lambda codes: self.quantizer.decode(codes.to(speaker.device))),
            self.prenet.streaming(speaker),
            Each(lambda x: x + speaker[..., None]),
            self.decoder.streaming(),
        )

    @property
    def frames_per_id(self) -> int:
        """n of `frames`."""
        return self.config.latent_hop_length // self.decoder.hop * self.decoder.rate

    def render(self, frames: Tensor) -> Tensor:  # (B, C, T * n) -> (B, S)
        """Samples of a whole clip's frames, exactly `latent_hop_length` per semantic id."""
        return self.decoder.render(frames)

    def decode(self, semantic: Tensor, global_: Tensor) -> Tensor:  # (B, T), (B, G) -> (B, S)
        """Waveform of a whole clip."""
        return self.render(self.frames(semantic, global_))

    def context(self) -> tuple[int, int]:
        """Ids behind and ahead of one that its sound hears, phases aside, which run through the clip."""
        behind, ahead = (frames * self.decoder.hop for frames in self.prenet.reach())
        more = self.decoder.reach()
        ids = self.config.latent_hop_length
        ahead += more[1] + self.decoder.render_reach()
        return -(-(behind + more[0]) // ids), -(-ahead // ids)
