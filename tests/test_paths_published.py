"""The published format, walked from files to sound on the replica: prepared, trained by the headers of the
recipes, resumed, exported, loaded, and asked to transcribe, speak and convert.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import speechlike
from gpa import audio, config
from gpa.data.rows import TASK_ORDER
from gpa.prompt import canonical_task
from gpa.tasks import IGNORE
from gpa.train import __main__ as training
from gpa.train import checkpoint, metrics
from gpa.train.ar import LMFamily, LMRecipe
from headers import ROOT, arguments, commands, run
from published import VOCAB_SIZE, read_cases

for package in ("accelerate", "datasets", "deepspeed", "peft"):
    pytest.importorskip(package)

RECIPES = ROOT / "recipes" / "gpa"
SIZES = (
    f"model.vocab_size={VOCAB_SIZE}",
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.num_key_value_heads=1",
    "model.head_dim=16",
    "model.intermediate_size=64",
    "model.max_position_embeddings=2048",
)
SHORT = ("train.steps=4", "train.save_every=2", "train.eval_every=4", "train.log_every=1", "train.threads=1")
EXACT = ("train.precision=fp32", "train.workers=0")
SPOKEN = [
    "the lamp is lit again",
    "we walked home very slowly",
    "nobody saw the grey cat",
    "it rained all day long",
    "a door opened somewhere",
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def site(replica: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder as somebody has it: the recipes, a published corpus, and the prepared tokens."""
    site = tmp_path_factory.mktemp("published-site")
    (site / "recipes").symlink_to(ROOT / "recipes")
    corpus = site / "corpus"
    corpus.mkdir()
    rows = [{**case["example"], "licence": "CC0-1.0"} for case in read_cases()["training"]]
    for i in range(3):
        (corpus / f"audio_{i}.wav").write_bytes((replica / "golden" / f"audio_{i}.wav").read_bytes())
    held = {"id": "held", "path": "held.wav", "text": SPOKEN[0], "speaker": "x", "split": "dev"}
    audio.save(corpus / "held.wav", speechlike(1.4, seed=9), 16_000)
    rows.append({**held, "licence": "CC0-1.0"})
    (corpus / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    walk(site, replica, "gpa_0_3b", "gpa prepare")
    return site


def walk(site: Path, replica: Path, recipe: str, command: str, *more: str) -> None:
    """Run one command of a recipe's header, as it is printed there, on the replica."""
    (line,) = [line for line in commands(RECIPES / f"{recipe}.yaml") if line.startswith(command)]
    words = {"MANIFEST": "corpus/manifest.jsonl", "PUBLISHED": str(replica)}
    run(arguments(line, words, more), site)


def train(site: Path, recipe: str, name: str, *overrides: str) -> Path:
    """Train in this process, which takes a tenth of the time."""
    argv = [str(RECIPES / f"{recipe}.yaml"), *overrides, "--run", str(site / name)]
    training.main(argv)
    return site / name


def load(path: Path) -> Any:
    from gpa.models.gpa import GPA

    return GPA.from_pretrained(path, device="cpu")


# Rows -------------------------------------------------------------------------------------------------------


def test_prepared_rows_are_the_golden_training_rows(site: Path) -> None:
    """From the corpus through the prepared folder to what a batch is made of."""
    tree = config.load_yaml(RECIPES / "gpa_0_3b.yaml", [f"data.tokens={site / 'runs/tokens_large'}"])
    family = LMFamily(config.build(LMRecipe, tree))
    golden = read_cases()["training"]
    for i, case in enumerate(golden):
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
    """From random weights, by the header's launcher."""
    name, settings = "runs/gpa_0_3b", (*SIZES, *SHORT, *EXACT)
    tokens = "data.tokens=runs/tokens_large"
    plan = site / "plan.json"
    argv = ["recipes/gpa/gpa_0_3b.yaml", tokens, *settings, "train.zero=2", "--run", name]
    plan.write_text(json.dumps({"killed": {"argv": argv, "kill": [1, 7]}}))
    two = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(ROOT / "tests" / "ranks.py")]
    with pytest.raises(AssertionError, match="SIGKILL|exitcode"):
        run([os.sys.executable, "-m", *two, str(plan)], site)  # type: ignore[attr-defined]
    assert checkpoint.found(site / name, shards=True) and not (site / name / "export").exists()
    walk(site, replica, "gpa_0_3b", "accelerate launch", *settings)
    one = train(
        site,
        "gpa_0_3b",
        "one",
        f"data.tokens={site / 'runs/tokens_large'}",
        *settings,
        "train.accumulate=2",
    )
    assert len(json.loads((site / name / "environment.json").read_text())) == 2  # both starts
    found, expected = (load_file(path / "export" / "model.safetensors") for path in (site / name, one))
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, atol=1e-5, rtol=1e-4)
    told = [row for row in metrics.read(one / "metrics.jsonl") if "eval/asr" in row]
    assert set(told[-1]) >= {f"eval/{task}" for task in TASK_ORDER}


def test_zero_3(site: Path, replica: Path) -> None:
    walk(site, replica, "gpa_3b", "accelerate launch", *SIZES, *SHORT)
    assert (site / "runs" / "gpa_3b" / "export" / "config.json").is_file()
