"""BiCodec against recorded outputs of the reference, and what must hold of any of its sizes."""

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from conftest import speechlike
from golden import ASSETS, draw_weights
from gpa import hub
from gpa.codec import load_codec
from gpa.codec.bicodec import AudioTokens, BiCodec, BiCodecConfig, BiCodecModel
from gpa.codec.feature_encoder import Wav2Vec2Features, half_where_it_fits, load_wav2vec2_features
from gpa.codec.voice import Voice
from gpa.errors import CheckpointError, VocabError
from published import unpack

TINY = ASSETS / "bicodec-tiny"
RATE = 16000


@pytest.fixture(scope="module")
def gold() -> dict[str, torch.Tensor]:
    with np.load(TINY / "golden.npz") as file:
        return {name: torch.from_numpy(array) for name, array in file.items()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BiCodecModel:
    files = unpack(TINY / "files.json.xz")
    spec = tmp_path_factory.mktemp("spec") / "weights_spec.json"
    spec.write_text(files["weights_spec.json"])
    model = BiCodecModel(BiCodecConfig.from_dict(yaml.safe_load(files["config.yaml"])))
    hub.load_strict(model, draw_weights(spec))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def published(replica: Path) -> BiCodec:
    return BiCodec.from_pretrained(replica / "BiCodec")


@pytest.fixture(scope="module")
def ours(tiny: Path) -> BiCodec:
    return BiCodec.from_pretrained(tiny / "codec")


@pytest.fixture(scope="module")
def harmonic(ours: BiCodec) -> BiCodec:
    """Ours with the source-filter decoder, whose pulses run through the whole clip."""
    sizes = {
        "input_channel": ours.config.decoder.input_channel,
        "channels": 16,
        "hidden": 32,
        "layers": 2,
        "bands": 20,
    }
    torch.manual_seed(0)
    config = BiCodecConfig.from_dict({**ours.config.to_dict(), "decoder": sizes})
    return BiCodec(BiCodecModel(config), ours.features)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


# The reference's numbers ------------------------------------------------------------------------------------


def test_global_path(model: BiCodecModel, gold: dict[str, torch.Tensor]) -> None:
    reference = gold["reference_wav"][:, 0]
    mel = model.mel(reference)
    assert relative(mel[..., ::30], gold["mel_frames"]) < 1e-5
    ecapa = model.speaker_encoder.speaker_encoder
    assert relative(ecapa.x_vector(ecapa.frames(mel)), gold["x_vector"]) < 1e-5
    assert torch.equal(model.encode_global(reference), gold["global_tokens"][:, 0].long())


def test_semantic_path(model: BiCodecModel, gold: dict[str, torch.Tensor]) -> None:
    features = gold["features"].transpose(1, 2)
    assert relative(model.latents(features), gold["encoder_out"]) < 1e-5
    assert torch.equal(model.encode_semantic(features), gold["semantic_tokens"])


def test_decoder(model: BiCodecModel, gold: dict[str, torch.Tensor]) -> None:
    z_q = model.quantizer.decode(gold["semantic_tokens"])
    speaker = model.speaker_encoder.decode(gold["global_tokens"][:, 0])
    assert relative(z_q, gold["z_q"]) < 1e-5
    assert relative(speaker, gold["d_vector"]) < 1e-5
    assert relative(model.prenet(z_q, speaker), gold["prenet_out"]) < 1e-5
    assert relative(model.postnet(model.prenet(z_q, speaker)), gold["postnet_out"]) < 1e-5
    wav = model.decode(gold["semantic_tokens"], gold["global_tokens"][:, 0])
    assert relative(wav, gold["waveform"][:, 0]) < 1e-5


def test_published_size_has_the_published_names_and_shapes() -> None:
    def part(channels: int, out: int, layers: int, condition: int | None = None) -> dict[str, object]:
        sizes = {"input_channels": channels, "vocos_dim": 384, "vocos_intermediate_dim": 2048}
        return {**sizes, "vocos_num_layers": layers, "out_channels": out, "condition_dim": condition}

    speaker = {"input_dim": 128, "out_dim": 1024, "latent_dim": 128, "token_num": 32, "fsq_levels": [4] * 6}
    wave = {"input_channel": 1024, "channels": 1536, "rates": [8, 5, 4, 2], "kernel_sizes": [16, 11, 8, 4]}
    config = BiCodecConfig.from_dict(
        {
            "audio_tokenizer": {
                "encoder": part(1024, 1024, 12),
                "prenet": part(1024, 1024, 12, 1024),
                "postnet": part(1024, 1024, 6),
                "quantizer": {"input_dim": 1024, "codebook_size": 8192, "codebook_dim": 8},
                "speaker_encoder": speaker,
                "decoder": wave,
            }
        }
    )
    with torch.device("meta"):
        model = BiCodecModel(config)
    names = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    expected = json.loads(gzip.decompress((ASSETS / "bicodec_published_state_dict.json.gz").read_bytes()))
    assert names == expected
    assert model.context() == (67, 67)  # the tight bound


# Features ---------------------------------------------------------------------------------------------------


def test_wav2vec2_taps_are_the_librarys_hidden_states(replica: Path) -> None:
    """The last one before the final norm, on which transformers 4 and 5 disagree."""
    features = load_wav2vec2_features(replica / "BiCodec" / "wav2vec2-large-xlsr-53")
    wav = torch.from_numpy(speechlike(0.5))[None]
    standard = (wav - wav.mean()) / torch.sqrt(wav.var(unbiased=False) + 1e-7)
    with torch.no_grad():
        states = features.model(standard, output_hidden_states=True).hidden_states
        before = features.model.encoder.layers[15](states[15])
        last = before[0] if isinstance(before, tuple) else before
        expected = (states[11] + states[14] + last) / 3
        assert torch.allclose(features(wav), expected.transpose(1, 2), atol=1e-5)
    assert len(features.model.encoder.layers) == max(Wav2Vec2Features.taps)


def test_wav2vec2_ignores_heads_and_reads_both_weight_norms(replica: Path, tmp_path: Path) -> None:
    source = replica / "BiCodec" / "wav2vec2-large-xlsr-53"
    expected = load_wav2vec2_features(source).state_dict()
    state = torch.load(source / "pytorch_model.bin", weights_only=True)
    new = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    for was, now in new.items():
        state = {name.replace(was, now).removeprefix("wav2vec2."): t for name, t in state.items()}
    state |= {
        "quantizer.codevectors": torch.zeros(2),
        "project_hid.bias": torch.zeros(2),
        "project_q.weight": torch.zeros(2),
    }
    shutil.copy(source / "config.json", tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    found = load_wav2vec2_features(tmp_path).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    state["surprise"] = torch.zeros(1)
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="surprise"):
        load_wav2vec2_features(tmp_path)


def test_features_of_another_kind_are_refused(replica: Path, tmp_path: Path) -> None:
    source = replica / "BiCodec" / "wav2vec2-large-xlsr-53"
    config = json.loads((source / "config.json").read_text()) | {"do_stable_layer_norm": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="do_stable_layer_norm"):
        load_wav2vec2_features(tmp_path)


# Files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["published", "ours"])
def test_saved_equals_loaded(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    codec: BiCodec = request.getfixturevalue(kind)
    codec.save_pretrained(tmp_path)
    again = load_codec(tmp_path)
    assert again.config == codec.config
    assert again.spec == codec.spec
    assert again.fingerprint() == codec.fingerprint()
    assert (
        sorted(p.name for p in tmp_path.rglob("*") if p.is_file())
        == ["config.json"] * 2 + ["model.safetensors"] * 2
    )


def test_half_precision_keeps_voices_valid(ours: BiCodec, tmp_path: Path) -> None:
    ours.save_pretrained(tmp_path, torch.float16)
    half = BiCodec.from_pretrained(tmp_path)
    assert half.precision == torch.float16
    assert half.model.encoder.project.weight.dtype == torch.float32
    assert half.fingerprint() != ours.fingerprint()
    assert half.voice_fingerprint() == ours.voice_fingerprint() != ours.decoder_fingerprint()
    assert half.decoder_fingerprint() == ours.decoder_fingerprint()
    assert half_where_it_fits({"x": torch.tensor([1e6])}, torch.float16)["x"].dtype == torch.float32


def test_weights_must_fit(replica: Path, tmp_path: Path) -> None:
    shutil.copytree(replica / "BiCodec", tmp_path / "b")
    state = hub.read_state(tmp_path / "b")
    from safetensors.torch import save_file

    extra = {"mel_transformer.spectrogram.window": torch.zeros(640)}  # in some copies; recomputed
    save_file(state | extra, tmp_path / "b" / "model.safetensors")
    BiCodec.from_pretrained(tmp_path / "b")
    state.pop("decoder.model.0.bias")
    save_file(state, tmp_path / "b" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing \(1\):\n +decoder\.model\.0\.bias"):
        BiCodec.from_pretrained(tmp_path / "b")


def test_unknown_settings_are_refused_by_name(replica: Path) -> None:
    raw = yaml.safe_load((replica / "BiCodec" / "config.yaml").read_text())
    for section, key in (("encoder", "window"), ("quantizer", "heads")):
        changed = json.loads(json.dumps(raw))
        changed["audio_tokenizer"][section][key] = 1
        with pytest.raises(CheckpointError, match=key):
            BiCodecConfig.from_dict(changed)


# Behaviour --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["published", "ours", "harmonic"])
def test_batched_equals_single(kind: str, request: pytest.FixtureRequest) -> None:
    codec: BiCodec = request.getfixturevalue(kind)
    clips = [(speechlike(s, seed=i), RATE) for i, s in enumerate((1.0, 0.73, 1.0, 0.2))]
    together = codec.encode_batch(clips)
    for clip, tokens in zip(clips, together, strict=True):
        single = codec.encode(clip)
        assert np.array_equal(tokens.codes, single.codes)
        assert np.array_equal(tokens.global_, single.global_)
        assert tokens.timbre == single.timbre and (tokens.timbre is None) == (kind != "harmonic")
        assert tokens.codes.dtype == np.int64


@pytest.mark.parametrize("kind", ["published", "ours", "harmonic"])
def test_rates_and_shapes(kind: str, request: pytest.FixtureRequest) -> None:
    codec: BiCodec = request.getfixturevalue(kind)
    tokens = codec.encode((speechlike(1.0), RATE))
    frames = tokens.codes.shape[1]
    assert abs(frames - codec.spec.frame_rate) <= 1
    assert tokens.global_ is not None and tokens.global_.shape == (codec.spec.n_global,)
    wav = codec.decode(tokens)
    assert wav.shape == (frames * codec.spec.hop_length,)
    assert wav.dtype == np.float32
    forms = (tokens.codes, tokens.codes[0].tolist(), torch.from_numpy(tokens.codes))
    voice = Voice(tuple(tokens.global_.tolist()), timbre=tokens.timbre)
    assert all(np.array_equal(codec.decode(form, voice), wav) for form in forms)
    plain, arrays = codec.decode(tokens.codes, replace(voice, timbre=None)), tokens.global_[None, None]
    assert np.array_equal(codec.decode(tokens.codes, arrays), plain)


@pytest.mark.parametrize("kind", ["published", "ours"])
def test_context_is_what_one_id_reaches(kind: str, request: pytest.FixtureRequest) -> None:
    """Change one id: the samples that move lie within the context, and nearly fill it."""
    codec: BiCodec = request.getfixturevalue(kind)
    (behind, ahead), hop, centre = codec.model.context(), codec.spec.hop_length, 100
    voice = np.zeros((1, codec.spec.n_global), np.int64)
    a = np.zeros((1, 2 * centre + 1), np.int64)
    b = a.copy()
    b[0, centre] = codec.spec.codebook_size - 1
    model = codec.model
    speaker = model.speaker_encoder.decode(torch.from_numpy(voice)).double()
    latents = [model.quantizer.decode(torch.from_numpy(x)).double() for x in (a, b)]
    model.prenet.double(), model.decoder.double()  # where a distant influence is not rounded away
    try:
        with torch.no_grad():
            wavs = [model.decoder(model.condition(z, speaker))[0, 0] for z in latents]
    finally:
        model.prenet.float(), model.decoder.float()
    moved = np.flatnonzero((wavs[0] != wavs[1]).numpy()) // hop
    slack = 2 if kind == "published" else ahead // 2  # ours predicts its spectrum in float32
    assert centre - ahead <= moved.min() <= centre - ahead + slack
    assert centre + behind - slack <= moved.max() <= centre + behind


def test_loudness_policy(published: BiCodec) -> None:
    """Global ids come from the loudness-normalised clip, semantic ids do not depend on loudness."""
    wav = speechlike(2.0)
    loud, soft = (wav, RATE), (wav * 0.5, RATE)
    same = np.mean(published.global_tokens(loud) == published.global_tokens(soft))
    assert same > 0.8  # not all: "above 0.01" is a fixed threshold
    assert np.mean(published.semantic_tokens(loud) != published.semantic_tokens(soft)) < 0.02
    clip = published.reference_clip(wav)
    assert clip.shape == (96000,)
    assert np.array_equal(clip[: len(wav)], clip[len(wav) : 2 * len(wav)])


def test_codes_are_checked(ours: BiCodec) -> None:
    voice = [0] * ours.spec.n_global
    for codes in ([], [ours.spec.codebook_size], [-1], [0.5], [[1, 2], [3, 4]]):
        with pytest.raises(VocabError, match="semantic"):
            ours.decode(np.array(codes), voice)
    with pytest.raises(VocabError, match="global"):
        ours.decode([1, 2], voice[1:])
    with pytest.raises(VocabError, match="global"):
        ours.decode(AudioTokens(np.array([[1, 2]])))


@pytest.mark.parametrize("kind", ["published", "ours"])
def test_margins_are_zero_for_own_codes(kind: str, request: pytest.FixtureRequest) -> None:
    codec: BiCodec = request.getfixturevalue(kind)
    clip = (speechlike(0.6), RATE)
    tokens = codec.encode(clip)
    codes, voice = tokens.codes[0], codec.global_tokens(clip)
    assert codec.code_excess(clip, codes) < 1e-6
    assert codec.voice_excess(clip, voice) == 0
    assert codec.code_excess(clip, (codes + 1) % codec.spec.codebook_size) > 1e-2
    assert codec.voice_excess(clip, (voice + 1) % codec.spec.global_size) > 1e-2
    assert codec.code_excess(clip, codes[1:]) == float("inf")
