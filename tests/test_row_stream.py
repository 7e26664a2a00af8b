"""Training from a stream of shards: the batches of today, exact resuming, ranks that share, all rows seen."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpa import config
from gpa.data import token_folder
from gpa.data.row_plan import Position, RowStream
from gpa.data.token_folder import TokenSet
from gpa.errors import UsageError
from gpa.train import checkpoint
from gpa.train.command import family_of
from gpa.train.families.lm import LMFamily, LMRecipe
from gpa.train.loop import train
from training import CODES, GLOBAL_IDS, TEXTS, VALUES, lm_tree, plain, story, write_rows

pytestmark = pytest.mark.usefixtures("threads_kept")
pytest.importorskip("sentencepiece")
datasets = pytest.importorskip("datasets")
ROWS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows in one shard; every sixth is held out."""
    draw, rows = np.random.default_rng(0), []
    for n in range(ROWS):
        row: dict[str, Any] = {"id": str(n), "speaker": "ab"[n % 2], "text": TEXTS[n % 6]}
        row["split"] = "dev" if n % 6 == 5 else "train"
        row["semantic"] = draw.integers(0, CODES, 20 + n).tolist()
        rows.append(row | {"global": draw.integers(0, VALUES, GLOBAL_IDS).tolist()})
    return write_rows(tmp_path_factory.mktemp("tokens") / "one", rows)


@pytest.fixture(scope="module")
def sharded(folder: Path) -> Path:
    """The same rows in eight shards; the third has nothing to train on."""
    out = shutil.copytree(folder, folder.with_name("eight"))
    rows = [plain(row) for row in TokenSet.open(folder)]
    about = json.loads((out / "prepared.json").read_text())
    (out / token_folder.shard_name(0, 1)).unlink()
    held = [row for row in rows if row["split"] == "dev"]
    rest = [row for row in rows if row["split"] != "dev"]
    parts = [rest[:3], rest[3:6], held, *(rest[n : n + 3] for n in range(6, 20, 3))]
    for n, part in enumerate(parts):
        token_folder.write_shard(out / token_folder.shard_name(n, len(parts)), part, out)
    token_folder.write_json(out / "prepared.json", {**about, "shards": len(parts)})
    return out


def tree(tokens: Path, shards: int, **changes: Any) -> dict[str, Any]:
    made = lm_tree(tokens)
    made["data"] |= {"shuffle_shards": shards, "batch_ids": 200, "noise": 0.1}
    made["weights"] = {"alignment": 0.0}
    made["train"] |= {"steps": 40, "save_every": 18, "eval_every": 40, **changes}
    return made


def family(tokens: Path, shards: int) -> LMFamily:
    made = tree(tokens, shards)
    made["tasks"] = {task: {"share": 1.0} for task in ("asr", "tts", "vc")}
    return LMFamily(config.build(LMRecipe, made))


def go(made: dict[str, Any], run: Path) -> list[dict[str, float]]:
    """Train and return the losses."""
    fam, recipe = family_of(made)
    checkpoint.claim(run, recipe)
    train(fam, recipe.train, recipe.optim, run, progress=False)
    return story(run)


def stream(made: LMFamily) -> RowStream:
    assert isinstance(made.source, RowStream)
    return made.source


def drawn(made: LMFamily, number: int) -> Counter[tuple[str, str]]:
    rows, items, _ = made.source.draw(number)
    return Counter((task, rows.clips[i]["id"]) for task, i, _ in items)


