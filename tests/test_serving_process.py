"""A server as a process: signals, and what is left of it on the disk."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

SERVER = """
import sys, time
from pathlib import Path

from fastapi.responses import StreamingResponse

from gpa.models.gpa import GPA
from gpa.serve.app import create_app
from gpa.serve.process import run
from gpa.serve.service import Serving
from gpa.serve.settings import Settings

model, voices, port, wait, drain = sys.argv[1:]

def load():
    time.sleep(float(wait))
    return GPA.from_pretrained(model, device="cpu", threads=1), None

app = create_app(load, Settings(voices=Path(voices)))

@app.post("/v1/test/speak")
async def speak(times: int, service: Serving) -> StreamingResponse:
    voice, text = service.voices["anna"], "one two three. four five six. " * times
    make = lambda engine: service.model.utterance(engine, text, voice, {"max_new_tokens": 12})
    job = await service.worker.submit(make)
    return StreamingResponse((chunk.wav.tobytes() async for chunk in job), media_type="audio/pcm")

run(app, float(drain), host="127.0.0.1", port=int(port), log_level="warning")
"""


@contextlib.contextmanager
def process(
    tiny: Path, voices: Path, wait: float = 0, drain: float = 20
) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server in a process of its own, once it listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = [str(each) for each in (tiny, voices, port, wait, drain)]
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    url = f"http://127.0.0.1:{port}"
    try:
        until(server, lambda: health(url, "live") == 200)
        yield server, url
    finally:
        server.kill()
        server.communicate()


def health(url: str, what: str) -> int:
    try:
        return httpx.get(f"{url}/health/{what}", timeout=5).status_code
    except httpx.TransportError:
        return 0


def until(server: subprocess.Popen, true, seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert server.poll() is None, server.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


def keep_on(url: str, first: str, wav: Path, answered: set[str]) -> None:
    """Register voices until the server is dead; `answered` are those it said are there."""
    with contextlib.suppress(httpx.TransportError):
        for number in range(1000):
            given = {"files": {"audio_sample": wav.read_bytes()}, "data": {"name": f"{first} {number}"}}
            if httpx.post(f"{url}/v1/audio/voices", **given, timeout=30).status_code == 200:
                answered.add(f"{first} {number}")


def speak_on(url: str, began: threading.Event) -> None:
    """Hear long texts until the server is dead."""
    given = {"input": "one two three. four five six. " * 300, "response_format": "pcm", "max_new_tokens": 12}
    with contextlib.suppress(httpx.TransportError):
        while True:
            with httpx.stream("POST", f"{url}/v1/audio/speech", json=given, timeout=30) as answer:
                for _ in answer.iter_raw():
                    began.set()


def test_a_signal_lets_requests_end_and_takes_no_new_ones(tiny: Path, tmp_path: Path) -> None:
    """Live while it loads, ready when it has; while it drains neither ready nor taking requests."""
    with process(tiny, tmp_path / "voices", wait=1) as (server, url):
        speak = f"{url}/v1/test/speak"
        assert health(url, "ready") == 503 == httpx.post(speak, params={"times": 1}).status_code
        until(server, lambda: health(url, "ready") == 200)
        with httpx.stream("POST", speak, params={"times": 60}, timeout=60) as answer:
            came = answer.iter_raw()
            size = len(next(came))
            server.send_signal(signal.SIGTERM)
            until(server, lambda: health(url, "ready") == 503)
            late = httpx.post(speak, params={"times": 1})
            assert late.status_code == 503 and late.json()["error"]["message"] == "the server stops"
            assert late.json()["error"]["type"] == "unavailable_error" and late.headers["retry-after"]
            assert health(url, "live") == 200
            size += sum(map(len, came))  # to its end
        assert size > 60 * 1000
        out, errors = server.communicate(timeout=20)
    assert server.returncode == 0, errors
    said = [json.loads(line) for line in out.splitlines()]
    spoken = [line for line in said if line["path"] == "/v1/test/speak"]
    spoken.sort(key=lambda line: line["status"])  # what is made may end before the late one is refused
    assert [line["status"] for line in spoken] == [200, 503, 503] and spoken[0]["bytes_out"] == size


def test_a_drain_has_an_end(tiny: Path, tmp_path: Path) -> None:
    with process(tiny, tmp_path / "voices", drain=0.5) as (server, url):
        until(server, lambda: health(url, "ready") == 200)
        with (
            pytest.raises(httpx.TransportError),
            httpx.stream("POST", f"{url}/v1/test/speak", params={"times": 3000}, timeout=60) as answer,
        ):
            came = answer.iter_raw()
            next(came)
            server.send_signal(signal.SIGTERM)
            for _ in came:
                pass
        server.communicate(timeout=20)
    assert server.returncode == 0


def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with process(tmp_path / "empty", tmp_path / "voices", wait=1) as (server, _):
        _, errors = server.communicate(timeout=40)
    assert server.returncode == 1 and "CheckpointError" in errors


def test_a_server_that_is_killed_leaves_no_half_voice(
    tiny: Path, tmp_path: Path, wav_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed again and again while clients register voices and others hear texts: after the next start every
    voice that was answered is there and speaks, the folder holds whole voices and nothing else, and nothing
    was written anywhere else.
    """
    voices, answered = tmp_path / "voices", set()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    for turn in range(2):
        with process(tiny, voices) as (server, url):
            until(server, lambda: health(url, "ready") == 200)
            given = [(url, f"{turn} {number}", wav_file, answered) for number in range(3)]
            clients = [threading.Thread(target=keep_on, args=each) for each in given]
            heard = [threading.Event() for _ in range(2)]
            clients += [threading.Thread(target=speak_on, args=(url, began)) for began in heard]
            for client in clients:
                client.start()
            until(server, lambda: sum(name.startswith(str(turn)) for name in answered) >= 4)  # noqa: B023
            assert all(began.wait(30) for began in heard)
            server.kill()
            for client in clients:
                client.join(30)
    (voices / ".voice_0.1.tmp.json").write_text('{"kind": "gpa-voi')  # what a kill within a write leaves
    with process(tiny, voices) as (server, url):
        until(server, lambda: health(url, "ready") == 200)
        listed = httpx.get(f"{url}/v1/audio/voices").json()
        registered = {each["name"]: each["id"] for each in listed["data"] if each["id"].startswith("voice_")}
        assert answered <= set(registered)
        files = {path.name for path in voices.iterdir()} - {".lock"}
        assert files == {f"{ident}.json" for ident in registered.values()}
        for name in list(registered)[-3:]:
            asked = {"input": "one two", "voice": name, "max_new_tokens": 8, "response_format": "pcm"}
            assert httpx.post(f"{url}/v1/audio/speech", json=asked, timeout=30).status_code == 200
        for name in list(registered)[:3]:
            assert httpx.delete(f"{url}/v1/audio/voices/{name}").json()["deleted"] is True
        assert len(os.listdir(voices)) - 1 == len(registered) - 3
    left = {path.name for path in scratch.iterdir()} - {".ses"}  # onnxruntime's own
    assert not left, f"temporary files remain: {left}"
