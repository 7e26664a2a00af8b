"""The published format, walked from files to sound on the replica: prepared, trained by the headers of the
recipes, resumed, exported, loaded, and asked to transcribe, speak and convert.
"""

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import speechlike
from gpa import audio, config
from gpa.cli import main
from gpa.data.sequences import example
from gpa.data.token_folder import TokenSet
from gpa.errors import AudioWarning, DataError
from gpa.models.gpa import GPA
from gpa.prompt.tasks import DEFAULT, IGNORE, canonical_task
from gpa.train import checkpoint, metrics
from gpa.train import command as training
from gpa.train.families.lm import LMFamily, LMRecipe
from headers import ROOT, arguments, commands, run
from published import VOCAB_SIZE, read_cases

pytestmark = pytest.mark.usefixtures("threads_kept")
for package in ("accelerate", "datasets", "deepspeed", "peft"):
    pytest.importorskip(package)

RECIPES = ROOT / "recipes" / "gpa"
GOLDEN = read_cases()["training"]
SHORT = ("train.steps=4", "train.save_every=2", "train.eval_every=4", "train.log_every=1")
EXACT = ("train.precision=fp32", "train.workers=0", "train.threads=1")
SENTENCES = [
    "the lamp is lit again",
    "Nobody saw it!",
    "we walked home very slowly",
    "it rained all day long",
    "a door opened somewhere",
]


def sizes(width: int) -> tuple[str, ...]:
    """The recipe's network as a user makes it small."""
    small = {"vocab_size": VOCAB_SIZE, "hidden_size": width, "intermediate_size": 2 * width, "head_dim": 16}
    small |= {"num_hidden_layers": 2, "num_attention_heads": width // 16, "num_key_value_heads": width // 32}
    return tuple(f"model.{key}={value}" for key, value in small.items())


@pytest.fixture(scope="module")
def site(replica: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder as somebody has it: the recipes, recordings, and two corpora of them, prepared by the
    headers' commands: the golden training rows, and one short row of each task.
    """
    site = tmp_path_factory.mktemp("published-site")
    (site / "recipes").symlink_to(ROOT / "recipes")
    shutil.copytree(replica / "golden", site / "golden")
    (site / "corpus").mkdir()
    for n in range(len(SENTENCES)):
        audio.save(site / "corpus" / f"{n}.wav", speechlike(1.2 + 0.4 * n, seed=n), 16_000)
    held = {"id": "held", "path": "../corpus/3.wav", "text": SENTENCES[3], "speaker": "x", "split": "dev"}
    write(site / "golden" / "manifest.jsonl", [*(case["example"] for case in GOLDEN), held])
    rows = [
        {"task": "stt", "audio": "0.wav", "text": SENTENCES[0]},
        {"task": "tts-a", "audio": "1.wav", "text": SENTENCES[1], "ref_audio": "2.wav"},
        {"task": "vc", "audio": "1.wav", "ref_audio": "0.wav", "vc_audio": "2.wav"},
    ]
    write(site / "corpus" / "manifest.jsonl", rows)
    walk(site, replica, "gpa_0_3b", "gpa prepare")
    walk(site, replica, "adapter", "gpa prepare corpus/manifest.jsonl --model PUBLISHED")
    return site


def write(manifest: Path, rows: list[dict[str, Any]]) -> None:
    lines = (json.dumps({**row, "licence": "CC0-1.0"}) + "\n" for row in rows)
    manifest.write_text("".join(lines), encoding="utf-8")


def walk(site: Path, replica: Path, recipe: str, command: str, *more: str) -> None:
    """Run one command of a recipe's header, as it is printed there, on the replica."""
    (line,) = [line for line in commands(RECIPES / f"{recipe}.yaml") if line.startswith(command)]
    run(arguments(line, {"MANIFEST": "golden/manifest.jsonl", "PUBLISHED": str(replica)}, more), site)


def train(site: Path, recipe: str, name: str, *overrides: str) -> Path:
    """Train in this process, which spares the imports."""
    training.main([str(RECIPES / f"{recipe}.yaml"), *overrides, "--run", str(site / name)])
    return site / name


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "export" / "model.safetensors")


@pytest.fixture(scope="module")
def learnt(site: Path, replica: Path) -> Path:
    """The export of a network that knows its three rows by heart, from random weights."""
    tokens = f"data.tokens={site / 'tokens_published'}"
    schedule = [
        "train.steps=150",
        "train.eval_every=150",
        "train.threads=1",
        "optim.lr=5e-3",
        "optim.warmup=20",
    ]
    equal = ["tasks.vc.share=1", "tasks.vc.weight=1", *EXACT]
    run = train(site, "gpa_0_3b", "learnt", tokens, *sizes(64), *schedule, *equal)
    return run / "export"


# Rows -------------------------------------------------------------------------------------------------------


def test_prepared_rows_are_the_golden_training_rows(site: Path) -> None:
    """From the corpus through the prepared folder to what a batch is made of."""
    tree = config.load_yaml(RECIPES / "gpa_0_3b.yaml", [f"data.tokens={site / 'runs/tokens_large'}"])
    family = LMFamily(config.build(LMRecipe, tree))
    for i, case in enumerate(GOLDEN):
        task = canonical_task(case["example"]["task"])
        row = family.train_rows.row(task, i, np.random.default_rng(i))
        ids, expected = row.ids.tolist(), case["input_ids"]
        assert len(ids) == len(expected)
        # Nearly equal distances may flip a code or two on other kernels; a wrong layout moves everything.
        differ = [n for n in range(len(ids)) if ids[n] != expected[n]]
        assert len(differ) <= 2 and all(ids[n] >= family.vocab.global_.offset for n in differ)
        assert [label == IGNORE for label in row.labels] == [label == IGNORE for label in case["labels"]]
        assert all(a in (IGNORE, b) for a, b in zip(row.labels, ids, strict=True))


# Training ---------------------------------------------------------------------------------------------------


def test_zero_2_on_two_processes_killed_and_resumed_is_one_process(site: Path, replica: Path) -> None:
    """From random weights; resumed by the header's launcher."""
    name, settings = "runs/gpa_0_3b", (*sizes(32), *SHORT, *EXACT)
    argv = ["recipes/gpa/gpa_0_3b.yaml", *settings, "train.zero=2", "--run", name]
    (site / "plan.json").write_text(json.dumps({"killed": {"argv": argv, "kill": [1, 7]}}))
    two = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(ROOT / "tests" / "ranks.py")]
    run([sys.executable, "-m", *two, "plan.json"], site, fails=True)
    assert checkpoint.found(site / name, shards=True) and not (site / name / "export").exists()
    walk(site, replica, "gpa_0_3b", "accelerate launch", *settings)
    here = f"data.tokens={site / 'runs/tokens_large'}"
    one = train(site, "gpa_0_3b", "one", here, *settings, "train.accumulate=2")
    assert len(json.loads((site / name / "environment.json").read_text())) == 2  # both starts
    found, expected = weights(site / name), weights(one)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, atol=1e-5, rtol=1e-4)
    told = [row for row in metrics.read(one / "metrics.jsonl") if "eval/asr" in row]
    assert set(told[-1]) >= {f"eval/{task}" for task in DEFAULT}


