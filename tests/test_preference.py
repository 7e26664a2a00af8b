"""Preference training: pairs of a model's own takes, the loss of DPO beside TRL's, and its runs."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import trl_exchange
from gpa import config
from gpa.cli import main as cli
from gpa.data import preferences
from gpa.data.preferences import Pair
from gpa.errors import CheckpointError, DataError, UsageError
from gpa.finetune import takes
from gpa.finetune.takes import Take, choose
from gpa.models.gpa import GPA
from gpa.models.gpa.modeling_gpa import Backbone, load_backbone
from gpa.models.gpa.requests_gpa import SEED_STEP
from gpa.train import checkpoint, metrics
from gpa.train.arguments import TrainArgs
from gpa.train.command import main
from gpa.train.families.preference import (
    PreferenceFamily,
    PreferenceRecipe,
    collated,
    log_probs,
    preference_loss,
)
from gpa.train.launch import adapt
from headers import ROOT, arguments, commands, run

pytestmark = pytest.mark.usefixtures("threads_kept")
RECIPE = ROOT / "recipes" / "gpa" / "dpo.yaml"
SENTENCES = (
    "hello there, how are you?",
    "a quick brown fox jumps over the lazy dog.",
    "how quick are you?",
    "the dog jumps over there.",
    "hello, lazy fox.",
    "over there, a brown dog.",
    "are you there, fox?",
    "how are the dogs over there?",
    "a fox jumps quick.",
    "!!!",
)
SHORT = ("train.precision=fp32", "train.threads=1", "train.log_every=1", "optim.warmup=1")
CLOCK = ("seconds", "tokens_per_s", "step_seconds", "mfu")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pairs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of pairs that the tiny model made by the recipe's own command, as people give it."""
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "sentences.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    command, _ = commands(RECIPE)
    done = run(arguments(command, {"gpa-mini": str(tiny)}, ("--judge", "own", "--threads", "1")), folder)
    assert done.stdout == "pairs\n"
    assert (
        "1 rejected: there is nothing to say" in done.stderr and f"of {len(SENTENCES)} texts" in done.stderr
    )
    return folder / "pairs"


def tree(tiny: Path, pairs: Path, **changes: Any) -> dict[str, Any]:
    return {"kind": "dpo", "init": str(tiny), "data": {"pairs": str(pairs), "batch_ids": 900}, **changes}


def family_of(tiny: Path, pairs: Path, **changes: Any) -> PreferenceFamily:
    return PreferenceFamily(config.build(PreferenceRecipe, tree(tiny, pairs, **changes)))


@pytest.fixture(scope="module")
def family(tiny: Path, pairs: Path) -> PreferenceFamily:
    return family_of(tiny, pairs)


# Pairs ------------------------------------------------------------------------------------------------------


def test_takes_are_those_of_tts(tiny: Path, family: PreferenceFamily) -> None:
    """Text and voice of a pair, spoken by `tts` with the seed of that take, give its ids."""
    model, same = GPA.from_pretrained(tiny, device="cpu", threads=1), 0
    for pair in family.pairs:
        codes = model.vocab.semantic.codes(i for i in pair.better if i in model.vocab.semantic)
        first = 4 * int(pair.id.partition("-")[2])
        made = [
            model.tts(pair.text, voice=pair.voice, seed=(first + n) * SEED_STEP, max_new_tokens=400)
            for n in range(4)
        ]
        same += codes in [take.tokens.tolist() for take in made]
        voice = model.voices[pair.voice].codes
        assert list(pair.prompt) == model.processor.build("tts", text=pair.text, voice=voice)
        assert pair.better[-1] == model.vocab.stop
        assert pair.wrong[0] < pair.wrong[1] or pair.worse[-1] != model.vocab.stop
    assert same == len(family.pairs) >= 4
    assert {pair.voice for pair in family.pairs} == {"anna", "ben"}


