"""Clients that go away at any moment, a thousand of them: nothing is left on its way, and memory is flat."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from gpa.models.gpa import GPA
from gpa.serve.settings import Settings
from serving import Served, served

SAY = {"input": "one two three. four five six.", "voice": "anna", "max_new_tokens": 12}
KINDS = ({"response_format": "pcm"}, {"stream_format": "sse"}, {"response_format": "flac", "stream": False})


def leave(url: str, number: int) -> None:
    """Ask, and go away after some bytes of the request or of the answer, or some time."""
    chance = random.Random(number)
    body = json.dumps({**SAY, **KINDS[number % 3], "seed": number}).encode()
    head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    request = f"{head}Content-Type: application/json\r\n\r\n".encode() + body
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        if chance.random() < 0.1:
            connection.sendall(request[: chance.randrange(1, len(request))])
            return
        connection.sendall(request)
        if chance.random() < 0.3:
            time.sleep(chance.random() * 0.02)
            return
        connection.settimeout(5)
        connection.recv(chance.randrange(1, 4000))


def many(server: Served, numbers: range) -> None:
    """Eight at a time."""
    left = list(numbers)
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                if not left:
                    return
                number = left.pop()
            leave(server.url, number)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_thousand_leave_nothing_behind(tiny: Path) -> None:
    """No job, row of the engine, place at the gate, open file or thread; memory as it was after the first."""
    model = GPA.from_pretrained(tiny, device="cpu", threads=1)
    process = psutil.Process()
    with served(model, Settings(requests=64, per_client=64)) as server:
        many(server, range(200))
        assert server.settled()
        before, files, threads = process.memory_info().rss, process.num_fds(), process.num_threads()
        many(server, range(200, 1200))
        assert server.settled()
        engine, gate = server.service.worker.engine, server.app.state.measures
        end = time.monotonic() + 10
        while (gate.in_flight() or process.num_fds() > files) and time.monotonic() < end:
            time.sleep(0.02)
        assert gate.in_flight() == 0 and engine.cache.used == 0 and not server.service.worker.jobs
        assert process.num_fds() <= files and process.num_threads() <= threads + 16  # pools fill
        grown = (process.memory_info().rss - before) / 2**20
        statuses = {
            sample.labels["status"]: sample.value
            for family in server.app.state.measures.requests.collect()
            for sample in family.samples
            if sample.name.endswith("_total")
        }
        assert set(statuses) == {"200", "499"} and statuses["499"] > 200
        assert grown < 24, f"{grown:.1f} MiB more after a thousand clients that left"
        answer = httpx.post(f"{server.url}/v1/audio/speech", json={**SAY, "response_format": "pcm"})
        assert answer.status_code == 200 and len(answer.content) > 1000


@pytest.mark.slow
def test_a_thousand_that_stay_take_no_more_memory_than_two_hundred(tiny: Path) -> None:
    model, process = GPA.from_pretrained(tiny, device="cpu", threads=1), psutil.Process()
    with served(model) as server, httpx.Client(timeout=30) as client, ThreadPoolExecutor(8) as threads:

        def ask(number: int) -> int:
            given = {**SAY, **KINDS[number % 3], "seed": number}
            return client.post(f"{server.url}/v1/audio/speech", json=given).status_code

        assert set(threads.map(ask, range(200))) == {200}
        before = process.memory_info().rss
        assert set(threads.map(ask, range(200, 1200))) == {200}
        grown = (process.memory_info().rss - before) / 2**20
        assert grown < 24, f"{grown:.1f} MiB more after a thousand requests"
        print(f"{grown:.1f} MiB")
