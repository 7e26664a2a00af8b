"""Losses of codec training: letters; distances by mel, STFT and ASR features; adversarial, matching."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpa.codec.feature_encoder import FeatureEncoder, load_features
from gpa.nn.mel import mel_filters

QUIET = 1e-2  # of a magnitude: a sine of 20 millionths of full scale in a window of 1024


def spectrum(wav: Tensor, window: Tensor) -> Tensor:
    """Complex STFT (B, F, T) of wav (B, S), hop a quarter of the window."""
    return torch.stft(wav, len(window), len(window) // 4, window=window, return_complex=True)


def magnitude(wav: Tensor, window: Tensor) -> Tensor:
    """That of `spectrum`."""
    spec = spectrum(wav, window)
    return torch.sqrt(spec.real**2 + spec.imag**2 + 1e-9)  # abs() has no gradient at 0


class MelDistance(nn.Module):
    """Mean L1 distance of log-mels at several window lengths, wav (B, S) against wav (B, S)."""

    def __init__(
        self,
        sample_rate: int = 16_000,
        windows: Sequence[int] = (256, 512, 1024, 2048),
        mels: Sequence[int] = (20, 40, 80, 120),
    ) -> None:
        super().__init__()
        self.windows = tuple(windows)
        for n_fft, n_mels in zip(windows, mels, strict=True):
            filters = mel_filters(n_fft // 2 + 1, n_mels, 0.0, sample_rate / 2, sample_rate)
            self.register_buffer(f"filters_{n_fft}", torch.from_numpy(filters).float().T, persistent=False)
            self.register_buffer(f"window_{n_fft}", torch.hann_window(n_fft), persistent=False)

    def window(self, n_fft: int) -> Tensor:
        """The Hann window of this length."""
        return self.get_buffer(f"window_{n_fft}")

    def log_mel(self, wav: Tensor, n_fft: int) -> Tensor:
        """Natural-log mel (B, M, T) of magnitude, hop a quarter of the window."""
        mel = self.get_buffer(f"filters_{n_fft}") @ magnitude(wav, self.window(n_fft))
        return torch.log(mel.clamp_min(1e-4))

    def forward(self, ours: Tensor, real: Tensor) -> Tensor:
        distances = [F.l1_loss(self.log_mel(ours, n), self.log_mel(real, n)) for n in self.windows]
        return torch.stack(distances).mean()

    def stft(self, ours: Tensor, real: Tensor) -> Tensor:
        """The same of magnitudes: spectral convergence, and L1 of logarithms, which count from `QUIET`.

        The multi-resolution STFT loss of Parallel WaveGAN (Yamamoto et al. 2020, equations 3 to 6).
        """
        distances = []
        for n in self.windows:
            a, b = magnitude(ours, self.window(n)), magnitude(real, self.window(n))
            distances.append((b - a).norm() / b.norm() + F.l1_loss((a + QUIET).log(), (b + QUIET).log()))
        return torch.stack(distances).mean()


class ASRFeatureDistance:
    """Mean L1 between what a feature encoder makes of wav (B, S) and of wav (B, S).

    A deep feature loss (Germain et al. 2019). The encoder was trained to recognise words, so it is moved by
    what changes them. It is no part of what is trained and is loaded when it is first needed. `scale` (C, 1)
    multiplies its channels, of which a few are huge.
    """

    def __init__(
        self,
        folder: str,
        kind: str = "whisper",
        scale: Tensor | None = None,
        encoder: FeatureEncoder | None = None,
    ) -> None:
        """Of an encoder, or of the one in a folder."""
        self.folder, self.kind, self.scale = folder, kind, scale
        self._encoder = encoder

    def encoder(self, device: torch.device) -> FeatureEncoder:
        """The encoder, frozen."""
        if self._encoder is None:
            self._encoder = load_features(self.folder, self.kind).requires_grad_(False)
        return self._encoder.to(device)

    @torch.no_grad()
    def measure(self, clips: Iterable[Tensor]) -> None:
        """Set `scale` so that every channel varies alike over clips (S,)."""
        features = torch.cat([self.encoder(clip.device)(clip[None])[0] for clip in clips], 1)  # (C, T)
        self.scale = 1 / features.std(1, keepdim=True).clamp_min(1e-3)

    def __call__(self, ours: Tensor, real: Tensor) -> Tensor:
        asr_features = self.encoder(ours.device)
        with torch.no_grad():
            target = asr_features(real)
        distance = asr_features(ours) - target
        if self.scale is not None:
            distance = distance * self.scale.to(distance.device)
        return distance.abs().mean()


def generator_loss(scores: Sequence[Tensor]) -> Tensor:
    """Least squares: every discriminator should say 1."""
    return torch.stack([(1 - s).square().mean() for s in scores]).mean()


def discriminator_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Least squares: 1 for real, 0 for ours."""
    return torch.stack(
        [(1 - r).square().mean() + f.square().mean() for r, f in zip(real, fake, strict=True)]
    ).mean()


def feature_matching(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """L1 between the discriminators' inner features, relative to the size of the real ones."""
    return torch.stack(
        [(r - f).abs().mean() / r.abs().mean().clamp_min(1e-3) for r, f in zip(real, fake, strict=True)]
    ).mean()


class LetterHead(nn.Module):
    """CTC letter scores of quantised latents, (B, D, T) -> (B, T, 29).

    Not linear, since few FSQ dimensions span few linear classes.
    """

    def __init__(self, dim: int, classes: int = 29) -> None:
        super().__init__()
        self.mix = nn.Conv1d(dim, dim, 5, padding=2)
        self.out = nn.Linear(dim, classes)
        # Start on the all-blank plateau instead of sliding there.
        nn.init.constant_(self.out.bias[:1].detach(), 3.0)

    def forward(self, z_q: Tensor) -> Tensor:
        return self.out(F.gelu(self.mix(z_q)).transpose(1, 2))
