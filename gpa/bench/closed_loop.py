"""`gpa bench serve`: a real `gpa serve` under a closed loop of mixed streams over loopback, run by run.

Every run has a server of its own, and the same requests one at a time first. docs/bench.md says what each
number means.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from gpa.bench import clients, machine
from gpa.bench.clients import FULL, KINDS, SERVED, Load
from gpa.bench.figures import Chart, Ratio, quantiles, shown, table
from gpa.errors import GenerationError, UsageError

COMMAND = (sys.executable, "-m", "gpa", "serve")
ALONE = 0.25  # of the seconds of a run: so long one at a time before it
LOADING, ENDING = 300.0, 60.0  # seconds that the server has to begin, and to end
TICK = 0.05


@dataclass(frozen=True)
class Settings:
    """How much: `streams` for `seconds`, `runs` times; `bound` requests at once are the server's bound.

    `shares` say how often each of `clients.KINDS` comes. `above` are seconds of `bound + streams` streams
    afterwards. `options` are fields of the texts to be spoken. An answer may pause for `patience` seconds.
    """

    model: str = "gpa-mini"
    streams: int = 8
    seconds: float = 120.0
    runs: int = 5
    shares: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 1))
    bound: int = 64
    above: float = 10.0
    patience: float = 30.0
    options: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    offline: bool = False


@dataclass(frozen=True)
class Run:
    """A run: the same requests one at a time and then in streams, bytes of the server before and after."""

    alone: Load
    load: Load
    before: int
    after: int


def measure(settings: Settings, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Load servers; the result, ready for JSON. UsageError for settings that do not fit.

    `failed` says what must not be: errors below the bound, anything but 429 above it.
    """
    _check(settings)
    runs, above, about = [], None, machine.about()  # before anything is busy
    for number in range(1, settings.runs + 1):
        say(f"run {number} of {settings.runs}: a server begins")
        with _serving(settings) as server:
            before = machine.resident_memory(server.process.pid)
            alone = server.load(1, ALONE * settings.seconds, "one at a time")
            load = server.load(settings.streams, settings.seconds, f"{settings.streams} streams")
            runs.append(Run(alone, load, before, machine.resident_memory(server.process.pid)))
        say(f"run {number} of {settings.runs}: {_said(load)}")
    if settings.above:
        say("above the bound: a server begins")
        with _serving(settings) as server:
            above = server.load(settings.bound + settings.streams, settings.above, "above the bound")
    return _tree(settings, about, runs, above)


def _check(settings: Settings) -> None:
    strange = [name for name, share in settings.shares.items() if name not in KINDS or share < 0]
    if strange or not any(settings.shares.values()):
        raise UsageError(f"shares: {', '.join(KINDS)} can have one, 0 or more; one at least has more than 0")
    if settings.streams > settings.bound:
        what = f"{settings.streams} streams are above the bound of {settings.bound}, so some would be refused"
        raise UsageError(f"{what}: take fewer, or a higher --bound")


# The server -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Server:
    process: subprocess.Popen[bytes]
    address: tuple[str, int]
    mix: clients.Mix
    settings: Settings
    told: Path  # what it says on stderr

    def load(self, streams: int, seconds: float, title: str) -> Load:
        """Load it. GenerationError if it ends meanwhile."""
        shape = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s{postfix}"
        hidden = not sys.stderr.isatty()
        with tqdm(total=seconds, desc=title, bar_format=shape, disable=hidden, leave=False) as bar:

            def watch(passed: float, ended: int) -> None:
                if self.process.poll() is not None:
                    raise GenerationError(_ended(self.process, self.told))
                bar.set_postfix(requests=ended, refresh=False)
                bar.update(min(passed, seconds) - bar.n)

            return clients.closed_loop(
                self.address, self.mix, streams, seconds, self.settings.patience, watch
            )