def test_all_shards_at_once_are_the_loss_of_the_folder(folder: Path, tmp_path: Path) -> None:
    plain_run = go(tree(folder, 0), tmp_path / "plain")
    assert go(tree(folder, 1), tmp_path / "stream") == plain_run and len(plain_run) > 40


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_is_the_uninterrupted_one(
    sharded: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = go(tree(sharded, 2, workers=workers), tmp_path / "straight")
    losses = LMFamily.losses

    def cut(self: LMFamily, module: Any, batch: Any, step: int) -> Any:
        if step == 25:
            raise InterruptedError
        return losses(self, module, batch, step)

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(LMFamily, "losses", cut)
        go(tree(sharded, 2, workers=workers), tmp_path / "halved")
    at = checkpoint.position(tmp_path / "halved", 18)
    assert at["batch"] == 17 and at["shard"] > 0 and at["offset"] > 0
    resumed = go(tree(sharded, 2, workers=workers), tmp_path / "halved")
    kept = [row for row in straight if row["step"] > 18]
    assert [row for row in resumed if row["step"] > 18] == kept and len(kept) > 20
    ends = [
        checkpoint.read(tmp_path / name / "checkpoints" / "step-00000040.pt")
        for name in ("straight", "halved")
    ]
    for name, weight in ends[0]["module"].items():
        assert torch.equal(weight, ends[1]["module"][name]), name


def test_a_seek_reads_nothing_of_what_is_before(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = family(sharded, 2), family(sharded, 2)
    wanted, at = drawn(first, 60), first.source.draw(60)[2]
    assert at is not None and at.epoch > 0
    read: list[Position] = []
    go_to = RowStream._go
    monkeypatch.setattr(RowStream, "_go", lambda self, to: (read.append(to), go_to(self, to))[1])
    second.seek(vars(at))
    assert drawn(second, 60) == wanted and len(read) == 1


@pytest.mark.parametrize("shards", [1, 3, 8])
def test_two_ranks_see_different_rows_and_together_all(sharded: Path, shards: int) -> None:
    """Ranks take turns by number of the batch, each with a stream of its own."""
    ranks = [family(sharded, shards) for _ in range(2)]
    seen = [Counter[tuple[str, str]]() for _ in range(2)]
    number = 0
    while (at := ranks[number % 2].source.draw(number)[2]) and at.epoch == 0:
        seen[number % 2] += drawn(ranks[number % 2], number)
        number += 1
    whole = seen[0] + seen[1]
    assert seen[0] and seen[1] and not set(seen[0]) & set(seen[1])
    trained = [n for n in range(ROWS) if n % 6 != 5]
    assert set(whole) == {(task, str(n)) for task in ("asr", "tts", "vc") for n in trained}
    assert set(whole.values()) == {1}


def test_a_seed_has_an_order_of_its_own(sharded: Path) -> None:
    """By the shards that come first: within a group rows are shuffled by the seed anyway."""
    made = stream(family(sharded, 1))
    streams = [RowStream([made.shards[0][0]], made.plan, 1, seed) for seed in range(6)]
    first = {str(sorted(clip["id"] for clip in each.draw(0)[0].clips)) for each in streams}
    assert len(first) > 1


def test_an_epoch_has_an_order_of_its_own(sharded: Path) -> None:
    made = family(sharded, 1)
    orders: dict[int, list[str]] = {}
    number = 0
    while (at := made.source.draw(number)[2]) and at.epoch < 3:
        orders.setdefault(at.epoch, []).append(str(sorted(drawn(made, number))))
        number += 1
    assert len({tuple(order) for order in orders.values()}) == 3


def test_many_shards_are_opened_as_one_table(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset for each file takes ten times as long."""
    made: list[Any] = []
    start = datasets.Dataset.__init__

    def count(self: Any, *args: Any, **named: Any) -> None:
        made.append(self)
        start(self, *args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(datasets.Dataset, "__init__", count)
        found = TokenSet.open(sharded)
    assert len(made) == 1
    files = [datasets.Dataset.from_file(str(path)) for path in sorted(sharded.glob("*.arrow"))]
    joined = datasets.concatenate_datasets(files)
    assert found.data.data.table.equals(joined.data.table) and found.data.features == joined.features
    assert [end - first for first, end in found.shards] == list(map(len, files))


def test_what_is_in_memory_are_the_shards_of_a_group(sharded: Path) -> None:
    made = stream(family(sharded, 2))
    for number in range(60):
        rows, _, _ = made.draw(number)
        assert 0 < len(rows.clips) <= 6


def test_rows_that_never_fit_are_refused(sharded: Path, folder: Path) -> None:
    made = tree(sharded, 1)
    made["data"]["max_ids"] = 10
    with pytest.raises(UsageError, match="none of 8 shards has a training row that fits"):
        LMFamily(config.build(LMRecipe, made))
    made["data"] |= {"replay": str(folder), "max_ids": 600}
    with pytest.raises(UsageError, match="shuffle_shards: needs data.replay to be empty"):
        LMFamily(config.build(LMRecipe, made))
