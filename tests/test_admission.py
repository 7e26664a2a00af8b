"""Who is let in, how many at once and for how long; what is counted and logged of each request."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from fastapi import Response, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from websockets.sync.client import ClientConnection, connect

from gpa import audio
from gpa.models.gpa import GPA
from gpa.models.gpa.options_gpa import SpeechOptions
from gpa.serve.admission import Admitted
from gpa.serve.app import create_app
from gpa.serve.service import Serving
from gpa.serve.settings import Settings
from serving import Served, served

LONG = "one two three. four five six. " * 200
SPEAK = "/v1/test/speak"


@pytest.fixture(scope="module")
def model(tiny: Path) -> GPA:
    return GPA.from_pretrained(tiny, device="cpu", threads=1)


async def speak(text: str, service: Serving, admitted: Admitted) -> StreamingResponse:
    """A real text on the real worker, with as little around it as can be."""
    options = SpeechOptions(max_new_tokens=12)
    voice = service.voices["anna"]
    admitted.allow(len(text) / 15)
    job = await service.worker.submit(lambda engine: service.model.utterance(engine, text, voice, options))

    async def body() -> AsyncIterator[bytes]:
        async for chunk in job:
            admitted.make(chunk.seconds)
            yield chunk.wav.tobytes()

    return StreamingResponse(body(), media_type="audio/pcm")


@contextlib.contextmanager
def serving(model: GPA, **settings: object) -> Iterator[Served]:
    with served(model, Settings(**settings)) as server:  # type: ignore[arg-type]
        server.app.post(SPEAK)(speak)
        yield server


@pytest.fixture
def lines() -> Iterator[list[dict]]:
    """What the access log says."""
    found: list[dict] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(json.loads(record.getMessage()))  # type: ignore[method-assign]
    log = logging.getLogger("gpa.access")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield found
    log.removeHandler(handler)


def numbers(server: Served, headers: dict[str, str] | None = None) -> dict[str, float]:
    """The metrics, read as Prometheus reads them."""
    from prometheus_client.parser import text_string_to_metric_families as parse

    answer = httpx.get(f"{server.url}/metrics", headers=headers)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=")
    found = {}
    for family in parse(answer.text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def until(true, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not (done := true()) and time.monotonic() < end:
        time.sleep(0.01)
    return bool(done)


def test_too_many_are_told_when_to_ask_again(model: GPA) -> None:
    """The official client does, and is served: it needs no more than our headers."""
    with serving(model, requests=2) as server:
        refused = []

        def note(response: httpx.Response) -> None:
            if response.status_code == 429:
                refused.append(response)

        http = openai.DefaultHttpxClient(event_hooks={"response": [note]})
        client = openai.OpenAI(api_key="-", base_url=f"{server.url}/v1", max_retries=20, http_client=http)
        with contextlib.ExitStack() as open_:
            url = f"{server.url}{SPEAK}"
            both = [open_.enter_context(httpx.stream("POST", url, params={"text": LONG})) for _ in range(2)]
            assert [each.status_code for each in both] == [200, 200]
            threading.Timer(0.5, open_.pop_all().close).start()  # both leave, and their places are free
            answer = client.post("/test/speak?text=hello", cast_to=httpx.Response)
        assert len(answer.content) > 1000 and refused
        for each in refused:
            assert int(each.headers["retry-after"]) >= 1 and float(each.headers["retry-after-ms"]) > 0
            assert each.headers["x-should-retry"] == "true"
        assert server.left()
        assert numbers(server)["gpa_requests_in_flight{}"] == 0


def test_one_client_does_not_take_the_places_of_another(model: GPA) -> None:
    with serving(model, requests=3, per_client=1, keys=("sk-one", "sk-two")) as server:
        url = f"{server.url}{SPEAK}"
        one, two = {"Authorization": "Bearer sk-one"}, {"X-API-Key": "sk-two"}
        with httpx.stream("POST", url, params={"text": LONG}, headers=one) as first:
            assert first.status_code == 200
            again = httpx.post(url, params={"text": "hello"}, headers=one)
            assert again.status_code == 429 and again.json()["error"]["type"] == "rate_limit_error"
            assert httpx.post(url, params={"text": "hello"}, headers=two).status_code == 200
            found = numbers(server, one)
            assert found["gpa_requests_in_flight{}"] == 1
            assert until(lambda: numbers(server, one)["gpa_jobs{}"] == 1)
            assert until(lambda: numbers(server, one)["gpa_slots_busy{}"] > 0)
            assert found[f"gpa_requests_total{{method=POST,route={SPEAK},status=429}}"] == 1
        assert server.left()
        found = numbers(server, one)
        for each in ("requests_in_flight", "jobs", "queue", "slots_busy"):
            assert found[f"gpa_{each}{{}}"] == 0, each
        assert httpx.post(url, params={"text": "hello"}, headers=one).status_code == 200


def test_keys(model: GPA, lines: list[dict], caplog: pytest.LogCaptureFixture) -> None:
    """Either header; nothing that a client shows is ever logged; health and the page are for everybody."""
    caplog.set_level(logging.DEBUG)
    with serving(model, keys=("sk-first", "sk-second")) as server:

        def status(path: str = "/v1/audio/voices", **headers: str) -> int:
            return httpx.get(server.url + path, headers=headers).status_code

        assert status() == status(**{"X-API-Key": "sk-firs"}) == status(Authorization="Bearer x") == 401
        assert status(Authorization="Basic sk-first") == status("/metrics") == status("/v1/nothing") == 401
        assert status(Authorization="Bearer sk-second") == status(**{"X-API-Key": "sk-first"}) == 200
        assert status("/health/live") == status("/health/ready") == status("/health") == 200
        wrong = openai.OpenAI(api_key="sk-wrong-secret", base_url=f"{server.url}/v1", max_retries=0)
        with pytest.raises(openai.AuthenticationError) as caught:
            wrong.models.list()
        assert caught.value.code == "invalid_api_key" and caught.value.request_id
    assert [line["client"] for line in lines if line["status"] == 200][:2] == ["key 2", "key 1"]
    ours = [record.getMessage() for record in caplog.records if record.name.startswith(("gpa", "uvicorn"))]
    assert len(ours) >= len(lines) and "sk-" not in " ".join(ours)


def test_a_websocket_passes_the_same_gate(model: GPA) -> None:
    app = create_app(lambda: (model, None), Settings(keys=("sk-live",), per_client=1))

    @app.websocket("/v1/test/live")
    async def live(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(await socket.receive_text())
        await socket.close()

    with TestClient(app) as client:
        assert until(lambda: app.state.service)
        with pytest.raises(Exception) as refused, client.websocket_connect("/v1/test/live"):
            pass
        assert getattr(refused.value, "status_code", getattr(refused.value, "code", 0)) in (401, 1008)
        for shown in ({"Authorization": "Bearer sk-live"}, {"X-API-Key": "sk-live"}):
            with client.websocket_connect("/v1/test/live", headers=shown) as socket:
                socket.send_text("hello")
                assert socket.receive_text() == "hello"
        protocols = ["realtime", "openai-insecure-api-key.sk-live"]
        with client.websocket_connect("/v1/test/live", subprotocols=protocols) as socket:
            with (
                pytest.raises(Exception) as second,
                client.websocket_connect("/v1/test/live", headers={"X-API-Key": "sk-live"}),
            ):
                pass
            assert getattr(second.value, "status_code", getattr(second.value, "code", 0)) in (429, 1008)
            socket.send_text("hello")
            assert socket.receive_text() == "hello"


def test_a_time_budget_grows_with_the_sound(model: GPA) -> None:
    """What takes longer is 408; a stream of events says so in its last; any other breaks off."""
    with serving(model, seconds=0.2, seconds_per_second=0.1) as server:

        @server.app.post("/v1/test/wait")
        async def wait(admitted: Admitted, sound: float = 0) -> dict:
            admitted.allow(sound)
            await asyncio.sleep(0.6)
            return {}

        @server.app.post("/v1/test/events")
        async def events(kind: str) -> StreamingResponse:
            async def slow() -> AsyncIterator[bytes]:
                yield b"data: {}\n\n"
                await asyncio.sleep(5)

            return StreamingResponse(slow(), media_type=kind)

        late = httpx.post(f"{server.url}/v1/test/wait")
        assert late.status_code == 408 and late.json()["error"]["type"] == "timeout_error"
        assert late.headers["x-should-retry"] == "true" and late.headers["x-request-id"]
        assert httpx.post(f"{server.url}/v1/test/wait?sound=60").status_code == 200
        told = httpx.post(f"{server.url}/v1/test/events", params={"kind": "text/event-stream"})
        assert told.status_code == 200 and '"code": "timeout"' in told.text.splitlines()[-2]
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.post(f"{server.url}/v1/test/events", params={"kind": "audio/pcm"})
        assert server.left(), "who is late frees the place"


def test_who_leaves_is_forgotten_although_the_route_does_not_look(model: GPA, lines: list[dict]) -> None:
    with serving(model) as server:
        ended = threading.Event()

        @server.app.post("/v1/test/wait")
        async def wait() -> Response:
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()
            return Response()

        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/test/wait", timeout=0.3)
        assert ended.wait(5)
        assert until(lambda: [line["status"] for line in lines] == [499])


def test_a_body_is_bounded_whatever_it_says_of_its_length(model: GPA) -> None:
    with serving(model, upload_bytes=1000) as server:
        url = f"{server.url}/v1/audio/voices"

        def endless() -> Iterator[bytes]:
            yield b'--x\r\nContent-Disposition: form-data; name="audio_sample"; filename="a.wav"\r\n\r\n'
            for _ in range(64):
                yield bytes(1 << 16)

        large = httpx.post(url, files={"audio_sample": bytes(2 << 20)}, data={"name": "large"})
        unstated = httpx.post(
            url, content=endless(), headers={"content-type": "multipart/form-data; boundary=x"}
        )
        for answer in (large, unstated):
            assert answer.status_code == 413 and answer.json()["error"]["code"] == "too_large"


def test_what_is_counted_and_logged(model: GPA, lines: list[dict]) -> None:
    with serving(model) as server:
        url = f"{server.url}{SPEAK}"
        chosen = httpx.post(url, params={"text": "hello there"}, headers={"x-request-id": "mine-1"})
        httpx.post(url, params={"text": "hello there"}, headers={"x-request-id": "not one\tof ours"})
        bad = httpx.post(url)
        httpx.get(f"{server.url}/wp-admin")
        httpx.get(f"{server.url}/another")
        found = numbers(server)
        assert chosen.headers["x-request-id"] == "mine-1"
        assert found[f"gpa_requests_total{{method=POST,route={SPEAK},status=200}}"] == 2
        assert found[f"gpa_requests_total{{method=POST,route={SPEAK},status=400}}"] == 1
        assert found["gpa_requests_total{method=GET,route=other,status=404}"] == 2
        assert found[f"gpa_first_audio_seconds_count{{route={SPEAK}}}"] == 2
        seconds = 2 * len(chosen.content) / 4 / model.sample_rate
        assert found["gpa_audio_seconds_total{direction=out}"] == pytest.approx(seconds)
        assert found["gpa_encode_failures_total{}"] == found["gpa_queue{}"] == found["gpa_jobs{}"] == 0
        assert found["gpa_slots{}"] > 1 and found["gpa_worker_steps{}"] > 1
    assert [line["status"] for line in lines[:5]] == [200, 200, 400, 404, 404]
    first, second, third = lines[:3]
    assert first["request_id"] == "mine-1" and second["request_id"].startswith("req_")
    assert third["request_id"] == bad.headers["x-request-id"]
    assert first["bytes_out"] == len(chosen.content) and first["route"] == first["path"] == SPEAK
    assert first["seconds"] >= first["first_byte"] > 0
    assert first["audio_out"] == pytest.approx(seconds / 2, abs=0.001)


def test_the_loop_turns_while_the_worker_computes_and_the_pool_is_starved(model: GPA) -> None:
    """Each step of the engine lasts 50 ms: the loop ticks many times within it; a pool that is full of
    work that does not end holds up no text and no question after health.
    """
    with serving(model) as server:
        service, free = server.service, threading.Event()
        step, ticks, within = service.worker.engine.step, [0], []

        def slow():
            before = ticks[0]
            time.sleep(0.05)
            made = step()
            within.append(ticks[0] - before)
            return made

        service.worker.engine.step = slow  # type: ignore[method-assign]

        @server.app.post("/v1/test/tick")
        async def tick() -> None:
            while not free.is_set():
                ticks[0] += 1
                await asyncio.sleep(0.002)

        for _ in range(8):
            service.pool.submit(free.wait)
        ticking = threading.Thread(target=httpx.post, args=(f"{server.url}/v1/test/tick",))
        ticking.start()
        assert until(lambda: ticks[0])
        try:
            answer = httpx.post(f"{server.url}{SPEAK}", params={"text": "hello there"}, timeout=30)
            ready = httpx.get(f"{server.url}/health/ready")
        finally:
            free.set()
            ticking.join(10)
        assert answer.status_code == ready.status_code == 200 and len(answer.content) > 1000
        assert len(within) > 5 and sorted(within)[len(within) // 2] >= 3, within


def test_with_every_thread_of_the_pool_busy_the_loop_answers_and_cancels(model: GPA) -> None:
    """What needs the pool waits; health is answered at once, and who leaves is forgotten."""
    with serving(model) as server:
        service, free = server.service, threading.Event()
        stuck = [service.pool.submit(free.wait) for _ in range(2)]
        assert until(lambda: all(each.running() for each in stuck)), "the pool has more threads than that"
        body = {"input": LONG, "max_new_tokens": 12, "response_format": "pcm"}
        wav = {"file": audio.to_bytes(np.zeros(16000, np.float32), 16000)}
        try:
            for path, given in (("speech", {"json": body}), ("transcriptions", {"files": wav})):
                with pytest.raises(httpx.ReadTimeout):
                    httpx.post(f"{server.url}/v1/audio/{path}", timeout=0.5, **given)  # type: ignore[arg-type]
                asked = time.monotonic()
                assert httpx.get(f"{server.url}/health/live", timeout=5).status_code == 200
                assert httpx.get(f"{server.url}/metrics", timeout=5).status_code == 200
                assert time.monotonic() - asked < 2
                assert server.left(5), "who left is still on the way"
        finally:
            free.set()
        made = httpx.post(f"{server.url}/v1/audio/speech", json={**body, "input": "hello there"}, timeout=30)
        assert made.status_code == 200 and len(made.content) > 1000


def test_routes_tell_how_much_sound_there_is(model: GPA, second: np.ndarray) -> None:
    """So that it is counted, and what takes long because it is long has the time."""
    with serving(model) as server:
        body = {"input": "hello there", "response_format": "pcm", "sample_rate": 16000, "max_new_tokens": 12}
        made = httpx.post(f"{server.url}/v1/audio/speech", json=body).content
        batch = {"items": [body, body]}
        assert httpx.post(f"{server.url}/v1/audio/speech/batch", json=batch).status_code == 200
        file = {"file": audio.to_bytes(second, 16000)}
        heard = httpx.post(f"{server.url}/v1/audio/transcriptions", files=file, timeout=30)
        assert heard.status_code == 200
        found = numbers(server)
        assert found["gpa_audio_seconds_total{direction=out}"] == pytest.approx(3 * len(made) / 2 / 16000)
        assert found["gpa_audio_seconds_total{direction=in}"] == pytest.approx(1)


def test_sockets_tell_how_much_sound_there_is(model: GPA, second: np.ndarray) -> None:
    """It is counted when they close, as that of any other request is."""
    with serving(model) as server:
        where = server.url.replace("http", "ws")
        with connect(f"{where}/v1/audio/speech/stream") as socket:
            for message in (
                {"type": "session.config", "response_format": "pcm", "max_new_tokens": 12},
                {"type": "input.text", "text": "hello there. how are you?"},
                {"type": "input.done"},
            ):
                socket.send(json.dumps(message))
            made = 0.0
            while (event := told(socket))["type"] != "session.done":
                made += event.get("duration", 0.0)
        with connect(f"{where}/v1/realtime?intent=transcription") as socket:
            data = base64.b64encode(audio.pcm16(second).astype("<i2").tobytes()).decode()
            given = {"format": {"type": "audio/pcm", "rate": 16000}, "turn_detection": None}
            for message in (
                {"type": "session.update", "session": {"type": "transcription", "audio": {"input": given}}},
                {"type": "input_audio_buffer.append", "audio": data},
                {"type": "input_audio_buffer.commit"},
            ):
                socket.send(json.dumps(message))
            while not told(socket)["type"].endswith(".completed"):
                pass
        assert made > 0.5
        assert until(lambda: numbers(server)["gpa_audio_seconds_total{direction=in}"] == pytest.approx(1))
        assert numbers(server)["gpa_audio_seconds_total{direction=out}"] == pytest.approx(made)


def told(socket: ClientConnection) -> dict:
    """The next event; sound is none."""
    while isinstance(message := socket.recv(20), bytes):
        pass
    return json.loads(message)
