"""Live sound to text, by a real WebSocket and the official client: events, text, errors, who goes away."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import soxr
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as connect_now

from conftest import speechlike
from gpa.audio import pcm16
from gpa.models.gpa import GPA
from gpa.serve.settings import Settings
from serving import Served, served

RATE = 16000
DONE = "conversation.item.input_audio_transcription.completed"
DELTA = "conversation.item.input_audio_transcription.delta"
Event = dict[str, Any]


@pytest.fixture(scope="module")
def model(tiny: Path) -> GPA:
    return GPA.from_pretrained(tiny, device="cpu", threads=1)


@pytest.fixture(scope="module")
def server(model: GPA) -> Iterator[Served]:
    with served(model, Settings(audio_seconds=30)) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_stays(server: Served) -> Iterator[None]:
    yield
    assert server.settled() and server.service.worker.engine.cache.used == 0


def address(server: Served, query: str = "?intent=transcription") -> str:
    return server.url.replace("http", "ws") + "/v1/realtime" + query


def samples(wav: np.ndarray) -> bytes:
    return pcm16(wav).astype("<i2").tobytes()


class Client:
    """Sends events, and collects what comes."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self.events = socket, []

    async def send(self, kind: str, **more: Any) -> None:
        await self.socket.send(json.dumps({"type": kind, **more}))

    async def say(self, data: bytes, size: int = 4001) -> None:
        for begin in range(0, len(data), size):
            audio = base64.b64encode(data[begin : begin + size]).decode()
            await self.send("input_audio_buffer.append", audio=audio)

    async def until(self, kind: str) -> Event:
        while True:
            event = json.loads(await asyncio.wait_for(self.socket.recv(), 30))
            assert event["event_id"] not in {other["event_id"] for other in self.events}
            self.events.append(event)
            if event["type"] == kind:
                return event

    async def update(self, **given: Any) -> Event:
        await self.send("session.update", session={"type": "transcription", "audio": {"input": given}})
        return (await self.until("session.updated"))["session"]["audio"]["input"]

    def texts(self) -> dict[str, str]:
        """The transcripts of items, in their order; deltas must add up to them."""
        order = [e["item_id"] for e in self.events if e["type"] == "input_audio_buffer.committed"]
        done = {e["item_id"]: e["transcript"] for e in self.events if e["type"] == DONE}
        for item, text in done.items():
            assert (
                "".join(e["delta"] for e in self.events if e["type"] == DELTA and e["item_id"] == item)
                == text
            )
        return {item: done[item] for item in order if item in done}

    def kinds(self, item: str) -> list[str]:
        found = [e["type"].rpartition(".")[2] for e in self.events if e.get("item_id") == item]
        return [kind for n, kind in enumerate(found) if kind != "delta" or found[n - 1] != "delta"]


def talk(server: Served, script: Callable[[Client], Awaitable[None]]) -> Client:
    async def run() -> Client:
        async with connect(address(server), max_size=None) as socket:
            client = Client(socket)
            assert (await client.until("session.created"))["session"]["type"] == "transcription"
            await script(client)
            return client

    return asyncio.run(run())


@pytest.mark.parametrize("rate", [24000, 16000, 8000, 44100])
def test_a_commit_ends_an_item_whose_text_is_that_of_the_recording(
    server: Served, model: GPA, rate: int
) -> None:
    first, second = (samples(soxr.resample(speechlike(s, seed=n), RATE, rate)) for n, s in ((1, 3), (2, 2)))

    async def script(client: Client) -> None:
        found = await client.update(format={"type": "audio/pcm", "rate": rate}, turn_detection=None)
        assert found["format"]["rate"] == rate and found["turn_detection"] is None
        for sound in (first, second):
            await client.say(sound)
            await client.send("input_audio_buffer.commit")
        for _ in range(2):
            await client.until(DONE)

    client = talk(server, script)
    wanted = [model.asr((np.frombuffer(sound, "<i2") / 32768, rate)).text for sound in (first, second)]
    texts = client.texts()
    assert list(texts.values()) == wanted and all(wanted)
    committed = [e for e in client.events if e["type"] == "input_audio_buffer.committed"]
    assert [e["previous_item_id"] for e in committed] == [None, committed[0]["item_id"]]
    for item in texts:
        assert client.kinds(item) == ["committed", "delta", "completed"]
    done = [e for e in client.events if e["type"] == DONE]
    assert sorted(e["usage"]["seconds"] for e in done) == [2, 3] and all(
        e["content_index"] == 0 for e in done
    )


def test_turns_are_those_of_the_model_and_together_the_text_of_the_recording(repo: Path) -> None:
    """On gpa-mini: two sentences with a pause, noise before them and a tone that is no speech between."""
    model = GPA.from_pretrained("gpa-mini", device="cpu", threads=1)
    said = [model.tts(text, seed=1).wav for text in ("Good morning, my friends.", "How are you today?")]
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    rest = 1e-4 * np.random.default_rng(0).standard_normal(2 * RATE)
    wav = np.concatenate([rest, said[0], rest, tone, rest, said[1], rest[:RATE]])
    sound = samples(soxr.resample(wav, RATE, 24000))
    whole = model.asr((np.frombuffer(sound, "<i2") / 32768, 24000))

    async def script(client: Client) -> None:
        await client.say(sound, 4800)
        started = await client.until("input_audio_buffer.speech_started")
        assert abs(started["audio_start_ms"] - 2000) < 400
        await client.until(DONE)
        await client.send("input_audio_buffer.commit")
        await client.until(DONE)
        while len(client.texts()) < len({e["item_id"] for e in client.events if "item_id" in e}):
            await client.until(DONE)

    with served(model) as server:
        client = talk(server, script)
        assert server.settled()
    texts = client.texts()
    assert " ".join(filter(None, texts.values())) == whole.text
    assert len(whole.segments) == 2 and "morning" in whole.text and "today" in whole.text
    for item in texts:
        kinds = client.kinds(item)
        assert [k for k in kinds if k != "delta"] == [
            "speech_started", "speech_stopped", "committed", "completed"
        ]  # fmt: skip
    stopped = [e["audio_end_ms"] for e in client.events if e["type"].endswith("speech_stopped")]
    assert stopped == sorted(stopped) and stopped[-1] <= 1000 * len(wav) / RATE