def test_a_text_without_a_better_take_is_named(pairs: Path) -> None:
    about = json.loads((pairs / preferences.ABOUT).read_text())
    rejected = [json.loads(line) for line in (pairs / preferences.REJECTED).read_text().splitlines()]
    assert about["pairs"] + about["rejected"] == len(SENTENCES) and about["rejected"] == len(rejected)
    unsaid = next(row for row in rejected if row["text"] == "!!!")
    assert "there is nothing to say" in unsaid["reason"]
    assert about["judge"] == "the base model itself" and set(about["fingerprints"]) >= {"codec", "network"}


def take(wrong: int, stopped: bool = True) -> Take:
    return Take([wrong], stopped, "", wrong)


def test_fewest_wrong_words_are_better_and_no_end_is_worst() -> None:
    assert choose([take(2), take(0), take(3), take(0)], 1) == (take(0), take(3))
    assert choose([take(2), take(0, False), take(5)], 1) == (take(2), take(0, False))
    assert choose([take(1), take(1, False), take(1)], 1) == (take(1), take(1, False))
    assert choose([take(1), take(2)], 2) == "no take is better: 1 to 2 words are wrong"
    assert choose([take(1), take(3)], 2) == (take(1), take(3))
    assert choose([take(0, False), take(3, False)], 1) == "no take comes to its end"


@pytest.mark.parametrize(
    ("texts", "more", "code", "told"),
    [
        ("!!!\n", (), 9, "no text has a better and a worse take"),
        ("\n\n", (), 2, "no text to speak"),
        ("hello.\n", ("--takes", "1"), 2, "1 takes, a margin of 1"),
        ("hello.\n", ("--temperature", "0"), 2, "takes differ above temperature 0 only"),
    ],
)
def test_no_pairs_no_folder(
    texts: str,
    more: tuple[str, ...],
    code: int,
    told: str,
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "texts.txt").write_text(texts)
    line = ["pairs", str(tmp_path / "texts.txt"), "--model", str(tiny), "--judge", "own"]
    assert cli.main([*line, "--threads", "1", "-o", str(tmp_path / "out"), *more]) == code
    assert told in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]


