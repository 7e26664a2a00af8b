"""One thread that computes: the works of all requests share one engine, and the event loop only waits.

A work is a text, a recording or a conversion on its way (`Utterance`, `Recognition`, `Conversion`): it asks
the engine, and turns progress into results. Each result goes to the event loop as it is made. A reader that
falls behind holds up its own work and nobody else's; one that goes away is forgotten before the next step.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from gpa.errors import GenerationError, GPAError

if TYPE_CHECKING:
    import numpy as np

    from gpa.engine.base import Completer
    from gpa.engine.scheduler import Progress

logger = logging.getLogger(__name__)

UNREAD = 32  # results that wait for a reader before its work is held up

T = TypeVar("T")


class Work(Protocol[T]):
    """A request on its way through an engine."""

    @property
    def done(self) -> bool:
        """Whether nothing more comes."""

    def owns(self, handle: int) -> bool:
        """Whether a request of the engine is this work's."""

    def take(self, progress: Progress) -> list[T]:
        """Results that progress makes ready; none for another's."""

    def cancel(self) -> None:
        """Forget what is not complete."""


class Listener(Work[T], Protocol[T]):
    """A work that is fed with sound."""

    @property
    def full(self) -> bool:
        """Whether more sound would only wait."""

    def feed(self, wav: np.ndarray) -> list[T]:
        """More sound (S,)."""

    def close(self) -> list[T]:
        """That was all the sound."""


class Job(Generic[T]):
    """A work as the event loop sees it: iterate over its results; leaving early cancels it."""

    def __init__(self, worker: Worker, source: Iterator[np.ndarray] | None, live: bool) -> None:
        self._worker, self._loop = worker, asyncio.get_running_loop()
        self._results: asyncio.Queue[T | Exception | None] = asyncio.Queue()
        # What follows belongs to the worker's thread.
        self.work: Any = None  # a `Work`, or a `Listener` if it is fed, once it has begun
        self.source = source  # of sound that is there
        self.feeding, self.ended = source is not None or live, not live  # whether sound comes, all came
        self.heard: deque[np.ndarray] = deque()  # of a live work
        self.held: deque[Progress] = deque()  # for which the reader is not ready
        self.unread = 0

    async def __aiter__(self) -> AsyncIterator[T]:
        """Results until the work is done. Raises what ended it otherwise."""
        try:
            while (found := await self._results.get()) is not None:
                if isinstance(found, Exception):
                    raise found
                yield found
                self._worker.tell(self._read)
        finally:
            self.cancel()

    async def begun(self) -> None:
        """Wait until the work is on its way. Raises why it cannot be."""
        found = await self._results.get()
        if isinstance(found, Exception):
            raise found

    def feed(self, wav: np.ndarray) -> None:
        """More sound (S,) of a live work."""
        self._worker.tell(lambda: self.heard.append(wav))

    def close(self) -> None:
        """That was all the sound of a live work."""
        self._worker.tell(lambda: setattr(self, "ended", True))

    def cancel(self) -> None:
        """Forget the work, unless it is done."""
        self._worker.forget(self)

    def hand(self, found: T | Exception | None) -> None:
        """From the worker's thread: a result, an error, or the end."""
        self.unread += 1
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._results.put_nowait, found)

    def _read(self) -> None:
        self.unread -= 1


class Worker:
    """The thread, its engine and the jobs on their way."""

    def __init__(self, engine: Completer) -> None:
        self.engine = engine
        self.jobs: list[Job] = []  # changed by the thread alone; anybody may read its length
        self.steps = 0
        self._told: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="gpa-worker", daemon=True)
        self._stopped = False

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    def stop(self, timeout: float | None = None) -> bool:
        """End what is on its way, and the thread; whether it ended within `timeout` seconds."""
        self._told.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether the thread computes."""
        return self._thread.is_alive()

    async def submit(
        self,
        make: Callable[[Completer], Work[T]],
        source: Iterator[np.ndarray] | None = None,
        live: bool = False,
    ) -> Job[T]:
        """A job of the work that `make` makes in the thread, fed by a `source` of blocks or `live`.

        Raises what `make` raises: a request that cannot be met is refused here.
        """
        job: Job[T] = Job(self, source, live)
        self.tell(lambda: self._begin(job, make))
        try:
            await job.begun()
        except BaseException:
            self.forget(job)
            raise
        return job

    def tell(self, command: Callable[[], object]) -> None:
        """Have the thread call this before its next step."""
        self._told.put(command)

    def forget(self, job: Job) -> None:
        """Cancel a job, if it is on its way."""
        self.tell(lambda: self._end(job))

    # The thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._listen():
            self._turn()
        for job in list(self.jobs):
            job.hand(GenerationError("the server stops"))
            self._end(job)

    def _listen(self) -> bool:
        """Do what was told; wait for it where there is nothing else to do. False at the end."""
        idle = not self.engine.busy and not any(self._ready(job) for job in self.jobs)
        while idle or not self._told.empty():
            command = self._told.get()
            if command is None:
                return False
            command()
            idle = False
        return True

    def _turn(self) -> None:
        """Each job, then the engine; on its own, as a thread that waits holds no job."""
        for job in list(self.jobs):
            self._guarded(job, self._serve)
        if self.engine.busy:
            self._step()

    def _ready(self, job: Job) -> bool:
        """Whether something can be done for a job without the engine."""
        if job.unread > UNREAD:
            return False
        return bool(job.held) or (job.feeding and not job.work.full and (bool(job.heard) or job.ended))

    def _begin(self, job: Job[T], make: Callable[[Completer], Work[T]]) -> None:
        try:
            job.work = make(self.engine)
        except Exception as error:  # noqa: BLE001 - the one who asked is told
            job.hand(error)
            return
        self.jobs.append(job)
        job.hand(None)  # it is on its way
        job.unread = 0

    def _serve(self, job: Job) -> None:
        """Feed a job, and take progress that was held back."""
        while job.held and job.unread <= UNREAD:
            self._give(job, job.work.take(job.held.popleft()))
        if job.feeding and job.unread <= UNREAD and not job.work.full:
            block = job.heard.popleft() if job.heard else next(job.source or iter(()), None)
            if block is not None:
                self._give(job, job.work.feed(block))
            elif job.ended:
                job.feeding = False
                self._give(job, job.work.close())
        if job.work.done and not job.held:
            self._end(job)
            job.hand(None)

    def _step(self) -> None:
        self.steps += 1
        for progress in self.engine.step():
            for job in self.jobs:
                if job.work.owns(progress.handle):
                    job.held.append(progress)
                    self._guarded(job, self._serve)
                    break

    def _give(self, job: Job[T], results: list[T]) -> None:
        for result in results:
            job.hand(result)

    def _guarded(self, job: Job, do: Callable[[Job], None]) -> None:
        """Whatever is raised ends this job alone."""
        try:
            do(job)
        except Exception as error:
            if not isinstance(error, GPAError):
                logger.exception("a request failed")
            self._end(job)
            job.hand(error)

    def _end(self, job: Job) -> None:
        if job in self.jobs:
            self.jobs.remove(job)
            job.work.cancel()
