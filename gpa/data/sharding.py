"""Who does which shards: ranks of a launcher, worker processes of one machine, and how they wait for files.

`accelerate launch` and torchrun say who is who in the environment, so neither is imported. Knows numbers,
processes and files; not what a shard holds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpa.errors import DataError, GPAError, Stopped, UsageError
from gpa.nn import threads

POLL = 0.2  # seconds between two looks at the files


@dataclass(frozen=True)
class Part:
    """One process: shards `index`, `index + count`, ...; the lead also does what concerns all of them."""

    index: int
    count: int
    is_main: bool
    works: bool = True

    def shards(self, total: int) -> range:
        """Numbers of the shards to make, of `total`."""
        return range(self.index, total, self.count) if self.works else range(0)

    def bar(self) -> dict[str, Any]:
        """Options of tqdm: one bar for all processes."""
        return {"disable": not self.is_main}


@dataclass(frozen=True)
class Share:
    """One rank of `world`, with `workers` processes of its own."""

    rank: int = 0
    world: int = 1
    local: int | None = None
    workers: int = 1

    @classmethod
    def from_environment(cls, env: Mapping[str, str] | None = None, workers: int = 1) -> Share:
        """From RANK, WORLD_SIZE and LOCAL_RANK, alone without them; UsageError if they contradict."""
        env = os.environ if env is None else env
        try:
            rank, world = int(env.get("RANK", 0)), int(env.get("WORLD_SIZE", 1))
            local = int(env["LOCAL_RANK"]) if "LOCAL_RANK" in env else None
        except ValueError as error:
            raise UsageError(f"RANK, WORLD_SIZE and LOCAL_RANK are whole numbers: {error}") from error
        if not 0 <= rank < world:
            raise UsageError(
                f"RANK={rank} of WORLD_SIZE={world}: ranks count from 0; unset both to run alone"
            )
        return cls(rank, world, local, workers)

    def device(self, device: str) -> str:
        """The card of this rank where "auto" leaves the choice."""
        import torch

        if device != "auto" or self.local is None or not torch.cuda.is_available():
            return device
        return f"cuda:{self.local % torch.cuda.device_count()}"

    def part(self) -> Part:
        """The share as done by this process: all of it, or with workers only the lead's duties."""
        if self.workers > 1:
            return Part(0, 1, self.rank == 0, works=False)
        return Part(self.rank, self.world, self.rank == 0)

    def worker(self, number: int) -> Part:
        """The part of one of the rank's workers."""
        return Part(self.rank * self.workers + number, self.world * self.workers, is_main=False)


def wait(paths: Sequence[Path], patience: float, check: Callable[[], None], goal: str) -> Iterator[int]:
    """Until all files exist; yields how many do whenever that has changed.

    `check` raises when waiting is no use any more; DataError after `patience` seconds without progress.
    """
    missing, since = list(paths), time.monotonic()
    while missing:
        left = [path for path in missing if not path.exists()]
        if len(left) < len(missing):
            missing, since = left, time.monotonic()
            yield len(paths) - len(left)
        elif time.monotonic() - since > patience:
            raise DataError(
                f"waited {patience:.0f} s for another process {goal}: {len(left)} of {len(paths)} files are "
                f"missing, {left[0].name} first. Are all ranks running? Start the same command again; what "
                "is done is kept (--wait sets the time)"
            )
        else:
            check()
            time.sleep(POLL)


class Workers:
    """Processes of one rank, each with its own model; the context ends when they have ended."""

    def __init__(
        self, target: Callable[[Any, Part, Callable[[], None]], None], job: Any, share: Share
    ) -> None:
        # Not forked: a child of a process whose torch has threads may hang.
        context = multiprocessing.get_context("spawn")
        self._said = context.SimpleQueue()
        self._processes = [
            context.Process(target=_child, args=(target, job, share.worker(n), share.workers, self._said))
            for n in range(share.workers)
        ]

    def __enter__(self) -> Workers:
        for process in self._processes:
            process.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            for process in self._processes:
                process.terminate()
        for process in self._processes:
            process.join()
        if kind is None:
            self.check()

    def check(self) -> None:
        """DataError if a worker has failed, with what it said."""
        for number, process in enumerate(self._processes):
            if process.exitcode:
                said = self._said.get() if not self._said.empty() else f"exit code {process.exitcode}"
                raise DataError(f"worker {number} failed: {said}")


def _child(target: Callable[..., None], job: Any, part: Part, workers: int, said: Any) -> None:
    threads.share_with(workers)
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):  # the parent's to answer, which then ends this process
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(Stopped(signal.SIGTERM).exit_code))
    try:
        target(job, part, _orphaned)
    except GPAError as error:
        said.put(str(error))
        sys.exit(error.exit_code)


def _orphaned() -> None:
    """End a worker whose parent was killed, so that it does not race with the run that goes on."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        sys.exit(1)
