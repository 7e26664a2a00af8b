"""EnCodec, Mimi and DAC from tiny random configs: one contract, strict loading, original EnCodec names."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    DacConfig,
    DacModel,
    EncodecConfig,
    EncodecModel,
    MimiConfig,
    MimiModel,
    PreTrainedModel,
)

from gpa.codec import codec_kind, load_codec
from gpa.codec.base import AudioTokens, TokenCodec
from gpa.codec.hf import HFCodec, load_encodec_th, rename_encodec
from gpa.errors import AudioError, CheckpointError, UsageError, VocabError


def encodec_config(**changes: object) -> EncodecConfig:
    sizes = dict(hidden_size=8, num_filters=4, upsampling_ratios=[4, 2], codebook_size=16, num_lstm_layers=1)
    return EncodecConfig(**{**sizes, "sampling_rate": 8000, "target_bandwidths": [4.0, 8.0, 16.0], **changes})


def encodec() -> EncodecModel:
    return filled(EncodecModel(encodec_config()))  # 1000 frames/s of 4 bits: 1, 2 and 4 codebooks


def mimi() -> MimiModel:
    return filled(
        MimiModel(
            MimiConfig(
                hidden_size=16,
                num_filters=4,
                upsampling_ratios=[4, 2],
                codebook_size=16,
                codebook_dim=8,
                num_quantizers=4,
                vector_quantization_hidden_dimension=8,
                upsample_groups=16,
                num_hidden_layers=1,
                intermediate_size=16,
                num_attention_heads=2,
                num_key_value_heads=2,
                sliding_window=8,
                sampling_rate=8000,
            )
        )
    )


def dac() -> DacModel:
    return filled(
        DacModel(
            DacConfig(
                encoder_hidden_size=4,
                decoder_hidden_size=16,
                n_codebooks=4,
                codebook_size=16,
                codebook_dim=4,
                downsampling_ratios=[2, 5],
                sampling_rate=8000,
            )
        )
    )


def filled(model: PreTrainedModel) -> PreTrainedModel:
    """Codebooks start as zeros in two of the libraries; random rows make the codes vary."""
    random = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if name.endswith(("embed", "embed_sum")):
            tensor.normal_(generator=random)
    return model.eval()


BUILD: dict[str, Callable[[], PreTrainedModel]] = {"encodec": encodec, "mimi": mimi, "dac": dac}
HOP = {"encodec": 8, "mimi": 16, "dac": 10}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("codecs")
    for kind, build in BUILD.items():
        build().save_pretrained(root / kind)
    return {kind: root / kind for kind in BUILD}


def sound(n: int = 1003, rate: int = 8000) -> tuple[np.ndarray, int]:
    return (0.3 * np.random.default_rng(0).standard_normal(n)).astype(np.float32), rate


@pytest.mark.parametrize("kind", BUILD)
def test_contract(folders: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a local directory needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert codec_kind(folders[kind]) == kind
    codec = load_codec(folders[kind])
    spec = codec.spec
    assert isinstance(codec, TokenCodec)
    assert (spec.name, spec.sample_rate, spec.hop_length) == (kind, 8000, HOP[kind])
    assert (spec.n_codebooks, spec.codebook_size, spec.n_global) == (4, 16, 0)
    assert spec.frame_rate == 8000 / HOP[kind]
    tokens = codec.encode(sound())
    frames = -(-1003 // spec.hop_length)
    assert tokens.codes.shape == (4, frames)
    assert tokens.codes.dtype == np.int64
    assert len(np.unique(tokens.codes)) > 2
    wav = codec.decode(tokens)
    assert wav.dtype == np.float32
    assert wav.shape == (frames * spec.hop_length,)
    assert np.isfinite(wav).all()


@pytest.mark.parametrize("kind", BUILD)
def test_equals_the_library_called_directly(folders: dict[str, Path], kind: str) -> None:
    codec = HFCodec.from_pretrained(folders[kind], offline=True)
    wav, rate = sound(1040)  # whole frames for every hop
    with torch.inference_mode():
        x = torch.from_numpy(wav)[None, None]
        out = codec.model.encode(x, bandwidth=16.0) if kind == "encodec" else codec.model.encode(x)
    direct = out.audio_codes.reshape(4, -1).numpy()
    np.testing.assert_array_equal(codec.encode((wav, rate)).codes, direct)
    assert codec.fingerprint() == HFCodec.from_pretrained(folders[kind]).fingerprint()


@pytest.mark.parametrize("kind", BUILD)
def test_fewer_codebooks_are_the_first_ones(folders: dict[str, Path], kind: str) -> None:
    full = HFCodec.from_pretrained(folders[kind]).encode(sound()).codes
    fewer = HFCodec.from_pretrained(folders[kind], n_codebooks=3)
    tokens = fewer.encode(sound())
    np.testing.assert_array_equal(tokens.codes, full[:3])
    assert len(fewer.decode(tokens)) == tokens.codes.shape[1] * HOP[kind]
    for wrong in (0, 5):
        with pytest.raises(UsageError, match="allows 1 to 4"):
            HFCodec.from_pretrained(folders[kind], n_codebooks=wrong)


def test_bandwidth_is_encodecs_way_to_say_it(folders: dict[str, Path]) -> None:
    assert load_codec(folders["encodec"], bandwidth=8.0).spec.n_codebooks == 2
    with pytest.raises(UsageError, match="choose one of"):
        load_codec(folders["encodec"], bandwidth=5.0)
    with pytest.raises(UsageError, match="n_codebooks"):
        load_codec(folders["dac"], bandwidth=8.0)
    with pytest.raises(UsageError, match="n_codebooks"):
        load_codec(folders["encodec"], bandwidth=8.0, n_codebooks=2)


def test_channels_and_rates(folders: dict[str, Path]) -> None:
    codec = load_codec(folders["encodec"])
    wav, rate = sound()
    both = np.stack([wav, wav], 1)
    np.testing.assert_array_equal(codec.encode((both, rate)).codes, codec.encode((wav, rate)).codes)
    assert codec.encode((np.repeat(wav, 2), 16000)).codes.shape == (4, 126)
    with pytest.raises(AudioError):
        codec.encode((np.zeros(3, np.float32), 8000))
    stereo = HFCodec(filled(EncodecModel(encodec_config(audio_channels=2))))
    tokens = stereo.encode((wav, rate))
    assert tokens.codes.shape == (4, 126)
    assert stereo.decode(tokens).shape == (1008,)


@pytest.mark.parametrize(
    "codes", [np.zeros((3, 5), int), np.zeros((4, 0), int), np.full((4, 2), 16), np.zeros((4, 2))]
)
def test_wrong_codes_are_refused(folders: dict[str, Path], codes: np.ndarray) -> None:
    with pytest.raises(VocabError):
        load_codec(folders["mimi"]).decode(AudioTokens(codes))


@pytest.mark.parametrize("changes", [{"normalize": True}, {"chunk_length_s": 1.0, "overlap": 0.01}])
def test_the_chunked_48_khz_setting_is_refused_by_name(changes: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match=next(iter(changes))):
        HFCodec(EncodecModel(encodec_config(**changes)))


@pytest.mark.parametrize("kind", BUILD)
def test_wrong_weights_are_refused(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    state = load_file(folders[kind] / "model.safetensors")
    name = next(n for n in state if n.startswith("decoder") and n.endswith("bias"))
    for label, changed in {
        "missing": {n: t for n, t in state.items() if n != name},
        "mismatched": {**state, name: torch.zeros(len(state[name]) + 1)},
    }.items():
        copy = tmp_path / label
        shutil.copytree(folders[kind], copy)
        save_file(changed, copy / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=name.removeprefix("decoder.")):  # Mimi nests it deeper
            HFCodec.from_pretrained(copy)
    (copy / "model.safetensors").write_bytes(b"\x00" * 99)
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        HFCodec.from_pretrained(copy)


def test_load_codec_reads_the_kind_from_the_config(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a dac codec, not mimi"):
        load_codec(folders["dac"], "mimi")
    with pytest.raises(UsageError, match="bicodec, dac, encodec, glm4voice, latent, mimi"):
        load_codec(folders["dac"], "mp3")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CheckpointError, match="bert"):
        load_codec(tmp_path)
    (tmp_path / "config.yaml").touch()
    assert codec_kind(tmp_path) == "bicodec"


def original_name(name: str) -> str:
    """The inverse of `rename_encodec`, written independently from the names in facebookresearch/encodec."""
    head, _, tail = name.partition(".layers.")
    if head == "quantizer":
        return "quantizer.vq.layers." + tail.replace(".codebook.", "._codebook.")
    convtr = head == "decoder" and ".block." not in tail and tail.split(".")[0] in ("3", "6")
    kind = "convtr" if convtr else "conv"
    tail = tail.replace(".conv.", f".{kind}.{kind}.").replace(".norm.", f".{kind}.norm.")
    tail = tail.replace("parametrizations.weight.original0", "weight_g")
    return f"{head}.model." + tail.replace("parametrizations.weight.original1", "weight_v")


def test_original_encodec_file(tmp_path: Path) -> None:
    model = encodec()
    state = {original_name(n): t for n, t in model.state_dict().items()}
    for known in (  # names of the published 24 kHz file that exist at this depth too
        "encoder.model.0.conv.conv.weight_g",
        "encoder.model.1.block.1.conv.conv.bias",
        "encoder.model.1.shortcut.conv.conv.weight_v",
        "decoder.model.3.convtr.convtr.weight_g",
        "decoder.model.1.lstm.weight_ih_l0",
        "quantizer.vq.layers.0._codebook.embed_avg",
        "quantizer.vq.layers.3._codebook.inited",
    ):
        assert known in state
    assert rename_encodec("encoder.model.0.conv.norm.bias") == "encoder.layers.0.norm.bias"
    path = tmp_path / "encodec_tiny.th"
    torch.save(state, path)
    loaded = HFCodec(load_encodec_th(path, encodec_config()))
    np.testing.assert_array_equal(loaded.encode(sound()).codes, HFCodec(model).encode(sound()).codes)
    with pytest.raises(
        CheckpointError, match="wrong shape"
    ):  # the default config is the published 24 kHz model
        load_codec(path)
    state["encoder.model.0.conv.conv.weight_v"] = torch.zeros(4, 2, 7)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match="48 kHz"):
        load_encodec_th(path)
