"""Speech while a text is written, by a real WebSocket: order, bytes, cancelling, errors, who goes away."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect as connect_now

from conftest import speechlike
from gpa.models.gpa import GPA
from gpa.serve import sockets, worker
from gpa.serve.settings import Settings
from serving import Served, served

TEXT = "Good morning, Dr. Smith. How are you? I am fine"
SENTENCES = ["Good morning, Dr. Smith.", "How are you?", "I am fine"]
BRIEF = {"seed": 7, "max_new_tokens": 12, "response_format": "pcm"}
Event = dict[str, Any]


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[Served]:
    model = GPA.from_pretrained(tiny, device="cpu", threads=1)
    with served(model, Settings(text_characters=2000)) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_stays(server: Served) -> Iterator[None]:
    yield
    assert server.settled() and server.service.worker.engine.cache.used == 0


def address(server: Served) -> str:
    return server.url.replace("http", "ws") + "/v1/audio/speech/stream"


class Client:
    """Sends messages, and collects what comes."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self.events, self.sound = socket, [], {}

    async def send(self, kind: str, **more: Any) -> None:
        await self.socket.send(json.dumps({"type": kind, **more}))

    async def until(self, kind: str) -> Event:
        """Read until an event of a kind."""
        while True:
            message = await asyncio.wait_for(self.socket.recv(), 20)
            if isinstance(message, bytes):
                key = self.events[-1]["utterance_index"], self.events[-1]["sentence_index"]
                assert self.events[-1]["type"] == "audio.start", "sound is between start and done"
                self.sound[key] = self.sound.get(key, b"") + message
                continue
            event = json.loads(message)
            self.events.append(event)
            if event["type"] == kind:
                return event


def talk(server: Served, script: Callable[[Client], Awaitable[None]]) -> Client:
    async def run() -> Client:
        async with connect(address(server), max_size=None) as socket:
            client = Client(socket)
            await script(client)
            return client

    return asyncio.run(run())


