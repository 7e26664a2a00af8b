"""A source-filter waveform decoder: pitch pulses and noise, shaped by two envelopes drawn by a network.

Envelopes are learned sooner than the phases of an STFT (measured in docs/log.md), and harmonics come from
the pulses, not from training (differentiable signal processing, Engel et al. 2020; neural source-filter
models, Wang et al. 2019). In training the pulses follow the recording's pitch; at inference, the predicted
one.

    T frames   S samples   K bands   F frequency bins
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpa.codec.refiner import SpectrumRefiner
from gpa.codec.source_filter import REACH, source_filter
from gpa.errors import UsageError
from gpa.nn.convnext import VocosBackbone
from gpa.nn.incremental import Each, Layer, Series, Windows, backbone
from gpa.nn.mel import mel_filters

if TYPE_CHECKING:
    from gpa.codec.bicodec_config import WaveConfig
    from gpa.codec.timbre import Timbre

FLOOR = 5e-5  # of mel power in `log_mel`: about 60 dB below loud speech, where rooms hum
RETOUCH = 3.0  # nepers, either way, by which `retouched` changes a band at most
SLOPE = 400.0  # Hz over which `voiced_to` ends
LEFT = 0.01  # share of the noise that stays below it
CENTRE = math.log(150.0)  # Hz; the network predicts the logarithm of pitch around it
HEIGHT = (-1.0, 1.1)  # nepers around it: 55 to 450 Hz


class HarmonicDecoder(nn.Module):
    """Latents (B, C, T) -> frames (B, 2K + 2, T): harmonic and noise envelopes, log pitch and voicing.

    `render` turns the frames of a whole clip into samples: the phase of the pulses runs through it.
    """

    window: Tensor
    spread: Tensor
    share: Tensor
    filters: Tensor
    noise: Tensor
    between: Tensor
    rate = 1  # output frames per latent frame

    def __init__(self, config: WaveConfig, sample_rate: int) -> None:
        """`config.sharpen` is how much of what `sharpener` finds is added, in time and over bands.

        Up to `config.voiced_to` Hz voiced sound is pulses alone (the harmonic part of Stylianou's model,
        2001).
        """
        super().__init__()
        sizes = (config.input_channel, config.channels, config.hidden, config.layers)
        self.backbone = VocosBackbone(*sizes, lookahead=config.lookahead)
        bands, hop = self.bands, self.hop = config.bands, config.hop_length
        self.sample_rate = sample_rate
        self.out = nn.Linear(config.channels, 2 * bands + 2)
        nn.init.normal_(self.out.weight, std=0.01)
        self.sharpen, voiced_to = config.sharpen, config.voiced_to
        share = torch.sigmoid((voiced_to - _centres(bands, sample_rate)) / SLOPE)
        share = share.clamp_max(1 - LEFT) if voiced_to else torch.zeros(bands)
        self.register_buffer("share", share[:, None], persistent=False)
        self.n_fft = 2 * hop
        self.refiner = SpectrumRefiner(hop + 1, config.refiner) if config.refiner else None
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)
        self.register_buffer(
            "spread", mel_interpolation(bands, self.n_fft // 2 + 1, sample_rate), persistent=False
        )
        filters = mel_filters(self.n_fft // 2 + 1, bands, 0.0, sample_rate / 2, sample_rate)
        self.register_buffer("filters", torch.from_numpy(filters).float().T, persistent=False)
        self.register_buffer("between", _between(self.filters, bands, sample_rate), persistent=False)
        # The same second of noise for everybody, so that decoding is a function of the ids.
        noise = torch.randn(sample_rate, generator=torch.Generator().manual_seed(0))
        self.register_buffer("noise", noise, persistent=False)

    def reach(self) -> tuple[int, int]:
        """Samples behind and ahead of a latent frame's own hop whose frames it hears."""
        behind, ahead = self.backbone.reach()
        return behind * self.hop, ahead * self.hop

    def render_reach(self) -> int:
        """Samples behind its hop that the sound of one latent frame hears of the frames."""
        return (REACH + 2 * bool(self.sharpen[0])) * self.hop

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.backbone(x).transpose(1, 2)).transpose(1, 2)

    def pitch(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted log pitch around `CENTRE` and voicing logit, (B, T) each."""
        return frames[:, -2], frames[:, -1]

    def render(self, frames: Tensor, f0: Tensor | None = None, voiced: Tensor | None = None) -> Tensor:
        """Waveform (B, T * hop); f0 (B, T) in Hz and voiced (B, T) replace the predictions (training)."""
        if f0 is None or voiced is None:
            return self.renderer().push(frames, True)[:, 0]
        return self._sound().push(self._described(frames, f0.detach().double(), voiced.detach()), True)[:, 0]

    def streaming(self) -> Layer:
        """`forward`, bit by bit."""
        return Series(backbone(self.backbone), Each(lambda x: self.out(x.transpose(1, 2)).transpose(1, 2)))

    def renderer(self) -> Layer:
        """`render` of the predictions, bit by bit."""
        return Series(self.sharpener(), Each(self._predicted), self._sound())

    def _predicted(self, frames: Tensor) -> Tensor:
        log_f0, logit = self.pitch(frames)
        # float64: what is rounded off a pitch adds up over the clip, otherwise on every processor.
        f0 = torch.exp(log_f0.double().clamp(*HEIGHT) + CENTRE)
        return self._described(frames, f0, (logit > 0).float())

    def _described(self, frames: Tensor, f0: Tensor, voiced: Tensor) -> Tensor:  # (B, 2K + 2, T) float64
        """What `source_filter` reads."""
        return torch.cat([*self._sources(frames, voiced), f0[:, None], voiced[:, None]], 1)

    def _sound(self) -> Layer:
        mixed = self.refiner.streaming() if self.refiner else None
        return source_filter(self._gain, self.noise, self.window, self.hop, self.sample_rate, mixed)

    def _sources(self, frames: Tensor, voiced: Tensor) -> tuple[Tensor, Tensor]:
        """Envelopes of pulses and noise, (B, K, T) each. No loss on power tells a network which it is.

        Noise under a voice is hoarseness, so `share` of it becomes pulses of the same power.
        """
        harmonic, noise = frames[:, : 2 * self.bands].chunk(2, 1)
        if not self.share.any():
            return harmonic, noise
        share = self.share * voiced[:, None]
        moved = 2 * noise + math.log(2) + share.clamp_min(1e-9).log()  # pulses of gain 1 have power 1/2
        return torch.logaddexp(2 * harmonic, moved) / 2, noise + torch.log1p(-share) / 2

    def sharpener(self) -> Layer:
        """Frames whose envelopes stand out more against their neighbours, in time and over bands.

        A network trained on distances draws the mean of all that could be: onsets and formants are flat (see
        the global variance of Toda and Tokuda 2007). What a moving average removes is added again.
        """
        time, across = self.sharpen

        def in_time(frames: Tensor) -> Tensor:
            here, bands = frames[..., 2:-2], frames[:, : 2 * self.bands]
            lifted = here[:, : 2 * self.bands]
            lifted = lifted + time * (lifted - F.avg_pool1d(bands, 5, 1))
            return torch.cat([lifted, here[:, 2 * self.bands :]], 1)

        def over_bands(frames: Tensor) -> Tensor:
            bands, rest = frames[:, : 2 * self.bands], frames[:, 2 * self.bands :]
            x = bands.unflatten(1, (2, -1)).movedim(-1, 1).flatten(0, 1)  # (B T, 2, K)
            x = x + across * (x - _smooth(x, 13))
            return torch.cat([x.unflatten(0, (len(frames), -1)).movedim(1, -1).flatten(1, 2), rest], 1)

        layers = [Windows(in_time, 5, pad=(2, 2), mode="replicate")] if time else []
        return Series(*layers, *([Each(over_bands)] if across else []))

    def envelope_distance(self, frames: Tensor, voiced: Tensor, real: Tensor) -> Tensor:
        """Mean L1 between the log-mel that frames (B, 2K + 2, T) stand for and that of real (B, T * hop).

        What `render` gives on average over phases, without rendering: a frame's expected power is the sum of
        both sources', flat ones, times their envelopes squared. voiced (B, T) says where pulses are.
        """
        return F.l1_loss(self._drawn(frames, voiced), self.log_mel(real))

    def spread_distance(self, frames: Tensor, voiced: Tensor, real: Tensor) -> Tensor:
        """Mean L1 between how much each band varies in time: distances alone teach flat envelopes."""
        return F.l1_loss(self._drawn(frames, voiced).std(-1), self.log_mel(real).std(-1))

    def log_mel(self, wav: Tensor) -> Tensor:  # (B, T * hop) -> (B, K, T)
        """Log-mel amplitude of sound, in nepers and at least half the logarithm of `FLOOR`."""
        side = (self.n_fft - self.hop) // 2
        stft = torch.stft(
            F.pad(wav, (side, side)),
            self.n_fft,
            self.hop,
            window=self.window,
            center=False,
            return_complex=True,
        )
        return self._log_mel(stft.abs().square())

    def retouched(self, frames: Tensor, timbre: Timbre) -> Tensor:
        """Frames (B, 2K + 2, T) that draw a timbre: both envelopes change by what their log-mel lacks."""
        if len(timbre.gain) != self.bands:
            raise UsageError(f"a timbre of {len(timbre.gain)} bands; this decoder draws {self.bands}")
        drawn = self._drawn(frames, (self.pitch(frames)[1] > 0).float())
        change = self.between @ timbre.change(drawn).clamp(-RETOUCH, RETOUCH)
        bands, rest = frames[:, : 2 * self.bands], frames[:, 2 * self.bands :]
        return torch.cat([bands + change.repeat(1, 2, 1), rest], 1)

    def intoned(self, frames: Tensor, gain: float, shift: float) -> Tensor:
        """Frames whose log pitch x, counted from `CENTRE`, is gain x + shift."""
        return torch.cat([frames[:, :-2], gain * frames[:, -2:-1] + shift, frames[:, -1:]], 1)

    def _drawn(self, frames: Tensor, voiced: Tensor) -> Tensor:
        """The log-mel (B, K, T) that frames stand for: of their expected power."""
        harmonic, noise = frames[:, : 2 * self.bands].float().chunk(2, 1)
        pulses = self._gain(harmonic).square() * voiced[:, None] / 2  # cosines of unit power in all
        power = (pulses + self._gain(noise).square()) * self.window.square().sum()
        return self._log_mel(power)

    def _log_mel(self, power: Tensor) -> Tensor:  # (B, F, T) -> (B, M, T)
        return 0.5 * torch.log((self.filters @ power).clamp_min(FLOOR))

    def _gain(self, bands: Tensor) -> Tensor:  # (B, K, T) -> (B, F, T)
        return torch.exp((self.spread @ bands - 4.0).clamp(max=3.0))


def _smooth(x: Tensor, width: int) -> Tensor:  # (B, C, N)
    """Moving average of odd width; the ends are repeated."""
    return F.avg_pool1d(F.pad(x, (width // 2, width // 2), mode="replicate"), width, 1)


def mel_interpolation(bands: int, bins: int, sample_rate: int) -> Tensor:
    """Linear interpolation from `bands` points, even on the mel scale, to `bins` of an STFT: (F, K)."""
    mel = _mel(torch.linspace(0, sample_rate / 2, bins, dtype=torch.float32))
    place = mel / mel[-1] * (bands - 1)
    distance = (place[:, None] - torch.arange(bands)).abs()
    return (1 - distance).clamp_min(0)


def _between(filters: Tensor, bands: int, sample_rate: int) -> Tensor:
    """From the centres of mel filters (K, F) to the points of `mel_interpolation`, linearly: (K, K)."""
    centres = (filters * torch.linspace(0, sample_rate / 2, filters.shape[1])).sum(1) / filters.sum(1)
    points = _centres(bands, sample_rate).clamp(centres[0], centres[-1])
    above = torch.searchsorted(centres, points).clamp(1, len(centres) - 1)
    share = (points - centres[above - 1]) / (centres[above] - centres[above - 1])
    return (1 - share)[:, None] * F.one_hot(above - 1, bands) + share[:, None] * F.one_hot(above, bands)


def _mel(hz: Tensor) -> Tensor:
    return 2595 * torch.log10(1 + hz / 700)


def _centres(bands: int, sample_rate: int) -> Tensor:
    """Frequencies of the points of `mel_interpolation`, (K,) in Hz."""
    top = _mel(torch.tensor(sample_rate / 2))
    return 700 * (10 ** (torch.linspace(0, 1, bands) * top / 2595) - 1)
