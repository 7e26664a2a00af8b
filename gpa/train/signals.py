"""Signals that ask for the end: Ctrl-C, and SIGTERM, SIGHUP and SIGUSR1, which schedulers and shells send.

A command ends by `Stopped`, so that what is half written goes on the way out; a training run first ends its
step and saves. What a parent has told a process to ignore (nohup, a job in the background) stays ignored.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gpa.errors import Stopped

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
ENDS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]  # Windows has two of them


@dataclass
class Asked:
    """The signal that came first, 0 before any."""

    signum: int = 0


@contextmanager
def raised() -> Iterator[None]:
    """Within it the first such signal raises Stopped; later ones do not disturb what tidies up."""
    asked = Asked()

    def handle(signum: int, frame: Any) -> None:
        if not asked.signum:
            asked.signum = signum
            raise Stopped(signum)

    with _handled(handle):
        yield


@contextmanager
def noted(said: Callable[[str], object]) -> Iterator[Asked]:
    """Within it such a signal is `said` and noted, for whoever looks; a second Ctrl-C raises Stopped.

    Not so under a launcher, which sends a signal on that all processes have received from the terminal.
    """
    asked = Asked()

    def handle(signum: int, frame: Any) -> None:
        if asked.signum:
            if signum == signal.SIGINT and "RANK" not in os.environ:
                raise Stopped(signum)
            return
        asked.signum = signum
        said(f"{signal.Signals(signum).name}: the run ends after this step, with a checkpoint")

    with _handled(handle):
        yield asked


def ignore(*_: Any) -> None:
    """In a worker: a signal that the whole group receives is the main process's to answer."""
    for signum in ENDS:
        signal.signal(signum, signal.SIG_IGN)


@contextmanager
def _handled(handle: Callable[[int, Any], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # where Python delivers no signal
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in ENDS}
    before = {signum: was for signum, was in before.items() if was not in (signal.SIG_IGN, None)}
    for signum in before:
        signal.signal(signum, handle)
    try:
        yield
    finally:
        for signum, was in before.items():
            signal.signal(signum, was)
