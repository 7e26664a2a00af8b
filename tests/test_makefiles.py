"""The Makefiles of recipes: the plan of both shipped models is printed, and every stage runs on six clips."""

import importlib
import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from conftest import speechlike
from gpa import audio
from gpa.cli import main
from gpa.data import feature_cache
from gpa.models.gpa import GPA
from gpa.speechop import SpeechOp
from gpa.train import command as training
from gpa.train import export
from headers import ROOT
from test_recipes import CUTS, SHORT, SMALL
from training import MORE_TEXT, read_rows, write_encoder, write_manifest

pytestmark = [
    pytest.mark.usefixtures("threads_kept"),
    pytest.mark.skipif(not shutil.which("make"), reason="make is not installed"),
]
pytest.importorskip("datasets")
pytest.importorskip("sentencepiece")
LOOSE = "--licence CC0-1.0 --max-rejected 1 --max-rate 99 --max-dense-rate 99 --min-rate 0".split()
FOLDERS = ("DATA", "WHISPER", "TEXTS", "CMUDICT", "SPHINX")


def plan(family: str, site: Path, *goals: str) -> list[list[str]]:
    """The commands that `make -n` prints, as argument lists."""
    variables = [f"WORK={site}", *(f"{name}={site / name}" for name in FOLDERS)]
    line = ["make", "-C", str(ROOT / "recipes" / family), "-n", "--no-print-directory", *variables, *goals]
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    printed = subprocess.run(line, capture_output=True, text=True, check=True, env=quiet).stdout
    lines = printed.replace("\\\n", " ").splitlines()
    begin = f"cd {site} && "
    return [shlex.split(each.removeprefix(begin)) for each in lines if each.startswith(begin)]


def outputs(commands: list[list[str]]) -> list[str]:
    """What each command writes, by the name below runs/."""
    options = ("--run", "-o", "--out")
    return [Path(words[next(words.index(o) for o in options if o in words) + 1]).name for words in commands]


def test_the_plan_names_every_stage(tmp_path: Path) -> None:
    """In an order in which every stage finds what it reads."""
    made = outputs(plan("gpa", tmp_path))
    recipes = {path.stem for path in (ROOT / "recipes" / "gpa").glob("*.yaml")}
    # of no shipped model
    others = {"adapter", "dpo", "encodec", "gpa_0_3b", "gpa_3b", "instruct", "own", "text"}
    assert recipes - others <= set(made) and made[-2:] == ["gpa-mini", "eval"]
    assert len(made) == len(set(made)) == 15
    commands = plan("gpa", tmp_path)
    for n, words in enumerate(commands):
        reads = {Path(word.partition("=")[2] or word) for word in words if "runs/" in word}
        for path in reads:
            name = path.parts[path.parts.index("runs") + 1]
            assert name in made[: n + 1], (words, name)
    made = outputs(plan("speechop", tmp_path))
    assert made[-1] == "speechop-mini" and {"latent_mean", "speechop3", "tokens", "features"} <= set(made)


def test_a_finished_stage_is_not_repeated(tmp_path: Path) -> None:
    assert outputs(plan("gpa", tmp_path, "features")) == ["features", "features_degraded"]
    (tmp_path / "runs" / "features").mkdir(parents=True)
    (tmp_path / "runs" / "features" / "encoder.json").write_text("{}")
    assert outputs(plan("gpa", tmp_path, "features")) == ["features_degraded"]