def test_zero_3_makes_a_model(site: Path, replica: Path) -> None:
    walk(site, replica, "gpa_3b", "accelerate launch", *sizes(32), *SHORT)
    made = GPA.from_pretrained(site / "runs" / "gpa_3b" / "export", device="cpu")
    assert made.config.format == "published" and made.glm is not None and made.vocab.size == VOCAB_SIZE


@pytest.mark.parametrize("recipe", ["gpa_0_3b", "gpa_3b"])
def test_the_headers_plan(recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(ROOT)
    (line,) = [line for line in commands(RECIPES / f"{recipe}.yaml") if line.startswith("gpa plan")]
    assert main.main(shlex.split(line)[1:]) == 0
    told = capsys.readouterr().out
    assert ("312,625,152 parameters" in told) == (recipe == "gpa_0_3b") and "fits" in told


def test_an_adapter_on_published_weights(site: Path, replica: Path) -> None:
    """By the header's command; the export is the whole model, and the adapter alone lies beside it."""
    walk(site, replica, "adapter", "gpa train recipes/gpa/adapter.yaml init=PUBLISHED", *SHORT)
    export = site / "runs" / "adapter_published" / "export"
    made, base = (GPA.from_pretrained(path, device="cpu") for path in (export, replica))
    assert made.config.format == "published" and made.glm is not None
    assert made.processor.fingerprints() == base.processor.fingerprints()
    after, before = made.network.state_dict(), base.network.state_dict()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if name.rpartition(".")[0].endswith("_proj")}
    assert (export / "adapter" / "adapter_model.safetensors").is_file()
    assert main.main(["verify", str(export)]) == 0


