"""Settings and weights that are wrong, huge or hostile: the right result, or an error naming the cause."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import speechlike
from gpa import GPA, config, hub
from gpa.codec.hf import HFCodec
from gpa.config import Layers, Size, Within
from gpa.engine.network import Network
from gpa.errors import CheckpointError, UsageError, VocabError
from gpa.models.gpa.modeling_gpa import load_backbone, new_backbone
from gpa.models.speechop.pipeline_speechop import SpeechOp
from gpa.prompt.vocab import Vocab, read_tokenizer_json
from test_hf_codec import BUILD
from tiny_model import SIZES, write_tiny_model
from tiny_speechop import write_tiny_speechop

CLIP = (speechlike(1.0, seed=1), 16000)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("made"))


@pytest.fixture
def tiny(made: Path, tmp_path: Path) -> Path:
    """A model that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "tiny"))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# Reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "64 sections within sections"),
        (b'{"a": ' * 100 + b"1" + b"}" * 100, "64 sections within sections"),
        (b'{"a": NaN}', "NaN is not a finite number"),
        (b'{"a": -Infinity}', "Infinity is not a finite number"),
        (b'{"a": 1e999}', "1e999 is not a finite number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "key 'c' is given twice"),
        ('{"a": "é"}'.encode("latin-1"), "not UTF-8 .byte 0xe9 in line 1; Latin-1"),
        ('{"a": "é"}'.encode("utf-16"), "UTF-16"),
        ('{"a": "b"}'.encode("utf-16-be"), "UTF-16"),
        (b"", "not valid JSON"),
        (b"null", "expected a JSON object, found NoneType"),
    ],
)
def test_json_that_is_refused_says_why(content: bytes, message: str, tmp_path: Path) -> None:
    (path := tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        hub.read_json(path)


def test_a_byte_order_mark_changes_nothing_and_a_folder_is_named(tmp_path: Path) -> None:
    (path := tmp_path / "config.json").write_text('{"a": "é"}', encoding="utf-8-sig")
    assert hub.read_json(path) == {"a": "é"}
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match=r"config.json: cannot be read \(Is a directory\)"):
        hub.read_json(path)


def bomb(last: str) -> str:
    lines = ["a0: &a0 {k: x}", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]
    return "\n".join([*lines, last])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb("b: 1"), "100000 values with its aliases"),
        (bomb("b: {<<: *a11}"), "100000 values with its aliases"),
        ("a: &a [*a]", "64 sections within sections"),
        ("- " * 5000 + "1", "64 sections within sections"),
        ("[" * 500 + "]" * 500, "64 sections within sections"),
        ("a: {b: 1, b: 2}", "key 'b' is given twice"),
        ("a: 2020-13-45", "not valid YAML"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("? [a, b]\n: 1", "not valid YAML"),
        ("a: 1\n" * 400_000, "too long"),
    ],
)
def test_yaml_that_is_refused_says_why_at_once(text: str, message: str, tmp_path: Path) -> None:
    (path := tmp_path / "recipe.yaml").write_text(text)
    started = time.process_time()
    with pytest.raises(UsageError, match=message):
        config.load_yaml(path)
    assert time.process_time() - started < 3


def test_aliases_and_merged_sections_of_a_recipe_are_read(tmp_path: Path) -> None:
    (path := tmp_path / "recipe.yaml").write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\n")
    assert config.load_yaml(path) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 2}}


@dataclass(frozen=True)
class Bounded:
    width: Size
    depth: Layers = 1
    share: Annotated[float, Within(0, 1)] = 0.5
    kinds: Annotated[tuple[Literal["a", "b"], ...], Within(1, 2)] = ("a",)
    pair: tuple[float, float] = (0.0, 1.0)
    rate: int | float = 1
    top: Size | None = None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width: 0 is outside 1 to 16777216"),
        ({"width": 10**30}, "width: 10"),
        ({"depth": 10**9}, "depth: 1000000000 is outside 0 to 512"),
        ({"share": float("nan")}, "share: nan is not a finite number"),
        ({"share": 10**400}, "share: expected a number"),
        ({"share": "1e999"}, "share: inf is not a finite number"),
        ({"kinds": ["a", "c"]}, r"kinds\[1\]: 'c'; choose one of a, b"),
        ({"kinds": ["a"] * 9}, "kinds: 9 values is outside 1 to 2"),
        ({"pair": [1.0]}, "pair: expected 2 values, got 1"),
        ({"rate": "fast"}, "rate: expected int, got 'fast'"),
        ({"top": -1}, "top: -1 is outside"),
        ({"top": [1] * 10_000}, "top: expected int, got .{1,120}$"),
    ],
)
def test_any_dataclass_is_checked_by_type_and_bound(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config.build(Bounded, {"width": 8, **change})
    whole = config.build(Bounded, {"width": 8, "rate": 2, "pair": [1, 2]})
    assert (whole.rate, type(whole.rate), whole.pair) == (2, int, (1.0, 2.0))


# What a file may not choose ---------------------------------------------------------------------------------

HOSTILE: dict[str, Any] = {
    "_attn_implementation": "nobody/kernel",
    "attn_implementation": "nobody/kernel",
    "_attn_implementation_internal": "nobody/kernel",
    "auto_map": {"AutoModel": "evil--evil.Model"},
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "dtype": "evil",
    "to_dict": "shadowed",
}


@pytest.mark.parametrize("kind", BUILD)
def test_a_codec_config_chooses_no_kernel_and_no_code(kind: str, tmp_path: Path) -> None:
    BUILD[kind]().save_pretrained(tmp_path)
    before = HFCodec.from_pretrained(tmp_path)
    change(tmp_path / "config.json", **HOSTILE)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "nobody/else"}')
    after = HFCodec.from_pretrained(tmp_path)
    assert after.fingerprint() == before.fingerprint()
    assert after.model.config._attn_implementation in ("sdpa", "eager")


