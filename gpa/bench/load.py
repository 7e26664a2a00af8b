"""`gpa bench load`: many mixed requests on one engine, which come, are cancelled and complete at any time.

Afterwards no row may be taken, and whoever is asked again alone must answer the same. docs/bench.md says what
each number means.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gpa.bench import machine, material
from gpa.bench.figures import Chart, quantiles, table
from gpa.engine.request import Completion, Request
from gpa.engine.scheduler import Engine
from gpa.errors import GenerationError, GPAError, PromptError, UsageError
from gpa.models.gpa import GPA
from gpa.prompt.tasks import ASR, TTS, VC

if TYPE_CHECKING:
    import numpy as np

CANCELLED, IMPOSSIBLE = 0.2, 0.05  # shares of requests
LIVES = (1, 60)  # steps after which a request is cancelled, from .. to
CLIPS = 4  # recordings that are recognised and converted
BEAMS = 4
REPORTS = 10  # lines of progress
EVERY = 5.0  # seconds between them at least


@dataclass(frozen=True)
class Settings:
    """How much load: `rate` requests per second on average, 0 for all at once; `checks` are asked again."""

    model: str = "gpa-mini"
    n: int = 200
    rate: float = 8.0
    rows: int | None = None
    checks: int = 10
    seed: int = 0
    threads: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    offline: bool = False


@dataclass
class Client:
    """One request: its kind, when it comes (seconds), after how many steps it is given up (None: never).

    What became of it: "waiting", "running", "completed", "cancelled", "refused" or "error".
    """

    kind: str
    at: float
    request: Request
    life: int | None = None
    state: str = "waiting"
    added: float = 0.0
    began: float = 0.0
    ended: float = 0.0
    steps: int = 0
    ids: list[int] = field(default_factory=list)
    completion: Completion | None = None
    error: str = ""


def measure(settings: Settings, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Load an engine; the result, ready for JSON.

    `failed` says what must not be: rows that stay taken, requests that end in an error, ids that others
    changed.
    """
    model = GPA.from_pretrained(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        offline=settings.offline,
        threads=settings.threads,
    )
    clients = arrivals(settings, kinds(model))
    engine = Engine(model.network) if settings.rows is None else Engine(model.network, settings.rows)
    engine.generate([client.request for client in _one_of_each(clients)])  # buffers that stay are made now
    say(f"{len(clients)} requests, {engine.rows} rows")
    memory = [_resident()]
    began = time.perf_counter()
    halfway = serve(engine, clients, lambda done: say(_progress(clients, done, began)))
    seconds = time.perf_counter() - began
    memory += [halfway, _resident()]
    differing, checked = ask_again(model, clients, settings)
    return _tree(settings, model, engine, clients, seconds, memory, (differing, checked))


# The load ---------------------------------------------------------------------------------------------------


def kinds(model: GPA) -> dict[str, Callable[[random.Random], Request]]:
    """How a request of each kind is made from a draw: inputs are few and made once, seeds are many."""
    known = model.format.tasks
    made: dict[str, Callable[[random.Random], Request]] = {}
    voices = [model.voices[name] for name in sorted(model.voices)]

    def speech(draw: random.Random, gamma: float = 0.0) -> Request:
        text, voice = draw.choice(material.SENTENCES), draw.choice(voices)
        return material.request(model, TTS.name, draw.randrange(1 << 30), gamma=gamma, text=text, voice=voice)

    if not voices or TTS.name not in known:
        raise UsageError(f"{model.path}: a model that speaks, with voices, is needed")
    made[TTS.name] = speech
    if model.config.format == "instruct":
        made["guided"] = lambda draw: speech(draw, gamma=1.0)
    clips = material.recordings(model, CLIPS)
    if ASR.name in known:
        read = [material.request(model, ASR.name, 0, audio=_clip(model, wav)) for wav in clips]
        beams = model.processor.search(BEAMS)
        made[ASR.name] = lambda draw: draw.choice(read)
        made["beams"] = lambda draw: replace(draw.choice(read), beams=beams)
    if VC.name in known:
        converted = [
            material.request(model, VC.name, 0, source=_clip(model, wav), voice=voices[n % len(voices)])
            for n, wav in enumerate(clips)
        ]
        made[VC.name] = lambda draw: replace(draw.choice(converted), seed=draw.randrange(1 << 30))
    return made