@contextlib.contextmanager
def _serving(settings: Settings) -> Iterator[_Server]:
    """A server in a process of its own, which has answered one request of each kind."""
    command = [*COMMAND, settings.model, "--port", "0", "--speechop", "none"]
    command += ["--requests", str(settings.bound), "--per-client", str(settings.bound)]
    command += ["--device", settings.device, "--dtype", settings.dtype]
    command += ["--threads", str(settings.threads)] if settings.threads else []
    command += ["--offline"] if settings.offline else []
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "stderr"
        with told.open("wb") as said:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        try:
            address = _address(process, told)
            mix = clients.prepare(*address, settings.shares, settings.options)
            yield _Server(process, address, mix, settings, told)
        finally:
            process.terminate()
            try:
                process.wait(ENDING)
            finally:
                process.kill()


def _address(process: subprocess.Popen[bytes], told: Path) -> tuple[str, int]:
    """Where it serves, once it says so."""
    until = time.monotonic() + LOADING
    while "serving at " not in (said := told.read_text(encoding="utf-8", errors="replace")):
        if process.poll() is not None or time.monotonic() > until:
            raise GenerationError(_ended(process, told))
        time.sleep(TICK)
    found = urlsplit(said.split("serving at ")[1].split()[0])
    return found.hostname or "", found.port or 0


def _ended(process: subprocess.Popen[bytes], told: Path) -> str:
    last = (told.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]
    how = "does not begin" if process.poll() is None else f"ended with {process.returncode}"
    return f"the server {how}: {last}"


# The result -------------------------------------------------------------------------------------------------


def _said(load: Load) -> str:
    row = _row("all", load)
    first = f"first audio {1000 * row['first']['p50']:.0f} ms, " if row["first"] else ""
    wrong = "".join(f", {n} x {status}" for status, n in row["errors"].items())
    return f"{row['requests']} requests, {first}{_pace(load):.1f} s of sound a s{wrong}"


def _row(kind: str, load: Load) -> dict[str, Any]:
    """One kind, or "all", of one run."""
    ended = [each for each in load.outcomes if kind in ("all", each.kind)]
    served = [each for each in ended if each.status == SERVED]
    sound = sum(each.sound for each in served)
    return {
        "kind": kind,
        "requests": len(ended),
        "served": len(served),
        "errors": dict(Counter(each.status for each in ended if each.status != SERVED)),
        "first": quantiles([each.first for each in served]),
        "total": quantiles([each.total for each in served]),
        "rtf": sum(each.total for each in served) / sound if sound else None,
        "underrun": sum(each.underrun for each in served),
        "underruns": sum(each.underrun > 0 for each in served),
        "audio_seconds": sound,
    }


def _pace(load: Load) -> float:
    """Seconds of sound a second, of all streams together."""
    return sum(each.sound for each in load.outcomes) / load.seconds


