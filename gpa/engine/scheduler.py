"""The engine: requests of every kind share one batch, and join and leave it at any step.

Guidance and beams are several rows of one request. Nothing here knows which id means what, and nothing here
computes: the network runs, the cache remembers, a request's `Draw` or `Search` chooses. What a request gets
depends on nothing but the request (docs/serving.md).

    R rows   D width   N ids that may be generated
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gpa.engine.base import Completer
from gpa.engine.cache import Cache
from gpa.engine.drawing import Draw
from gpa.engine.search import Search
from gpa.errors import GenerationError, UsageError

if TYPE_CHECKING:
    from gpa.engine.network import Network
    from gpa.engine.packed import Forward, Head
    from gpa.engine.request import Completion, Request

ROWS = 32  # of one batch, unless a single request needs more
MEMORY = 4 << 30  # bytes of keys and values, unless a single request needs more
BLOCK = 64  # positions of a prompt that are read at once; blocks begin at multiples of it
READ = 4  # blocks that are read between two ids of those who already generate


@dataclass(frozen=True)
class Progress:
    """What a step did for one request: its new ids, and its completion if that was the last of them.

    Ids are never taken back: a search tells those on which all its hypotheses agree. A request that has an
    `error` is forgotten.
    """

    handle: int
    ids: list[int]
    completion: Completion | None = None
    error: GenerationError | None = None


@dataclass(eq=False)
class Job:
    """A request on its way: how it decides, its rows of the cache, what is read of its prompts, what told."""

    handle: int
    decoder: Draw | Search
    priority: int
    head: Head
    longest: int  # positions that a row of it may need
    rows: list[int] = field(default_factory=list)
    ends: list[Tensor] = field(default_factory=list)  # hidden states (1, D) after its prompts
    started: bool = False
    told: int = 0

    @property
    def order(self) -> tuple[int, int]:
        """Who is served first: by priority, then by arrival."""
        return -self.priority, self.handle


class Engine(Completer):
    """Completions of requests by one network. One thread at a time; a second engine is cheap."""

    def __init__(
        self,
        network: Network,
        rows: int = ROWS,
        memory: int = MEMORY,
        read: int = READ,
        forward: Forward | None = None,
    ) -> None:
        """At most `rows` are decoded together, their keys and values take `memory` bytes at most, and `read`
        blocks of prompts are read a step. Who does not fit waits. `forward` computes in the place of
        `network.packed`.
        """
        self.network, self.rows, self.read = network, rows, read
        self._packed = forward or network.packed
        self._positions = memory // Cache.bytes_per_position(self._packed)
        self.cache = Cache(self._packed, self._positions)
        self._handles = count()
        self._waiting: list[Job] = []
        self._running: list[Job] = []
        self._failures: list[Progress] = []  # of this step

    @property
    def busy(self) -> bool:
        """Whether any request is not complete."""
        return bool(self._waiting or self._running)

    @property
    def waiting(self) -> int:
        """How many requests have no rows yet."""
        return len(self._waiting)

    def add(self, request: Request, priority: int = 0) -> int:
        """Take a request; `step` speaks of it by the number returned. Higher priorities begin first.

        PromptError for one that cannot be met: its prompt leaves no room in the context, say.
        """
        return self._enqueue(self._decoder(request), priority)

    def cancel(self, handle: int) -> None:
        """Forget a request; its rows are free for the next step. UsageError if it is not on its way."""
        found = [job for job in (*self._waiting, *self._running) if job.handle == handle]
        if not found:
            raise UsageError(f"request {handle} is not on its way: it is complete, or never was added")
        self._drop(found[0])

    def step(self) -> list[Progress]:
        """One more id for every running request whose prompts are read: schedule, run, choose, finish."""
        self._failures = []
        self._schedule()
        with torch.inference_mode():
            for job, logits in self._run():
                with self._failing(job):
                    if np.isnan(logits).any():
                        raise GenerationError("the logits are no numbers: load the model in float32")
                    job.decoder.advance(logits)
        return [*self._failures, *self._finish()]

    def _decoder(self, request: Request) -> Draw | Search:
        if request.beams:
            return Search(request, request.beams, self.network)
        return Draw(request, self.network)

    def _enqueue(self, decoder: Draw | Search, priority: int = 0) -> int:
        longest = max(map(len, decoder.prompts)) + decoder.most
        job = Job(next(self._handles), decoder, priority, self._packed.head(decoder.choices.ids), longest)
        self._waiting.append(job)
        return job.handle

    def _schedule(self) -> None:
        """Start waiting requests in their order, while there is room for the next one."""
        self._waiting.sort(key=lambda job: job.order)
        while self._waiting and self._fits(self._waiting[0]):
            job = self._waiting.pop(0)
            job.rows = self.cache.take(job.decoder.rows)
            self._running.append(job)

    def _fits(self, job: Job) -> bool:
        """Whether a request has room beside those that run; alone it always has."""
        rows = self.cache.rows_with(job.decoder.rows)
        longest = max(each.longest for each in (*self._running, job))
        return not self._running or (rows <= self.rows and rows * longest <= self._positions)

    def _run(self) -> Iterator[tuple[Job, np.ndarray]]:
        """Logits (R, N) of every request that generates: after its prompts at first, then after its newest
        ids.
        """
        old = [job for job in self._running if job.started and not job.decoder.done]
        yield from self._prefill()
        if not old:
            return
        with self._failing(*old):
            sizes = [self._continue(job) for job in old]
            rows = [row for job, size in zip(old, sizes, strict=True) for row in job.rows[:size]]
            ids = [token_id for job in old for token_id, _ in job.decoder.following]
            hidden = self._packed(self._tensor(ids), self.cache.extended(rows))
            yield from self._logits(old, list(hidden.split(sizes)))

    def _prefill(self) -> Iterator[tuple[Job, np.ndarray]]:
        """Read blocks of prompts, in the requests' order; logits of those whose last one is read."""
        left = self.read
        for job in sorted((job for job in self._running if not job.started), key=lambda job: job.order):
            with self._failing(job):
                while left > 0 and not job.started:
                    left -= self._read(job)
                if job.started:
                    yield from self._logits([job], [torch.cat(job.ends)])

    def _read(self, job: Job) -> int:
        """One more block of a request's prompts, or all of one that a running request has read: how many
        blocks that took. A block is read alone, and where it ends is fixed, so what a row holds depends on
        its prompt only.
        """
        n = len(job.ends)
        row, prompt = job.rows[n], job.decoder.prompts[n]
        begin = self.cache.lengths[row]
        known = None if begin else self._read_before(prompt)
        if known:
            source, end = known
            self.cache.begin(source, row, len(prompt))
            job.ends.append(end)
        else:
            ids = prompt[begin : begin + BLOCK]
            hidden = self._packed(self._tensor(ids), self.cache.prompted(row, len(ids)))
            if begin + len(ids) == len(prompt):
                job.ends.append(hidden[-1:])
        job.started = len(job.ends) == len(job.decoder.prompts)
        return 0 if known else 1

    def _read_before(self, prompt: Sequence[int]) -> tuple[int, Tensor] | None:
        """The row of a request on its way that begins with this prompt, and the state (1, D) after it."""
        for job in self._running:
            for row, known, end in zip(job.rows, job.decoder.prompts, job.ends, strict=False):
                if known == prompt:
                    return row, end
        return None

    def _continue(self, job: Job) -> int:
        """Let the rows of a request hold what its next ids continue; how many rows those are."""
        parents = [job.rows[parent] for _, parent in job.decoder.following]
        prompts = job.decoder.prompts
        self.cache.copy(parents, job.rows[: len(parents)], len(prompts[0]) if len(prompts) == 1 else 0)
        return len(parents)

    def _logits(self, jobs: Sequence[Job], hidden: Sequence[Tensor]) -> Iterator[tuple[Job, np.ndarray]]:
        """Logits (R, N) by hidden states (R, D); requests that choose among the same ids share a product."""
        for head in {id(job.head): job.head for job in jobs}.values():
            who = [n for n, job in enumerate(jobs) if job.head is head]
            logits = (
                head(torch.cat([hidden[n] for n in who])).float().cpu().split([len(hidden[n]) for n in who])
            )
            yield from ((jobs[n], rows.numpy()) for n, rows in zip(who, logits, strict=True))

    def _tensor(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor(ids, device=self._packed.device)

    def _finish(self) -> list[Progress]:
        """Tell what is new, and drop what is complete."""
        found = []
        for job in [job for job in self._running if job.started]:
            made = job.decoder.made
            done = job.decoder.completion if job.decoder.done else None
            found.append(Progress(job.handle, made[job.told :], done))
            job.told = len(made)
            if done:
                self._drop(job)
        return found

    @contextlib.contextmanager
    def _failing(self, *jobs: Job) -> Iterator[None]:
        """Whatever is raised fails these requests, and no other."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a prior may raise anything, and memory may end
            for job in (job for job in jobs if job in self._running):
                found = GenerationError(f"request {job.handle} failed: {error}")
                found.__cause__ = error
                self._failures.append(Progress(job.handle, [], error=found))
                self._drop(job)

    def _drop(self, job: Job) -> None:
        self.cache.release(job.rows)
        (self._running if job in self._running else self._waiting).remove(job)