def test_what_is_not_there_is_said_before_anything_begins(site: Path, tmp_path: Path) -> None:
    """A text that the fifth stage reads ends the first call; a stage that reads none of it goes on."""
    begun = tmp_path / "begun"
    given = [
        f"WORK={tmp_path}",
        *(f"{name}={site / name}" for name in ("DATA", "WHISPER", "CMUDICT", "SPHINX")),
    ]
    line = ["make", "-C", str(ROOT / "recipes/gpa"), *given, f"PYTHON=touch {begun};", f"GPA=touch {begun};"]
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    ended = subprocess.run(line, capture_output=True, text=True, env=quiet)
    assert ended.returncode and not begun.exists()
    assert f"{tmp_path}/TEXTS/moby-dick/data/data.txt is not there: recipes/data/README.md" in ended.stderr
    subprocess.run([*line, "features"], capture_output=True, text=True, env=quiet)
    assert begun.exists()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the variables name: six clips, an encoder, texts, lists, and what Flite has read aloud."""
    site = tmp_path_factory.mktemp("site")
    speech = site / "DATA" / "speech"
    for folder in (speech, site / "DATA" / "text", site / "runs", site / "CMUDICT", site / "SPHINX"):
        folder.mkdir(parents=True)
    manifest = write_manifest(speech)
    write_encoder(site / "WHISPER")
    for name in ("flite",):
        (site / "runs" / name).mkdir()
        rows = map(json.loads, manifest.read_text(encoding="utf-8").splitlines())
        kept = [
            {**row, "path": str(speech / row["path"]), "split": "train-synthetic"}
            for row in rows
            if row["text"]
        ]
        lines = "".join(json.dumps(row) + "\n" for row in kept)
        (site / "runs" / name / "manifest.jsonl").write_text(lines, encoding="utf-8")
    text = site / "DATA" / "text"
    (text / "ljspeech_sentences.tsv").write_text("\n".join(f"0\t{t}" for t in MORE_TEXT))
    for name in ("11_alice.txt", "1342_pride_and_prejudice.txt"):
        (text / name).write_text("The quick brown fox jumps. Down came the rain again.\n")
    for name, sound in (("noise", 0.1 * speechlike(0.5, seed=1)), ("rooms", np.exp(-np.arange(800) / 90.0))):
        audio.save(site / "DATA" / name / "0.wav", sound, 16_000)
        (site / "DATA" / name / "manifest.json").write_text('[{"path": "0.wav"}]')
    (site / "CMUDICT" / "cmudict.dict").write_text("fox F AA1 K S\n")
    model = site / "SPHINX/pocketsphinx/model/en-us"
    licences = site / "SPHINX/pocketsphinx-5.1.dist-info/licenses"
    for folder in (model, licences):
        folder.mkdir(parents=True)
    (model / "en-us.lm.bin").write_text("\\1-grams:\n-1 fox\n-1 the\n\\2-grams:\n-0.3 the fox\n\\end\\\n")
    for folder in (site / "CMUDICT", licences):
        (folder / "LICENSE").write_text("free\n")
    return site


def run(words: list[str]) -> None:
    """A command of the plan in this process, trainings one step of a small network."""
    if words[:2] == ["gpa", "train"]:
        recipe = Path(words[2])
        kind = next(line for line in recipe.read_text().splitlines() if line.startswith("kind: "))[6:]
        rows = ["validate.rows=1"] if recipe.stem == "mini" else []
        training.main([*words[2:], *SHORT.split(), *CUTS[kind], *rows, *SMALL.get(recipe.stem, [])])
    elif words[:2] == ["gpa", "prepare"]:
        assert main.main([*words[1:], *LOOSE]) == 0
    elif words[:2] == ["gpa", "lab"]:
        importlib.import_module(f"gpa.lab.{words[2]}").main(words[3:])
    else:
        {"gpa.data.feature_cache": feature_cache.main, "gpa.train.export": export.main}[words[2]](words[3:])


def test_every_stage_runs(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both chains, as printed: each stage starts from what those before it left, to a model that loads."""
    monkeypatch.chdir(site)
    for family, goals in (("gpa", ["checkpoint"]), ("speechop", [])):
        for words in plan(family, site, *goals):
            run(words)
        assert plan(family, site, *goals) == []  # nothing is left to do
    assert outputs(plan("gpa", site)) == ["eval"]  # but to measure, which takes judges
    model = GPA.from_pretrained(site / "runs" / "gpa-mini")
    assert model.processor.pronunciations and model.processor.lexicon and model.config.conversion == "codec"
    assert SpeechOp.from_pretrained(site / "runs" / "speechop-mini").config.asr_features.channels
    rows = read_rows(site / "runs" / "tokens")
    assert all(len(row["copies"]) == 4 * row["split"].startswith("train") for row in rows)
