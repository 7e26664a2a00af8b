"""Every command in a header of a recipe runs on a corpus of six clips: both shipped models, step by step.

The published format is walked in test_paths_published.py, launch files are in test_engine.py.
"""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml

from conftest import speechlike
from gpa import GPA, audio
from gpa.cli import main
from gpa.data import feature_cache
from gpa.models.gpa.checkpoint_gpa import SHIPPED
from gpa.text.pronunciations import Pronunciations
from gpa.train import command as training
from headers import FROM_A_CORPUS, ROOT, commands
from training import CODEC, LATENT, LM, MORE_TEXT, write_encoder, write_manifest, write_tokens

pytestmark = pytest.mark.usefixtures("threads_kept")
pytest.importorskip("sentencepiece")
RECIPES = ROOT / "recipes"
STEP = "train.steps=1 train.save_every=1 train.eval_every=1 train.log_every=1"
SHORT = f"{STEP} train.threads=1 train.precision=fp32"
CROPS = "data.dev_clips=1 data.batch_frames=400 data.crops=4 data.crop_ids=8 data.reference_frames=30"
DECODER = {"input_channel": 16, "channels": 16, "hidden": 32, "layers": 1, "bands": 12, "sharpen": [0.6, 0.4]}
STACK = {"layers": 1, "width": 16, "heads": 2, "ffn": 24}
TEXT = {**STACK, "kind": "bytes", "positions": "both"}
SPEECHOP = {"dit": {**STACK, "layers": 3}, "encoder": STACK, "text": TEXT, "loss": {"normalise_peak": True}}
SMALL = {  # of recipes that build a network
    "codec": ["model=" + json.dumps({**CODEC, "decoder": DECODER})],
    "codec_refiner": ["model.decoder.refiner={dim: 8, hidden: 16, layers: 1}", "discriminators.channels=4"],
    "ctc": ["model={input_channels: 16, dim: 16, hidden: 32, layers: 1}", "data.dev=[dev]"],
    "mini": [f"model.{key}={json.dumps(value)}" for key, value in LM.items()],
    "latent": ["model=" + json.dumps(LATENT), "weights.render_from=0"],
    "tts": ["model=" + json.dumps(SPEECHOP)],
}
# In the order in which the models are made.
CHAIN = (
    "gpa/text",
    "gpa/codec",
    "gpa/codec_refiner",
    "gpa/ctc",
    "gpa/mini",
    "speechop/latent",
    "speechop/latent_decoder",
    "speechop/tts",
    "speechop/multitask",
    "speechop/multitask_more",
    "speechop/multitask_asr_features",
)
CUTS = {
    "text": ["vocab_size=300", "semantic=27", "speaker=16"],
    "codec": CROPS.split(),
    "ctc": ["data.batch_frames=400"],
    "gpa": ["data.dev_rows=1"],
    "latent": ["data.dev_clips=1", "data.crops=4", "data.crop_latents=8", "weights.rendered=2"],
    "speechop": ["data.dev_clips=1", "data.batch_frames=200", "data.crop_s=0.8", "data.prompt_s=0.6"],
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with what the headers name: corpora of six clips, encoder, tokens, dictionary."""
    site = tmp_path_factory.mktemp("recipes")
    (site / "recipes").symlink_to(ROOT / "recipes")
    manifest, encoder, runs = write_manifest(site), write_encoder(site / "WHISPER"), site / "runs"
    feature_cache.main([str(manifest), "--encoder", str(encoder), "-o", str(runs / "features")])
    write_tokens(runs / "tokens")
    for name, source in (
        ("features_degraded", "features"),
        ("segments", "tokens"),
        ("tokens_flite", "tokens"),
    ):
        (runs / name).symlink_to(source)
    (site / "DATA" / "text").mkdir(parents=True)
    (site / "DATA" / "text" / "ljspeech_sentences.tsv").write_text("\n".join(f"0\t{t}" for t in MORE_TEXT))
    for name, sound in (("noise", 0.1 * speechlike(0.5, seed=1)), ("rooms", np.exp(-np.arange(800) / 90.0))):
        audio.save(site / "DATA" / name / "0.wav", sound, 16_000)
        (site / "DATA" / name / "manifest.json").write_text('[{"path": "0.wav"}]')
    said = Pronunciations({"fox": "F AA1 K S"}).content()
    (runs / "pronunciations.txt.xz").write_bytes(said)
    return site


def test_every_recipe_is_walked() -> None:
    # in test_recipe_headers.py and test_preference.py
    elsewhere = {"gpa/dpo", *(f"gpa/{name}" for name in FROM_A_CORPUS)}
    found = {
        f"{path.parent.name}/{path.stem}"
        for kind in ("gpa", "speechop")
        for path in (RECIPES / kind).glob("*.yaml")
    }
    assert found - elsewhere == set(CHAIN)


@pytest.mark.parametrize("name", CHAIN)
def test_the_header_runs(
    name: str, site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it is printed, in the order of recipes/README.md: each step starts from what the one before made.

    A dry run of the same command says what it would do and leaves nothing behind.
    """
    monkeypatch.chdir(site)
    path = RECIPES / f"{name}.yaml"
    kind = yaml.safe_load(path.read_text(encoding="utf-8"))["kind"]
    (command,) = commands(path)
    argv = shlex.split(command)
    argv = argv[argv.index("gpa.train" if "gpa.train" in argv else "train") + 1 :]
    rows = ["validate.rows=1"] if path.stem == "mini" else []
    short = SHORT.split() if kind != "text" else []
    argv += [*short, *CUTS[kind], *rows, *SMALL.get(path.stem, [])]
    run = Path(argv[argv.index("--run") + 1])
    training.main([*argv, "--dry-run"])
    told = capsys.readouterr().out
    assert f"kind: {kind}" in told and ("no steps" if kind == "text" else "the first batch") in told
    assert not run.exists()
    training.main(argv)
    assert (run / "export" / ("tokenizer.json" if kind == "text" else "model.safetensors")).is_file()
    if path.stem == "multitask_more":  # which recipes/README.md runs twice
        (site / "runs" / "speechop3").symlink_to("speechop2")


@pytest.mark.parametrize("name", ["adapter", "instruct"])
def test_the_header_runs_on_the_shipped_model(
    name: str, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    pytest.importorskip("peft")
    for part in site.iterdir():
        (tmp_path / part.name).symlink_to(part)
    site = tmp_path
    monkeypatch.chdir(site)
    (site / "corpus").mkdir()
    rows = map(json.loads, (site / "manifest.jsonl").read_text(encoding="utf-8").splitlines())
    kept = ({**row, "path": f"../{row['path']}", "split": "train", "licence": "CC0-1.0"} for row in rows)
    lines = "".join(json.dumps(row) + "\n" for row in kept if row["text"])
    (site / "corpus" / "manifest.jsonl").write_text(lines, encoding="utf-8")
    (site / "plain").mkdir()  # gpa-mini, as if it followed no instructions
    for part in (SHIPPED / "gpa-mini").iterdir():
        if part.name != "gpa.json":
            (site / "plain" / part.name).symlink_to(part)
    settings = json.loads((SHIPPED / "gpa-mini" / "gpa.json").read_text(encoding="utf-8"))
    (site / "plain" / "gpa.json").write_text(json.dumps({**settings, "instructed": False}), encoding="utf-8")
    first, second, *_ = commands(RECIPES / "gpa" / f"{name}.yaml")
    second = second.replace("init=gpa-mini", "init=plain")
    assert main.main(shlex.split(first)[1:]) == 0
    assert main.main([*shlex.split(second)[1:], *SHORT.split()]) == 0
    export = site / "runs" / name / "export"
    assert name != "adapter" or (export / "adapter" / "adapter_model.safetensors").is_file()
    assert GPA.from_pretrained(export).config.instructed == (name == "instruct")
