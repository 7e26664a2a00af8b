"""Clients of every kind that go away at any moment, and clients that stay: nothing is left, memory is flat.

`make soak` lets a thousand go and a thousand stay; without it there are fewer (GPA_CLIENTS).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ctypes
import gc
import json
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from websockets.asyncio.client import connect

from conftest import speechlike
from gpa import audio
from gpa.models.gpa import GPA
from gpa.serve.admission import Visit
from gpa.serve.answers import Speaking
from gpa.serve.live_speech import Sentence
from gpa.serve.settings import Settings
from gpa.serve.sockets import Connection
from gpa.serve.worker import Job
from serving import Served, served

CLIENTS = int(os.environ.get("GPA_CLIENTS", "240"))  # that are looked at, after a fifth as many before
GROWTH = 12.0  # MiB that so many may add to what the first ones took
OURS = (Job, Visit, Speaking, Sentence, Connection)  # what a client has while it is there
SAY = {"input": "one two three. four five six.", "voice": "anna", "max_new_tokens": 12}
KINDS = ({"response_format": "pcm"}, {"stream_format": "sse"}, {"response_format": "flac", "stream": False})
QUIET = np.zeros(32000, np.float32)
SOUND = np.concatenate([speechlike(2), QUIET, speechlike(2, seed=3), QUIET])
WAV = audio.to_bytes(speechlike(1.5), 16000)


async def broken(url: str, path: str, request: httpx.Request, draw: random.Random) -> None:
    """A request that ends in the middle, or whose answer nobody hears to its end."""
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    sent = f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + request.read()
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    with contextlib.suppress(ConnectionError, TimeoutError):
        cut = draw.randrange(1, len(sent)) if draw.random() < 0.2 else len(sent)
        writer.write(sent[:cut])
        await writer.drain()
        if cut < len(sent) or draw.random() < 0.3:
            await asyncio.sleep(draw.random() * 0.02)
        else:
            await asyncio.wait_for(reader.read(draw.randrange(1, 4000)), 5)
    writer.transport.abort()


async def speech(url: str, draw: random.Random) -> None:
    given = {**SAY, **draw.choice(KINDS), "seed": draw.randrange(99)}
    path = "/v1/audio/speech"
    await broken(url, path, httpx.Request("POST", url + path, json=given), draw)


async def upload(url: str, draw: random.Random) -> None:
    path, name, fields = draw.choice((
        ("/v1/audio/transcriptions", "file", {"stream": "true"}),
        ("/v1/audio/conversions", "file", {"voice": "ben", "response_format": "pcm"}),
        ("/tts/a", "ref_audio", {"text": "hello there"}),
    ))  # fmt: skip
    await broken(url, path, httpx.Request("POST", url + path, files={name: WAV}, data=fields), draw)


async def messages(
    url: str, path: str, script: list[tuple[str, dict[str, Any]]], draw: random.Random
) -> None:
    """Some of a script over a WebSocket, which is then closed, or broken."""
    socket = await connect(url.replace("http", "ws") + path, max_size=None)
    for kind, more in script[: draw.randint(0, len(script))]:
        await socket.send(json.dumps({"type": kind, **more}))
    await asyncio.sleep(draw.choice((0, 0, 0.005, 0.02, 0.1)))
    if draw.random() < 0.5:
        socket.transport.abort()
    else:
        await socket.close()


async def live_text(url: str, draw: random.Random) -> None:
    config = {"seed": 7, "max_new_tokens": draw.choice((5, 100)), "response_format": "pcm"}
    cancel = [("input.cancel", {})] if draw.random() < 0.3 else []
    script = [("session.config", config), ("input.text", {"text": "One is here. Two is here. Th"}),
              ("input.text", {"text": "ree. "}), *cancel, ("input.text", {"text": "Four is here."}),
              ("input.done", {})]  # fmt: skip
    await messages(url, "/v1/audio/speech/stream", script, draw)


async def live_sound(url: str, draw: random.Random) -> None:
    turns = {"turn_detection": None} if draw.random() < 0.6 else {}
    session = {"audio": {"input": {"format": {"rate": 16000}, **turns}}}
    data = audio.pcm16(SOUND).astype("<i2").tobytes()
    parts = [base64.b64encode(data[at : at + 8000]).decode() for at in range(0, len(data), 8000)]
    script = [("session.update", {"session": session})]
    script += [("input_audio_buffer.append", {"audio": part}) for part in parts]
    await messages(
        url, "/v1/realtime?intent=transcription", [*script, ("input_audio_buffer.commit", {})], draw
    )


Client = Callable[[str, random.Random], Awaitable[None]]
CALLS: tuple[Client, ...] = (speech, speech, upload, live_text, live_sound)


def leave(url: str, numbers: range, clients: tuple[Client, ...] = CALLS) -> None:
    """So many clients, eight at a time."""

    async def everybody() -> None:
        gate = asyncio.Semaphore(8)

        async def one(number: int) -> None:
            async with gate:
                await clients[number % len(clients)](url, random.Random(number))

        await asyncio.gather(*map(one, numbers))

    asyncio.run(everybody())


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[Served]:
    model = GPA.from_pretrained(tiny, device="cpu", threads=1)
    with served(model, Settings(requests=64, per_client=64)) as server:
        yield server


def resident() -> float:
    """MiB of this process that somebody needs: what the allocator merely keeps is given back first."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return psutil.Process().memory_info().rss / 2**20


