"""Random uploads by real HTTP, to every route that takes sound: harmed files, odd sound, forms that are none.

The answer is sound, text or a typed refusal that names the field, soon, and in little memory; afterwards
nothing is on its way. A client that breaks off in the middle of its upload leaves nothing, either.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import functools
import io
import json
import resource
import socket
import struct
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile
from websockets.sync.client import connect

from conftest import speechlike
from fuzz_sound import HARMS, KINDS, MEMORY, RATES, written
from gpa.models.gpa import GPA
from gpa.serve.settings import Settings
from serving import Served, served
from tiny_model import write_tiny_model
from tiny_speechop import tiny_speechop

SECONDS = 30.0  # that an answer may take on a busy machine
LIMIT = 1 << 20  # bytes of an upload
Form = list[tuple[str, tuple[str | None, bytes]]]  # name, (file name, content)
# Where sound goes: a path, and the fields of its form that are sound.
ROUTES = (
    ("/v1/audio/transcriptions", ("file",)),
    ("/v1/audio/conversions", ("file", "ref_audio")),
    ("/v1/audio/enhancements", ("file",)),
    ("/v1/audio/voices", ("audio_sample",)),
    ("/v1/speech-to-speech/anna", ("audio",)),
    ("/v1/audio-isolation", ("audio",)),
    ("/stt", ("file",)),
    ("/tts/a", ("ref_audio",)),
    ("/vc", ("src_audio", "ref_audio")),
)
PLAIN = {"steps": b"1", "response_format": b"pcm"}
FIELDS: dict[str, dict[str, bytes]] = {
    "/v1/audio/transcriptions": {"stream": b"true"},
    "/v1/audio/conversions": {**PLAIN, "mode": b"lm"},
    "/v1/audio/enhancements": PLAIN,
    "/tts/a": {"text": b"hello there"},
}


@functools.cache
def server() -> Served:
    """A server with small bounds, until the process ends."""
    life = contextlib.ExitStack()
    atexit.register(life.close)
    folder = Path(life.enter_context(tempfile.TemporaryDirectory(prefix="gpa-fuzz-")))
    model = GPA.from_pretrained(write_tiny_model(folder / "made"), device="cpu", threads=1)
    settings = Settings(audio_seconds=30, upload_bytes=LIMIT)
    return life.enter_context(served(model, settings, tiny_speechop()))


# Files ------------------------------------------------------------------------------------------------------


def harmed(random: np.random.Generator) -> bytes:
    """A file of any kind, with a lie in its header, a flipped byte or without its end."""
    kind, subtype = KINDS[random.integers(len(KINDS))]
    data = written(random, kind, subtype, 8000 if kind == "WVE" else int(random.choice(RATES)))
    return HARMS[random.integers(len(HARMS))](random, data, kind)


def odd(random: np.random.Generator) -> bytes:
    """Sound as nobody records it: rates, channels, samples that are no numbers, none at all."""
    wav = speechlike(random.uniform(0.01, 1.5), seed=int(random.integers(9)))
    rate = int(random.choice([1000, 4000, 16000, 96000, 192000]))
    wav = np.repeat(wav[: int(random.choice([0, 1, len(wav)])), None], random.choice([1, 2, 8]), axis=1)
    wav[random.random(len(wav)) < random.choice([0, 0.01, 1])] = random.choice([np.nan, np.inf, -1e30, 0])
    return encoded(wav, rate, "WAV", subtype="FLOAT")


def bomb(random: np.random.Generator) -> bytes:
    """Few bytes that decode to many: an hour of silence."""
    return hour("FLAC" if random.random() < 0.7 else "OGG")


def long(random: np.random.Generator) -> bytes:
    """A second whose header claims three hours, or more than there can be."""
    data = bytearray(encoded(speechlike(1.0), 16000, "WAV", subtype="PCM_16"))
    data[40:44] = struct.pack("<I", int(random.choice([3 * 3600 * 32000, 0xFFFFFFFF, 0x7FFFFFF0])))
    return bytes(data)


def strange(random: np.random.Generator) -> bytes:
    """No sound: nothing, text, pictures, archives, another program's files, noise, too much of it."""
    page, zipped = b"<html><script>alert(1)</script>", b"PK\x03\x04" + random.bytes(200)
    picture = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + bytes(13)
    packed = zlib.compress(bytes(1 << 24), 9)
    magic = bytes(str(random.choice(["RIFF", "fLaC", "OggS", "ID3", "FORM", ".snd", "caff"])), "ascii")
    choices = (b"", b"x", page, zipped, picture, packed, magic, magic + random.bytes(300), random.bytes(999),
               b'{"file": "/etc/passwd"}', b"https://example.org/a.wav", bytes(LIMIT + 1))  # fmt: skip
    return choices[random.integers(len(choices))]


def fair(random: np.random.Generator) -> bytes:
    """Speech."""
    return encoded(speechlike(random.uniform(0.3, 1.5), seed=int(random.integers(9))), 16000, "WAV")


FILES: tuple[Callable[[np.random.Generator], bytes], ...] = (
    harmed,
    odd,
    bomb,
    long,
    strange,
    fair,
    fair,
    fair,
)


def encoded(wav: np.ndarray, rate: int, form: str, **more: Any) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wav, rate, format=form, **more)
    return file.getvalue()


@functools.cache
def hour(form: str) -> bytes:
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 16000, 1, format=form) as out:
        for _ in range(3600):
            out.write(np.zeros(16000, np.float32))
    assert len(file.getvalue()) < LIMIT
    return file.getvalue()


