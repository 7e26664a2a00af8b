"""Every command in a header of recipes/gpa runs on a corpus of six clips: gpa-mini's chain, step by step.

The published format is walked in test_paths_published.py, launch files are in test_engine.py.
"""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gpa import cli
from gpa.data import features
from gpa.pronounce import Pronunciations
from gpa.train import __main__ as training
from gpa.train import split
from headers import ROOT, commands
from training import CODEC, LM, MORE_TEXT, write_encoder, write_manifest, write_tokens

pytest.importorskip("sentencepiece")
RECIPES = ROOT / "recipes" / "gpa"
SPEAKER = CODEC["speaker_encoder"]
STEP = "train.steps=1 train.save_every=1 train.eval_every=1 train.log_every=1"
SHORT = f"{STEP} train.threads=1 train.precision=fp32"
CROPS = "data.dev_clips=1 data.batch_frames=400 data.crops=4 data.crop_ids=8 data.reference_frames=30"
DECODER = {"input_channel": 16, "channels": 16, "hidden": 32, "layers": 1, "bands": 12, "sharpen": [0.6, 0.4]}
SMALL = {  # of recipes that build a network
    "codec": ["model=" + json.dumps({**CODEC, "decoder": DECODER})],
    "codec_joint": ["speaker_encoder=" + json.dumps({**SPEAKER, "pre_norm": True})],
    "mini": [f"model.{key}={json.dumps(value)}" for key, value in LM.items()],
}
# In the order in which gpa-mini is made; beside a recipe the names under which later ones find what it made.
CHAIN = {
    "text": (),
    "codec": (),
    "codec_decoder": (),
    "codec_heard": (),
    "codec_joint": (),
    "codec_adversarial": (),
    "codec_voices": (),
    "mini": ("mini_mean", "mini_split"),
    "mini_more": (),
    "mini_joint": (),
    "mini_spoken": (),
    "mini_last": ("mini_mean3",),
    "mini_longer": (),
    "mini_sounds": (),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with what the headers name: corpora of six clips, encoder, tokens, dictionary."""
    site = tmp_path_factory.mktemp("recipes")
    (site / "recipes").symlink_to(ROOT / "recipes")
    manifest, encoder, runs = write_manifest(site), write_encoder(site / "WHISPER"), site / "runs"
    features.main([str(manifest), "--encoder", str(encoder), "-o", str(runs / "features")])
    write_tokens(runs / "tokens")
    for name, source in (
        *((name, "features") for name in ("features_spoilt", "features_voices")),
        *((name, "tokens") for name in ("tokens2", "pieces", "imagined", "tokens_flite", "tokens_spoken")),
    ):
        (runs / name).symlink_to(source)
    (site / "DATA" / "text").mkdir(parents=True)
    (site / "DATA" / "text" / "ljspeech_sentences.tsv").write_text("\n".join(f"0\t{t}" for t in MORE_TEXT))
    said = Pronunciations({"fox": "F AA1 K S"}).content()
    (runs / "pronunciations.txt.xz").write_bytes(said)
    return site


def test_every_recipe_is_walked() -> None:
    elsewhere = {"adapter", "gpa_0_3b", "gpa_3b", "own"}  # in tests of their own
    assert {path.stem for path in RECIPES.glob("*.yaml")} - elsewhere == set(CHAIN)


@pytest.mark.parametrize("name", CHAIN)
def test_the_header_runs(name: str, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is printed, in the order of recipes/README.md: each step starts from what the one before made."""
    monkeypatch.chdir(site)
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    (command,) = commands(RECIPES / f"{name}.yaml")
    argv = shlex.split(command)
    argv = argv[argv.index("gpa.train" if "gpa.train" in argv else "train") + 1 :]
    if name == "codec_joint":
        split.split_codec(Path("runs/codec_heard/export"), Path("runs/codec_split"))
    training.main([*argv, *SMALL.get(name, []), *small(recipe)])
    made = Path("runs") / name / "export"
    assert (made / ("tokenizer.json" if name == "text" else "model.safetensors")).is_file()
    for link in CHAIN[name]:
        (site / "runs" / link).symlink_to(f"{name}/export")


def test_the_adapters_header_runs_on_the_shipped_model(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    pytest.importorskip("peft")
    monkeypatch.chdir(site)
    (site / "corpus").mkdir()
    rows = map(json.loads, (site / "manifest.jsonl").read_text(encoding="utf-8").splitlines())
    kept = ({**row, "path": f"../{row['path']}", "split": "train", "licence": "CC0-1.0"} for row in rows)
    lines = "".join(json.dumps(row) + "\n" for row in kept if row["text"])
    (site / "corpus" / "manifest.jsonl").write_text(lines, encoding="utf-8")
    first, second, *_ = commands(RECIPES / "adapter.yaml")
    assert cli.main(shlex.split(first)[1:]) == 0
    assert cli.main([*shlex.split(second)[1:], *SHORT.split()]) == 0
    assert (site / "runs" / "adapter" / "export" / "adapter" / "adapter_model.safetensors").is_file()


def small(recipe: dict[str, Any]) -> list[str]:
    """Overrides that make any recipe a step long on clips of a second."""
    if recipe["kind"] == "text":
        return ["vocab_size=300", "semantic=27", "speaker=16"]
    rows = ["validate.rows=1"] if "validate" in recipe else []
    return [*SHORT.split(), *(CROPS.split() if recipe["kind"] == "codec" else [*rows, "data.dev_rows=1"])]