def _over_runs(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The same row of all runs: counts added up; figures as their median, and as that of the worst run."""
    errors = Counter[str]()
    for row in rows:
        errors.update(row["errors"])
    summed = {name: sum(row[name] for row in rows) for name in ("requests", "served", "underruns")}
    tree = {"kind": rows[0]["kind"], **summed, "errors": dict(errors)}
    for name in ("rtf", "underrun"):
        found = [row[name] for row in rows if row[name] is not None]
        tree[name] = {"median": median(found), "worst": max(found)} if found else None
    for name in ("first", "total"):
        each = [row[name] for row in rows if row[name]]
        picks: dict[str, Callable[[list[float]], float]] = {"median": median, "worst": max}
        tree[name] = {
            how: {p: pick([quantile[p] for quantile in each]) for p in each[0]} for how, pick in picks.items()
        } if each else None  # fmt: skip
    return tree


def _tree(
    settings: Settings, about: Mapping[str, Any], runs: Sequence[Run], above: Load | None
) -> dict[str, Any]:
    kinds = ["all", *(kind for kind in KINDS if settings.shares.get(kind))]
    rows = [[_row(kind, run.load) for kind in kinds] for run in runs]
    alone = [_row("all", run.alone) for run in runs]
    paces = {"streams": [_pace(run.load) for run in runs], "alone": [_pace(run.alone) for run in runs]}
    beyond = _row("all", above) if above else None
    return {
        "bench": "serve",
        **asdict(settings),
        "machine": about,
        **machine.versions("torch", "uvicorn", "fastapi"),
        "kinds": [_over_runs(each) for each in zip(*rows, strict=True)],
        "alone": _over_runs(alone),
        "above_bound": beyond,
        "pace": paces,
        "over_alone": asdict(Ratio.of(paces["streams"], paces["alone"])) if all(paces["alone"]) else None,
        "memory": [{"before": run.before, "after": run.after} for run in runs],
        "rounds": [
            {"seconds": run.load.seconds, "kinds": each, "alone": one}
            for run, each, one in zip(runs, rows, alone, strict=True)
        ],
        "failed": _failed([*(row[0] for row in rows), *alone], beyond),
    }


def _failed(below: Sequence[Mapping[str, Any]], above: Mapping[str, Any] | None) -> dict[str, str]:
    wrong = Counter[str]()
    for row in below:
        wrong.update(row["errors"])
    failed = {"below the bound": _counted(wrong)} if wrong else {}
    if above:
        others = {status: n for status, n in above["errors"].items() if status != FULL}
        if others:
            failed["above the bound"] = f"not {FULL} alone: {_counted(others)}"
        elif FULL not in above["errors"]:
            failed["above the bound"] = f"nobody was told {FULL}"
    return failed


def _counted(errors: Mapping[str, int]) -> str:
    return ", ".join(f"{n} x {status}" for status, n in errors.items()) or "0"


def lines(tree: Mapping[str, Any]) -> Iterator[str]:
    """The result for people."""
    yield (
        f"{tree['model']}: {tree['streams']} streams for {tree['seconds']:g} s, runs: {tree['runs']}, "
        f"{tree['device']}, {tree['dtype']}; ms, p50 / p95 / p99: the median of the runs, and the worst"
    )
    yield ""
    heads = ("kind", "requests", "first", "worst", "all of it", "worst", "RTF", "waited, s", "errors")
    rows = [_cells(row["kind"], row) for row in tree["kinds"]]
    rows.append(_cells("all, one at a time", tree["alone"]))
    if beyond := tree["above_bound"]:
        name = f"all, {tree['bound'] + tree['streams']} streams, bound {tree['bound']}"
        rows.append(_cells(name, _over_runs([beyond])))
    yield from table(heads, rows)
    yield ""
    paces = tree["pace"]["streams"]
    yield (
        f"sound a second: {median(paces):.2f} s, in the worst run {min(paces):.2f}; "
        f"{shown(tree['over_alone'])} times one at a time"
    )
    grown = [(each["before"] / 2**20, each["after"] / 2**20) for each in tree["memory"]]
    before, after = max(grown, key=lambda pair: pair[1] - pair[0])
    yield f"memory: {before:.0f} MiB before, {after:.0f} after, in the run in which it grew most"


def _cells(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    rtf, underrun = row["rtf"], row["underrun"]
    times = [_ms(row[each] and row[each][how]) for each in ("first", "total") for how in ("median", "worst")]
    return (
        name,
        str(row["requests"]),
        *times,
        f"{rtf['median']:.2f} ({rtf['worst']:.2f})" if rtf else "-",
        f"{underrun['median']:.2f} ({underrun['worst']:.2f})",
        _counted(row["errors"]),
    )


def _ms(found: Mapping[str, float] | None) -> str:
    return " / ".join(f"{1000 * value:.0f}" for value in found.values()) if found else "-"


def charts(tree: Mapping[str, Any]) -> list[Chart]:
    """p50 of the first sound and of the whole answer with a line to p95; waiting; memory of each run."""
    rows = [{**tree["alone"], "kind": "one at a time"}, *tree["kinds"]]
    times = [
        Chart(
            f"{title}, ms: p50, and p95 (medians of the runs)",
            [
                (row["kind"], *(1000 * row[name]["median"][p] for p in ("p50", "p50", "p95")))
                for row in rows
                if row[name]
            ],
            ours="",
        )
        for name, title in (("first", "first sound or text"), ("total", "all of it"))
    ]
    waited = [
        (row["kind"], row["underrun"]["median"], row["underrun"]["median"], row["underrun"]["worst"])
        for row in rows
    ]
    held = [
        (f"run {n}: {name}", *(3 * [each[name] / 2**20]))
        for n, each in enumerate(tree["memory"], 1) for name in ("before", "after")
    ]  # fmt: skip
    return [*times, Chart("a player waits, s a run: median, and worst", waited, ours=""),
            Chart("memory of the server, MiB", held, ours="")]  # fmt: skip