def still_there() -> Counter[str]:
    gc.collect()
    return Counter(type(each).__name__ for each in gc.get_objects() if isinstance(each, OURS))


def statuses(server: Served) -> Counter[str]:
    found: Counter[str] = Counter()
    for family in server.app.state.measures.requests.collect():
        for sample in family.samples:
            if sample.name.endswith("_total"):
                found[sample.labels["status"]] += int(sample.value)
    return found


def test_who_leaves_leaves_nothing_behind(server: Served) -> None:
    """No job, row of the engine, place at the gate, open file or thread; memory as after the first ones."""
    process, first, others = psutil.Process(), CLIENTS // 5, still_there()  # of other tests' servers
    leave(server.url, range(first))
    assert server.left(20)
    before, files, threads = resident(), process.num_fds(), process.num_threads()
    leave(server.url, range(first, first + CLIENTS))
    assert server.left(20)
    end = time.monotonic() + 10
    while process.num_fds() > files and time.monotonic() < end:
        time.sleep(0.02)
    grown = resident() - before
    print(f"{CLIENTS} left: {grown:+.1f} MiB, files {files} -> {process.num_fds()}, "
          f"threads {threads} -> {process.num_threads()}, {dict(statuses(server))}")  # fmt: skip
    assert process.num_fds() <= files and process.num_threads() <= threads + 4  # pools fill
    found = statuses(server)
    assert set(found) <= {"101", "200", "499"} and found["499"] > CLIENTS / 5
    assert grown < GROWTH, f"{grown:.1f} MiB more after {CLIENTS} clients that left"
    end = time.monotonic() + 15  # uvicorn's timer holds what it would have kept alive, for 5 s
    while (kept := still_there() - others) and time.monotonic() < end:
        time.sleep(0.2)
    assert not kept, f"{kept} are still there"
    answer = httpx.post(f"{server.url}/v1/audio/speech", json={**SAY, "response_format": "pcm"})
    assert answer.status_code == 200 and len(answer.content) > 1000


def test_who_stays_takes_no_more_memory_than_the_first(server: Served) -> None:
    first = CLIENTS // 5
    with httpx.Client(timeout=300) as client, ThreadPoolExecutor(8) as threads:

        def ask(number: int) -> int:
            given = {**SAY, **KINDS[number % 3], "seed": number}
            if number % 4 == 3:
                url = f"{server.url}/v1/audio/transcriptions"
                return client.post(url, files={"file": WAV}).status_code
            return client.post(f"{server.url}/v1/audio/speech", json=given).status_code

        assert set(threads.map(ask, range(first))) == {200}
        before = resident()
        assert set(threads.map(ask, range(first, first + CLIENTS))) == {200}
        grown = resident() - before
    print(f"{CLIENTS} stayed: {grown:+.1f} MiB")
    assert grown < GROWTH, f"{grown:.1f} MiB more after {CLIENTS} requests"
    assert server.left()