def test_a_language_model_config_chooses_no_kernel_for_training(tiny: Path) -> None:
    before = load_backbone(tiny)
    change(tiny / "config.json", **HOSTILE)
    (tiny / "adapter_config.json").write_text('{"base_model_name_or_path": "nobody/else"}')
    after = load_backbone(tiny)
    assert after.config._attn_implementation in ("sdpa", "eager")
    assert all(torch.equal(t, after.state_dict()[n]) for n, t in before.state_dict().items())
    with pytest.raises(UsageError, match="unknown keys .'_attn_implementation'"):
        new_backbone({**SIZES, "_attn_implementation": "nobody/kernel"}, Vocab.from_file(tiny))


def test_training_does_not_start_from_half_a_network(tiny: Path) -> None:
    state = load_file(tiny / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, tiny / "model.safetensors")
    with pytest.raises(CheckpointError, match="missing_keys.*\n.*model.norm.weight"):
        load_backbone(tiny)


# Sizes and weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "section", "value"),
    [
        ("config.json", ("num_hidden_layers",), 10**9),
        ("config.json", ("num_hidden_layers",), 500),
        ("config.json", ("hidden_size",), 1 << 24),
        ("config.json", ("vocab_size",), -1),
        ("config.json", ("head_dim",), 15),
        ("config.json", ("num_key_value_heads",), 0),
        ("config.json", ("rope_parameters",), [1]),
        ("codec/config.json", ("encoder", "vocos_num_layers"), 10**9),
        ("codec/config.json", ("encoder", "vocos_num_layers"), 512),
        ("codec/config.json", ("encoder", "vocos_dim"), 1 << 24),
        ("codec/config.json", ("encoder", "sample_ratios"), [2] * 10**5),
        ("codec/config.json", ("mel_params", "n_fft"), 10**9),
        ("codec/config.json", ("decoder", "bands"), 10**9),
        ("codec/config.json", ("latent_hop_length",), 641),
        ("codec/config.json", ("features",), ["whisper"]),
        ("codec/features/config.json", ("encoder_layers",), 10**6),
        ("codec/features/config.json", ("d_model",), "wide"),
        ("codec/features/config.json", ("num_mel_bins",), 2**30),
    ],
)
def test_sizes_that_are_not_the_files_end_typed_and_at_once(
    file: str, section: tuple[str, ...], value: Any, tiny: Path
) -> None:
    tree = json.loads((tiny / file).read_text())
    inner = tree
    for name in section[:-1]:
        inner = inner[name]
    inner[section[-1]] = value
    (tiny / file).write_text(json.dumps(tree))
    started = time.process_time()
    with pytest.raises(CheckpointError):
        GPA.from_pretrained(tiny, device="cpu").codec.encode(CLIP)
    assert time.process_time() - started < 4


