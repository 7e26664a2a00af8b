"""Losses, discriminators and the ISTFT decoder of codec training."""

import math

import pytest
import torch

from conftest import speechlike
from gpa.codec.discriminators import DiscriminatorArgs, Discriminators
from gpa.codec.losses import (
    LetterHead,
    MelDistance,
    discriminator_loss,
    feature_matching,
    generator_loss,
)
from gpa.codec.speaker import Perceiver, SpeakerEncoder
from gpa.codec.waveform import ISTFTDecoder
from gpa.nn.incremental import inverse_stft
from gpa.train.families.reconstruction import contest


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def wav() -> torch.Tensor:
    return torch.from_numpy(speechlike(0.4))[None]


def test_mel_distance_is_zero_for_equal_and_grows_with_the_difference(wav: torch.Tensor) -> None:
    distance = MelDistance()
    assert distance(wav, wav) == 0
    noise = torch.randn_like(wav)
    near, far = (float(distance(wav + level * noise, wav)) for level in (1e-3, 1e-1))
    assert 0 < near < far
    assert distance(wav, 0.5 * wav) == pytest.approx(math.log(2), rel=0.2)  # half the amplitude, in nepers
    assert float(distance(wav, wav + noise)) == pytest.approx(float(distance(wav + noise, wav)))


def test_mel_distance_has_a_finite_gradient_even_in_silence(wav: torch.Tensor) -> None:
    ours = torch.zeros_like(wav).requires_grad_()
    MelDistance()(ours, wav).backward()
    assert ours.grad is not None and ours.grad.isfinite().all()
    ours = (0.1 * wav).requires_grad_()
    MelDistance()(ours, wav).backward()
    assert ours.grad is not None and ours.grad.abs().sum() > 0


def test_stft_distance_is_zero_for_equal_and_tells_levels(wav: torch.Tensor) -> None:
    distance = MelDistance(windows=(512,), mels=(40,)).stft
    assert distance(wav, wav) == 0
    # Half the amplitude: half of the spectrum is missing, and a logarithm of 2 wherever it is loud.
    assert float(distance(0.5 * wav, wav)) == pytest.approx(0.5 + math.log(2), rel=0.2)
    near, far = (float(distance(wav + level * torch.randn_like(wav), wav)) for level in (1e-3, 1e-1))
    assert 0 < near < far


def test_stft_distance_has_a_finite_gradient_in_silence(wav: torch.Tensor) -> None:
    distance = MelDistance().stft
    for start, real in ((torch.zeros_like(wav), wav), (0.1 * wav, torch.zeros_like(wav))):
        ours = start.clone().requires_grad_()
        distance(ours, real).backward()
        assert ours.grad is not None and ours.grad.isfinite().all()


def test_mel_distance_stores_nothing() -> None:
    assert MelDistance().state_dict() == {}


def test_adversarial_losses_at_known_scores() -> None:
    ones, zeros, halves = ([torch.full((2, 1, 3, 4), value)] * 2 for value in (1.0, 0.0, 0.5))
    assert generator_loss(ones) == 0 and generator_loss(zeros) == 1 and generator_loss(halves) == 0.25
    assert discriminator_loss(ones, zeros) == 0
    assert discriminator_loss(zeros, ones) == 2
    assert discriminator_loss(halves, halves) == 0.5


def test_feature_matching_is_relative() -> None:
    real = [torch.randn(2, 3, 4) for _ in range(3)]
    assert feature_matching(real, real) == 0
    once = feature_matching(real, [1.5 * r for r in real])
    assert once == pytest.approx(0.5)
    louder = feature_matching([10 * r for r in real], [15 * r for r in real])
    assert louder == pytest.approx(float(once))


def test_lists_of_different_length_are_an_error() -> None:
    with pytest.raises(ValueError):
        discriminator_loss([torch.ones(1)], [])


