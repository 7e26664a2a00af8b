"""An ASR encoder for the audio encoder: what it hears and when, that nothing changes without one, misfits."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import speechlike
from gpa.codec.feature_encoder import load_whisper_features
from gpa.compose import Guided, Plan, given
from gpa.config import build
from gpa.errors import AudioWarning, CheckpointError, UsageError
from gpa.models.speechop.asr_features_speechop import ASRFeatures, load_asr_features
from gpa.models.speechop.configuration_speechop import ASRFeatureSettings, SpeechOpConfig
from gpa.models.speechop.diffusion_speechop import inpaint_source
from gpa.models.speechop.modeling_speechop import Conditions, Latents, SpeechOpModel
from gpa.models.speechop.pipeline_speechop import SpeechOp
from gpa.models.speechop.windows_speechop import Windows
from tiny_speechop import HOP, tiny_codec, tiny_speechop
from training import write_encoder

RATE, C = 16000, 4
H = 32  # two states of 20 ms, each two taps of width 8
NOISY, VOICE = speechlike(1.3, seed=0), speechlike(2.2, seed=3)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("asr_features") / "encoder")


@pytest.fixture(scope="module")
def asr_features(encoder: Path) -> ASRFeatures:
    return ASRFeatures(load_whisper_features(encoder), HOP)


def settings(encoder: Path, **changes: Any) -> dict[str, Any]:
    return {"kind": "whisper", "weights": str(encoder), "channels": H, **changes}


@pytest.fixture(scope="module")
def op(encoder: Path, asr_features: ASRFeatures) -> SpeechOp:
    return tiny_speechop(asr_features=settings(encoder), given_features=asr_features)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AudioWarning)
        yield


# What is heard ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, HOP, HOP + 1, 5 * HOP])
def test_a_latent_frame_has_its_states(asr_features: ASRFeatures, samples: int) -> None:
    wav = torch.from_numpy(VOICE[:samples])[None]
    heard, frames = asr_features(wav), -(-samples // HOP)
    assert heard.shape == (1, H, frames) and asr_features.channels == H
    states = asr_features.features(
        torch.nn.functional.pad(wav, (0, frames * HOP - samples))
    )  # (1, 16, 2 * frames)
    for t in range(frames):
        torch.testing.assert_close(heard[0, :, t].view(-1, 2), states[0, :, 2 * t : 2 * t + 2])


def test_long_recordings_are_heard_in_stretches(encoder: Path) -> None:
    """Of equal length, at most the longest, each as it is heard alone."""
    asr_features = ASRFeatures(load_whisper_features(encoder), HOP, longest=0.4)  # 10 frames
    wav = torch.from_numpy(speechlike(1.0, seed=4))[None]  # 25 frames
    parts = [asr_features(wav[:, begin * HOP : end * HOP]) for begin, end in ((0, 8), (8, 16), (16, 25))]
    assert torch.equal(asr_features(wav), torch.cat(parts, 2))
    whole = ASRFeatures(load_whisper_features(encoder), HOP)(wav)
    assert whole.shape == (1, H, 25) and not torch.allclose(asr_features(wav), whole, atol=1e-3)


def test_features_are_the_same_whatever_the_precision_around(asr_features: ASRFeatures) -> None:
    wav = torch.from_numpy(NOISY)[None]
    with torch.autocast("cpu", torch.bfloat16):
        inside = asr_features(wav)
    assert inside.dtype == torch.float32 and torch.equal(inside, asr_features(wav))


def test_latents_of_broken_states_are_refused(encoder: Path) -> None:
    with pytest.raises(UsageError, match="whole 320 samples, not 400"):
        ASRFeatures(load_whisper_features(encoder), 400)


def test_what_is_heard_stays_under_clean_frames() -> None:
    source, x = torch.randn(1, C + H, 6), torch.randn(1, C, 6)
    clean = torch.tensor([[True, True, False, False, False, False]])
    held = inpaint_source(source, x, clean)
    assert torch.equal(held[:, :C, :2], x[..., :2]) and torch.equal(held[:, :C, 2:], source[:, :C, 2:])
    assert torch.equal(held[:, C:], source[:, C:])


# The network -----------------------------------------------------------------------------------------------


def sizes(ears: int) -> SpeechOpConfig:
    stack = {"layers": 1, "width": 16, "heads": 2, "ffn": 24}
    heard = {"kind": "whisper", "weights": "x", "channels": ears} if ears else {}
    text = {**stack, "kind": "bytes"}
    parts = {"dit": stack, "encoder": stack, "text": text, "latent": {"channels": C}, "asr_features": heard}
    return build(SpeechOpConfig, parts)


def test_a_new_ear_changes_nothing_until_it_is_trained() -> None:
    torch.manual_seed(0)
    deaf, hearing = SpeechOpModel(sizes(0)).eval(), SpeechOpModel(sizes(H)).eval()
    torch.nn.init.normal_(deaf.out.weight)
    missing = hearing.load_state_dict(deaf.state_dict(), strict=False).missing_keys
    assert missing == ["encoder.listen.weight"]
    source, task = torch.randn(2, C + H, 5), torch.tensor([1, 2])
    mask, z, lam = torch.ones(2, 5, dtype=torch.bool), torch.randn(2, C, 5), torch.zeros(2)
    before = deaf(z, lam, Conditions(task, mask, source=source[:, :C]))
    assert torch.equal(before, hearing(z, lam, Conditions(task, mask, source=source)))
    assert hearing.encoder.listen is not None
    torch.nn.init.normal_(hearing.encoder.listen.weight)
    assert not torch.allclose(before, hearing(z, lam, Conditions(task, mask, source=source)))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        deaf(z, lam, Conditions(task, mask, source=source))


def test_a_prompt_is_not_listened_to() -> None:
    """What the weights of the ASR encoder do to the frames of a prompt is nothing."""
    torch.manual_seed(0)
    model, seen = SpeechOpModel(sizes(H)).eval(), []
    assert model.encoder.listen is not None
    torch.nn.init.normal_(model.encoder.listen.weight)
    model.encoder.listen.register_forward_hook(lambda module, given, heard: seen.append(heard))
    mask, real = torch.ones(1, 5, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)
    prompt = Latents(torch.randn(1, C, 3), real)
    model.condition(Conditions(torch.tensor([4]), mask, source=torch.randn(1, C + H, 5), prompt=prompt))
    assert seen[0].shape == (1, 8, 16) and not seen[0][:, :3].any() and seen[0][:, 3:].any()


# The pipeline ----------------------------------------------------------------------------------------------


def test_tasks_hear_their_source(op: SpeechOp) -> None:
    """Other states of the same latents are another sound, of every task with a source; speech has none."""

    class Other:
        channels = H

        def __call__(self, wav: torch.Tensor) -> torch.Tensor:
            assert op.asr_features is not None
            return op.asr_features(wav).flip(1)

    other = SpeechOp(op.model, op.codec, asr_features=Other())  # type: ignore[arg-type]
    plan = Plan(Guided("enhance", given(source="a"), scale=2.0))

    def made(one: SpeechOp) -> dict[str, np.ndarray]:
        parts = one.separate((NOISY, RATE))
        return {
            "enhance": one.enhance((NOISY, RATE)).wav,
            "voice": one.enhance((NOISY, RATE), voice=(VOICE, RATE)).wav,
            "extract": one.extract((NOISY, RATE), (VOICE, RATE)).wav,
            "speech": parts.speech.wav,
            "background": parts.background.wav,
            "match": one.match((NOISY, RATE), (VOICE, RATE)).wav,
            "compose": one.compose(plan, sources={"a": (NOISY, RATE)}).wav,
            "tts": one.tts("The rain.").wav,
        }

    first, again, changed = made(op), made(op), made(other)
    for task, wav in first.items():
        assert np.array_equal(wav, again[task]) and np.isfinite(wav).all()
        assert np.array_equal(wav, changed[task]) == (task == "tts"), task


def test_long_audio_is_heard_in_all_windows(op: SpeechOp) -> None:
    short = SpeechOp(op.model, op.codec, asr_features=op.asr_features, windows=Windows(1.0, 0.2))
    wav = speechlike(2.5, seed=1)
    sound = short.enhance((wav, RATE))
    assert len(sound.parts) > 1 and len(sound.wav) == len(wav) and np.isfinite(sound.wav).all()


# Files -----------------------------------------------------------------------------------------------------


def test_saved_is_loaded_with_the_ear_it_names(op: SpeechOp, tmp_path: Path) -> None:
    again = SpeechOp.from_pretrained(op.save_pretrained(tmp_path / "op"), device="cpu")
    assert op.asr_features is not None and again.asr_features is not None
    assert again.asr_features.fingerprint() == op.asr_features.fingerprint()
    assert np.array_equal(again.enhance((NOISY, RATE)).wav, op.enhance((NOISY, RATE)).wav)


def test_a_shipped_folder_is_found_by_its_name(encoder: Path, asr_features: ASRFeatures) -> None:
    config = build(SpeechOpConfig, {**_latent(), "asr_features": settings(Path(encoder.name))})
    found = load_asr_features(config, encoder.parent)
    assert found is not None and found.fingerprint() == asr_features.fingerprint()
    assert load_asr_features(build(SpeechOpConfig, _latent()), encoder.parent) is None


def _latent(rate: int = RATE) -> dict[str, Any]:
    return {"latent": {"channels": C, "sample_rate": rate, "hop": HOP}}


@pytest.mark.parametrize(
    ("changes", "rate", "about", "message"),
    [
        ({"channels": H + 2}, RATE, {}, f"hears {H} channels, not {H + 2}"),
        ({}, 24000, {}, "an ASR encoder hears 16000 Hz, the latents are of 24000 Hz"),
        (
            {"weights": "no/such/ear"},
            RATE,
            {},
            "asr_features.weights. is not here: no/such/ear: no such file",
        ),
        ({}, RATE, {"asr_features": "0" * 64}, "not the ASR encoder that the network was trained with"),
    ],
)
def test_other_features_are_refused(
    changes: dict[str, Any], rate: int, about: dict[str, str], message: str, encoder: Path
) -> None:
    raw = {**_latent(rate), "asr_features": settings(encoder, **changes), "about": about}
    with pytest.raises(CheckpointError, match=message):
        load_asr_features(build(SpeechOpConfig, raw), encoder.parent)


def test_missing_features_are_said(encoder: Path, asr_features: ASRFeatures, op: SpeechOp) -> None:
    with pytest.raises(CheckpointError, match=f"ASR encoder has {H} channels, none was given"):
        SpeechOp(op.model, op.codec)
    with pytest.raises(CheckpointError, match=f"ASR encoder has 0 channels, the one given has {H}"):
        SpeechOp(tiny_speechop().model, tiny_codec(), asr_features=asr_features)
    with pytest.raises(UsageError, match="longest: 0.0 is outside"):
        build(ASRFeatureSettings, {"longest": 0.0})
    for raw in ({"kind": "whisper"}, {"weights": "x", "channels": 1}, {"kind": "whisper", "weights": "x"}):
        with pytest.raises(UsageError, match="asr_features: weights and channels go with a kind"):
            build(ASRFeatureSettings, raw)
    with pytest.raises(UsageError, match="choose one of none, whisper"):
        build(ASRFeatureSettings, {"kind": "wav2vec2", "weights": "x", "channels": 1})