def posted(server: Served, text: str, **given: Any) -> bytes:
    body = json.dumps({"input": text, **given}).encode()
    request = urllib.request.Request(
        f"{server.url}/v1/audio/speech", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.read()


@pytest.mark.parametrize(
    "given",
    [
        BRIEF,
        {**BRIEF, "response_format": "wav", "voice": "ben", "seed": 3},
        {**BRIEF, "response_format": "mp3", "sample_rate": 16000, "speed": 1.5},
        {**BRIEF, "response_format": "flac", "stream_audio": True, "items": [], "input": "is not said"},
    ],
)
def test_sentences_have_the_bytes_of_a_post(server: Served, given: Event) -> None:
    """Whatever the bits in which the text comes, and though sentences are made side by side."""

    async def script(client: Client) -> None:
        await client.send("session.config", **given)
        for bit in [TEXT[n : n + 4] for n in range(0, len(TEXT), 4)]:
            await client.send("input.text", text=bit)
        await client.send("input.done")
        assert (await client.until("session.done"))["total_sentences"] == 3

    client = talk(server, script)
    kinds = [event["type"] for event in client.events]
    assert kinds == ["audio.start", "audio.done"] * 3 + ["session.done"]
    starts = client.events[:-1:2]
    assert [start["sentence_text"] for start in starts] == SENTENCES
    assert {start["format"] for start in starts} == {given["response_format"]}
    assert {start["sample_rate"] for start in starts} == {given.get("sample_rate", 24000)}
    given = {name: value for name, value in given.items() if name not in ("input", "stream_audio")}
    for number, text in enumerate(SENTENCES):
        done = client.events[2 * number + 1]
        assert client.sound[0, number] == posted(server, text, **given)
        assert done["total_bytes"] == len(client.sound[0, number]) and not done["error"]
        assert done["sentence_index"] == number and done["finish_reason"] == "length"


def test_a_reference_is_listened_to_once_in_a_session(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not once a sentence, nor again for the same one; what cannot be copied is told of its settings."""
    file = io.BytesIO()
    soundfile.write(file, speechlike(3.0, seed=5), 16000, format="WAV")
    reference = "data:audio/wav;base64," + base64.b64encode(file.getvalue()).decode()
    model, listened = server.service.model, 0

    def counted(*given: Any, **more: Any) -> Any:
        nonlocal listened
        listened += 1
        return GPA.voice(model, *given, **more)

    async def script(client: Client) -> None:
        await client.send("session.config", **BRIEF, ref_audio=reference)
        await client.send("input.text", text=TEXT)
        await client.send("input.done")
        await client.until("session.done")
        await client.send("session.config", **BRIEF, ref_audio=reference, speed=2)
        await client.send("session.config", **BRIEF, ref_audio="file:///etc/passwd")
        assert (await client.until("error"))["error"]["param"] == "ref_audio"
        await client.send("input.text", text="Still fast.")
        await client.send("input.done")
        await client.until("session.done")
        await client.send("session.config", **BRIEF)
        await client.send("input.text", text="As before.")
        await client.send("input.done")
        await client.until("session.done")

    monkeypatch.setattr(model, "voice", counted)
    client = talk(server, script)
    assert listened == 1
    for number, text in enumerate(SENTENCES):
        assert client.sound[0, number] == posted(server, text, **BRIEF, ref_audio=reference)
    assert client.sound[1, 0] == posted(server, "Still fast.", **BRIEF, ref_audio=reference, speed=2)
    assert client.sound[2, 0] == posted(server, "As before.", **BRIEF)


def test_the_first_sentence_is_spoken_before_the_second_is_written(server: Served) -> None:
    async def script(client: Client) -> None:
        await client.send("session.config", **BRIEF)
        await client.send("input.text", text="Good morning. And")
        assert (await client.until("audio.done"))["total_bytes"] > 0
        await client.send("input.text", text=" then some.")
        await client.send("input.done")
        await client.until("session.done")
        await client.send("input.text", text="Another text.")  # the connection stays
        await client.send("input.done")
        assert (await client.until("session.done"))["utterance_index"] == 1

    client = talk(server, script)
    said = {(e["utterance_index"], e["sentence_index"]): e["sentence_text"]
            for e in client.events if e["type"] == "audio.start"}  # fmt: skip
    assert said == {(0, 0): "Good morning.", (0, 1): "And then some.", (1, 0): "Another text."}


def test_a_sentence_in_one_frame_is_a_complete_body(server: Served) -> None:
    async def script(client: Client) -> None:
        await client.send("session.config", **{**BRIEF, "response_format": "wav"}, stream_audio=False)
        await client.send("input.text", text="Good morning.")
        await client.send("input.done")
        await client.until("session.done")

    wav = talk(server, script).sound[0, 0]
    assert wav == posted(server, "Good morning.", **{**BRIEF, "response_format": "wav"}, stream=False)
    assert int.from_bytes(wav[4:8], "little") == len(wav) - 8


def test_cancel_forgets_what_was_not_heard_and_the_session_goes_on(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "UNREAD", 0)  # what nobody reads and nobody cancels stays for ever

    async def script(client: Client) -> None:
        await client.send("session.config", seed=7, response_format="pcm", max_new_tokens=400)
        await client.send("input.text", text="One is here. " * 60 + "Four")
        await client.until("audio.start")
        end = time.monotonic() + 10
        while len(server.service.worker.jobs) < 3 and time.monotonic() < end:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # they are on their way: it is not their beginning that is cancelled
        await client.send("input.cancel")
        assert (await client.until("session.done"))["cancelled"]
        assert server.settled(5), "cancelled work is forgotten"
        await client.send("input.cancel")  # of nothing
        assert await client.until("session.done") == {
            "type": "session.done", "utterance_index": 1, "total_sentences": 0, "cancelled": True
        }  # fmt: skip
        await client.send("session.config", **BRIEF)
        await client.send("input.text", text="Good morning.")
        await client.send("input.done")
        assert (await client.until("session.done"))["utterance_index"] == 2

    client = talk(server, script)
    assert client.sound[2, 0] == posted(server, "Good morning.", **BRIEF)
    done = next(event for event in client.events if event.get("cancelled") and event["type"] == "audio.done")
    assert done["total_bytes"] == len(client.sound.get((0, done["sentence_index"]), b""))
    assert not any("Four" in event.get("sentence_text", "") for event in client.events)


def test_what_fails_is_told_and_the_session_goes_on(server: Served) -> None:
    unsayable = "第一。"  # the tiny model has no letters for it

    async def script(client: Client) -> None:
        await client.send("session.config", **BRIEF)
        for message, param in (
            ({"type": "session.config", "voice": "nobody"}, "voice"),
            ({"type": "session.config", "speed": 9}, "speed"),
            ({"type": "session.config", "model": "other"}, "model"),
            ({"type": "input.text"}, "text"),
            ({"type": "input.text", "text": "x" * 3000}, "text"),
            ({"type": "input.unknown"}, "type"),
            ({"no": "type"}, None),
            ([1], None),
        ):
            await client.socket.send(json.dumps(message))
            error = await client.until("error")
            assert error["error"]["param"] == param and error["message"] == error["error"]["message"]
        for message in ("{", b"bytes", "[" * 100_000):
            await client.socket.send(message)
            assert (await client.until("error"))["error"]["code"] == "invalid_message"
        await client.send("input.text", text=f"Good morning. {unsayable} How are you?")
        await client.send("input.done")
        assert (await client.until("session.done"))["total_sentences"] == 3

    client = talk(server, script)
    assert client.sound[0, 0] == posted(server, SENTENCES[0].replace(", Dr. Smith", ""), **BRIEF)
    assert client.sound[0, 2] == posted(server, "How are you?", **BRIEF)
    spoken = [e["type"] for e in client.events if e.get("sentence_index") == 1]
    assert spoken == ["audio.start", "error", "audio.done"] and (0, 1) not in client.sound


def test_an_idle_connection_is_closed_and_a_busy_one_is_not(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "IDLE", 0.2)

    async def script(client: Client) -> None:
        await client.send("session.config", seed=7, response_format="pcm", max_new_tokens=300)
        await client.send("input.text", text="One is here. " * 40)
        await client.send("input.done")
        await client.until("session.done")
        assert (await client.until("error"))["error"]["code"] == "idle_timeout"
        with pytest.raises(ConnectionClosed):
            await client.until("anything")
        assert client.socket.close_code == 1008

    talk(server, script)


def test_session_close_ends_it(server: Served) -> None:
    async def script(client: Client) -> None:
        await client.send("input.text", text="One is here. Two is here. ")
        await client.until("audio.start")
        await client.send("session.close")
        with pytest.raises(ConnectionClosed):
            await client.until("anything")
        assert client.socket.close_code == 1000

    talk(server, script)


def test_before_it_is_ready_the_answer_is_503(server: Served) -> None:
    server.service.draining = True
    try:
        with pytest.raises(InvalidStatus) as refused:
            connect_now(address(server))
        assert refused.value.response.status_code == 503
        assert json.loads(refused.value.response.body)["error"]["code"] == "unavailable"
    finally:
        server.service.draining = False


def test_a_server_that_stops_lets_a_client_hear_the_end(server: Served) -> None:
    async def script(client: Client) -> None:
        await client.send("session.config", **BRIEF)
        await client.send("input.text", text="One is here. " * 20)
        await client.send("input.done")
        await client.until("audio.start")
        server.service.draining = True
        try:
            assert (await client.until("session.done"))["total_sentences"] == 20
            with pytest.raises(ConnectionClosed):
                await client.until("anything")
        finally:
            server.service.draining = False
        assert client.socket.close_code == 1012

    talk(server, script)


def test_a_client_that_does_not_read_holds_up_nobody(server: Served) -> None:
    with connect_now(address(server)) as slow:
        slow.send(json.dumps({"type": "session.config", **BRIEF, "max_new_tokens": 200}))
        slow.send(json.dumps({"type": "input.text", "text": "One is here. " * 100}))
        done = threading.Event()
        thread = threading.Thread(target=lambda: (posted(server, "How are you?", **BRIEF), done.set()))
        thread.start()
        assert done.wait(20)
        thread.join()
