"""Work that takes many requests: whoever asks for them, and sound of any length, cut into stretches.

Nothing here knows what is made of a stretch; recognition_gpa.py and conversion_gpa.py do.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from gpa.errors import GenerationError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from gpa.engine.base import Completer
    from gpa.engine.request import Request
    from gpa.engine.scheduler import Progress
    from gpa.models.gpa.activity_gpa import Segmenter, Stretch, Uncut

PARTS = 8  # of one recording at a time

Failed = Callable[[GenerationError], None]
P = TypeVar("P")  # a stretch on its way
T = TypeVar("T")  # what is handed out


class Pending:
    """What somebody asked of an engine that may have other requests, each with a handler of progress."""

    def __init__(self, engine: Completer) -> None:
        self._engine = engine
        self._handlers: dict[int, tuple[Callable[[Progress], None], Failed | None]] = {}

    def ask(self, request: Request, handler: Callable[[Progress], None], failed: Failed | None = None) -> int:
        """Add a request; the handler is told of its progress, `failed` of the error that ends it."""
        handle = self._engine.add(request)
        self._handlers[handle] = handler, failed
        return handle

    def take(self, progress: Progress) -> bool:
        """Tell the handler; False for another's progress. Raises an error that nobody is told of."""
        if progress.handle not in self._handlers:
            return False
        handler, failed = self._handlers[progress.handle]
        if progress.completion or progress.error:
            del self._handlers[progress.handle]
        if not progress.error:
            handler(progress)
        elif failed:
            failed(progress.error)
        else:
            raise progress.error
        return True

    def __contains__(self, handle: int) -> bool:
        return handle in self._handlers

    def forget(self, handle: int) -> None:
        """Cancel a request, unless it is complete."""
        if self._handlers.pop(handle, None):
            self._engine.cancel(handle)

    def cancel(self) -> None:
        """Forget what is not complete."""
        for handle in self._handlers:
            with contextlib.suppress(UsageError):  # one that failed is forgotten already
                self._engine.cancel(handle)
        self._handlers.clear()


class LongForm(ABC, Generic[P, T]):
    """One recording on its way: `feed` sound, `take` progress.

    Results come in the order of the sound, and do not depend on how it was cut to be fed.
    """

    def __init__(self, engine: Completer, segmenter: Segmenter | Uncut) -> None:
        self._pending, self._segmenter = Pending(engine), segmenter
        self._waiting: deque[Stretch] = deque()
        self._parts: deque[P] = deque()  # on their way, in order
        self._closed = False
        self.samples = 0  # that were fed and cut

    @property
    def full(self) -> bool:
        """Whether there is enough on its way: more sound would only wait."""
        return len(self._waiting) + len(self._parts) >= PARTS

    @property
    def busy(self) -> bool:
        """Whether something of what was fed is on its way."""
        return bool(self._parts)

    @property
    def done(self) -> bool:
        """Whether there is nothing more to come."""
        return self._closed and not self.busy

    def owns(self, handle: int) -> bool:
        """Whether a request of the engine is this recording's."""
        return handle in self._pending

    def feed(self, wav: np.ndarray) -> list[T]:
        """More sound (S,) at the codec's rate; what can be handed out without the engine."""
        return self._add(self._segmenter.push(wav))

    def close(self) -> list[T]:
        """That was all the sound."""
        self._closed = True
        return self._add(self._segmenter.finish())

    def take(self, progress: Progress) -> list[T]:
        """What can be handed out after a step of the engine; nothing for another's progress."""
        return list(self._next()) if self._pending.take(progress) else []

    def cancel(self) -> None:
        """Forget what is not complete."""
        self._pending.cancel()
        self._parts.clear()
        self._waiting.clear()
        self._closed = True

    @abstractmethod
    def _begin(self, stretch: Stretch) -> P | None:
        """A stretch on its way, None for one of which nothing is made."""

    @abstractmethod
    def _out(self, part: P) -> Iterator[T]:
        """What can be handed out of the first part."""

    @abstractmethod
    def _ready(self, part: P) -> bool:
        """Whether that was all of it."""

    def _add(self, stretches: Iterable[Stretch]) -> list[T]:
        for stretch in stretches:
            self.samples += len(stretch.wav)
            self._waiting.append(stretch)
        return list(self._next())

    def _next(self) -> Iterator[T]:
        self._fill()
        while self._parts:
            yield from self._out(self._parts[0])
            if not self._ready(self._parts[0]):
                return
            self._parts.popleft()
            self._fill()

    def _fill(self) -> None:
        while self._waiting and len(self._parts) < PARTS:
            part = self._begin(self._waiting.popleft())
            if part is not None:
                self._parts.append(part)


def step(engine: Completer, work: LongForm[P, T]) -> list[T]:
    """What one step of an engine makes ready."""
    return [each for progress in engine.step() for each in work.take(progress)]


def stream(engine: Completer, work: LongForm[P, T], blocks: Iterable[np.ndarray]) -> Generator[T, None, None]:
    """All that is made of one recording, as it is made; closing the iterator cancels the rest."""
    try:
        for block in blocks:
            yield from work.feed(block)
            while work.full:
                yield from step(engine, work)
        yield from work.close()
        while not work.done:
            yield from step(engine, work)
    finally:
        work.cancel()


def together(
    engine: Completer, works: Sequence[LongForm[P, T]], sources: Sequence[Iterable[np.ndarray]]
) -> list[list[T]]:
    """All that is made of recordings that share an engine; an error ends the work on all of them."""
    made: list[list[T]] = [[] for _ in works]
    left = [(work, out, iter(source)) for work, out, source in zip(works, made, sources, strict=True)]
    with contextlib.ExitStack() as ends:
        for work in works:
            ends.callback(work.cancel)
        while left:
            for work, out, source in left:
                while not work.full and not work.done and (block := next(source, None)) is not None:
                    out += work.feed(block)
                if not work.full and not work.done:
                    out += work.close()
            left = [each for each in left if not each[0].done]
            for progress in engine.step() if left else []:
                for work, out, _ in left:
                    out += work.take(progress)
    return made
