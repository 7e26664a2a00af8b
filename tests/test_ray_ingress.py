"""Copies of the server behind Ray Serve: a real Ray on this machine, two replicas of the tiny model, and
OpenAI's own client. What is made is what `GPA` makes; a voice of one copy is there at the other."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from websockets.sync.client import connect

from gpa.errors import UsageError
from gpa.models.gpa import GPA
from gpa.serve.ray_ingress import Copies, Replica, application
from gpa.serve.settings import Settings
from serving import served

BRIEF: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0.7, "sample_rate": 16000}

RAY = """
import json, signal, sys, time
import ray
from ray import serve
from gpa.serve.ray_ingress import build

given, port = json.loads(sys.argv[1]), int(sys.argv[2])
quiet = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
ray.init(num_cpus=2, _temp_dir=sys.argv[3], **quiet)
serve.start(http_options={"host": "127.0.0.1", "port": port})
serve.run(build(given), name="gpa", route_prefix="/")
print("running", flush=True)
sys.stdin.readline()
serve.shutdown()
ray.shutdown()
print("ended", flush=True)
"""


@pytest.fixture(scope="module")
def url(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where Ray serves two copies; it ends with the tests."""
    pytest.importorskip("ray.serve", reason="needs ray[serve] (extra ray)")
    folder = tmp_path_factory.mktemp("ray")
    (folder / "keys.txt").write_text("sesame\n")
    given = {"model": str(tiny), "speechop": "none", "device": "cpu", "threads": "1", "replicas": "2"}
    given |= {"cpus": "0.5", "voices": str(folder / "voices"), "keys": str(folder / "keys.txt")}
    given |= {"settings": {"text_characters": 5000}}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    with (
        tempfile.TemporaryDirectory(
            prefix="ray", ignore_cleanup_errors=True
        ) as short,  # as Unix sockets want it
        subprocess.Popen(
            [sys.executable, "-c", RAY, json.dumps(given), str(port), short],
            env=os.environ | quiet,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout and process.stdin
            said = process.stdout.readline()
            assert said == "running\n", process.communicate()
            yield f"http://127.0.0.1:{port}"
            out, errors = process.communicate("\n", timeout=60)
            assert process.returncode == 0 and "ended" in out, errors
        finally:
            process.kill()


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="sesame", max_retries=0)


def test_openais_client_gets_what_the_model_makes(client: openai.OpenAI, tiny: Path) -> None:
    """Whole, streamed, as events, and 16 requests at a time, spread over both copies."""
    model = GPA.from_pretrained(tiny, device="cpu", threads=1)
    wanted = model.tts("hello there", "anna", seed=5, max_new_tokens=12, temperature=0.7).wav
    given = {"model": "tts-1", "voice": "anna", "input": "hello there", "response_format": "pcm"}
    asked: dict[str, Any] = {**given, "extra_body": {**BRIEF, "seed": 5}}
    made = client.audio.speech.create(**asked).read()
    heard = np.frombuffer(made, np.int16) / 32768
    assert len(heard) == len(wanted) and np.abs(heard - wanted).max() < 1e-3
    with client.audio.speech.with_streaming_response.create(**asked) as answer:
        assert b"".join(answer.iter_bytes()) == made
    with client.audio.speech.with_streaming_response.create(**asked, stream_format="sse") as answer:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    assert events[-1]["type"] == "speech.audio.done" and events[-1]["usage"]["total_tokens"] > 0
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: client.audio.speech.create(**asked).read(), range(16))) == {made}
    with pytest.raises(openai.BadRequestError) as caught:
        client.audio.speech.create(**given | {"input": "a" * 6000})
    assert caught.value.param == "input" and caught.value.code == "string_above_max_length"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="guess").audio.speech.create(**asked)


def test_recordings_go_up_and_words_come_down(client: openai.OpenAI, wav_file: Path) -> None:
    with wav_file.open("rb") as file:
        events = list(client.audio.transcriptions.create(file=file, model="whisper-1", stream=True))
    assert events[-1].type == "transcript.text.done"


