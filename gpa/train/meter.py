"""What a step costs: seconds of its parts, ids or frames a second, padding, and share of the machine's peak.

Families count, the device's own clock times, and the peak is known of a GPU or measured by a matrix product.
Model FLOPs utilisation (MFU) as Chowdhery et al. 2022 define it (appendix B): padding is no work done.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from typing import Any

import torch

from gpa.train.arguments import PRECISIONS

# Metrics that a family may report: ids or frames without padding, either with it, operations of the model.
COUNTS = ("tokens", "frames", "positions", "flops")
PARTS = ("data", "compute", "optimizer", "other")
SECONDS = "step_seconds/"  # before a part: seconds of a step on average
_LONG, _LARGEST = 0.005, 8192  # a product that takes so many seconds is measured, or one of this width


class Meter:
    """Counts of this rank and seconds of a step's parts, since the last line.

    On a GPU an event in its stream ends a part. Events are read once they have passed, perhaps for the next
    line: nothing waits for them.
    """

    def __init__(self, device: torch.device, precision: str = "fp32") -> None:
        self.device, self.precision = device, precision
        self.counts = dict.fromkeys(COUNTS, 0.0)
        self.steps, self.since = 0, time.monotonic()
        self.ends = [("", self._now())]

    def begin(self) -> None:
        """A step begins; what was since the last one is `other`: log, evaluation, checkpoints."""
        self.lap("other")
        self.steps += 1

    def lap(self, part: str) -> None:
        """What was since the last call was this part."""
        self.ends.append((part, self._now()))

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self) -> dict[str, float]:
        """Seconds of the parts whose end has passed."""
        spent = dict.fromkeys(PARTS, 0.0)
        cuda = self.device.type == "cuda"
        while len(self.ends) > 1 and (not cuda or self.ends[1][1].query()):
            (_, begin), (part, end) = self.ends[:2]
            spent[part] += begin.elapsed_time(end) / 1000 if cuda else end - begin
            del self.ends[0]
        return {SECONDS + part: seconds for part, seconds in spent.items()}

    def add(self, metrics: dict[str, float]) -> dict[str, float]:
        """Count one micro-batch; returns its other metrics."""
        for name in COUNTS:
            self.counts[name] += metrics.get(name, 0.0)
        return {name: value for name, value in metrics.items() if name not in COUNTS}

    def take(self) -> dict[str, float]:
        """Counts, and seconds per step, of this rank, which starts anew."""
        counts, self.counts = self.counts, dict.fromkeys(COUNTS, 0.0)
        steps, self.steps = max(1, self.steps), 0
        return counts | {name: seconds / steps for name, seconds in self._seconds().items()}

    def rates(self, ranks: Iterable[dict[str, float]]) -> dict[str, float]:
        """Rates of all ranks' counts over the time since the last call, and the ranks' mean seconds.

        What is not counted has no rate; `mfu` is 0 to 1.
        """
        now = time.monotonic()
        took, self.since = max(now - self.since, 1e-9), now
        taken = list(ranks)
        total = {name: sum(rank[name] for rank in taken) for name in COUNTS}
        rates = {f"{name}_per_s": total[name] / took for name in ("tokens", "frames") if total[name]}
        if total["positions"]:
            rates["padding"] = 1 - (total["tokens"] + total["frames"]) / total["positions"]
        if total["flops"]:
            rates["mfu"] = total["flops"] / took / len(taken) / peak(self.device, self.precision)
        parts = [name for name in taken[0] if name.startswith(SECONDS)]
        return rates | {name: sum(rank[name] for rank in taken) / len(taken) for name in parts}


def told(logged: dict[str, float]) -> str:
    """A line's seconds per step with the share of each part, and MFU, `-` where that is not known."""
    parts = {name: logged.get(SECONDS + name, 0.0) for name in PARTS}
    step = sum(parts.values())
    shares = ", ".join(f"{name} {100 * part / max(step, 1e-9):.0f} %" for name, part in parts.items())
    return f"{step:.3g} s a step ({shares})  MFU " + (
        f"{100 * logged['mfu']:.1f} %" if "mfu" in logged else "-"
    )


def peak(device: torch.device, precision: str) -> float:
    """Operations per second: those in the table of a GPU in half precision, else what a product reaches."""
    from gpa.train.planning import known_peak  # which knows the whole engine

    name = torch.cuda.get_device_name(device) if device.type == "cuda" and precision != "fp32" else ""
    return known_peak(name) or _product(device, precision)


@functools.cache
def _product(device: torch.device, precision: str) -> float:
    """Operations per second of a square matrix product that is not over at once, the best of a few."""
    size = 256
    while True:
        matrix = torch.ones(size, size, dtype=PRECISIONS[precision], device=device)
        took = min(_timed(matrix) for _ in range(4))
        if took > _LONG or size >= _LARGEST:
            return 2.0 * size**3 / took
        size *= 2


def _timed(matrix: torch.Tensor) -> float:
    began = time.perf_counter()
    (matrix @ matrix)[0, 0].item()  # waits for the device
    return time.perf_counter() - began
