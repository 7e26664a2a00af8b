"""`train.profile`: what torch.profiler sees of a few steps, as a Chrome trace and a table of operators."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gpa import disk

log = logging.getLogger(__name__)
FOLDER, TRACE, TABLE = "profile", "trace.json", "operators.txt"
WARM = 3  # steps before, in which caches fill and kernels are chosen
ROWS = 30  # of the table


def traced(steps: Iterable[int], run: Path, count: int, device: torch.device) -> Iterator[int]:
    """The same steps; after the first few the next `count` are traced into RUN/profile.

    A trace that fails, or cannot be written, is a warning.
    """
    profiler: Any = None
    number = 0
    try:
        for number, step in enumerate(steps):
            if count and number == WARM:
                profiler = _tried(partial(_start, device))
            if profiler and number == WARM + count:
                profiler = _tried(partial(_write, profiler, run / FOLDER, count, device))
            yield step
    finally:  # a run that was shorter, or stopped
        if profiler:
            _tried(partial(_write, profiler, run / FOLDER, number + 1 - WARM, device))


def _start(device: torch.device) -> Any:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    profiler = torch.profiler.profile(activities=activities)
    profiler.start()
    return profiler


def _write(profiler: Any, folder: Path, count: int, device: torch.device) -> None:
    profiler.stop()
    clock = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=clock, row_limit=ROWS, max_name_column_width=60)
    with disk.written_whole(folder, overwrite=True) as whole:
        profiler.export_chrome_trace(str(whole / TRACE))
        disk.write_text(whole / TABLE, table + "\n")
    log.info(
        "traced %d steps: %s (operators by time of their own), %s", count, folder / TABLE, folder / TRACE
    )


def _tried(act: Callable[[], Any]) -> Any:
    try:
        return act()
    except Exception as error:  # noqa: BLE001 (of the profiler, a driver or a disk: none is worth a run)
        log.warning("train.profile gave up, the run goes on without it: %s", error)
        return None