def _clip(model: GPA, wav: np.ndarray) -> tuple[np.ndarray, int]:
    return wav, model.sample_rate


def arrivals(settings: Settings, made: Mapping[str, Callable[[random.Random], Request]]) -> list[Client]:
    """Clients in the order in which they come, a Poisson process; the same seed, the same clients.

    A fifth is cancelled after 1 to 60 steps, unless it has completed by then; a twentieth asks what cannot
    be.
    """
    draw, at, clients = random.Random(settings.seed), 0.0, []
    names = list(made)
    for number in range(settings.n):
        at += draw.expovariate(settings.rate) if settings.rate else 0.0
        kind = names[number % len(names)] if number < len(names) else draw.choice(names)
        request = made[kind](draw)
        life = draw.randint(*LIVES) if draw.random() < CANCELLED else None
        if draw.random() < IMPOSSIBLE and number >= len(names):
            kind, request, life = "impossible", replace(request, prompt=[-1], guidance=None, beams=None), None
        clients.append(Client(kind, at, request, life))
    return clients


def _one_of_each(clients: Sequence[Client]) -> list[Client]:
    return list({client.kind: client for client in clients if client.kind != "impossible"}.values())


def serve(engine: Engine, clients: Sequence[Client], report: Callable[[int], None] = lambda _: None) -> int:
    """Let clients come and go until none is left; bytes of memory when half of them had gone.

    `report` is told now and then how many have gone.
    """
    began = time.perf_counter()
    coming = list(reversed(clients))
    alive: dict[int, Client] = {}
    halfway, told, spoke = 0, 0, began
    while coming or alive:
        now = time.perf_counter() - began
        while coming and coming[-1].at <= now:
            client = coming.pop()
            client.added = now
            _add(engine, client, alive)
        if not alive:
            if coming:
                time.sleep(max(0.0, coming[-1].at - now))
            continue
        _step(engine, alive, began)
        gone = len(clients) - len(coming) - len(alive)
        halfway = halfway or (_resident() if 2 * gone >= len(clients) else 0)
        if gone - told >= len(clients) / REPORTS and time.perf_counter() - spoke >= EVERY:
            told, spoke = gone, time.perf_counter()
            report(gone)
    return halfway or _resident()


def _add(engine: Engine, client: Client, alive: dict[int, Client]) -> None:
    try:
        alive[engine.add(client.request)] = client
    except PromptError as error:
        client.state, client.error = "refused", str(error)
    except GPAError as error:
        client.state, client.error = "error", f"{type(error).__name__}: {error}"


def _step(engine: Engine, alive: dict[int, Client], began: float) -> None:
    """One step; then whoever has waited long enough gives up.

    GenerationError if one who had given up still goes on.
    """
    told = engine.step()
    now = time.perf_counter() - began
    for progress in told:
        if progress.handle not in alive:
            raise GenerationError(f"request {progress.handle} goes on although it was cancelled")
        client = alive[progress.handle]
        if client.state == "waiting":
            client.state, client.began = "running", now
        client.ids += progress.ids
        if progress.error:
            client.state, client.error = "error", str(progress.error)
            del alive[progress.handle]
        elif progress.completion:
            client.state, client.ended, client.completion = "completed", now, progress.completion
            del alive[progress.handle]
    for handle, client in list(alive.items()):
        client.steps += 1
        if client.steps == client.life:
            engine.cancel(handle)
            client.state, client.ended = "cancelled", now
            del alive[handle]


def ask_again(model: GPA, clients: Sequence[Client], settings: Settings) -> tuple[int, int]:
    """Ask some that completed again, each alone on an engine of its own: how many differ, of how many."""
    done = [client for client in clients if client.completion]
    chosen = random.Random(settings.seed).sample(done, min(settings.checks, len(done)))
    again = [Engine(model.network).generate([client.request])[0] for client in chosen]
    pairs = [(client.completion, other) for client, other in zip(chosen, again, strict=True)]
    return sum(mine != other for mine, other in pairs), len(pairs)


def _resident() -> int:
    gc.collect()
    return machine.resident_memory()