def test_a_voice_of_one_copy_is_known_to_the_other(client: openai.OpenAI, url: str, wav_file: Path) -> None:
    """Each of many requests speaks in it, whichever copy answers; the copies say by their metrics who did."""
    keyed = {"Authorization": "Bearer sesame"}
    given = {"files": {"audio_sample": wav_file.read_bytes()}, "data": {"name": "zoe"}, "headers": keyed}
    assert httpx.post(f"{url}/v1/audio/voices", **given, timeout=60).status_code == 200
    asked: dict[str, Any] = {"model": "tts-1", "voice": "zoe", "input": "one two", "response_format": "pcm"}
    with ThreadPoolExecutor(8) as pool:
        speak = lambda _: client.audio.speech.create(**asked, extra_body=BRIEF).read()  # noqa: E731
        assert len(set(pool.map(speak, range(24)))) == 1
    counts = set()
    for _ in range(40):
        text = httpx.get(f"{url}/metrics", headers=keyed, timeout=10).text
        counts |= {line for line in text.splitlines() if "gpa_worker_steps " in line and line[0] != "#"}
    assert len(counts) == 2, "both copies worked"
    assert httpx.delete(f"{url}/v1/audio/voices/zoe", headers=keyed, timeout=10).status_code == 200


def test_live_text(url: str) -> None:
    address = url.replace("http", "ws") + "/v1/audio/speech/stream"
    with connect(address, additional_headers={"Authorization": "Bearer sesame"}) as live:
        live.send(json.dumps({"type": "session.config", "voice": "anna", "response_format": "pcm", **BRIEF}))
        live.send(json.dumps({"type": "input.text", "text": "hello there. "}))
        live.send(json.dumps({"type": "input.done"}))
        got, last = 0, {}
        while last.get("type") != "session.done":
            message = live.recv(timeout=30)
            if isinstance(message, bytes):
                got += len(message)
            else:
                last = json.loads(message)
    assert got > 1000 and last["total_sentences"] == 1


def test_who_leaves_frees_the_copy(client: openai.OpenAI, url: str) -> None:
    """A client that goes in the middle ends the work, through Ray's proxy as well."""
    text = "this is a sentence. " * 240
    asked = {"model": "tts-1", "voice": "anna", "input": text, "response_format": "pcm"}
    with client.audio.speech.with_streaming_response.create(**asked, extra_body=BRIEF) as answer:
        next(answer.iter_bytes(1000))
    end, quiet = time.monotonic() + 30, 0
    while quiet < 10:  # times in a row: each is answered by one copy or the other
        text = httpx.get(f"{url}/metrics", headers={"Authorization": "Bearer sesame"}, timeout=10).text
        quiet = quiet + 1 if "gpa_jobs 0.0" in text and "gpa_slots_busy 0.0" in text else 0
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_copy_is_taken_once_its_model_is_there_and_while_its_worker_lives(tiny: Path) -> None:
    def health(app: Any) -> None:
        replica = Replica()
        replica.app = app
        asyncio.run(replica.check_health())

    model = GPA.from_pretrained(tiny, device="cpu", threads=1)
    with served(lambda: (time.sleep(1), (model, None))[1], ready=False) as server:
        assert server.app.state.service is None
        health(server.app)
        assert server.app.state.service.ready
        server.service.worker.stop()
        with pytest.raises(RuntimeError, match="the worker has died"):
            health(server.app)
    with pytest.raises(UsageError, match="no model"):
        health(SimpleNamespace(state=SimpleNamespace(service=None, error=UsageError("no model"))))


def test_options_are_those_of_the_server(tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("one\ntwo\n")
    copies = Copies(keys=keys, voices=tmp_path, settings={"requests": 8, "drain_seconds": 5})
    assert copies.bounds() == Settings(8, keys=("one", "two"), voices=tmp_path, drain_seconds=5.0)
    for wrong in ({"request": 8}, {"keys": 1}):
        with pytest.raises(UsageError, match="no such settings"):
            Copies(settings=wrong).bounds()
    with pytest.raises(ValueError, match="gpu"):
        Copies(**{"gpu": 1})
    assert application(copies)().state.service is None, "nothing is loaded where it is only made"


def test_the_page_gives_options_that_there_are(repo: Path) -> None:
    page = (repo / "docs/serving.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^serve run gpa\.serve\.ray_ingress:build (.+)$", page, re.MULTILINE)
    copies = Copies.model_validate(dict(word.split("=") for word in line.split()))
    assert (copies.device, copies.gpus, copies.replicas) == ("cuda", 1.0, 8)
    table = page.split("| argument | meaning |")[1].split("\n\n")[0]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split(" | ")[0])}
    assert named == set(Copies.model_fields)
