"""The machine that a measurement runs on: a process of its own for each peer, its memory, its bandwidth."""

from __future__ import annotations

import os
import pickle
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from gpa.errors import GenerationError, UsageError

T = TypeVar("T")
SWEPT = 1 << 27  # float32 numbers that are read to measure bandwidth: 512 MiB, beyond any processor's cache
REPEATS = 5


def alone(function: Callable[..., T], *args: Any) -> T:
    """Call a function of a module in a fresh process, so that its memory is its own and nothing of it stays.

    Its exceptions are raised here; GenerationError where the process was killed, as for want of memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        call, answer = Path(folder) / "call", Path(folder) / "answer"
        call.write_bytes(pickle.dumps((function, args)))
        code = subprocess.run([sys.executable, "-c", _CALL, str(call), str(answer)], check=False).returncode
        if not answer.is_file():
            raise GenerationError(f"the process ended with {code}: is there memory enough?")
        found, error = pickle.loads(answer.read_bytes())
    if error is not None:
        raise error
    return found


_CALL = "import sys; from gpa.bench.machine import _called; _called(*sys.argv[1:])"


def _called(call: str, answer: str) -> None:
    """The other side of `alone`; what libraries print goes to stderr."""
    os.dup2(2, 1)
    function, args = pickle.loads(Path(call).read_bytes())
    try:
        found: tuple[Any, Exception | None] = (function(*args), None)
    except Exception as error:  # noqa: BLE001 (whatever it is, the caller raises it)
        found = None, error
    Path(answer).write_bytes(pickle.dumps(found))


def peak_memory() -> int:
    """The most bytes of memory that this process has held at once.

    Linux's ru_maxrss begins with what the parent held, VmHWM does not.
    """
    held = _status("VmHWM")
    return held or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT


def resident_memory(pid: int | None = None) -> int:
    """Bytes of memory that this process holds now; its peak where the system does not say.

    Of another process, where the system does not say: 0.
    """
    return _status("VmRSS", pid) or (peak_memory() if pid is None else 0)


def anonymous_memory() -> int:
    """Bytes that this process holds of its own, without files that it has mapped; 0 where Linux is not."""
    return _status("RssAnon")


_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss


def _status(name: str, pid: int | None = None) -> int:
    path = Path(f"/proc/{'self' if pid is None else pid}/status")
    lines = path.read_text(encoding="ascii", errors="replace").splitlines() if path.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def bandwidth(threads: int) -> float:
    """Bytes per second at which torch reads memory with so many threads: the best of five sums of 512 MiB."""
    import torch

    from gpa.nn.threads import settle

    settle(None, threads)
    numbers = torch.ones(SWEPT)
    best = 0.0
    for _ in range(REPEATS):
        began = time.perf_counter()
        numbers.sum()
        best = max(best, 4 * SWEPT / (time.perf_counter() - began))
    return best


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(weights: int, asked: int | None) -> int:
    """How many threads everyone computes with: as many as asked for, else as gpa takes for such a model."""
    import torch

    from gpa.nn.threads import choose

    return choose(weights, cores(), asked).threads or torch.get_num_threads()


def about() -> dict[str, Any]:
    """Processor, cores, and how busy they are before anything is measured."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": cores(),
        "load_average": load,
        "python": platform.python_version(),
    }


def versions(*packages: str) -> dict[str, str]:
    """Of installed packages, without loading them."""
    return {package: metadata.version(package) for package in packages}


@dataclass(frozen=True)
class Spent:
    """What a program took from its start to its end: seconds on the clock and of all cores, bytes at most."""

    seconds: float
    cpu_seconds: float
    peak: int


def program(command: Sequence[str]) -> Spent:
    """Run a program and say what it took; GenerationError with its last line where it fails."""
    began = time.perf_counter()
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
    except OSError as error:
        raise UsageError(f"{command[0]}: {error.strerror}") from error
    with process:
        said = process.stderr.read() if process.stderr else b""
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    if process.returncode:
        last = (said.decode(errors="replace").strip().splitlines() or [""])[-1]
        raise GenerationError(f"{command[0]} exited with {process.returncode}: {last}")
    return Spent(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * _UNIT)
