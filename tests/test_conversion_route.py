"""Sound to sound over HTTP: conversions, enhancements, and the routes of ElevenLabs and of the reference."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

from conftest import speechlike
from gpa.audio.encoders import encoded
from gpa.models.gpa import GPA
from gpa.serve.settings import Settings
from serving import Served, served
from tiny_model import write_keen_model
from tiny_speechop import tiny_speechop

RATE = 16000


@pytest.fixture(scope="module")
def model(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> GPA:
    """Of a codec that tells voices apart."""
    keen = write_keen_model(tiny, tmp_path_factory.mktemp("keen") / "tiny")
    model = GPA.from_pretrained(keen, device="cpu", threads=1)
    for seed, name in enumerate(("anna", "ben"), 1):
        model.add_voice(name, model.voice((speechlike(3.0, seed=seed), RATE), name=name))
    return model


@pytest.fixture(scope="module")
def running(model: GPA) -> Iterator[Served]:
    with served(model, Settings(upload_bytes=1 << 20, audio_seconds=20), tiny_speechop()) as running:
        yield running


@pytest.fixture
def server(running: Served) -> Iterator[Served]:
    yield running
    assert running.settled(), "something is still on its way"


@pytest.fixture(scope="module")
def wav() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, speechlike(2.0), RATE, format="WAV")
    return file.getvalue()


def post(server: Served, path: str, files: dict[str, bytes], **fields: Any) -> httpx.Response:
    sent = {name: ("a.wav", data) for name, data in files.items()}
    return httpx.post(f"{server.url}{path}", files=sent, data=fields, timeout=60)


def good(answer: httpx.Response) -> bytes:
    assert answer.status_code == 200, answer.text
    return answer.content


@pytest.mark.parametrize("mode", ["lm", "codec"])
def test_a_conversion_is_that_of_the_model(server: Served, model: GPA, wav: bytes, mode: str) -> None:
    """The same bytes streamed, complete and as events; and as the model converts alone."""
    asked = {"voice": "ben", "mode": mode, "response_format": "pcm"}
    streamed = good(post(server, "/v1/audio/conversions", {"file": wav}, **asked))
    complete = post(server, "/v1/audio/conversions", {"file": wav}, **asked, stream="false")
    events = good(post(server, "/v1/audio/conversions", {"file": wav}, **asked, stream_format="sse")).decode()
    *deltas, done = (json.loads(line[6:]) for line in events.strip().split("\n\n"))
    alone = model.vc(wav, "ben", mode=mode)
    assert streamed == good(complete) == encoded("pcm", alone.wav, RATE, 24000)
    assert b"".join(base64.b64decode(delta["audio"]) for delta in deltas) == streamed
    assert done["type"] == "speech.audio.done" and done["usage"]["output_tokens"] == len(alone.tokens)
    assert complete.headers["x-finish-reason"] == alone.finish_reason
    odd = post(server, "/v1/audio/conversions", {"file": wav}, **asked, stability="0.5")
    assert good(odd) == streamed and odd.headers["x-ignored-fields"] == "stability"


def test_a_voice_may_be_that_of_a_recording(server: Served, model: GPA, wav: bytes) -> None:
    file = io.BytesIO()
    soundfile.write(file, speechlike(3.0, seed=5), RATE, format="FLAC")
    files, asked = {"file": wav, "ref_audio": file.getvalue()}, {"response_format": "pcm", "mode": "lm"}
    alone = model.vc(wav, model.voice(file.getvalue()), mode="lm")
    made = good(post(server, "/v1/audio/conversions", files, **asked))
    assert made == encoded("pcm", alone.wav, RATE, 24000)
    files = {"src_audio": wav, "ref_audio": file.getvalue()}
    made = good(post(server, "/vc", files, temperature=0.2, repetition_penalty=1.2))
    alone = model.vc(wav, model.voice(file.getvalue()), temperature=0.2, repetition_penalty=1.2)
    assert made == encoded("wav", alone.wav, RATE, RATE)
    said = good(post(server, "/tts/a", {"ref_audio": file.getvalue()}, text="hello there"))
    assert said == encoded(
        "wav", model.tts("hello there", model.voice(file.getvalue()), stream=False).wav, RATE, RATE
    )


def test_enhancement_is_that_of_the_model(server: Served, wav: bytes) -> None:
    asked = {"response_format": "wav", "sample_rate": RATE, "stream": "false", "seed": 3, "steps": 2}
    made = good(post(server, "/v1/audio/enhancements", {"file": wav}, **asked))
    enhancer = server.service.enhancer
    assert enhancer is not None
    alone = enhancer.enhance(wav, seed=3, steps=2)
    assert made == encoded("wav", alone.wav, alone.sample_rate, RATE)


def test_the_routes_of_elevenlabs(server: Served, wav: bytes) -> None:
    path = "/v1/speech-to-speech/ben"
    ours = good(
        post(
            server,
            "/v1/audio/conversions",
            {"file": wav},
            voice="ben",
            response_format="pcm",
            sample_rate=RATE,
        )
    )
    theirs = post(
        server, f"{path}/stream?output_format=pcm_16000", {"audio": wav}, model_id="eleven_english_sts_v2"
    )
    assert good(theirs) == ours and theirs.headers["content-type"] == "audio/pcm"
    samples = (np.clip(soundfile.read(io.BytesIO(wav))[0], -1, 1) * 32768).astype("<i2").tobytes()
    raw = post(server, f"{path}?output_format=pcm_16000", {"audio": samples}, file_format="pcm_s16le_16")
    assert good(raw) == ours
    for answer in (post(server, path, {"audio": wav}), post(server, "/v1/audio-isolation", {"audio": wav})):
        sound, rate = soundfile.read(io.BytesIO(good(answer)))
        assert rate == 44100 and len(sound) and answer.headers["content-type"] == "audio/mpeg"


@pytest.mark.parametrize(
    ("path", "name", "fields", "status", "param"),
    [
        ("/v1/audio/conversions", "file", {"voice": "nobody"}, 400, "voice"),
        ("/v1/audio/conversions", "file", {"mode": "codec", "temperature": 1}, 400, "mode"),
        ("/v1/audio/conversions", "file", {"response_format": "midi"}, 400, "response_format"),
        ("/v1/audio/conversions", "file", {"model": "other"}, 404, "model"),
        ("/v1/audio/enhancements", "file", {"transcript": " "}, 400, "transcript"),
        ("/v1/audio/enhancements", "file", {"steps": 0}, 400, "steps"),
        ("/v1/speech-to-speech/nobody", "audio", {}, 400, "voice"),
        ("/v1/speech-to-speech/ben?output_format=ulaw_8000", "audio", {}, 400, "output_format"),
        ("/v1/speech-to-speech/ben", "audio", {"file_format": "mp2"}, 400, "file_format"),
        ("/v1/audio-isolation", "file", {}, 400, "audio"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    server: Served, wav: bytes, path: str, name: str, fields: dict[str, Any], status: int, param: str
) -> None:
    answer = post(server, path, {name: wav}, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/audio/conversions", "file"),
        ("/v1/audio/enhancements", "file"),
        ("/v1/speech-to-speech/ben", "audio"),
        ("/v1/audio-isolation", "audio"),
    ],
)
def test_uploads_are_bounded(server: Served, path: str, name: str) -> None:
    bomb = io.BytesIO()
    soundfile.write(bomb, np.zeros(21 * RATE), RATE, format="FLAC")
    for data, status in ((b"no sound", 400), (bomb.getvalue(), 400), (bytes((1 << 20) + 1), 413)):
        answer = post(server, path, {name: data})
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, name)


def test_who_goes_away_leaves_nothing(server: Served, wav: bytes) -> None:
    for path in ("/v1/audio/conversions", "/v1/audio/enhancements"):
        for seconds in (0.02, 0.1):
            try:
                httpx.post(f"{server.url}{path}", files={"file": wav}, data={"mode": "lm"}, timeout=seconds)
            except httpx.TimeoutException:
                pass
