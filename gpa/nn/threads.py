"""How many processor threads torch computes with: decided once, where a model is loaded or a training starts.

The only place of the package that sets torch's number, which belongs to the whole process: a thread takes it
when it first computes and keeps it for life, so nothing changes it during a step or a request.
docs/performance.md has the reasons.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from gpa.errors import UsageError

log = logging.getLogger(__name__)

VARIABLE = "GPA_THREADS"
OPENMP = "OMP_NUM_THREADS"
WEIGHTS_A_THREAD = (
    50_000_000  # 200 MB in float32: more than a processor's cache, so that memory is waited for
)


@dataclass(frozen=True)
class Choice:
    """A number of threads, 0 for torch's own, and why; one that was `asked` for outlasts later models."""

    threads: int
    reason: str
    asked: bool = False


@dataclass
class _Process:
    """What was decided in this process, beside the number that torch keeps for it."""

    own: int = 0  # torch's number before the first decision; 0: not read yet
    choice: Choice | None = None
    forked: bool = False  # from one that had computed: OpenMP's threads are gone, and waiting for them hangs


_process = _Process()


def _in_child() -> None:
    _process.forked = True
    _process.choice = Choice(1, "a forked process has no threads of OpenMP", asked=True)
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_in_child)


def weights(*modules: nn.Module) -> int:
    """How many weights modules have together."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def choose(
    need: int | None,
    own: int,
    threads: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Choice:
    """The threads for a model of `need` weights, or for training (None), where torch by itself takes `own`.

    `threads`, then GPA_THREADS, decide where they are given, 0 leaving torch alone; OMP_NUM_THREADS, which
    torch has read, stays. UsageError for what is no number of threads.
    """
    if threads is not None:
        return Choice(_checked(threads, "threads"), f"threads={threads} was asked for", asked=True)
    if stated := environment.get(VARIABLE, "").strip():
        return Choice(_checked(stated, VARIABLE), f"{VARIABLE}={stated}", asked=True)
    if stated := environment.get(OPENMP, "").strip():
        return Choice(0, f"{OPENMP}={stated}")
    if need is None:
        return Choice(own, "training shares out the many positions of a step")
    most = max(1, -(-need // WEIGHTS_A_THREAD))
    size = f"{need / 1e6:.1f} M weights"
    if most >= own:
        return Choice(own, f"{size}, and torch takes no more here")
    return Choice(most, f"{size}, a thread for every {WEIGHTS_A_THREAD / 1e6:.0f} M")


def settle(need: int | None, threads: int | None = None, device: torch.device | str = "cpu") -> Choice:
    """Decide for this process, and for all threads that it starts from now on.

    Of several models the one that needs most decides, unless a number was asked for: that stays. Models on
    another device than the processor, and `threads=0`, leave torch's number as it is. A forked process
    keeps one thread: UsageError if it is asked for more.
    """
    if _process.forked and _process.choice is not None:
        if (threads or 1) > 1:
            raise UsageError(
                f"threads={threads}: this process was forked, and threads of torch do not survive a fork; "
                'start it with multiprocessing.get_context("spawn")'
            )
        return _process.choice
    _process.own = _process.own or torch.get_num_threads()
    found, before = choose(need, _process.own, threads), _process.choice
    on_device = need is not None and torch.device(device).type != "cpu" and not found.asked
    stands = before is not None and threads is None and (before.asked or before.threads >= found.threads)
    if found.threads == 0 or on_device or stands:
        return before or Choice(0, f"the model computes on {device}" if on_device else found.reason)
    torch.set_num_threads(found.threads)
    _process.choice = found
    log.info("torch computes with %d thread%s: %s", found.threads, "s" * (found.threads > 1), found.reason)
    return found


def share_with(processes: int) -> None:
    """What torch takes by itself, shared out among processes that work side by side on one machine.

    For the start of such a process: the model that it loads decides within its part.
    """
    _process.own = max(1, torch.get_num_threads() // processes)


def _checked(value: int | str, name: str) -> int:
    try:
        number = int(value)
    except ValueError:
        number = -1
    if number < 0:
        raise UsageError(f"{name}={value}: a whole number of threads, or 0 for torch's own choice")
    return number
