"""`verify` passes on what was recorded, and names the stage that a changed weight spoils."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpa.errors import CheckpointError
from gpa.models.gpa import GPA
from gpa.models.gpa.verify_gpa import Stage, verify


@pytest.fixture(scope="module")
def model(replica: Path) -> GPA:
    return GPA.from_pretrained(replica, device="cpu")


def failing(model: GPA) -> set[str]:
    return {stage.name for stage in verify(model) if not stage.ok}


def test_the_replica_agrees(model: GPA) -> None:
    stages = {stage.name: stage for stage in verify(model)}
    assert set(stages) == {
        "vocabulary",
        "semantic codes",
        "global codes",
        "glm codes",
        "prompts",
        "training rows",
        "logits",
        "greedy ids",
        "waveform",
    }
    assert not [stage for stage in stages.values() if not stage.ok]
    assert stages["logits"].error < 1e-5
    assert stages["waveform"].error < 1e-5
    assert stages["logits"].items == 9


def test_our_own_record_agrees(tiny: Path) -> None:
    stages = verify(GPA.from_pretrained(tiny, device="cpu"))
    assert len(stages) >= 6
    assert not [stage for stage in stages if not stage.ok]


@pytest.mark.parametrize("instructions", ["default", "avx2"])
def test_the_shipped_model_agrees_on_processors_that_round_otherwise(instructions: str) -> None:
    code = "from gpa import GPA; from gpa.models.gpa.verify_gpa import verify; "
    code += "print([(s.name, s.error) for s in verify(GPA.from_pretrained('gpa-mini', device='cpu'))])"
    kernels = {"ATEN_CPU_CAPABILITY": instructions, "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **kernels},
        capture_output=True,
        text=True,
        check=True,
    )
    errors = dict(ast.literal_eval(done.stdout))
    assert {"frames", "waveform"} <= errors.keys()
    assert max(errors.values()) < 1e-5  # a tenth of what `gpa verify` allows


CHANGED = {  # a weight, and the one stage that hears it
    "logits": ("lm", "model.layers.1.mlp.up_proj.weight"),
    "semantic codes": ("features", "model.encoder.layers.3.feed_forward.output_dense.weight"),
    "global codes": ("codec", "speaker_encoder.quantizer.project_in.weight"),
    "waveform": ("codec", "decoder.model.0.bias"),
    "glm codes": ("glm", "conv1.weight"),
}


@pytest.mark.parametrize("spoiled", [{"logits", "semantic codes", "waveform"}, {"global codes", "glm codes"}])
def test_a_changed_weight_fails_its_stage(model: GPA, spoiled: set[str]) -> None:
    assert model.glm is not None
    parts = {
        "lm": model.network,
        "features": model.codec.features,
        "codec": model.codec.model,
        "glm": model.glm.model,
    }
    weights = [parts[part].state_dict()[name] for part, name in (CHANGED[stage] for stage in spoiled)]
    before = [weight.clone() for weight in weights]
    random = torch.Generator().manual_seed(0)
    try:
        for weight in weights:
            weight.mul_(1 + 0.2 * torch.randn(weight.shape, generator=random))
        found = failing(model)
    finally:
        for weight, old in zip(weights, before, strict=True):
            weight.copy_(old)
    assert spoiled <= found <= spoiled | {"greedy ids"}


def test_no_record(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "golden")
    model = GPA.from_pretrained(tmp_path / "m", device="cpu")
    with pytest.raises(CheckpointError, match="no recorded outputs"):
        verify(model)


def test_a_changed_record_is_noticed(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "m")
    path = tmp_path / "m" / "golden" / "cases.json"
    tree = json.loads(path.read_text())
    tree["cases"][0]["prompt"][0] += 1
    tree["vocab_size"] += 1
    path.write_text(json.dumps(tree))
    assert {"vocabulary", "prompts"} <= failing(GPA.from_pretrained(tmp_path / "m", device="cpu"))


def test_nan_is_not_agreement() -> None:
    assert not Stage("x", float("nan"), 1.0, 1, "").ok
