"""Batches made ahead by workers: the same run bit by bit, errors where they belong, nobody left behind."""

import multiprocessing
import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gpa import config
from gpa.errors import CheckpointError, GPAError, MissingExtraError, TrainingError, UsageError
from gpa.train import checkpoint
from gpa.train.arguments import TrainArgs
from gpa.train.families.lm import LMFamily, LMRecipe
from gpa.train.loop import _numbers, train
from gpa.train.parallel import Ranks
from gpa.train.prefetch import prefetch
from training import lm_tree, story, write_tokens

pytest.importorskip("sentencepiece")
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores here
HERE = os.getpid()


@pytest.fixture(autouse=True)
def tidy() -> Iterator[None]:
    """One thread in here, as before afterwards, and no process left."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    assert multiprocessing.active_children() == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("tokens"))


class Failing(LMFamily):
    """A family whose batch `missing` cannot be made."""

    missing, error = -1, GPAError("no batch")

    def batch(self, step: int) -> Any:
        if step == self.missing:
            raise self.error
        return super().batch(step)


def run(folder: Path, where: Path, workers: int, fails: tuple[int, Exception] | None = None) -> Path:
    tree = lm_tree(folder)
    tree["train"] |= {"workers": workers, "accumulate": 2}
    recipe = config.build(LMRecipe, tree)
    family = Failing(recipe)
    if fails:
        family.missing, family.error = fails  # type: ignore[assignment]
    checkpoint.claim(where, recipe)
    train(family, recipe.train, recipe.optim, where, progress=False)
    return where


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without workers; read only."""
    return run(folder, tmp_path_factory.mktemp("alone"), 0)


def weights(where: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint.found(where)[-1], weights_only=True)["module"]


def test_workers_change_nothing_and_resume_where_the_steps_are(
    folder: Path, alone: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    with pytest.raises(CheckpointError, match="the disk is gone"):
        run(folder, cut, 2, fails=(7, CheckpointError("the disk is gone")))  # in step 4 of 6
    assert [row["step"] for row in story(cut)] == [1, 2, 3, 3]  # what came before is done
    assert run(folder, cut, 2) == cut  # from the checkpoint at step 2
    assert story(cut) == story(alone)
    assert all(torch.equal(tensor, weights(alone)[name]) for name, tensor in weights(cut).items())


def test_batches_come_in_order_and_errors_as_they_are() -> None:
    def make(number: int) -> tuple[int, torch.Tensor]:
        if number == 9:
            raise MissingExtraError("soundfile", "train")  # cannot be built anew from its text
        return number, torch.full((3,), number)

    numbers = range(3, 13, 2)
    with prefetch(make, numbers, 2) as batch:
        for number in (3, 5, 7):
            got, tensor = batch(number)
            assert got == number and tensor.tolist() == [number] * 3
        with pytest.raises(MissingExtraError, match=r"soundfile is not installed.*gpa-audio\[train\]"):
            batch(9)
        assert batch(11)[0] == 11
        assert multiprocessing.active_children()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("numbers", "workers"), [(range(3), 0), (range(0), 2)])
def test_without_workers_or_work_the_step_makes_its_own(numbers: range, workers: int) -> None:
    with prefetch(os.getpid, numbers, workers) as batch:  # type: ignore[arg-type]
        assert batch is os.getpid


def test_an_error_in_the_step_ends_the_workers() -> None:
    with pytest.raises(RuntimeError, match="loss"), prefetch(abs, range(100), 2) as batch:
        assert batch(0) == 0
        raise RuntimeError("a loss")
    assert not multiprocessing.active_children()


def test_a_killed_worker_is_an_error_that_says_so() -> None:
    def make(number: int) -> int:
        if number == 3 and os.getpid() != HERE:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with (
        pytest.raises(TrainingError, match=r"train.workers=1 was killed .*last checkpoint"),
        prefetch(make, range(9), 1) as batch,
    ):
        assert [batch(n) for n in range(9)] == []


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (1, 3), (2, 1), (4, 2)])
def test_the_numbers_of_all_ranks_are_all_numbers(world: int, accumulate: int) -> None:
    args = TrainArgs(accumulate=accumulate)
    ranks = [Ranks(args, torch.device("cpu"), rank, world) for rank in range(world)]
    for steps in (range(0, 4), range(2, 4), range(3, 4)):
        found = [_numbers(rank, args, steps) for rank in ranks]
        assert len({len(numbers) for numbers in found}) == 1
        size = world * accumulate
        assert sorted(n for numbers in found for n in numbers) == list(range(steps.start * size, 4 * size))
    step = [(1 * accumulate + n) * world for n in range(accumulate)]  # as docs/launch.md defines them
    assert list(_numbers(ranks[0], args, range(1, 2))) == step


def test_a_family_can_be_sent_where_it_cannot_be_inherited(folder: Path) -> None:
    """Workers of systems without a safe fork get a copy; it makes the same batches."""
    family = LMFamily(config.build(LMRecipe, lm_tree(folder)))
    copy = pickle.loads(pickle.dumps(family))
    assert torch.equal(copy.batch(5).ids, family.batch(5).ids)


def test_fewer_than_no_workers_are_refused() -> None:
    with pytest.raises(UsageError, match="train.workers=-1: at least 0"):
        TrainArgs(workers=-1)