# Forms ------------------------------------------------------------------------------------------------------


def as_it_should_be(random: np.random.Generator, form: Form) -> Form:
    return form


def a_field_is_missing(random: np.random.Generator, form: Form) -> Form:
    return [each for number, each in enumerate(form) if number != random.integers(len(form))]


def a_field_comes_twice(random: np.random.Generator, form: Form) -> Form:
    return form + [form[random.integers(len(form))]] * int(random.integers(1, 4))


def a_field_is_huge(random: np.random.Generator, form: Form) -> Form:
    return [*form, ("transcript", (None, b"a" * (1 << 21))), ("seed", (None, b"9" * 5000))]


def many_fields(random: np.random.Generator, form: Form) -> Form:
    return form + [(f"field {n}", (None, b"x")) for n in range(2000)]


def kinds_are_swapped(random: np.random.Generator, form: Form) -> Form:
    """Text where a file belongs, a file where text does."""
    return [(name, (None if file else "a.txt", data[:2000])) for name, (file, data) in form]


def names_are_paths(random: np.random.Generator, form: Form) -> Form:
    names = ("../../etc/passwd", "a" * 3000, "\x00.wav", "\u202e.wav", "con", "")
    return [
        (name, (names[random.integers(len(names))] if file else file, data)) for name, (file, data) in form
    ]


SHAPES: tuple[Callable[[np.random.Generator, Form], Form], ...] = (
    *(as_it_should_be,) * 6,
    *(a_field_is_missing, a_field_comes_twice, a_field_is_huge, many_fields),
    *(kinds_are_swapped, names_are_paths),
)


# Ways -------------------------------------------------------------------------------------------------------


def by_form(random: np.random.Generator, data: bytes) -> int:
    """A form of many parts; now and then one that is broken, or broken off."""
    path, names = ROUTES[random.integers(len(ROUTES))]
    bad = random.choice(names)  # the other recording is a fair one
    form: Form = [(name, ("a.wav", data if name == bad else fair(random))) for name in names]
    form += [(name, (None, value)) for name, value in FIELDS.get(path, {}).items()]
    if path == "/v1/audio/voices":
        form.append(("name", (None, random.bytes(6).hex().encode())))
    form = SHAPES[random.integers(len(SHAPES))](random, form)
    request = httpx.Request("POST", server().url + path, files=form or [("nothing", (None, b""))])
    body, head = request.read(), dict(request.headers)
    if random.random() < 0.1:
        return broken_off(random, path, head, body)
    if random.random() < 0.1:
        body = body[: random.integers(len(body))]  # complete, as far as HTTP knows
    head["content-length"] = str(len(body))
    answer = httpx.post(server().url + path, content=body, headers=head, timeout=SECONDS)
    return checked(answer.status_code, answer.content)


def broken_off(random: np.random.Generator, path: str, head: dict[str, str], body: bytes) -> int:
    """The client goes in the middle of its body."""
    host, port = server().url.removeprefix("http://").split(":")
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    request = f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(request[: random.integers(1, len(request))])
    return 499


def by_url(random: np.random.Generator, data: bytes) -> int:
    """Base64 in the JSON of speech; now and then none."""
    answer = httpx.post(f"{server().url}/v1/audio/speech", json=spoken(random, data), timeout=SECONDS)
    return checked(answer.status_code, answer.content)


def by_socket(random: np.random.Generator, data: bytes) -> int:
    """The same in the settings of a session, which goes on whatever is wrong."""
    with connect(f"{server().url.replace('http', 'ws')}/v1/audio/speech/stream", max_size=None) as client:
        given = spoken(random, data)
        client.send(json.dumps({"type": "session.config", **given}))
        client.send(json.dumps({"type": "input.text", "text": given["input"]}))
        client.send(json.dumps({"type": "input.done"}))
        status, event = 200, {"type": ""}
        while event["type"] != "session.done":
            message = client.recv(timeout=SECONDS)
            event = json.loads(message) if isinstance(message, str) else event
            if event["type"] == "error":
                error = json.dumps({"error": event["error"]}).encode()
                status = checked(500 if event["error"]["type"] == "server_error" else 400, error)
        return status


def spoken(random: np.random.Generator, data: bytes) -> dict[str, Any]:
    url = f"data:audio/wav;base64,{base64.b64encode(data).decode()}"
    cut = url[: random.integers(len(url))] if random.random() < 0.1 else url
    return {"input": "hello there", "ref_audio": cut, "response_format": "pcm", "max_new_tokens": 12}


def checked(status: int, body: bytes) -> int:
    """Nothing is the server's fault, but that a model that was never trained does not speak."""
    if status != 200:
        error = json.loads(body)["error"]
        assert error.keys() == {"message", "type", "param", "code"} and error["message"]
        assert status < 500 or error["code"] == "generation_failed", body
    return status


WAYS = (*(by_form,) * 4, by_url, by_socket)


def trial(random: np.random.Generator, folder: Path) -> bool:
    """One upload: answered in time and in little memory, and forgotten."""
    data = FILES[random.integers(len(FILES))](random)
    running = server()
    memory, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    status = WAYS[random.integers(len(WAYS))](random, data)
    assert time.monotonic() - begun < SECONDS, "took too long"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MEMORY, "took much memory"
    assert running.left(), "something is still on its way"
    return status == 200