def test_pairs_go_on_where_they_were_stopped(
    tiny: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after three texts, a line cut: the same folder comes out, and nothing is said twice."""
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    line = ["pairs", str(tmp_path / "texts.txt"), "--model", str(tiny), "--judge", "own", "--threads", "1"]
    line += ["-o", str(tmp_path / "out")]
    journal, judged = tmp_path / "out.unfinished.jsonl", takes._judged
    said: list[str] = []

    def judge(model: Any, judges: Any, part: Any, done: Any) -> Take:
        said.append(part.id)
        if len(set(said)) > stop:
            raise KeyboardInterrupt
        return judged(model, judges, part, done)

    monkeypatch.setattr(takes, "_judged", judge)
    stop = 3
    assert cli.main(line) == 130
    assert (
        len(journal.read_text().splitlines()) == 1 + 1 + 3
    )  # what was asked, a text that says nothing, three
    with journal.open("a") as file:
        file.write('{"id": "cut')
    first, stop = set(said[:-1]), len(SENTENCES)
    said.clear()
    assert cli.main(line) == 0
    assert not first & set(said) and len(first | set(said)) == len(SENTENCES) - 1
    assert not journal.exists()
    for name in (preferences.PAIRS, preferences.REJECTED):
        rows = [sorted((folder / name).read_text().splitlines()) for folder in (pairs, tmp_path / "out")]
        assert rows[0] == rows[1]


def test_a_journal_of_another_question_is_dropped(tmp_path: Path) -> None:
    journal = preferences.Journal(tmp_path / "journal", {"takes": 4})
    journal.add(preferences.Rejected("1", "anna", "hello", "why"))
    assert preferences.Journal(tmp_path / "journal", {"takes": 4}).rows == journal.rows
    assert preferences.Journal(tmp_path / "journal", {"takes": 8}).rows == []
    with (tmp_path / "journal").open("a") as file:
        file.write('{"id": \n')
    with pytest.raises(DataError, match="journal:3: not valid JSON"):
        preferences.Journal(tmp_path / "journal", {"takes": 4})


# Loss -------------------------------------------------------------------------------------------------------


def module_of(tiny: Path) -> Backbone:
    module = load_backbone(tiny)
    adapt(module, TrainArgs(), CPU)  # the kernel that the loop takes
    return module


def test_training_starts_where_takes_were_found_as_likely_as_the_pairs_say(
    tiny: Path, family: PreferenceFamily
) -> None:
    batch = collated(family.pairs, family.vocab.control["pad"])
    with torch.no_grad():
        torch.testing.assert_close(
            log_probs(module_of(tiny), batch)[batch.takes], batch.reference, atol=1e-3, rtol=1e-5
        )
    (loss,) = family.losses(module_of(tiny), batch, 0)
    assert loss.value.item() == pytest.approx(math.log(2), abs=1e-4)


def test_packed_is_padded(tiny: Path, family: PreferenceFamily) -> None:
    """Rows of several pairs that share sequences give the loss and the gradients of rows alone."""
    found = []
    for size in (0, 400):
        module, batch = module_of(tiny), collated(family.pairs, family.vocab.control["pad"], size)
        with torch.no_grad():
            module.model.layers[0].mlp.up_proj.weight.mul_(4)  # away from the reference
        (loss,) = family.losses(module, batch, 0)
        loss.value.backward()
        found.append((loss.value.detach(), {n: p.grad for n, p in module.named_parameters()}))
        assert (len(batch.ids) < len(family.pairs)) == bool(size)
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-4)
    assert abs(float(found[0][0]) - math.log(2)) > 1e-3


@pytest.mark.parametrize("size", [0, 40])
@pytest.mark.parametrize("case", range(len(trl_exchange.SETTINGS)))
def test_loss_and_gradients_are_those_of_trl(case: int, size: int) -> None:
    """As recorded by `trl_exchange.py`; its reference log-probabilities come out of the same function."""
    recorded = json.loads((ROOT / "tests" / "assets" / "trl-exchange.json").read_text())
    told = recorded["cases"][case]
    module, reference = trl_exchange.network(0.0), trl_exchange.network(1.0)
    blank = {"split": "train", "voice": "", "text": "", "heard": ("", ""), "wrong": (0, 1)}
    given = [
        Pair(str(n), prompt=prompt, better=better, worse=worse, reference=(0.0, 0.0), **blank)
        for n, (prompt, better, worse) in enumerate(trl_exchange.PAIRS)
    ]
    for each in (module, reference):
        adapt(each, TrainArgs(), CPU)
    batch = collated(given, trl_exchange.PAD, size)
    with torch.no_grad():
        batch = replace(batch, reference=log_probs(reference, batch)[batch.takes])
    torch.testing.assert_close(batch.reference, torch.tensor(told["reference"]), atol=1e-4, rtol=1e-5)
    gained = log_probs(module, batch)[batch.takes] - batch.reference
    loss = preference_loss(gained, **trl_exchange.SETTINGS[case])
    loss.backward()
    assert loss.item() == pytest.approx(told["loss"], rel=1e-5)
    found = trl_exchange.gradients(module)
    assert found.keys() == told["gradients"].keys()
    for name, numbers in told["gradients"].items():
        assert found[name] == pytest.approx(numbers, rel=1e-3, abs=1e-6), name


@pytest.mark.filterwarnings("default::FutureWarning")  # of TRL's own use of transformers
def test_the_record_is_what_trl_says_today() -> None:
    pytest.importorskip("trl")
    recorded = json.loads((ROOT / "tests" / "assets" / "trl-exchange.json").read_text())
    for told, case in zip(recorded["cases"], trl_exchange.cases(), strict=True):
        assert case["loss"] == pytest.approx(told["loss"], rel=1e-5)
        for name, numbers in told["gradients"].items():
            assert case["gradients"][name] == pytest.approx(numbers, rel=1e-3, abs=1e-6), name


# Runs -------------------------------------------------------------------------------------------------------


def story(folder: Path) -> list[dict[str, float]]:
    return [
        {k: v for k, v in row.items() if not k.startswith(CLOCK)}
        for row in metrics.read(folder / "metrics.jsonl")
    ]


def test_the_recipe_runs_as_its_header_says(tiny: Path, pairs: Path) -> None:
    """A dry run shows the first rows in words; the run's checkpoint loads, verifies and has a card."""
    _, command = commands(RECIPE)
    folder, words = pairs.parent, {"gpa-mini": str(tiny), "recipes/gpa/dpo.yaml": str(RECIPE)}
    told = run(arguments(command, words, ("--dry-run",)), folder).stdout
    assert "kind: dpo" in told and "<start_semantic> => semantic x" in told and not (folder / "runs").exists()
    more = (*SHORT, "train.steps=2", "train.eval_every=1", "train.save_every=2")
    run(arguments(command, words, more), folder)
    rows = story(folder / "runs" / "dpo")
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    export = folder / "runs" / "dpo" / "export"
    run([sys.executable, "-m", "gpa", "verify", str(export), "--threads", "1"], folder)
    assert "spoken by the model itself" in (export / "README.md").read_text()
    model = GPA.from_pretrained(export, device="cpu", threads=1)
    assert (
        sorted(model.voices) == ["anna", "ben"]
        and "tts" in model.config.tasks
        and "asr" in model.config.tasks
    )


def test_better_takes_become_likelier(tiny: Path, pairs: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "dpo.yaml"
    recipe.write_text(config.yaml.safe_dump(tree(tiny, pairs)))
    main([str(recipe), *SHORT, "train.steps=40", "optim.lr=2e-3", "--run", str(tmp_path / "run")])
    rows = [row for row in story(tmp_path / "run") if "loss" in row]
    assert rows[-1]["loss"] < 0.3 and rows[-1]["accuracy"] == 1.0 and rows[-1]["margin"] > 1


@pytest.fixture(scope="module")
def whole(tiny: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, and its uninterrupted run of four steps of two micro-batches, packed."""
    folder = tmp_path_factory.mktemp("dpo")
    data = {"pairs": str(pairs), "batch_ids": 500, "pack_ids": 250}
    train = {"steps": 4, "save_every": 2, "eval_every": 2, "log_every": 1, "threads": 1}
    given = tree(tiny, pairs, data=data, train=train, optim={"lr": 1e-3, "warmup": 1})
    (folder / "dpo.yaml").write_text(config.yaml.safe_dump(given))
    main([str(folder / "dpo.yaml"), "train.accumulate=2", "--run", str(folder / "whole")])
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_backbone(folder / "export").state_dict()


def test_resumed_is_uninterrupted(whole: Path) -> None:
    half = whole / "half"
    shutil.copytree(whole / "whole", half)
    checkpoint.found(half)[-1].unlink()
    shutil.rmtree(half / "export")
    main([str(whole / "dpo.yaml"), "train.accumulate=2", "--run", str(half)])
    assert story(half) == story(whole / "whole")
    torch.testing.assert_close(weights(half), weights(whole / "whole"), atol=0, rtol=0)


def test_two_processes_do_what_one_does(whole: Path) -> None:
    plan = {"two": {"argv": [str(whole / "dpo.yaml"), "train.world=2", "--run", str(whole / "two")]}}
    (whole / "plan.json").write_text(json.dumps(plan))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run([sys.executable, *launch, str(ROOT / "tests" / "ranks.py"), str(whole / "plan.json")], whole)
    torch.testing.assert_close(weights(whole / "two"), weights(whole / "whole"), atol=1e-5, rtol=1e-4)


# Bad input --------------------------------------------------------------------------------------------------


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change the second pair of a folder."""

    def act(folder: Path) -> None:
        lines = (folder / preferences.PAIRS).read_text().splitlines()
        row = json.loads(lines[1])
        change(row)
        lines[1] = json.dumps(row)
        (folder / preferences.PAIRS).write_text("\n".join(lines) + "\n")

    return act


def cut(folder: Path) -> None:
    path = folder / preferences.PAIRS
    path.write_text(path.read_text()[:-40])


def shorter(folder: Path) -> None:
    path = folder / preferences.PAIRS
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def of_another(part: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        about = json.loads((folder / preferences.ABOUT).read_text())
        about["fingerprints"][part] = "0" * 64
        (folder / preferences.ABOUT).write_text(json.dumps(about))

    return act


@pytest.mark.parametrize(
    ("spoil", "error", "told"),
    [
        (edited(lambda row: row.pop("better")), DataError, r"pairs.jsonl:2: missing keys \['better'\]"),
        (edited(lambda row: row.update(worse="abc")), DataError, r"pairs.jsonl:2.worse: expected a list"),
        (
            edited(lambda row: row.update(reference=[float("nan"), 0])),
            DataError,
            r"jsonl:2.reference\[0\]: nan",
        ),
        (edited(lambda row: row["worse"].insert(1, 9999)), DataError, r"jsonl:2, pair '.*', worse: id 9999"),
        (edited(lambda row: row["better"].insert(1, -1)), DataError, r"jsonl:2, pair '.*', better: id -1"),
        (
            edited(lambda row: row["better"].insert(1, 5)),
            DataError,
            r"jsonl:2, pair '.*': no instruct sequence",
        ),
        (edited(lambda row: row["prompt"].pop()), DataError, r"jsonl:2, pair '.*': no instruct sequence"),
        (
            edited(lambda row: row.update(better=row["worse"])),
            DataError,
            r"jsonl:2, pair '.*', better: .*none is",
        ),
        (
            edited(lambda row: row["better"].pop()),
            DataError,
            r"jsonl:2, pair '.*', better: .*come to its end",
        ),
        (cut, DataError, r"pairs.jsonl:\d: not valid JSON"),
        (shorter, DataError, r"pairs.jsonl: \d pairs, pairs.json says \d"),
        (
            of_another("network"),
            CheckpointError,
            r"pairs.json: .* spoke these pairs, its network is another",
        ),
        (of_another("codec"), CheckpointError, r"pairs.json: .* its codec is another"),
        (lambda folder: (folder / preferences.ABOUT).unlink(), DataError, r"pairs.json: cannot be read"),
    ],
)
def test_pairs_that_cannot_be_trained_on_are_named(
    spoil: Callable[[Path], None], error: type[Exception], told: str, tiny: Path, pairs: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(pairs, tmp_path / "pairs")
    spoil(folder)
    with pytest.raises(error, match=told):
        family_of(tiny, folder)


def test_the_pairs_of_a_trained_checkpoint_are_not_those_of_its_child(whole: Path, pairs: Path) -> None:
    """On the command line: exit code, file and remedy, and no run folder is begun."""
    child = whole / "whole" / "export"
    line = ["train", str(RECIPE), f"init={child}", f"data.pairs={pairs}", "--run", str(whole / "none")]
    done = run([sys.executable, "-m", "gpa", *line], whole, fails=True)
    assert done.returncode == CheckpointError.exit_code and "let this checkpoint speak" in done.stderr
    assert f"{pairs / preferences.ABOUT}" in done.stderr and not (whole / "none").exists()


@pytest.mark.parametrize("changes", [{"beta": 0.0}, {"label_smoothing": 0.5}, {"label_smoothing": -0.1}])
def test_settings_out_of_range(changes: dict[str, float], tiny: Path, pairs: Path) -> None:
    with pytest.raises(UsageError, match=next(iter(changes))):
        config.build(PreferenceRecipe, tree(tiny, pairs, **changes))


def test_an_adapter_beside_frozen_weights(tiny: Path, pairs: Path) -> None:
    pytest.importorskip("peft")
    family = family_of(tiny, pairs, adapter={"rank": 2})
    module: nn.Module = family.build()
    names = [name for name, weight in module.named_parameters() if weight.requires_grad]
    assert names and all("lora" in name for name in names)
    (loss,) = family.losses(module, family.batch(0), 0)
    assert loss.value.item() == pytest.approx(math.log(2), abs=1e-4)
