"""GLM-4-Voice tokenizer against recorded outputs of the reference, and its behaviour beyond them."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from golden import ASSETS, draw_weights
from gpa.codec import codec_kind, load_codec
from gpa.codec.glm4voice import GLM4VoiceConfig, GLM4VoiceEncoder, GLM4VoiceTokenizer, block_mask
from gpa.errors import AudioError, CheckpointError

TINY = ASSETS / "glm-tiny"
RATE = 16000


@pytest.fixture(scope="module")
def gold() -> dict[str, np.ndarray]:
    with np.load(TINY / "golden.npz") as file:
        gold = dict(file)
    for i in (0, 1):  # stored as int16 with 17 fractional bits
        gold[f"wav_{i}"] = (gold[f"wav_{i}"] / 2.0**17).astype(np.float32)
    return gold


@pytest.fixture(scope="module")
def state(gold: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    weights = draw_weights(TINY / "weights_spec.json")
    return {**weights, "codebook.weight": torch.from_numpy(gold["codebook"])}  # data, not drawn


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, state: dict[str, torch.Tensor]) -> Path:
    path = tmp_path_factory.mktemp("glm")
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(TINY / name, path)
    save_file(state, path / "model.safetensors")
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> GLM4VoiceTokenizer:
    return GLM4VoiceTokenizer.from_pretrained(folder)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def edited(folder: Path, target: Path, file: str, **changes: object) -> Path:
    shutil.copytree(folder, target)
    config = {**json.loads((folder / file).read_text()), **changes}
    (target / file).write_text(json.dumps(config))
    return target


@pytest.mark.parametrize("i", [0, 1])
def test_ids_equal_the_reference(tokenizer: GLM4VoiceTokenizer, gold: dict[str, np.ndarray], i: int) -> None:
    ids = tokenizer.tokens((gold[f"wav_{i}"], RATE))
    assert ids.dtype == np.int64
    np.testing.assert_array_equal(ids, gold[f"tokens_{i}"])


def test_features_and_states_equal_the_reference(
    tokenizer: GLM4VoiceTokenizer, gold: dict[str, np.ndarray]
) -> None:
    wav = torch.from_numpy(gold["wav_1"])
    mel = tokenizer.log_mel(torch.nn.functional.pad(wav, (0, -len(wav) % 1280)))
    np.testing.assert_allclose(mel[:, ::59], gold["input_features"], atol=1e-3)
    ids, hidden = tokenizer.model(mel[None], torch.tensor([470]))
    np.testing.assert_array_equal(ids[0], gold["quantized_token_ids"][1])
    np.testing.assert_allclose(hidden[0], gold["last_hidden_state"], atol=1e-6)


def test_batch_equals_single(tokenizer: GLM4VoiceTokenizer, gold: dict[str, np.ndarray]) -> None:
    clips = [gold["wav_0"], gold["wav_1"], gold["wav_1"][:20001], gold["wav_0"][:700], noise(2.3)]
    batch = tokenizer.tokens_batch([(c, RATE) for c in clips], batch_size=3)
    for clip, ids in zip(clips, batch, strict=True):
        np.testing.assert_array_equal(ids, tokenizer.tokens(clip, rate=RATE))
    assert tokenizer.tokens_batch([]) == []


@pytest.mark.parametrize("seconds", [4, 8])
def test_whole_blocks_do_not_change_when_audio_follows(
    tokenizer: GLM4VoiceTokenizer, gold: dict[str, np.ndarray], seconds: int
) -> None:
    n = seconds * 25 // 2
    ids = tokenizer.tokens((gold["wav_1"][: seconds * RATE], RATE))
    np.testing.assert_array_equal(ids[:n], gold["tokens_1"][:n])


@pytest.mark.parametrize("n", [640, 1280, 1281, 480_000, 480_001, 832_000, 832_001])
def test_one_id_per_80_ms_at_any_length(tokenizer: GLM4VoiceTokenizer, n: int) -> None:
    assert len(tokenizer.tokens((np.resize(noise(3), n), RATE))) == -(-n // 1280)


def test_beyond_30_s_continues_in_aligned_windows(tokenizer: GLM4VoiceTokenizer) -> None:
    wav = noise(57)
    ids = tokenizer.tokens((wav, RATE))
    np.testing.assert_array_equal(ids[:350], tokenizer.tokens((wav[: 28 * RATE], RATE)))
    second = tokenizer.tokens((wav[24 * RATE : 52 * RATE], RATE))
    np.testing.assert_array_equal(ids[350:650], second[50:])
    np.testing.assert_array_equal(ids[650:], tokenizer.tokens((wav[48 * RATE :], RATE))[50:])


def test_channels_are_averaged_and_loudness_is_kept(
    tokenizer: GLM4VoiceTokenizer, gold: dict[str, np.ndarray]
) -> None:
    wav, other = gold["wav_0"], np.roll(gold["wav_0"], 777)
    stereo = np.stack([wav + other, wav - other], 1)  # the average is wav, up to rounding
    np.testing.assert_array_equal(tokenizer.tokens((stereo, RATE)), gold["tokens_0"])
    assert (tokenizer.tokens((wav * 0.2, RATE)) != gold["tokens_0"]).any()


def test_too_short_is_refused(tokenizer: GLM4VoiceTokenizer) -> None:
    with pytest.raises(AudioError):
        tokenizer.tokens((np.zeros(100, np.float32), RATE))


def test_mask_is_bidirectional_inside_a_block_only() -> None:
    mask = block_mask(torch.tensor([5, 3]), 6, 2)[:, 0]
    assert mask[0, 2].tolist() == [True, True, True, True, False, False]
    assert mask[0, 4].tolist() == [True, True, True, True, True, False]  # the last key is padding
    assert mask[1, 5].tolist() == [True, True, True, False, False, False]


def test_contract_members(tokenizer: GLM4VoiceTokenizer, gold: dict[str, np.ndarray], folder: Path) -> None:
    assert (tokenizer.spec.frame_rate, tokenizer.spec.hop_length, tokenizer.codebook_size) == (12.5, 1280, 64)
    np.testing.assert_array_equal(tokenizer.tokens((gold["wav_0"], RATE)), gold["tokens_0"])
    assert codec_kind(folder) == "glm4voice"
    assert load_codec(folder).fingerprint() == tokenizer.fingerprint()


def test_full_size_has_the_published_names_and_shapes() -> None:
    published = json.loads(gzip.decompress((ASSETS / "glm_published_state_dict.json.gz").read_bytes()))
    config = GLM4VoiceConfig(
        d_model=1280,
        encoder_attention_heads=20,
        encoder_ffn_dim=5120,
        max_source_positions=1500,
        num_mel_bins=128,
        pooling_kernel_size=4,
        pooling_position=16,
        quantize_causal_block_size=200,
        quantize_position=16,
        quantize_vocab_size=16384,
        hop_length=160,
        n_fft=400,
        n_samples=480000,
        sampling_rate=RATE,
    )
    with torch.device("meta"):
        own = {name: list(t.shape) for name, t in GLM4VoiceEncoder(config).state_dict().items()}
    for name in ("ema_count", "ema_weight"):  # state of training, in the file and not used
        del published[name]
    assert own == published


def test_whole_whisper_copies_load(folder: Path, tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    extra = {n.replace("layers.1.", "layers.2."): t for n, t in state.items() if n.startswith("layers.1.")}
    extra |= {"layer_norm.weight": torch.ones(32), "layer_norm.bias": torch.zeros(32)}
    prefixed = {f"model.encoder.{n}": t.contiguous().clone() for n, t in {**state, **extra}.items()}
    save_file(prefixed, copy / "model.safetensors")
    wav = noise(1)
    expected = GLM4VoiceTokenizer.from_pretrained(folder).tokens((wav, RATE))
    np.testing.assert_array_equal(GLM4VoiceTokenizer.from_pretrained(copy).tokens((wav, RATE)), expected)


def test_wrong_weights_are_refused_with_names(
    folder: Path, tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    broken = {n: t for n, t in state.items() if n != "layers.1.fc2.bias"}
    save_file({**broken, "conv1.bias": torch.zeros(3), "strange": torch.zeros(1)}, copy / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        GLM4VoiceTokenizer.from_pretrained(copy)
    for part in ("layers.1.fc2.bias", "strange", "conv1.bias: file [3], model [32]"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("file", "changes", "named"),
    [
        ("config.json", {"pooling_type": "max"}, "pooling_type"),
        ("config.json", {"encoder_causal_attention": True}, "encoder_causal_attention"),
        ("config.json", {"quantize_causal_encoder": True}, "quantize_causal_encoder"),
        ("config.json", {"activation_function": "relu"}, "activation_function"),
        ("config.json", {"quantize_new_trick": 3}, "quantize_new_trick"),
        ("config.json", {"pooling_position": 1}, "pooling_position"),
        ("config.json", {"quantize_causal_block_size": None}, "quantize_causal_block_size"),
        ("config.json", {"quantize_causal_block_size": 199}, "quantize_causal_block_size"),
        ("config.json", {"quantize_causal_block_size": 1000}, "max_source_positions"),
        ("config.json", {"encoder_attention_heads": 5}, "encoder_attention_heads"),
        ("config.json", {"num_mel_bins": 80}, "feature_size"),
        ("preprocessor_config.json", {"do_normalize": True}, "do_normalize"),
        ("preprocessor_config.json", {"dither": 0.1}, "dither"),
        ("preprocessor_config.json", {"n_fft": "400"}, "n_fft"),
    ],
)
def test_unimplemented_config_is_refused_by_name(
    folder: Path, tmp_path: Path, file: str, changes: dict[str, object], named: str
) -> None:
    with pytest.raises(CheckpointError, match=named):
        GLM4VoiceTokenizer.from_pretrained(edited(folder, tmp_path / "edited", file, **changes))


def test_sizes_come_from_the_config(folder: Path, tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    smaller = edited(folder, tmp_path / "one", "config.json", quantize_position=1, pooling_position=1)
    assert len(GLM4VoiceTokenizer.from_pretrained(smaller).model.layers) == 1
    short = edited(folder, tmp_path / "short", "config.json", max_source_positions=480)
    cut = {**state, "embed_positions.weight": state["embed_positions.weight"][:480].clone()}
    cut["embed_positions2.weight"] = state["embed_positions2.weight"][:120].clone()
    save_file(cut, short / "model.safetensors")
    tokenizer = GLM4VoiceTokenizer.from_pretrained(short)
    assert tokenizer.config.window == 8 * RATE
    assert len(tokenizer.tokens((noise(13), RATE))) == 163
