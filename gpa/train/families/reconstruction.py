"""What codec families have in common in training: losses of a waveform decoder, and the adversarial step.

Knows decoders and discriminators; neither codes nor latents.

    B crops   S samples   F decoder frames
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import torch.nn.functional as F
from torch import Tensor

from gpa.codec.harmonic import CENTRE, HarmonicDecoder
from gpa.codec.losses import discriminator_loss, feature_matching, generator_loss
from gpa.train.families.base import Loss

if TYPE_CHECKING:
    from gpa.codec.bicodec_model import WaveDecoder
    from gpa.codec.discriminators import Discriminators


class Sound(Protocol):
    """Recorded crops: wav (B, S), pitch in Hz and voicing (0 or 1) per decoder frame, (B, F) each."""

    wav: Tensor
    f0: Tensor
    voiced: Tensor


def drawn(
    decoder: WaveDecoder, frames: Tensor, real: Sound, *, envelope: bool, render: bool
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Losses of a decoder's frames before they are sound, and if asked for the samples, else None.

    The source-filter decoder has a loss of pitch and voicing and, with `envelope`, of what it draws; it is
    rendered with the recording's pitch. Others have none and are always rendered.
    """
    if not isinstance(decoder, HarmonicDecoder):
        return {}, decoder.render(frames)
    log_f0, logit = decoder.pitch(frames)
    distance = (log_f0 - (real.f0.log() - CENTRE)).abs() * real.voiced
    height = distance.sum() / real.voiced.sum().clamp_min(1)
    parts = {"pitch": height + F.binary_cross_entropy_with_logits(logit, real.voiced)}
    if envelope:
        parts["envelope"] = decoder.envelope_distance(frames, real.voiced, real.wav)
    return parts, decoder.render(frames, real.f0, real.voiced) if render else None


def contest(
    critic: Discriminators,
    real: Tensor,
    ours: Tensor,
    loss: Tensor,
    metrics: dict[str, float],
    weights: tuple[float, float],
) -> Iterator[Loss]:
    """The generator's loss with adversarial and matching parts (`weights`) added, then the critic's own.

    Between the two only the generator steps, so what the critic makes of `real` serves both; the first
    leaves its weights alone.
    """
    real_scores, real_features = critic(real)
    critic.requires_grad_(False)
    scores, features = critic(ours)
    critic.requires_grad_(True)
    adversarial = generator_loss(scores)
    matching = feature_matching([f.detach() for f in real_features], features)
    metrics |= {"adversarial": adversarial.item(), "matching": matching.item()}
    yield Loss("generator", loss + weights[0] * adversarial + weights[1] * matching, metrics)
    value = discriminator_loss(real_scores, critic(ours.detach())[0])
    yield Loss("discriminator", value, {"discriminator": value.item()})