def test_all_weights_from_published_ones_and_on_from_an_export(site: Path, replica: Path) -> None:
    tokens = f"data.tokens={site / 'tokens_published'}"
    settings = (
        "format=published",
        "adapter.rank=0",
        "data.max_ids=1500",
        "data.batch_ids=4500",
        *SHORT,
        *EXACT,
    )
    full = train(site, "adapter", "full", f"init={replica}", tokens, *settings)
    after, before = weights(full), load_file(replica / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(not torch.equal(tensor, before[name]) for name, tensor in after.items())
    again = train(site, "adapter", "again", f"init={full / 'export'}", tokens, *settings)
    assert main.main(["verify", str(again / "export")]) == 0


# What was learnt by heart comes back ------------------------------------------------------------------------


def test_a_row_of_each_task_is_generated_again(learnt: Path, site: Path) -> None:
    """Greedy, under the rules of the task, from the files that the rows were made of."""
    model, corpus = GPA.from_pretrained(learnt, device="cpu"), site / "corpus"
    rows = TokenSet.open(site / "tokens_published")
    for rank, (task, target) in enumerate((("asr", "text"), ("tts", "semantic"), ("vc", "target"))):
        made = example(model.format, task, rows.row(rank))
        prompt = [i for i, label in zip(*made, strict=True) if label == IGNORE]
        assert model.generate(prompt, task=task, temperature=0) == made.input_ids[len(prompt) :], target
    assert model.asr(corpus / "0.wav").text == SENTENCES[0]
    with pytest.warns(AudioWarning, match="a voice needs 3 to 6 s"):
        spoken = model.tts(SENTENCES[1], voice=corpus / "2.wav", temperature=0)
        converted = model.vc(corpus / "1.wav", voice=corpus / "0.wav", temperature=0)
    assert spoken.tokens.tolist() == rows.row(1)["semantic"].tolist() and spoken.finish_reason == "stop"
    assert converted.tokens.tolist() == rows.row(2)["target"].tolist() and converted.finish_reason == "stop"


def test_it_transcribes_speaks_and_converts_from_the_command_line(learnt: Path, site: Path) -> None:
    gpa, model = [sys.executable, "-m", "gpa"], ["--model", str(learnt)]
    assert run([*gpa, "asr", "corpus/0.wav", *model], site).stdout.strip() == SENTENCES[0]
    greedy = ["--temperature", "0", *model]
    run([*gpa, "tts", SENTENCES[1], "--voice", "corpus/2.wav", *greedy, "-o", "spoken.wav"], site)
    run([*gpa, "vc", "corpus/1.wav", "--voice", "corpus/0.wav", *greedy, "-o", "converted.wav"], site)
    rows = TokenSet.open(site / "tokens_published")
    for name, codes in (("spoken", rows.row(1)["semantic"]), ("converted", rows.row(2)["target"])):
        assert len(audio.load(site / f"{name}.wav", 16_000)) == 320 * len(codes)


# A voice ----------------------------------------------------------------------------------------------------


def test_a_voice_is_learnt_with_rehearsal_of_a_prepared_corpus(site: Path, replica: Path) -> None:
    folder = site / "anna"
    folder.mkdir()
    for n, text in enumerate(SENTENCES):
        shutil.copy(site / "corpus" / f"{n}.wav", folder)
        (folder / f"{n}.txt").write_text(text)
    words = ["finetune", "--voice", "anna", "--model", str(replica), "--replay", "tokens_published"]
    run([sys.executable, "-m", "gpa", *words, "--steps", "2", "--items", "0", "-o", "voice"], site)
    model = GPA.from_pretrained(site / "voice" / "model", device="cpu")
    assert set(model.voices) == {"anna"} and model.config.format == "published" and model.glm is not None
    assert model.tts("Hello.", voice="anna", max_new_tokens=4).tokens.size == 4


def test_a_model_that_hears_no_words_asks_for_texts(
    site: Path, replica: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(site / "corpus", site / "mute")
    (site / "mute" / "manifest.jsonl").unlink()
    words = ["finetune", "--voice", str(site / "mute"), "--model", str(replica), "--items", "0"]
    assert main.main([*words, "-o", str(site / "mute-out")]) == DataError.exit_code
    assert "no_text" in capsys.readouterr().err
