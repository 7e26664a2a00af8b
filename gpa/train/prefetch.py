"""Batches made ahead of the step by worker processes: the same ones, in the same order, as without workers.

A batch is a function of its number. So workers hold no state, a checkpoint's step says where they go on, and
a worker that fails need not explain itself: the step makes that batch too, and meets the error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from gpa.errors import TrainingError
from gpa.train import signals

Make = Callable[[int], Any]
WAITING = 2  # batches that each worker may have ready


class Failed:
    """Sent instead of a batch whose making raised an error."""


@dataclass(frozen=True)
class Batches(Dataset):
    """Batches by number, for workers."""

    make: Make

    def __getitem__(self, number: int) -> Any:
        try:
            return self.make(number)
        # Errors do not travel well: some cannot be built anew from their text, none keeps its traceback.
        except Exception:  # noqa: BLE001
            return Failed()


@contextmanager
def prefetch(make: Make, numbers: range, workers: int) -> Iterator[Make]:
    """A function that gives the batches of `numbers`, to be asked for in that order.

    Without workers it is `make`. Errors of `make` come where their batch is asked for; TrainingError within
    the block if a worker is killed. Workers end with the block.
    """
    if not workers or not numbers:
        yield make
        return
    made: Iterator[Any] | None = iter(_loader(make, numbers, workers))

    def batch(number: int) -> Any:
        assert made is not None
        found = next(made)
        return make(number) if isinstance(found, Failed) else found

    try:
        yield batch
    except RuntimeError as error:  # torch raises it wherever the process is when a worker dies
        if "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            f"a process of train.workers={workers} was killed ({str(error).splitlines()[0]}), perhaps for "
            "memory: the same command goes on from the last checkpoint, with fewer workers if you like"
        ) from error
    finally:
        made = None  # the last reference: the workers end here


def _loader(make: Make, numbers: range, workers: int) -> DataLoader:
    return DataLoader(
        Batches(make),
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=WAITING,
        collate_fn=_as_it_is,
        worker_init_fn=signals.ignore,
        generator=torch.Generator(),  # the loader draws a seed at its start: not from the run's numbers
        # Forked workers share what the family has read; others, where forking is unsafe, are sent a copy.
        multiprocessing_context="fork" if sys.platform == "linux" else None,
    )


def _as_it_is(batch: Any) -> Any:
    return batch
