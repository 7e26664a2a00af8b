"""The engine: requests of every kind share one batch, and join and leave it at any step.

Guidance and beams are several rows of one request. Nothing here knows which id means what, and nothing here
computes: the network runs, the cache remembers, a request's `Draw` or `Search` chooses.

    R rows   V vocabulary
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpa.engine.cache import Cache
from gpa.engine.drawing import Draw
from gpa.engine.search import Search
from gpa.errors import UsageError

if TYPE_CHECKING:
    from gpa.engine.network import Network
    from gpa.engine.request import Completion, Request

ROWS = 32  # of one batch, unless a single request needs more


@dataclass(frozen=True)
class Progress:
    """What a step did for one request: its new ids, and its completion if that was the last of them.

    A search has no ids before its end: until then any hypothesis may win.
    """

    handle: int
    ids: list[int]
    completion: Completion | None = None


@dataclass(eq=False)
class Job:
    """A request on its way: how it decides, its rows of the cache, how many of its ids were told."""

    handle: int
    decoder: Draw | Search
    rows: list[int] = field(default_factory=list)
    started: bool = False
    told: int = 0


class Engine:
    """Completions of requests by one network. One thread at a time; a second engine is cheap."""

    def __init__(self, network: Network, rows: int = ROWS) -> None:
        """`rows` are decoded together at most."""
        self.network, self.rows = network, rows
        self.cache = Cache(network)
        self._handles = count()
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []

    @property
    def busy(self) -> bool:
        """Whether any request is not complete."""
        return bool(self._waiting or self._running)

    def add(self, request: Request) -> int:
        """Take a request; `step` speaks of it by the number returned.

        PromptError for one that cannot be met: its prompt leaves no room in the context, say.
        """
        return self._enqueue(self._decoder(request))

    def cancel(self, handle: int) -> None:
        """Forget a request; its rows are free for the next step. UsageError if it is not on its way."""
        found = [job for job in (*self._waiting, *self._running) if job.handle == handle]
        if not found:
            raise UsageError(f"request {handle} is not on its way: it is complete, or never was added")
        self._drop(found[0])

    def step(self) -> list[Progress]:
        """One more id for every running request: schedule, run, sample, finish."""
        self._schedule()
        with torch.inference_mode():
            for job, logits in self._run():
                job.decoder.advance(logits)
        return self._finish()

    def run(self) -> Iterator[Progress]:
        """Step until every request is complete."""
        while self.busy:
            yield from self.step()

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """The completions of requests as one batch, in their order. The engine must have no others."""
        if self.busy:
            raise UsageError("this engine has requests on their way: use add and step")
        decoders = [self._decoder(request) for request in requests]  # all are possible, or none is begun
        handles = [self._enqueue(decoder) for decoder in decoders]
        found = {each.handle: each.completion for each in self.run() if each.completion}
        return [found[handle] for handle in handles]

    def _decoder(self, request: Request) -> Draw | Search:
        if request.beams:
            return Search(request, request.beams, self.network)
        return Draw(request, self.network)

    def _enqueue(self, decoder: Draw | Search) -> int:
        job = Job(next(self._handles), decoder)
        self._waiting.append(job)
        return job.handle

    def _schedule(self) -> None:
        """Start waiting requests in their order, while there are rows for the next one."""
        while self._waiting:
            need = self._waiting[0].decoder.rows
            if self._running and self.cache.used + need > self.rows:
                return
            job = self._waiting.popleft()
            job.rows = self.cache.take(need)
            self._running.append(job)

    def _run(self) -> Iterator[tuple[Job, Tensor]]:
        """Logits (R, V) of every running request: of its prompts at first, then of its newest ids."""
        old = [job for job in self._running if job.started]
        for job in self._running:
            if not job.started:
                yield job, self._prefill(job)
                job.started = True
        if old:
            sizes = [self._continue(job) for job in old]
            rows = [row for job, size in zip(old, sizes, strict=True) for row in job.rows[:size]]
            ids = [token_id for job in old for token_id, _ in job.decoder.following]
            yield from zip(old, self._read(ids, rows).split(sizes), strict=True)

    def _prefill(self, job: Job) -> Tensor:
        """Each prompt by itself: what a row holds does not depend on its neighbours."""
        prompts = job.decoder.prompts
        return torch.cat(
            [
                self.network(
                    torch.tensor([list(prompt)], device=self.network.device),
                    self.cache.extended([row], len(prompt)),
                )
                for row, prompt in zip(job.rows, prompts, strict=False)
            ]
        )

    def _continue(self, job: Job) -> int:
        """Let the rows of a request hold what its next ids continue; how many rows those are."""
        parents = [job.rows[parent] for _, parent in job.decoder.following]
        self.cache.copy(parents, job.rows[: len(parents)])
        return len(parents)

    def _read(self, ids: Sequence[int], rows: Sequence[int]) -> Tensor:
        """Logits (R, V) after one more id of each row."""
        new = torch.tensor(ids, device=self.network.device)[:, None]
        return self.network(new, self.cache.extended(rows, 1))

    def _finish(self) -> list[Progress]:
        """Tell what is new, and drop what is complete."""
        found = []
        for job in list(self._running):
            made = job.decoder.completion.ids
            found.append(
                Progress(job.handle, made[job.told :], job.decoder.completion if job.decoder.done else None)
            )
            job.told = len(made)
            if job.decoder.done:
                self._drop(job)
        return found

    def _drop(self, job: Job) -> None:
        self.cache.release(job.rows)
        (self._running if job in self._running else self._waiting).remove(job)
