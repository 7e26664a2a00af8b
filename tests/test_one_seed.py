"""One seed, one answer: the same PCM by every interface, alone and among 32 clients at once."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from conftest import speechlike
from gpa import audio
from gpa.engine.scheduler import Engine
from gpa.models.gpa import GPA
from gpa.serve.settings import Settings
from serving import Served, served
from tiny_model import write_keen_model

RATE = 16000
TEXT = "a quick brown fox jumps over the lazy dog."
Take = Callable[[], Any]


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Of a codec that tells voices and sounds apart."""
    keen = write_keen_model(tiny, tmp_path_factory.mktemp("keen") / "tiny")
    model = GPA.from_pretrained(keen, device="cpu", threads=1)
    for seed, name in enumerate(("anna", "ben"), 1):
        model.add_voice(name, model.voice((speechlike(3.0, seed=seed), RATE), name=name))
    with served(model, Settings(requests=64, per_client=64)) as running:
        yield running


def given(seed: int) -> dict[str, Any]:
    """Voices, and how strongly the text guides, change with the seed."""
    drawn = {"seed": seed, "temperature": 0.9, "gamma": float(seed % 2), "max_new_tokens": 60}
    return {"voice": ("anna", "ben")[seed // 2 % 2], "response_format": "pcm", "sample_rate": RATE, **drawn}


def posted(server: Served, path: str, **more: Any) -> httpx.Response:
    answer = httpx.post(f"{server.url}/v1/audio/{path}", timeout=120, **more)
    assert answer.status_code == 200, answer.text
    return answer


def raw(server: Served, seed: int) -> bytes:
    return posted(server, "speech", json={"input": TEXT, **given(seed)}).content


def complete(server: Served, seed: int) -> bytes:
    return posted(server, "speech", json={"input": TEXT, "stream": False, **given(seed)}).content


def events(server: Served, seed: int) -> bytes:
    told = posted(server, "speech", json={"input": TEXT, "stream_format": "sse", **given(seed)}).text
    found = [json.loads(line[6:]) for line in told.splitlines() if line.startswith("data: ")]
    assert found[-1]["type"] == "speech.audio.done"
    return b"".join(base64.b64decode(each.get("audio", "")) for each in found)


def batch(server: Served, seed: int) -> bytes:
    """As the second of three, beside other seeds."""
    items = [{"input": TEXT, **given(other)} for other in (seed + 50, seed, seed + 51)]
    results = posted(server, "speech/batch", json={"items": items}).json()["results"]
    return base64.b64decode(results[1]["audio_data"])


def live(server: Served, seed: int) -> bytes:
    """As the second sentence of an utterance that comes bit by bit."""
    made: list[bytes] = []
    with connect(server.url.replace("http", "ws") + "/v1/audio/speech/stream") as socket:
        for message in (
            {"type": "session.config", **given(seed)},
            *({"type": "input.text", "text": bit} for bit in ("hello there, how", " are you? ", TEXT)),
            {"type": "input.done"},
        ):
            socket.send(json.dumps(message))
        while not isinstance(message := socket.recv(120), str) or "session.done" not in message:
            if isinstance(message, bytes):
                made[-1] += message
            elif json.loads(message)["type"] == "audio.start":
                made.append(b"")
    return made[1]


WAYS = (raw, complete, events, batch, live)


def file(seed: int) -> dict[str, bytes]:
    return {"file": audio.to_bytes(speechlike(2.0, seed=seed), RATE)}


def read(server: Served, seed: int) -> str:
    text = posted(server, "transcriptions", files=file(seed), data={"seed": seed}).json()["text"]
    assert text
    return text


def converted(server: Served, seed: int) -> bytes:
    data = {"voice": "ben", "seed": seed, "temperature": 0.9, "response_format": "pcm", "sample_rate": RATE}
    return posted(server, "conversions", files=file(seed), data=data).content


def together(takes: list[Take]) -> list[Any]:
    """What all of them get, who ask at once."""
    gate = threading.Barrier(len(takes))

    def one(take: Take) -> Any:
        gate.wait(30)
        return take()

    with ThreadPoolExecutor(len(takes)) as pool:
        return list(pool.map(one, takes))


def test_one_seed_has_one_answer(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is that of the package; also among 32 clients of all kinds, whose rows share the engine's steps."""
    model = server.service.model
    names = ("seed", "temperature", "gamma", "max_new_tokens")
    wanted = {}
    for seed in range(4):
        options = {name: given(seed)[name] for name in names}
        wav = model.tts(TEXT, given(seed)["voice"], **options).wav
        wanted[seed] = audio.pcm16(wav).astype("<i2").tobytes()
    assert len(set(wanted.values())) == 4 and min(map(len, wanted.values())) > RATE
    for way in WAYS:
        assert way(server, 2) == wanted[2], f"{way.__name__}, alone"
    others = [*((read, seed) for seed in range(6)), *((converted, seed) for seed in range(6))]
    alone = [take(server, seed) for take, seed in others]
    assert len(set(alone)) > 6, "answers tell seeds and sounds apart"

    beside, real = [0], Engine.step

    def step(engine: Engine) -> Any:
        beside.append(engine.cache.used)
        return real(engine)

    monkeypatch.setattr(Engine, "step", step)
    clients = [*((way, seed) for seed in range(4) for way in WAYS), *others]
    assert len(clients) == 32
    made = together([lambda take=take, seed=seed: take(server, seed) for take, seed in clients])  # type: ignore[misc]
    for (take, seed), answer in zip(clients, made, strict=True):
        expected = wanted[seed] if take in WAYS else alone[others.index((take, seed))]
        assert answer == expected, f"{take.__name__} of seed {seed}, among {len(clients)}"
    assert max(beside) > 16, "they were not beside each other"
    assert server.settled() and server.service.worker.engine.cache.used == 0
