"""Path 6: from_pretrained and back, and what docs/huggingface.md tells users of transformers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, PreTrainedTokenizerBase, pipeline

from gpa import GPA
from tiny_model import write_tiny_model

ROOT = Path(__file__).resolve().parent.parent
MINI = ROOT / "gpa" / "assets" / "gpa-mini"
VERSIONS = ("transformers_version",)
PAGE = (ROOT / "docs" / "huggingface.md").read_text(encoding="utf-8")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def unversioned(name: str, content: bytes) -> object:
    """The content, of a configuration without the versions that wrote it."""
    if not name.endswith("config.json"):
        return content
    tree = json.loads(content)
    return [(key, value) for key, value in tree.items() if key not in VERSIONS]


def verify(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "gpa", "verify", str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return GPA.from_pretrained("gpa-mini", device="cpu").save_pretrained(
        tmp_path_factory.mktemp("hub") / "copy"
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def test_a_saved_copy_is_the_same_to_the_byte(copy: Path) -> None:
    before, after = files(MINI), files(copy)
    assert list(before) == list(after)
    differ = [name for name in before if unversioned(name, before[name]) != unversioned(name, after[name])]
    assert differ == []


def test_a_saved_copy_verifies(copy: Path) -> None:
    done = verify(copy)
    assert done.returncode == 0 and "All stages agree" in done.stdout + done.stderr


def test_a_voice_more_leaves_card_and_outputs(tiny: Path, tmp_path: Path) -> None:
    (tiny / "README.md").write_text("card")
    (tiny / "DATA.md").write_text("data")
    model = GPA.from_pretrained(tiny, device="cpu")
    model.add_voice("carl", model.voices["anna"])
    out = model.save_pretrained(tmp_path / "out")
    assert (out / "README.md").read_text() == "card" and (out / "DATA.md").read_text() == "data"
    assert (out / "voices" / "carl.json").is_file() and (out / "golden" / "cases.json").is_file()


@pytest.mark.parametrize("part", ["network", "codec", "precision"])
def test_what_is_no_longer_true_is_left_behind(tiny: Path, tmp_path: Path, part: str) -> None:
    (tiny / "README.md").write_text("card")
    model, dtype = GPA.from_pretrained(tiny, device="cpu"), None
    if part == "network":
        with torch.no_grad():
            model.network.model.norm.weight[0] += 0.5
    elif part == "codec":
        with torch.no_grad():
            next(model.codec.model.decoder.parameters()).add_(0.5)
    else:
        dtype = torch.float16
    out = model.save_pretrained(tmp_path / "out", dtype=dtype)
    assert not (out / "golden").exists() and not (out / "README.md").exists()


# What the page says -----------------------------------------------------------------------------------------


def test_ids_go_in_and_out_as_the_page_shows() -> None:
    block, _ = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    made: dict[str, object] = {}
    exec(compile(block, "huggingface.md", "exec"), made)
    model = made["gpa"]
    assert isinstance(model, GPA)
    greedy = model.asr(MINI / "golden" / "audio_0.wav", beams=1)
    assert str(made["text"]).strip() == greedy.text != ""


def test_pipelines_make_no_sound_and_the_processor_is_the_tokenizer() -> None:
    with pytest.raises(OSError, match="feature extractor"):
        pipeline("automatic-speech-recognition", str(MINI))
    try:
        made = pipeline("text-to-speech", str(MINI))("hello there")
    except TypeError:  # transformers 5.17 stops, 5.24 returns ids
        made = {"sampling_rate": None}
    assert made["sampling_rate"] is None
    assert isinstance(AutoProcessor.from_pretrained(MINI), PreTrainedTokenizerBase)
