"""`gpa train --dry-run`: recipe, steps, memory and the first batch in words, and nothing is written."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from gpa.models.gpa.modeling_gpa import meta_backbone
from gpa.prompt.vocab import Vocab
from gpa.text.tokenizer import TextTokenizer
from gpa.train import dry_run
from gpa.train.command import family_of
from gpa.train.planning import Shape
from headers import run
from training import CODES, LM, TEXTS, lm_tree, write_recipe, write_tokens

pytest.importorskip("sentencepiece")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("tokens"))


def test_the_command_says_what_the_run_would_do_and_writes_nothing(tokens: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "tiny.yaml", lm_tree(tokens))
    more = ["train.accumulate=2", "data.pack_ids=900", "data.batch_ids=900", "--dry-run"]
    told = run([sys.executable, "-m", "gpa", "train", str(recipe), *more], tmp_path).stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.yaml"]
    resolved = yaml.safe_load(told.partition("\nsteps: ")[0].partition("\n\n")[2])
    assert resolved["train"]["accumulate"] == 2 and resolved["weights"]["alignment"] == 0.3  # a default
    assert "steps: 6, each of 2 micro-batches (1 processes x 2)" in told
    spoken = re.findall(r"^  (\w+), (\d+) ids, (\d+) of them to be answered\n    (.*) => (.*)$", told, re.M)
    heads = re.search(r"(\d+) sequences, ([\d,]+) ids and ([\d,]+) of padding", told)
    assert heads and sum(int(row[1]) for row in spoken) == int(heads[2].replace(",", ""))
    data = {**lm_tree(tokens)["data"], "pack_ids": 900, "batch_ids": 900}
    family, _ = family_of(lm_tree(tokens, data=data))
    batch = family.batch(0)
    assert int(heads[1]) == len(batch.ids) and len(spoken) > len(batch.ids)
    assert sum(int(row[2]) for row in spoken) == int((batch.labels != -100).sum())
    known = {re.sub("[.,;:!?]", "", text) for text in TEXTS}
    for task, _, _, prompt, answer in spoken:
        assert f"<task_{task}>" in prompt
        said = answer if task == "asr" else prompt
        assert task == "vc" or any(text in re.sub("[.,;:!?]", "", said.lower()) for text in known), said
        assert "semantic x " in (prompt if task == "asr" else answer) and answer.endswith("<im_end>")


def test_memory_is_the_planners(tokens: Path) -> None:
    tree = lm_tree(tokens, train={"steps": 1, "zero": 1, "world": 4})
    family, recipe = family_of(tree)
    (line,) = [line for line in dry_run.lines(family, recipe, 1) if line.startswith("memory")]
    shape = Shape.of(meta_backbone({**LM, "vocab_size": Vocab.from_file(tokens).size}))
    state = shape.state_bytes(1, 4) / 2**20
    kept = shape.activation_bytes(family.batch(0).ids.numel(), False) / 2**20
    assert f"ZeRO stage 1: {state + kept:.1f} MiB" in line and f"AdamW {state:.1f} MiB" in line


def test_every_kind_of_id_has_its_name(tokens: Path) -> None:
    vocab, text = Vocab.from_file(tokens), TextTokenizer.from_file(tokens)
    ids = [*text.encode("hello world"), vocab.stop, *vocab.semantic.ids(range(CODES)), vocab.stop, vocab.stop]
    assert vocab.global_ is not None
    ids += vocab.global_.ids([0, 1])
    told = dry_run.words(ids, vocab, text)
    assert told == f"'hello world' <im_end> semantic x {CODES} <im_end> global x 2"