def test_clear_forgets_the_buffer_alone(server: Served, model: GPA) -> None:
    sound = samples(speechlike(2))

    async def script(client: Client) -> None:
        await client.update(format={"rate": RATE}, turn_detection=None)
        await client.say(samples(speechlike(3, seed=5)))
        await client.send("input_audio_buffer.clear")
        await client.until("input_audio_buffer.cleared")
        assert server.settled(5), "nobody waits for what was cleared"
        await client.say(sound)
        await client.send("input_audio_buffer.commit")
        await client.until(DONE)

    wanted = model.asr((np.frombuffer(sound, "<i2") / 32768, RATE)).text
    assert list(talk(server, script).texts().values()) == [wanted]


def test_a_commit_in_the_middle_of_speech_ends_its_turn(server: Served) -> None:
    """And begins no other: each item that is said to begin is said to end."""

    async def script(client: Client) -> None:
        for _ in range(2):
            await client.say(samples(speechlike(2.0, rate=24000)))
            await client.send("input_audio_buffer.commit")
            await client.until(DONE)
        await client.update(turn_detection=None)

    client = talk(server, script)
    items = {event["item_id"] for event in client.events if "item_id" in event}
    assert len(items) == 2
    for item in items:
        kinds = [kind for kind in client.kinds(item) if kind != "delta"]
        assert kinds == ["speech_started", "speech_stopped", "committed", "completed"]


def test_silence_has_no_turns_and_an_empty_transcript(server: Served) -> None:
    async def script(client: Client) -> None:
        await client.say(bytes(48000 * 3))
        await client.send("input_audio_buffer.commit")
        await client.update(turn_detection=None)
        await client.say(bytes(48000))
        await client.send("input_audio_buffer.commit")
        assert (await client.until(DONE))["transcript"] == ""

    client = talk(server, script)
    assert not any("speech" in event["type"] for event in client.events)


def test_errors_say_what_is_wrong_and_the_session_goes_on(server: Served) -> None:
    append = "input_audio_buffer.append"

    async def script(client: Client) -> None:
        for event, param, code in (
            ({"type": "nothing"}, "type", "unknown_event"),
            ({"type": append}, "audio", "invalid_value"),
            ({"type": append, "audio": "*"}, None, "invalid_value"),
            ({"type": "input_audio_buffer.commit"}, None, "input_audio_buffer_commit_empty"),
            ({"type": "session.update"}, "session", "invalid_value"),
            ({"type": "session.update", "session": {"type": "realtime"}}, "session.type", "invalid_value"),
            (_update(format={"type": "audio/pcmu"}), "session.audio.input.format.type", "invalid_value"),
            (_update(format={"rate": 1}), "session.audio.input.format.rate", "invalid_value"),
            (_update(transcription={"model": "other"}), "model", "model_not_found"),
        ):
            await client.socket.send(json.dumps({**event, "event_id": "mine"}))
            error = (await client.until("error"))["error"]
            assert (error["param"], error["code"], error["event_id"]) == (param, code, "mine")
        await client.update(turn_detection=None, transcription={"model": "whisper-1", "language": "en"})
        await client.say(bytes(48000 * 31), 480_000)
        await client.say(bytes(100))
        assert (await client.until("error"))["error"]["code"] == "audio_too_long"
        await client.socket.send(json.dumps(_update(format={"rate": 16000})))
        assert (await client.until("error"))["error"]["code"] == "buffer_not_empty"
        await client.send("input_audio_buffer.clear")
        await client.until("input_audio_buffer.cleared")

    talk(server, script)


def _update(**given: Any) -> Event:
    return {"type": "session.update", "session": {"audio": {"input": given}}}


def test_conversations_are_refused(server: Served) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect_now(address(server, "?model=gpt-realtime"))
    assert refused.value.response.status_code == 400
    assert json.loads(refused.value.response.body)["error"]["param"] == "intent"


def test_the_official_client_reads_it(server: Served, model: GPA) -> None:
    sound = samples(speechlike(2))
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    query = {"intent": "transcription"}
    kinds, text = [], ""
    with client.realtime.connect(model="whisper-1", extra_query=query) as connection:
        session = {"type": "transcription", "audio": {"input": {
            "format": {"type": "audio/pcm", "rate": 24000}, "turn_detection": None}}}  # fmt: skip
        connection.session.update(session=session)
        connection.input_audio_buffer.append(audio=base64.b64encode(sound).decode())
        connection.input_audio_buffer.commit()
        for event in connection:
            kinds.append(event.type)
            if event.type == DONE:
                text = event.transcript
                break
    assert kinds[:3] == ["session.created", "session.updated", "input_audio_buffer.committed"]
    assert text == model.asr((np.frombuffer(sound, "<i2") / 32768, 24000)).text
