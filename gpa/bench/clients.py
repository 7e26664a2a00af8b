"""Who asks in `gpa bench serve`: requests over HTTP as clients send them, and what a client gets of each.

Knows no model: a server is measured by what goes over the wire. A thread a stream, on connections of its own.
"""

from __future__ import annotations

import base64
import io
import json
import random
import threading
import time
import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from itertools import count
from typing import Any

from gpa.bench.figures import played
from gpa.bench.material import SENTENCES
from gpa.errors import GenerationError

SPEECH, EVENTS, TRANSCRIPTION, CONVERSION = KINDS = ("speech", "events", "transcription", "conversion")
SERVED, FULL = "200", "429"
CLIPS = 4  # recordings that are transcribed and converted: sentences that the server speaks
RATE = 24_000  # Hz of the sound that comes back
BLOCK = 1 << 16  # bytes that are read at once, at most
PAUSE = 0.25  # seconds that a stream waits after an error, unless the server names a time
BOUNDARY = "gpa-bench-boundary"


@dataclass(frozen=True)
class Asked:
    """A request: where it goes and its body; `sound` are the seconds of a recording in it."""

    kind: str
    path: str
    media_type: str
    body: bytes
    sound: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What became of a request: `status` is that of HTTP, or says how the answer was wrong.

    Seconds from the request to the first sound (or text) and to the end, of sound that was made (or read),
    and of waiting of a player that begins with the first sound. Only of what was served are they known.
    """

    kind: str
    status: str
    first: float = 0.0
    total: float = 0.0
    sound: float = 0.0
    underrun: float = 0.0


# Requests ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mix:
    """Requests by number: the same number is the same request, whoever sends it, in every run."""

    cycle: Sequence[str]  # kinds in turn
    voices: Sequence[str]
    clips: Sequence[bytes]  # WAV
    options: Mapping[str, Any] = field(default_factory=dict)  # of speech

    def request(self, number: int) -> Asked:
        """The request of a number; the number is its seed, too."""
        draw, kind = random.Random(number), self.cycle[number % len(self.cycle)]
        voice = draw.choice(self.voices)
        if kind in (SPEECH, EVENTS):
            text = draw.choice(SENTENCES)
            return speech(text, voice, number, kind, stream=kind == EVENTS or None, **self.options)
        clip = draw.choice(self.clips)
        if kind == TRANSCRIPTION:
            path, fields = "/v1/audio/transcriptions", {"stream": "true"}
        else:
            path = "/v1/audio/conversions"
            fields = {"voice": voice, "response_format": "pcm", "seed": str(number)}
        return Asked(
            kind, path, f"multipart/form-data; boundary={BOUNDARY}", _form(fields, clip), _length(clip)
        )


def cycle(shares: Mapping[str, int]) -> list[str]:
    """Kinds in turn, each as often as its share says, as evenly as that is simple."""
    return [kind for turn in range(max(shares.values())) for kind in KINDS if turn < shares.get(kind, 0)]


def speech(text: str, voice: str, seed: int, kind: str = SPEECH, form: str = "pcm", **more: Any) -> Asked:
    """A text to be spoken."""
    given = {"input": text, "voice": voice, "seed": seed, "response_format": form, **more}
    body = {name: value for name, value in given.items() if value is not None}
    return Asked(kind, "/v1/audio/speech", "application/json", json.dumps(body).encode())


def prepare(host: str, port: int, shares: Mapping[str, int], options: Mapping[str, Any]) -> Mix:
    """What a server is asked: it speaks the recordings itself, and then answers one request of each kind.

    GenerationError, with what it says, if it cannot.
    """
    connection = HTTPConnection(host, port)
    voices = [voice["name"] for voice in json.loads(_fetched(connection, "/v1/audio/voices"))["data"]]
    if not voices:
        raise GenerationError("the server has no voices: take a model that has some")
    clips = [
        _fetched(connection, speech(text, voices[n % len(voices)], n, form="wav", stream=False, **options))
        for n, text in enumerate(SENTENCES[:CLIPS])
    ]
    mix = Mix(cycle(shares), voices, clips, options)
    for number in range(len(mix.cycle)):
        _fetched(connection, mix.request(number))
    connection.close()
    return mix


def _fetched(connection: HTTPConnection, asked: Asked | str) -> bytes:
    if isinstance(asked, str):
        connection.request("GET", asked)
    else:
        connection.request("POST", asked.path, asked.body, {"Content-Type": asked.media_type})
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        kind = asked if isinstance(asked, str) else asked.kind
        raise GenerationError(f"{kind}: the server answers {answer.status}: {body[:500].decode()}")
    return body


def _form(fields: Mapping[str, str], clip: bytes) -> bytes:
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="clip.wav"\r\n\r\n'
    return b"".join([*parts, head.encode(), clip, f"\r\n--{BOUNDARY}--\r\n".encode()])


def _length(clip: bytes) -> float:
    with wave.open(io.BytesIO(clip)) as file:
        return file.getnframes() / file.getframerate()


# Answers ----------------------------------------------------------------------------------------------------


def ask(connection: HTTPConnection, asked: Asked) -> tuple[Outcome, float]:
    """Send a request and read its answer as a client does; seconds to wait before the next one."""
    began = time.perf_counter()
    try:
        connection.request("POST", asked.path, asked.body, {"Content-Type": asked.media_type})
        answer = connection.getresponse()
        if answer.status != 200:
            answer.read()
            wait = float(answer.headers.get("retry-after-ms", 1000 * PAUSE)) / 1000
            return Outcome(asked.kind, str(answer.status)), wait
        return _heard(asked, began, answer), 0.0
    except TimeoutError:
        status = "stalled"
    except (HTTPException, OSError):
        status = "broken off"
    except GenerationError as error:
        status = str(error)
    except ValueError:
        status = "unreadable"
    connection.close()
    return Outcome(asked.kind, status), PAUSE


def _heard(asked: Asked, began: float, answer: HTTPResponse) -> Outcome:
    """Of an answer that has begun. GenerationError, which says why, if it cannot be used."""
    if asked.kind == TRANSCRIPTION:
        told = [(time.perf_counter(), event) for event in _events(answer, "transcript.text.done")]
        first = next(at for at, event in told if event.get("delta") or event is told[-1][1])
        return Outcome(asked.kind, SERVED, first - began, told[-1][0] - began, asked.sound)
    chunks = [(time.perf_counter(), size / 2 / RATE) for size in _sizes(asked.kind, answer)]
    found = played(began, [*chunks, (time.perf_counter(), 0.0)])
    return Outcome(asked.kind, SERVED, found.first, found.total, found.audio, found.underrun)


def _sizes(kind: str, answer: HTTPResponse) -> Iterator[int]:
    """Bytes of sound, as they come."""
    if kind == EVENTS:
        for event in _events(answer, "speech.audio.done"):
            yield len(base64.b64decode(event.get("audio", "")))
        return
    total = 0
    while data := answer.read1(BLOCK):
        total += len(data)
        yield len(data)
    if total % 2:
        raise GenerationError("half a sample")


def _events(answer: HTTPResponse, last: str) -> Iterator[dict[str, Any]]:
    """Events as they come. GenerationError for an error among them, or if `last` is not the last."""
    kind, rest = "", b""
    while data := answer.read1(BLOCK):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                if "error" in event:
                    raise GenerationError("error event")
                kind = event.get("type", "")
                yield event
    if kind != last:
        raise GenerationError("no last event")


# Streams ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """What so many streams got, and the seconds from the first request to the end of the last answer."""

    streams: int
    outcomes: Sequence[Outcome]
    seconds: float


def closed_loop(
    address: tuple[str, int],
    mix: Mix,
    streams: int,
    seconds: float,
    patience: float,
    watch: Callable[[float, int], None],
) -> Load:
    """So many streams, each of which sends its next request when it has the answer to its last.

    No request begins after `seconds`; those on their way are waited for. An answer of which nothing comes for
    `patience` seconds is given up. `watch` is told now and then the seconds passed and how many ended; what
    it raises ends everything.
    """
    outcomes: list[Outcome] = []
    numbers, stop = count(), threading.Event()
    began = time.perf_counter()

    def stream() -> None:
        connection = HTTPConnection(*address, timeout=patience)
        while not stop.is_set() and time.perf_counter() - began < seconds:
            outcome, wait = ask(connection, mix.request(next(numbers)))
            outcomes.append(outcome)
            stop.wait(min(wait, max(0.0, seconds - time.perf_counter() + began)))
        connection.close()

    with ThreadPoolExecutor(streams) as pool:
        tasks = [pool.submit(stream) for _ in range(streams)]
        try:
            while not all(task.done() for task in tasks):
                watch(time.perf_counter() - began, len(outcomes))
                time.sleep(0.1)
        finally:
            stop.set()
        for task in tasks:
            task.result()
    return Load(streams, outcomes, time.perf_counter() - began)
