"""`gpa serve` as people and process managers use it: in a process of its own, ended by signals."""

import contextlib
import dataclasses
import os
import re
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

from gpa.cli import commands, main
from gpa.cli.serving import BOUNDS
from gpa.serve.settings import Settings

COMMAND = [sys.executable, "-m", "gpa", "serve"]
SPEECH = {"voice": "anna", "temperature": 0.7, "max_new_tokens": 12, "response_format": "pcm"}


@contextlib.contextmanager
def running(*words: str | Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """The process and where it says that it listens; killed at the end if it still runs."""
    command = [*COMMAND, *map(str, words), "--speechop", "none", "--device", "cpu", "--threads", "1"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"BROWSER": "echo"},
    )
    try:
        assert process.stderr
        said = next((line for line in process.stderr if "serving at" in line), "")
        assert said, "it ended"
        yield process, said.split("serving at ")[1].strip()
    finally:
        process.kill()
        process.communicate()


def test_a_terminated_server_answers_what_is_on_its_way(tiny: Path) -> None:
    """Then it ends with 0; who comes later is refused. What is beyond the bounds of the options is, too."""
    text = " ".join(f"this is sentence {n}." for n in range(200))
    with running(tiny, "--port", "0", "--text-characters", len(text)) as (process, url):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "tiny"
        refused = httpx.post(f"{url}/v1/audio/speech", json={"input": text + "."})
        assert refused.json()["error"]["code"] == "string_above_max_length"
        body = {"input": text, **SPEECH}
        wanted = httpx.post(f"{url}/v1/audio/speech", json=body | {"stream": False}, timeout=60).content
        with httpx.stream("POST", f"{url}/v1/audio/speech", json=body, timeout=60) as answer:
            blocks = answer.iter_bytes()
            got = next(blocks)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            assert httpx.get(f"{url}/v1/models", timeout=2).status_code == 503
            assert len(got) < len(wanted) / 2 and got + b"".join(blocks) == wanted
        assert process.wait(30) == 0
        assert process.stderr and "the server has ended" in process.stderr.read()


def test_a_server_that_drains_too_long_ends_all_the_same(tiny: Path) -> None:
    text = "this is a sentence. " * 3000
    with running(tiny, "--port", "0", "--drain-seconds", "1") as (process, url):
        broken = threading.Event()

        def listen() -> None:
            with contextlib.suppress(httpx.TransportError):
                httpx.post(
                    f"{url}/v1/audio/speech",
                    json={"input": text, **SPEECH, "max_new_tokens": 500},
                    timeout=60,
                )
                return
            broken.set()

        thread = threading.Thread(target=listen)
        thread.start()
        time.sleep(2)
        began = time.monotonic()
        process.terminate()
        process.wait(30)
        assert time.monotonic() - began < 15
        thread.join(10)
        assert broken.is_set()


def test_a_socket_of_unix(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "gpa.sock"
    with running(tiny, "--uds", path) as (process, where):
        assert where == f"unix:{path}"
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
            assert client.get("http://gpa/v1/models/tiny").json()["id"] == "tiny"
            made = client.post(
                "http://gpa/v1/audio/speech", json={"input": "hello there", **SPEECH}, timeout=60
            )
            assert made.status_code == 200 and len(made.content) > 1000
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_wrong_use_is_told_before_the_model_is_loaded(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "keys.txt"
    empty.write_text("\n\n")
    monkeypatch.setattr(commands, "load", lambda args: pytest.fail("it is loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        wrong = {
            ("--keys", str(empty)): "without --keys anybody may ask",
            ("--requests", "0"): "--requests 0: more than 0",
            ("--port", "70000"): "--port 70000: 0 to 65535",
            ("--host", "no.such.host.invalid"): "choose another --host or --port",
            ("--port", str(taken.getsockname()[1])): "choose another --host or --port",
        }
        for words, what in wrong.items():
            assert main.main(["serve", str(tiny), *words]) == 2
            assert what in capsys.readouterr().err


def test_every_setting_is_an_option() -> None:
    others = ("keys", "voices", "require_consent")
    assert {field.name for field in dataclasses.fields(Settings)} == {*BOUNDS, *others}
    shown = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True).stdout
    for name in (*BOUNDS, *others):
        assert f"--{name.replace('_', '-')}" in shown
