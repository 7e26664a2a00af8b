"""Path 2: an own corpus becomes an own model, by the commands of docs/own-corpus.md, each in a process."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpa import GPA, audio
from gpa.data import token_folder
from gpa.models.gpa.configuration_gpa import GPAConfig
from gpa.text.edit_distance import edits, words
from own_corpus import write_corpus

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "own-corpus.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^gpa .*$", PAGE, re.MULTILINE)
SHORT = ["train.steps=12", "train.log_every=4", "train.eval_every=6"]  # the recipe's 400 take minutes


def run(folder: Path, command: str, *more: str) -> subprocess.CompletedProcess[str]:
    """Run a `gpa` line as a user does, in a folder of the user's."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "gpa", *shlex.split(command)[1:], *more]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder in which the page was walked from its first to its last line, and what each command said."""
    folder = tmp_path_factory.mktemp("own")
    assert 90 < write_corpus(folder / "corpus") < 150
    shutil.copytree(ROOT / "recipes" / "gpa", folder / "recipes" / "gpa")
    said = {}
    for command in COMMANDS:
        name = command.split()[1]
        done = run(folder, command, *(SHORT if name == "train" else []))
        if name in ("tts", "asr", "vc"):  # so little training may end in silence, but not in a traceback
            assert done.returncode in (0, 6) and "Traceback" not in done.stderr, done.stderr
        else:
            assert done.returncode == 0, f"{command}\n{done.stderr}"
        said[name] = done.stdout + done.stderr
    return folder, said


def test_the_page_walks_every_step() -> None:
    steps = ["prepare", "train", "info", "verify", "tts", "asr", "vc", "finetune"]
    assert [command.split()[1] for command in COMMANDS] == steps
    recipe = (ROOT / "recipes" / "gpa" / "own.yaml").read_text(encoding="utf-8")
    assert not re.search(r"^(codec|init):", recipe, re.MULTILINE)  # the prepared folder knows


def test_the_commands_say_what_they_should(walked: tuple[Path, dict[str, str]]) -> None:
    folder, said = walked
    assert "All stages agree" in said["verify"]
    assert "alloy" in said["info"] and "echo" in said["info"]
    assert "steps" in said["finetune"]
    made = [path for name in ("morning.wav", "as-echo.wav") if (path := folder / name).is_file()]
    assert all(len(audio.load(path, 16_000)) for path in made)


def test_the_export_is_whole_and_of_this_corpus(walked: tuple[Path, dict[str, str]]) -> None:
    folder, _ = walked
    tokens, export = folder / "tokens", folder / "runs" / "own" / "export"
    about = token_folder.read_about(tokens)
    assert about["model"] == "gpa-mini"
    model = GPA.from_pretrained(export, device="cpu")
    token_folder.check_fits(tokens, model.processor.fingerprints())
    assert model.config.name == "own" and sorted(model.voices) == ["alloy", "echo"]
    rows = list(token_folder.TokenSet.open(tokens))
    trained = [row for row in rows if row["split"] == "train"]
    for name, voice in model.voices.items():
        assert list(voice.codes) in [list(row["global"]) for row in trained if row["speaker"] == name]
    assert model.config.max_text_chars == max(40, *(len(row["text"]) for row in trained))
    card = (export / "README.md").read_text(encoding="utf-8")
    assert "- CC0-1.0: 36" in card and "After 12 steps" in card and "| eval/tts |" in card
    lists = ("words.txt", "ngrams.txt.xz", "pronunciations.txt.xz")  # of gpa-mini, which this is not
    assert not any((export / name).exists() for name in lists)