@pytest.mark.parametrize(
    "part", ["model.safetensors", "codec/model.safetensors", "codec/features/model.safetensors"]
)
@pytest.mark.parametrize("wild", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(part: str, wild: float, tiny: Path) -> None:
    state = load_file(tiny / part)
    name = next(n for n in sorted(state) if state[n].is_floating_point() and n.endswith("weight"))
    state[name].view(-1)[-1] = wild
    save_file(state, tiny / part)
    with pytest.raises(CheckpointError, match=rf"NaN or infinite \(1\):\n    {name}".replace(".", r"\.")):
        GPA.from_pretrained(tiny, device="cpu").codec.encode(CLIP)


def test_speechop_refuses_weights_that_are_no_numbers(tmp_path: Path) -> None:
    file = write_tiny_speechop(tmp_path) / "model.safetensors"
    state = load_file(file)
    state["into.weight"].view(-1)[0] = torch.nan
    save_file(state, file)
    with pytest.raises(CheckpointError, match="into.weight"):
        SpeechOp.from_pretrained(file.parent, device="cpu")


def test_indices_and_pickles_that_lie_are_refused(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": index.name}}))
    with pytest.raises(CheckpointError, match="not the name of a weight file"):
        hub.read_state(tmp_path)
    index.unlink()
    torch.save({"a": torch.zeros(1).expand(10**12)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="'a' is no tensor that the file holds whole"):
        hub.read_state(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"type": "Unigram", "vocab": [["a", 0.0], "b"]}},
        {"model": {"type": "BPE", "vocab": {"a": 10**30}}},
        {"model": {"type": "BPE", "vocab": 5}},
        {"model": []},
        {"added_tokens": [5]},
        {"added_tokens": [{"content": ["x"], "id": 0}]},
        {"added_tokens": {}},
    ],
)
def test_tokens_that_are_none_are_typed(change: dict[str, Any], tiny: Path) -> None:
    path = tiny / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(VocabError, match="tokenizer.json"):
        read_tokenizer_json(tiny)


def test_a_tokenizer_that_the_library_refuses_is_typed(tiny: Path) -> None:
    change(tiny / "tokenizer.json", decoder={"type": "Unheard"})
    with pytest.raises(VocabError, match="no tokenizer that this library reads"):
        GPA.from_pretrained(tiny, device="cpu")


# Where a file or a folder is meant --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("model.safetensors", "a file; a model is a folder, perhaps .*tiny"),
        ("a" * 3000, "cannot be read|no such file"),
        ("nul\0l", "cannot be read|no such file"),
    ],
)
def test_a_path_that_is_no_folder_is_named_as_such(path: str, message: str, made: Path) -> None:
    for load in (GPA.from_pretrained, SpeechOp.from_pretrained):
        with pytest.raises(CheckpointError, match=message):
            load(str(made / path))


def test_a_folder_in_the_place_of_weights_is_named(tiny: Path) -> None:
    (tiny / "model.safetensors").unlink()
    (tiny / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="model.safetensors is a folder, a file is needed"):
        Network.load(tiny)


# The program around us --------------------------------------------------------------------------------------


@pytest.fixture
def default_dtype(request: pytest.FixtureRequest) -> Any:
    yield lambda dtype: torch.set_default_dtype(dtype)
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_default_dtype_changes_nothing(
    dtype: torch.dtype, made: Path, tmp_path: Path, default_dtype: Callable[[torch.dtype], None]
) -> None:
    op = write_tiny_speechop(tmp_path)
    for kind, make in BUILD.items():
        make().save_pretrained(tmp_path / kind)

    def results() -> list[Any]:
        model = GPA.from_pretrained(made, device="cpu")
        said = model.tts("hello", voice="anna", max_new_tokens=8)
        heard = model.asr(CLIP, max_new_tokens=4).text
        changed = model.vc(CLIP, voice="ben", max_new_tokens=8).wav
        enhanced = SpeechOp.from_pretrained(op, device="cpu").enhance(CLIP, steps=2).wav
        codecs = [HFCodec.from_pretrained(tmp_path / kind) for kind in BUILD]
        decoded = [codec.decode(codec.encode(CLIP)) for codec in codecs]
        voice = np.array(model.voice((speechlike(3.0, seed=2), 16000)).codes)
        return [said.wav, changed, enhanced, voice, *decoded, heard]

    usual = results()
    default_dtype(dtype)
    other = results()
    assert torch.get_default_dtype() == dtype
    for one, two in zip(usual, other, strict=True):
        assert np.array_equal(one, two) if isinstance(one, np.ndarray) else one == two


FORK = """
import os, signal, sys
import torch
from gpa import GPA
from gpa.errors import UsageError

model = GPA.from_pretrained(sys.argv[1], device="cpu", threads=2)
(torch.randn(4_000_000) * 2).sum()  # by two threads
if os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
signal.alarm(30)
(torch.randn(4_000_000) * 2).sum()
model.tts("hello", voice="anna", max_new_tokens=8)
GPA.from_pretrained(sys.argv[1], device="cpu")
assert torch.get_num_threads() == 1
try:
    GPA.from_pretrained(sys.argv[1], device="cpu", threads=2)
except UsageError as error:
    assert "spawn" in str(error)
    os._exit(0)
os._exit(1)
"""


@pytest.mark.skipif(not hasattr(sys, "getdlopenflags"), reason="Windows does not fork")
def test_a_forked_process_goes_on_with_one_thread_and_says_so(made: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "GPA_THREADS": ""}
    found = subprocess.run([sys.executable, "-c", FORK, str(made)], env=environment, timeout=200, check=False)
    assert found.returncode == 0