@pytest.mark.parametrize("spectra", ["mel", "complex"])
def test_discriminators_give_a_score_map_per_window(spectra: str, wav: torch.Tensor) -> None:
    critic = Discriminators(DiscriminatorArgs(spectra, (512, 256), 4))  # type: ignore[arg-type]
    scores, features = critic(wav.expand(2, -1))
    assert len(scores) == 2 and all(s.shape[:2] == (2, 1) for s in scores)
    assert len(features) == 8 and all(f.shape[:2] == (2, 4) for f in features)
    frames = [1 + wav.shape[1] // (n // 4) for n in (512, 256)]
    assert [s.shape[-1] for s in scores] == frames
    alone = critic(wav)[0]
    torch.testing.assert_close(alone[0], scores[0][:1])


@pytest.mark.parametrize("spectra", ["mel", "complex"])
def test_discriminators_learn_to_tell(spectra: str, wav: torch.Tensor) -> None:
    critic = Discriminators(DiscriminatorArgs(spectra, (512,), 4))  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(critic.parameters(), 3e-3)
    real, fake = wav[:, :4000], 0.3 * torch.randn(1, 4000)
    losses = []
    for _ in range(25):
        loss = discriminator_loss(critic(real)[0], critic(fake)[0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_complex_spectra_have_phases_and_log_mels_have_none(wav: torch.Tensor) -> None:
    """Sound and its opposite: all magnitudes are the same, no phase is."""
    sound = [wav, -wav]
    for spectra, hears in (("mel", False), ("complex", True)):
        critic = Discriminators(DiscriminatorArgs(spectra, (512,), 4))  # type: ignore[arg-type]
        one, other = (critic(each)[0][0] for each in sound)
        assert torch.allclose(one, other, atol=1e-5) != hears


def test_the_critic_learns_from_its_own_loss_alone(wav: torch.Tensor) -> None:
    """What the generator's loss leaves is for the generator; the critic's begins where it ended."""
    critic, ours = Discriminators(DiscriminatorArgs("complex", (256,), 4)), (0.5 * wav).requires_grad_()
    steps = contest(critic, wav, ours, ours.new_zeros(()), {}, (1.0, 1.0))
    generator = next(steps)
    generator.value.backward()
    assert ours.grad is not None and ours.grad.abs().sum() > 0
    assert all(p.grad is None for p in critic.parameters())
    before, ours.grad = ours.grad, None
    discriminator = next(steps)
    discriminator.value.backward()
    assert ours.grad is None and all(p.grad is not None for p in critic.parameters())
    expected = discriminator_loss(critic(wav)[0], critic(ours.detach())[0])
    torch.testing.assert_close(discriminator.value, expected)
    assert (generator.optimizer, discriminator.optimizer) == ("generator", "discriminator")
    assert before.isfinite().all()


def test_letter_head_scores_every_frame_and_starts_at_blank() -> None:
    head = LetterHead(16)
    scores = head(torch.randn(2, 16, 11))
    assert scores.shape == (2, 11, 29)
    assert (scores.argmax(-1) == 0).all()


@pytest.mark.parametrize("frames", [1, 2, 7, 50])
@pytest.mark.parametrize(("n_fft", "hop"), [(1280, 320), (64, 16), (48, 16)])
def test_istft_decoder_emits_exactly_a_hop_per_frame(frames: int, n_fft: int, hop: int) -> None:
    decoder = ISTFTDecoder(8, 8, 16, 1, n_fft, hop)
    wav = decoder(torch.randn(2, 8, frames))
    assert wav.shape == (2, 1, hop * frames) and wav.isfinite().all()


def test_istft_decoder_overlap_add_inverts_torch_stft() -> None:
    decoder = ISTFTDecoder(8, 8, 16, 1, 64, 16)
    signal = torch.randn(1, 16 * 20)
    padded = torch.nn.functional.pad(signal, (24, 24))  # (n_fft - hop) / 2 on either side
    spectra = torch.fft.rfft(padded.unfold(1, 64, 16) * decoder.window).transpose(1, 2)  # (B, F, T)
    wav = inverse_stft(decoder.window, 16, (24, 24), 1e-3).push(spectra, True)
    torch.testing.assert_close(wav[:, 0], signal)


def test_istft_decoder_reach_is_true() -> None:
    """Beyond `reach` samples a change of one input frame is not heard."""
    decoder = ISTFTDecoder(8, 8, 16, 2, 64, 16).eval()
    x = torch.randn(1, 8, 60)
    changed = x.clone()
    changed[..., 30] += 1
    moved = (decoder(x) != decoder(changed))[0, 0].nonzero().flatten()
    behind, ahead = decoder.reach()
    assert 30 * 16 - moved.min() <= ahead and moved.max() - 31 * 16 < behind
    assert 30 * 16 - moved.min() > ahead - 2 * 16  # and it is not much too large


def test_speaker_encoder_ids_and_vectors() -> None:
    encoder = SpeakerEncoder(n_mels=20, out_dim=16, latent_dim=8, token_num=4, levels=[4, 4], channels=16)
    encoder.eval()
    mel = torch.randn(3, 20, 40)
    ids = encoder.encode(mel)
    vector, x_vector = encoder(mel), encoder.speaker_encoder.x_vector(encoder.speaker_encoder.frames(mel))
    assert ids.shape == (3, 4) and 0 <= ids.min() and ids.max() < 16
    assert vector.shape == (3, 16) and x_vector.shape == (3, 16)
    torch.testing.assert_close(encoder.decode(ids), vector)  # the training pass and the ids agree


def test_the_perceivers_norms_keep_a_loud_context_in_bounds() -> None:
    """Without them latents answer to the size of the frame features, with them only to their direction."""
    torch.manual_seed(0)
    context = torch.randn(2, 30, 12)
    for pre_norm in (False, True):
        perceiver = Perceiver(12, 16, 4, pre_norm=pre_norm)
        perceiver.proj_context.bias.data.zero_()
        moved = (perceiver(1000 * context) - perceiver(context)).abs().max()
        assert (moved < 1e-3) == pre_norm


def test_an_encoder_without_x_vector_gives_the_same_ids() -> None:
    sizes = {"n_mels": 20, "out_dim": 16, "latent_dim": 8, "token_num": 4, "levels": [4, 4], "channels": 16}
    whole = SpeakerEncoder(**sizes).eval()
    lean = SpeakerEncoder(**sizes, x_vector=False).eval()
    lean.load_state_dict({k: t for k, t in whole.state_dict().items() if k in lean.state_dict()})
    mel = torch.randn(2, 20, 40)
    assert torch.equal(lean.encode(mel), whole.encode(mel))
    assert len(lean.state_dict()) < len(whole.state_dict())