def test_sentences_learnt_by_heart_come_back_as_text_and_as_sound(
    walked: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    """From recordings to recognised text and to speech that gpa-mini understands."""
    clips = sorted((walked[0] / "corpus" / "train" / "alloy").glob("*.wav"))[:3]
    (tmp_path / "corpus" / "alloy").mkdir(parents=True)
    for clip in clips:
        for file in (clip, clip.with_suffix(".txt")):
            shutil.copy(file, tmp_path / "corpus" / "alloy")
    for command in (
        "gpa prepare corpus -o tokens --licence CC0-1.0",
        f"gpa train {ROOT / 'recipes/gpa/own.yaml'} data.tokens=tokens train.steps=120 train.eval_every=120",
    ):
        done = run(tmp_path, command)
        assert done.returncode == 0, done.stderr
    text, model = clips[1].with_suffix(".txt").read_text(), "--model runs/own/export"
    wanted = words(text)
    assert words(run(tmp_path, f"gpa asr {clips[1]} {model}").stdout) == wanted
    spoken = run(tmp_path, f'gpa tts "{text}" {model} --voice alloy -o said.wav')
    assert spoken.returncode == 0 and "ended by length" not in spoken.stderr, spoken.stderr
    assert edits(wanted, words(run(tmp_path, "gpa asr said.wav").stdout)) <= 0.4 * len(wanted)


def test_embeddings_start_where_the_codes_are(walked: tuple[Path, dict[str, str]]) -> None:
    """Ids which sound alike start alike: nearest codes are nearer in the network than others."""
    folder, _ = walked
    model = GPA.from_pretrained(folder / "runs" / "own" / "export", device="cpu")
    block = model.vocab.semantic
    codes = model.codec.model.quantizer.decode(torch.arange(block.size)[None])[0].T
    rows = model.network.model.embed_tokens.weight[block.offset : block.offset + block.size]
    some = torch.arange(0, block.size, 37)
    apart = torch.cdist(codes[some], codes[some]).flatten()
    learnt = torch.cdist(rows[some], rows[some]).flatten()
    assert torch.corrcoef(torch.stack([apart, learnt]))[0, 1] > 0.5


@pytest.mark.parametrize(
    ("made_by", "setting", "says"),
    [
        ("/nowhere/at/all", "", "codec=DIR"),
        ("", "", "codec=DIR"),
        ("gpa-mini", "codec=other", "not the one that made the ids"),
    ],
)
def test_a_codec_that_is_not_there_or_another_stops_training_at_once(
    walked: tuple[Path, dict[str, str]], tmp_path: Path, made_by: str, setting: str, says: str
) -> None:
    folder, _ = walked
    tokens = shutil.copytree(folder / "tokens", tmp_path / "tokens")
    about = json.loads((tokens / "prepared.json").read_text())
    about.pop("model")
    token_folder.write_json(tokens / "prepared.json", {**about, **({"model": made_by} if made_by else {})})
    other = GPA.from_pretrained("gpa-mini", device="cpu")
    other.codec.model.quantizer.get_parameter("codebook.weight").data.mul_(1.5)
    other.codec.save_pretrained(tmp_path / "other")
    train = f"gpa train {ROOT / 'recipes/gpa/own.yaml'} data.tokens=tokens {setting} --run run"
    done = run(tmp_path, train)
    assert done.returncode == 4 and says in done.stderr, done.stderr
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_a_codec_that_moved_is_found_where_the_setting_says(
    walked: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    folder, _ = walked
    tokens = shutil.copytree(folder / "tokens", tmp_path / "tokens")
    about = json.loads((tokens / "prepared.json").read_text())
    token_folder.write_json(tokens / "prepared.json", {**about, "model": "/moved"})
    moved = shutil.copytree(ROOT / "gpa" / "assets" / "gpa-mini" / "codec", tmp_path / "codec")
    train = (
        f"gpa train {ROOT / 'recipes/gpa/own.yaml'} data.tokens=tokens codec={moved} train.steps=1 --run run"
    )
    done = run(tmp_path, train)
    assert done.returncode == 0, done.stderr
    GPA.from_pretrained(tmp_path / "run" / "export", device="cpu")


def test_a_folder_that_is_no_checkpoint_says_what_it_is(walked: tuple[Path, dict[str, str]]) -> None:
    folder, _ = walked
    tokens = run(folder, "gpa tts Hello --model tokens -o no.wav")
    assert tokens.returncode == 4 and "gpa train recipes/gpa/own.yaml data.tokens=tokens" in tokens.stderr
    whole = run(folder, "gpa tts Hello --model runs/own -o no.wav")
    assert whole.returncode == 4 and "runs/own/export" in whole.stderr


def test_training_goes_on_from_an_export(walked: tuple[Path, dict[str, str]]) -> None:
    """An adapter on it: the rest comes from the checkpoint that it starts from."""
    folder, _ = walked
    setting = "init=runs/own/export data.tokens=tokens train.steps=2 train.precision=fp32"
    done = run(folder, f"gpa train recipes/gpa/adapter.yaml {setting} --run runs/more")
    assert done.returncode == 0, done.stderr
    export = folder / "runs" / "more" / "export"
    assert (export / "adapter" / "adapter_config.json").is_file()
    assert "trained further" in GPAConfig.read(export).about
    assert run(folder, "gpa verify runs/more/export").returncode == 0
