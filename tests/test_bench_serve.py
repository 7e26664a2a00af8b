"""`gpa bench serve`: what clients get of a real server is counted, and no fault of it goes unseen.

No time is asserted.
"""

import base64
import io
import json
import subprocess
import sys
import threading
import time
import wave
from collections import Counter
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gpa.bench import clients, closed_loop
from gpa.bench.clients import KINDS, Asked, Load, Mix, Outcome
from gpa.cli import main
from gpa.errors import GenerationError, UsageError

BRIEF = ["--max-new-tokens", "12", "--threads", "1", "--offline"]


def test_command_measures_a_server(tiny: Path, tmp_path: Path) -> None:
    """As a user runs it: every kind is served, nobody fails, and above the bound some are told to wait."""
    png = tmp_path / "serve.png"
    command = [sys.executable, "-m", "gpa", "bench", "serve", str(tiny), *BRIEF]
    command += ["--streams", "3", "--seconds", "2", "--runs", "2", "--bound", "8", "--above", "2"]
    command += ["--json", "--png", str(png)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("gpa: runs: 2, of 2 s, each on a server of its own\n")
    tree = json.loads(done.stdout)
    every, *kinds = tree["kinds"]
    assert [row["kind"] for row in kinds] == list(KINDS) and every["errors"] == {} == tree["failed"]
    assert every["requests"] == every["served"] == sum(row["served"] for row in kinds)
    assert max(row["served"] for row in kinds) - min(row["served"] for row in kinds) <= 2, "they come in turn"
    for row in [every, *kinds, tree["alone"]]:
        for p in ("p50", "p95", "p99"):
            first, total = row["first"], row["total"]
            assert 0 < first["median"][p] <= first["worst"][p] and first["median"][p] <= total["median"][p]
        assert 0 < row["rtf"]["median"] <= row["rtf"]["worst"]
    assert len(tree["rounds"]) == 2 and all(0 < m["before"] and 0 < m["after"] for m in tree["memory"])
    assert tree["rounds"][0]["seconds"] >= 2 and tree["over_alone"]["ratio"] > 0
    above = tree["above_bound"]
    assert set(above["errors"]) == {"429"} and above["served"] > 0
    assert png.read_bytes()[:4] == b"\x89PNG"
    told = list(closed_loop.lines(tree))
    assert any(line.startswith("all, 11 streams, bound 8") and "x 429" in line for line in told)


FAULTY = """
import asyncio, os, sys
from gpa.cli import main
from gpa.serve import admission

real, asked = admission.Gate.__call__, 0

async def call(gate, scope, receive, send):
    global asked
    path = scope.get("path", "")
    asked += scope.get("method") == "POST"
    sent = kind = 0

    async def faulty(message):
        nonlocal sent, kind
        body, kind = message.get("body", b""), kind or dict(message.get("headers", {})).get(b"content-type")
        if path.endswith("/speech") and kind == b"audio/pcm" and "status" in message:
            message["status"] = 418
        if path.endswith("/speech") and kind.startswith(b"text/event-stream") and sent == 1:
            await asyncio.sleep(1.5)
        if path.endswith("/conversions") and sent:
            await asyncio.sleep(3600)
        if b"transcript.text.done" in body:
            message["body"] = b""
        sent += bool(body)
        await send(message)

    if asked > 10 and mode == "end":
        os._exit(3)
    await real(gate, scope, receive, faulty if asked > 8 and mode == "wrong" else send)

mode, *words = sys.argv[1:]
admission.Gate.__call__ = call
sys.exit(main.main(["serve", *words]))
"""  # the first eight are recordings, and one of each kind, before anything is measured


def measured(
    mode: str, words: list[str], capfd: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch
) -> tuple[str, str]:
    """What the command prints of a server with faults, and what it says; it fails."""
    patch.setattr(closed_loop, "COMMAND", (sys.executable, "-c", FAULTY, mode))
    more = [*BRIEF, "--runs", "1", "--above", "0", "--json"]
    assert main.main(["bench", "serve", *words, *more]) == GenerationError.exit_code
    return capfd.readouterr()


def test_faults_of_a_server_are_reported(
    tiny: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong status, a stream that stalls, one that pauses, one that ends too early."""
    words = [str(tiny), "--streams", "4", "--seconds", "4", "--patience", "3"]
    out, err = measured("wrong", words, capfd, monkeypatch)
    tree = json.loads(out)
    rows = {row["kind"]: row for row in tree["kinds"]}
    assert set(rows["speech"]["errors"]) == {"418"} and rows["speech"]["served"] == 0
    assert set(rows["conversion"]["errors"]) == {"stalled"}
    assert set(rows["transcription"]["errors"]) == {"no last event"}
    assert rows["events"]["errors"] == {} and rows["speech"]["first"] is None
    assert rows["events"]["underruns"] == rows["events"]["served"] > 0
    assert rows["events"]["underrun"]["median"] / rows["events"]["served"] > 0.5
    for wrong in ("x 418", "x stalled", "x no last event"):
        assert wrong in tree["failed"]["below the bound"] and wrong in err.splitlines()[-1]
        assert any(wrong in line for line in closed_loop.lines(tree))


def test_a_server_that_ends_has_no_figures(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, what in (
        ([str(tiny), "--seconds", "30", "--streams", "2"], "the server ended with 3"),
        ([str(tmp_path)], "the server ended with"),
    ):
        out, err = measured("end", words, capfd, monkeypatch)
        assert out == "" and what in err


def test_only_429_may_refuse_and_only_above_the_bound() -> None:
    def row(**errors: int) -> dict[str, Any]:
        return {"errors": {name.removeprefix("s"): n for name, n in errors.items()}}

    assert closed_loop._failed([row(), row()], row(s429=3)) == {} == closed_loop._failed([row()], None)
    assert closed_loop._failed([row(), row(s429=1)], None) == {"below the bound": "1 x 429"}
    assert closed_loop._failed([], row()) == {"above the bound": "nobody was told 429"}
    assert "2 x 503" in closed_loop._failed([], row(s429=1, s503=2))["above the bound"]


def test_wrong_use_is_told() -> None:
    for words in (
        ["--share", "singing=1"],
        ["--share", "speech"],
        ["--share", "speech=0"],
        ["--streams", "65"],
        ["--seconds", "0"],
        ["--runs", "0"],
        ["--above", "-1"],
    ):
        assert main.main(["bench", "serve", *words]) == UsageError.exit_code


# Figures ----------------------------------------------------------------------------------------------------


def test_the_worst_run_is_told_beside_the_median() -> None:
    loads = [
        Load(1, [Outcome("speech", "200", first, 2 * first, 1.0, wait) for first in firsts], 1.0)
        for firsts, wait in (([1.0, 2.0], 0.0), ([1.0, 3.0], 0.25), ([1.0, 9.0], 0.0))
    ]
    row = closed_loop._over_runs([closed_loop._row("all", load) for load in loads])
    assert row["first"]["median"] == {"p50": 1.0, "p95": 3.0, "p99": 3.0}
    assert row["first"]["worst"]["p95"] == 9 and row["total"]["worst"]["p95"] == 18
    assert row["rtf"] == {"median": 4.0, "worst": 10.0}
    assert row["underrun"] == {"median": 0.0, "worst": 0.5} and row["underruns"] == 2


def test_a_kind_that_was_never_served_has_no_figures() -> None:
    load = Load(1, [Outcome("speech", "503"), Outcome("events", "200", 0.1, 0.2, 1.0)], 1.0)
    row = closed_loop._over_runs([closed_loop._row("speech", load)])
    assert (row["requests"], row["served"], row["errors"]) == (1, 0, {"503": 1})
    assert row["first"] is row["total"] is row["rtf"] is None
    assert closed_loop._cells("speech", row)[2:7] == ("-",) * 5


# Requests ---------------------------------------------------------------------------------------------------


def clip(seconds: float = 0.5) -> bytes:
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(2 * int(16000 * seconds)))
    return made.getvalue()


def test_a_number_is_always_the_same_request() -> None:
    clips = [clip(0.5), clip(1.0)]
    mix = Mix(clients.cycle({"speech": 2, "conversion": 1}), ["anna", "ben"], clips, {"gamma": 1.0})
    made = [mix.request(number) for number in range(60)]
    assert made == [mix.request(number) for number in range(60)]
    assert Counter(each.kind for each in made) == {"speech": 40, "conversion": 20}
    assert len({each.body for each in made}) == 60 and {each.sound for each in made} == {0.0, 0.5, 1.0}
    spoken = [json.loads(each.body) for each in made if each.kind == "speech"]
    assert {each["voice"] for each in spoken} == {"anna", "ben"} and all(e["gamma"] == 1 for e in spoken)
    assert len({each["input"] for each in spoken}) > 8 and len({each["seed"] for each in spoken}) == 40


# Answers ----------------------------------------------------------------------------------------------------

Step = bytes | float | int  # a chunk of the body, seconds of silence, a status


@pytest.fixture
def replies() -> Iterator[Callable[..., tuple[Outcome, float]]]:
    """What a client makes of an answer that is written here step by step, of a kind."""
    script: list[Step] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status = script[0] if isinstance(script[0], int) else 200
            self.send_response(status)
            self.send_header("Transfer-Encoding", "chunked")
            self.send_header("retry-after-ms", "700")
            self.end_headers()
            for step in script:
                if isinstance(step, float):
                    time.sleep(step)
                elif isinstance(step, bytes):
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(step), step))
                    self.wfile.flush()
            if script[-1] != b"":  # which is how a body ends
                self.close_connection = True

        def log_message(self, *args: Any) -> None:
            """Tests are quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def ask(kind: str, *steps: Step, patience: float = 20.0) -> tuple[Outcome, float]:
        script[:] = steps
        connection = HTTPConnection("127.0.0.1", server.server_port, timeout=patience)
        try:
            return clients.ask(connection, Asked(kind, "/", "application/json", b"{}", 2.0))
        finally:
            connection.close()

    yield ask
    server.shutdown()
    thread.join()
    server.server_close()


SECOND = bytes(2 * clients.RATE)


def event(**given: Any) -> bytes:
    return f"data: {json.dumps(given)}\n\n".encode()


def delta(data: bytes) -> bytes:
    return event(type="speech.audio.delta", audio=base64.b64encode(data).decode())


def test_a_client_hears_what_comes(replies: Callable[..., tuple[Outcome, float]]) -> None:
    done = event(type="speech.audio.done")
    for kind, steps in {
        "speech": (SECOND[:4800], 0.4, SECOND, b""),
        "conversion": (SECOND[:4800], 0.4, SECOND, b""),
        "events": (delta(SECOND[:4800]), 0.4, delta(SECOND), done, b""),
    }.items():
        found, wait = replies(kind, *steps)
        assert (found.status, wait) == ("200", 0.0) and found.sound == pytest.approx(1.1)
        assert 0 < found.first < found.total and found.total >= 0.4
        assert 0.05 < found.underrun < found.total
    ended = event(type="transcript.text.done", text="so it is")
    text = event(type="transcript.text.delta", delta="so it is")
    found, _ = replies("transcription", text[:9], 0.3, text[9:], 0.3, ended, b"")
    assert found.status == "200" and found.sound == 2 and found.total - found.first > 0.2
    silent, _ = replies("transcription", event(type="transcript.text.delta", delta=""), 0.2, ended, b"")
    assert silent.status == "200" and silent.first == silent.total > 0.1


def test_a_client_sees_what_is_wrong(replies: Callable[..., tuple[Outcome, float]]) -> None:
    end = event(type="speech.audio.done")
    for status, kind, steps in (
        ("429", "speech", (429, b"full", b"")),
        ("500", "events", (500, b"")),
        ("broken off", "speech", (SECOND,)),
        ("half a sample", "conversion", (SECOND[:3], b"")),
        ("no sound was made", "speech", (b"",)),
        ("no sound was made", "events", (end, b"")),
        ("error event", "events", (delta(SECOND), event(error={"message": "no"}), b"")),
        ("no last event", "events", (delta(SECOND), b"")),
        ("no last event", "transcription", (b"",)),
        ("unreadable", "events", (b"data: {\n\n", b"")),
    ):
        found, wait = replies(kind, *steps)
        assert (found.kind, found.status, found.total) == (kind, status, 0.0)
        assert wait == (0.7 if status in ("429", "500") else clients.PAUSE)
    found, _ = replies("speech", SECOND, 1.5, SECOND, b"", patience=0.5)
    assert found.status == "stalled"


def test_a_loop_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more on their way than streams, always as many, none begun at the end; who waits, waits."""
    mix, lock = Mix(["speech"], ["anna"], []), threading.Lock()
    alive, most, begun, without = 0, 0, [], []

    def ask(connection: HTTPConnection, asked: Asked) -> tuple[Outcome, float]:
        nonlocal alive, most, without
        with lock:
            alive += 1
            begun.append((json.loads(asked.body)["seed"], time.perf_counter()))
            most = max(most, alive)
            without += [alive] if without else []
        time.sleep(0.05)
        with lock:
            alive -= 1
            told_to_wait = asked.body == mix.request(7).body
            without += [0] if told_to_wait else []
        return Outcome("speech", "200"), 60.0 if told_to_wait else 0.0

    monkeypatch.setattr(clients, "ask", ask)
    began, seen = time.perf_counter(), []
    load = clients.closed_loop(("127.0.0.1", 9), mix, 3, 1.0, 1.0, lambda s, n: seen.append((s, n)))
    assert most == 3 and max(without) == 2 and len(load.outcomes) == len(begun) >= 9
    assert sorted(number for number, _ in begun) == list(range(len(begun)))
    assert max(at for _, at in begun) - began < 5 and 1 <= load.seconds < 10
    assert seen[0][1] <= seen[-1][1] <= len(begun) and len(seen) > 2
