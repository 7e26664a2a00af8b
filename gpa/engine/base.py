"""The contract of every engine: requests are added, stepped and cancelled; `run` and `generate` follow."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gpa.errors import UsageError

if TYPE_CHECKING:
    from gpa.engine.request import Completion, Request
    from gpa.engine.scheduler import Progress


class Completer(ABC):
    """Whoever turns requests into completions. One thread at a time."""

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether any request is not complete."""

    @abstractmethod
    def add(self, request: Request) -> int:
        """Take a request; `step` speaks of it by the number returned.

        PromptError for one that cannot be met, UsageError for one that this engine cannot compute.
        """

    @abstractmethod
    def step(self) -> list[Progress]:
        """What is new: ids of some requests, and how those ended that did: complete, or failed."""

    @abstractmethod
    def cancel(self, handle: int) -> None:
        """Forget a request. UsageError if it is not on its way."""

    def run(self) -> Iterator[Progress]:
        """Step until every request is complete. The error of one that failed, once the others were told."""
        while self.busy:
            found = self.step()
            yield from (each for each in found if not each.error)
            for each in found:
                if each.error:
                    raise each.error

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """The completions of requests in their order, or an error, and then none is left on its way.

        The engine must have no others.
        """
        if self.busy:
            raise UsageError("this engine has requests on their way: use add and step")
        handles: list[int] = []
        found: dict[int, Completion] = {}
        try:
            for request in requests:
                handles.append(self.add(request))
            for each in self.run():
                if each.completion:
                    found[each.handle] = each.completion
        finally:
            for handle in set(handles) - set(found):
                with contextlib.suppress(UsageError):  # the one that failed is forgotten already
                    self.cancel(handle)
        return [found[handle] for handle in handles]