def _progress(clients: Sequence[Client], gone: int, began: float) -> str:
    seconds = time.perf_counter() - began
    ids = sum(len(client.ids) for client in clients)
    return f"{gone} of {len(clients)} gone after {seconds:.0f} s, {ids / seconds:.0f} ids/s"


# The result -------------------------------------------------------------------------------------------------


def _tree(
    settings: Settings,
    model: GPA,
    engine: Engine,
    clients: Sequence[Client],
    seconds: float,
    memory: Sequence[int],
    again: tuple[int, int],
) -> dict[str, Any]:
    import torch

    leaked, (differing, checked) = engine.cache.used, again
    errors = [client.error for client in clients if client.state == "error"]
    failed = {
        "rows": f"{leaked} rows are still taken" if leaked else "",
        "errors": f"{len(errors)} requests, the first with {errors[0]}" if errors else "",
        "exact": f"{differing} of {checked} completions differ from those alone" if differing else "",
    }
    exact = settings.device == "cpu" and settings.dtype == "float32"
    names = list(dict.fromkeys(client.kind for client in clients))
    return {
        "bench": "load",
        **asdict(settings),
        "rows": engine.rows,
        "threads": torch.get_num_threads(),
        "machine": machine.about(),
        **machine.versions("torch"),
        "seconds": seconds,
        "requests_per_s": sum(client.state == "completed" for client in clients) / seconds,
        "ids_per_s": sum(len(client.ids) for client in clients) / seconds,
        "kinds": [
            {"kind": "all", **_row(clients)},
            *({"kind": name, **_row([c for c in clients if c.kind == name])} for name in names),
        ],
        "rows_leaked": leaked,
        "memory": dict(zip(("before", "half", "after"), memory, strict=True)),
        "checked": checked,
        "differing": differing,
        "failed": {name: why for name, why in failed.items() if why and (exact or name != "exact")},
    }


def _row(clients: Sequence[Client]) -> dict[str, Any]:
    states = ("completed", "cancelled", "refused", "error")
    began = [client for client in clients if client.state == "completed"]
    return {
        "requests": len(clients),
        **{state: sum(client.state == state for client in clients) for state in states},
        "ids": sum(len(client.ids) for client in clients),
        "queue": quantiles([client.began - client.added for client in began]),
        "completion": quantiles([client.ended - client.added for client in began]),
    }


def lines(tree: Mapping[str, Any]) -> Iterator[str]:
    """The result for people."""
    pace = f"{tree['rate']:g} a second" if tree["rate"] else "all at once"
    yield f"{tree['model']}: {tree['n']} requests, {pace}, {tree['rows']} rows, threads: {tree['threads']}"
    yield (
        f"{tree['seconds']:.1f} s: {tree['requests_per_s']:.2f} completed a second, {tree['ids_per_s']:.0f} "
        "ids a second; waiting and completion in seconds, p50 / p95 / p99"
    )
    yield ""
    heads = (
        "kind",
        "requests",
        "completed",
        "cancelled",
        "refused",
        "errors",
        "ids",
        "waiting",
        "completion",
    )
    counts = ("requests", "completed", "cancelled", "refused", "error", "ids")
    rows = [
        (
            row["kind"],
            *(str(row[name]) for name in counts),
            _seconds(row["queue"]),
            _seconds(row["completion"]),
        )
        for row in tree["kinds"]
    ]
    yield from table(heads, rows)
    before, half, after = (tree["memory"][name] / 2**20 for name in ("before", "half", "after"))
    yield ""
    yield f"rows leaked: {tree['rows_leaked']}"
    yield f"memory: {before:.0f} MiB before, {half:.0f} when half had gone, {after:.0f} after"
    yield f"asked again alone: {tree['checked']}, of which {tree['differing']} differ"


def _seconds(found: Mapping[str, float] | None) -> str:
    return " / ".join(f"{value:.2f}" for value in found.values()) if found else "-"


def charts(tree: Mapping[str, Any]) -> list[Chart]:
    """p50 of waiting and of completion for each kind, with a line to p95."""
    shown = {name: [row for row in tree["kinds"] if row[name]] for name in ("queue", "completion")}
    return [
        Chart(
            f"{name}, s: p50, and p95",
            [(row["kind"], row[name]["p50"], row[name]["p50"], row[name]["p95"]) for row in rows],
            ours="",
        )
        for name, rows in shown.items()
    ]
