"""Batch plans: the budget, the epoch, and batch N as a pure function of seed and N."""

import itertools

import numpy as np
import pytest

from gpa.data.batches import BatchPlan
from gpa.errors import UsageError

LENGTHS = np.random.default_rng(0).integers(5, 200, 300)


def epoch(plan: BatchPlan, rows: int, start: int = 0) -> tuple[list[np.ndarray], int]:
    """Return batches from `start` until `rows` rows are seen, and the next step."""
    batches, step = [], start
    while sum(map(len, batches)) < rows:
        batches.append(plan.batch(step))
        step += 1
    return batches, step


@pytest.mark.parametrize("budget", [200, 1000, 10_000])
def test_budget_is_kept_and_used(budget: int) -> None:
    batches, _ = epoch(BatchPlan(LENGTHS, budget, seed=1), len(LENGTHS))
    cost = [len(rows) * LENGTHS[rows].max() for rows in batches]
    assert max(cost) <= budget
    if budget == 1000:  # length buckets waste little: padded positions against real ones
        assert sum(cost) < 1.15 * LENGTHS.sum()
        assert np.median(cost) > 0.75 * budget


def test_every_row_once_per_epoch_in_new_order() -> None:
    plan = BatchPlan(LENGTHS, 1000, seed=3)
    first, step = epoch(plan, len(LENGTHS))
    second, _ = epoch(plan, len(LENGTHS), step)
    for batches in (first, second):
        assert sorted(np.concatenate(batches)) == list(range(len(LENGTHS)))
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))


def test_batch_is_a_function_of_seed_and_step() -> None:
    steps = 120
    sequential = [BatchPlan(LENGTHS, 1000, seed=5).batch(step).tolist() for step in range(steps)]
    walked, jumped = BatchPlan(LENGTHS, 1000, seed=5), BatchPlan(LENGTHS, 1000, seed=5)
    assert [walked.batch(step).tolist() for step in range(steps)] == sequential
    order = np.random.default_rng(0).permutation(steps)
    assert {int(step): jumped.batch(int(step)).tolist() for step in order} == dict(enumerate(sequential))
    other = BatchPlan(LENGTHS, 1000, seed=6)
    assert [other.batch(step).tolist() for step in range(steps)] != sequential


def test_weights_are_mean_appearances() -> None:
    weights = np.array([0.25, 1.0, 2.5] * 100)
    plan = BatchPlan(LENGTHS, 1000, seed=0, weights=weights)
    epochs = [np.concatenate(plan.epoch(n)) for n in range(40)]
    counts = np.array([np.bincount(rows, minlength=300) for rows in epochs])  # (epochs, rows)
    assert set(counts[:, 1::3].flat) == {1} and set(counts[:, 2::3].flat) == {2, 3}
    assert counts[:, ::3].mean() == pytest.approx(0.25, abs=0.02)
    assert counts[:, 2::3].mean() == pytest.approx(2.5, abs=0.03)


def test_epochs_without_a_batch_are_passed_over() -> None:
    plan = BatchPlan(np.array([10]), 10, seed=0, weights=np.array([0.05]))
    assert [plan.batch(step).tolist() for step in range(3)] == [[0], [0], [0]]


@pytest.mark.parametrize(
    ("lengths", "budget", "weights", "message"),
    [
        ([], 10, None, "0 training rows"),
        ([5, 11], 10, None, "longest 11, do not fit a budget of 10"),
        ([5], 10, [0.0], "weight 0"),
    ],
)
def test_impossible_plans_are_refused(
    lengths: list[int], budget: int, weights: list[float] | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        BatchPlan(np.array(lengths), budget, 0, None if weights is None else np.array(weights))


def test_single_rows_fill_a_batch_exactly() -> None:
    plan = BatchPlan(np.array([10, 10, 10, 10]), 20, seed=0)
    sizes = [len(plan.batch(step)) for step in range(2)]
    assert sizes == [2, 2] and len(set(itertools.chain(*(plan.batch(s) for s in range(2))))) == 4
