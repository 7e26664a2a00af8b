"""`gpa bench load`: every request ends, nothing stays taken, load changes no ids. No time is asserted."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpa.bench import load, machine
from gpa.bench.load import Client, Settings
from gpa.cli import main
from gpa.engine.cache import Cache
from gpa.engine.request import Completion, Request, Rules
from gpa.engine.scheduler import Engine
from gpa.errors import GenerationError, UsageError
from gpa.models.gpa import GPA

KINDS = ["tts", "guided", "asr", "beams", "vc"]
SETTINGS = Settings(n=60, rate=0, checks=8, threads=1, offline=True)


@pytest.fixture(scope="module")
def model(tiny: Path) -> GPA:
    return GPA.from_pretrained(tiny, device="cpu")


@pytest.fixture(scope="module")
def clients(model: GPA) -> list[Client]:
    """What comes by one seed, all at once; made once, as the codec hears every recording."""
    return load.arrivals(SETTINGS, load.kinds(model))


def drawn(client: Client) -> tuple[Any, ...]:
    return client.kind, client.at, client.life, list(client.request.prompt), client.request.seed


def fresh(clients: list[Client]) -> list[Client]:
    return [Client(each.kind, each.at, each.request, each.life) for each in clients]


def test_every_request_ends_and_nothing_stays(model: GPA, clients: list[Client]) -> None:
    engine, served = Engine(model.network, rows=6), fresh(clients)
    load.serve(engine, served)
    states = Counter(client.state for client in served)
    assert set(states) == {"completed", "cancelled", "refused"} and not engine.busy
    assert engine.cache.used == 0
    for client in served:
        assert (client.state == "refused") == (client.kind == "impossible")
        if client.state == "cancelled":
            assert client.steps == client.life and client.completion is None
        if client.state == "completed":
            assert client.completion and client.ids == client.completion.ids
            assert client.life is None or client.steps < client.life
            assert 0 <= client.added <= client.began <= client.ended
    assert load.ask_again(model, served, SETTINGS) == (0, 8)


def test_the_same_seed_brings_the_same_clients(model: GPA, clients: list[Client]) -> None:
    made = load.kinds(model)
    assert list(made) == KINDS
    assert [drawn(client) for client in load.arrivals(SETTINGS, made)] == [
        drawn(client) for client in clients
    ]
    other = load.arrivals(replace(SETTINGS, seed=1, rate=5.0), made)
    assert [client.at for client in other] == sorted(client.at for client in other) and other[0].at > 0
    assert [drawn(client) for client in other] != [drawn(client) for client in clients]
    kinds = Counter(client.kind for client in clients)
    assert set(kinds) == {*KINDS, "impossible"}
    assert 0 < sum(client.life is not None for client in clients) < len(clients) / 2
    assert all(client.request.guidance for client in clients if client.kind == "guided")
    assert all(client.request.beams for client in clients if client.kind == "beams")
    assert len({client.request.seed for client in clients if client.kind == "tts"}) == kinds["tts"]


@pytest.fixture
def result(model: GPA, clients: list[Client], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The command on the loaded model and few clients."""
    monkeypatch.setattr(GPA, "from_pretrained", lambda *_, **__: model)
    monkeypatch.setattr(load, "arrivals", lambda *_: fresh(clients)[:12])
    monkeypatch.setattr(load, "kinds", lambda _: {})

    def run(code: int, capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
        assert main.main(["bench", "load", "-n", "12", "--rate", "0", "--checks", "12", "--json"]) == code
        return json.loads(capfd.readouterr().out)

    yield run


def test_ids_that_load_changed_are_found(
    result: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert result(0, capfd)["failed"] == {}
    real = Engine.step

    def neighbourly(engine: Engine) -> Any:
        told = real(engine)
        for progress in told:
            if progress.completion and len(told) > 1:
                progress.completion.ids[-1] += 1
        return told

    monkeypatch.setattr(Engine, "step", neighbourly)
    tree = result(GenerationError.exit_code, capfd)
    assert list(tree["failed"]) == ["exact"] and 0 < tree["differing"] <= tree["checked"]


def test_rows_that_stay_are_found(
    result: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real, kept = Cache.release, []

    def release(cache: Cache, rows: list[int]) -> None:
        if kept:
            real(cache, rows)
        else:
            kept.append(rows)

    monkeypatch.setattr(Cache, "release", release)
    tree = result(GenerationError.exit_code, capfd)
    assert tree["rows_leaked"] == len(kept[0]) and list(tree["failed"]) == ["rows"]


def test_who_was_cancelled_must_be_gone(
    model: GPA, clients: list[Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "cancel", lambda engine, handle: None)
    with pytest.raises(GenerationError, match="goes on although it was cancelled"):
        load.serve(Engine(model.network), fresh(clients))


def test_requests_that_end_in_an_error_are_counted(model: GPA) -> None:
    class Broken(Engine):
        def add(self, request: Request) -> int:
            raise GenerationError("no")

    request = Request([1], Rules(2, frozenset({0})))
    clients = [Client("tts", 0.0, request) for _ in range(3)]
    load.serve(Broken(model.network), clients)
    assert [client.state for client in clients] == ["error"] * 3 and clients[0].completion is None
    row = load._row(clients)
    assert row["error"] == 3 and row["queue"] is None and row["ids"] == 0


def test_who_is_cancelled_while_waiting_never_begins(model: GPA) -> None:
    """One row: the second waits behind the first, which takes 20 steps, and gives up after five."""
    rules = Rules(20, frozenset({0}), (range(0, 9),), min_new=20)
    clients = [Client("a", 0.0, Request([1], rules)), Client("b", 0.0, Request([2], rules), life=5)]
    engine = Engine(model.network, rows=1)
    load.serve(engine, clients)
    assert [client.state for client in clients] == ["completed", "cancelled"]
    assert clients[1].began == 0.0 and not clients[1].ids and clients[0].completion != Completion()
    assert len(clients[0].ids) == 20 and engine.cache.used == 0


def test_command_prints_json_and_a_picture(tiny: Path, tmp_path: Path) -> None:
    png = tmp_path / "load.png"
    command = [sys.executable, "-m", "gpa", "bench", "load", str(tiny), "-n", "16", "--rate", "0"]
    command += ["--checks", "3", "--threads", "1", "--json", "--png", str(png), "--offline"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tree = json.loads(done.stdout)
    every = tree["kinds"][0]
    assert every["requests"] == 16 == sum(every[s] for s in ("completed", "cancelled", "refused", "error"))
    assert {row["kind"] for row in tree["kinds"][1:]} >= set(KINDS) and tree["rows_leaked"] == 0
    assert sum(row["ids"] for row in tree["kinds"][1:]) == every["ids"] > 0
    assert tree["memory"]["before"] > 0 and (tree["checked"], tree["differing"]) == (3, 0)
    assert set(every["completion"]) == {"p50", "p95", "p99"} and png.read_bytes()[:4] == b"\x89PNG"
    assert "rows leaked: 0" in list(load.lines(tree))


def test_what_cannot_be_measured_is_refused(tiny: Path) -> None:
    for words in (["-n", "0"], ["--rate", "-1"], ["--rows", "0"], ["--checks", "-1"]):
        assert main.main(["bench", "load", str(tiny), *words]) == UsageError.exit_code


def test_memory_is_read() -> None:
    assert 0 < machine.resident_memory() <= machine.peak_memory()
