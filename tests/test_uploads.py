"""Every route that takes sound, with each kind of file that is none or that nobody records."""

from __future__ import annotations

import base64
import json
import resource
import struct

import httpx
import numpy as np
import pytest

from conftest import speechlike
from fuzz_uploads import FIELDS, LIMIT, ROUTES, Form, encoded, hour, server
from gpa.audio import decoding
from gpa.serve import uploads

SOUND = speechlike(1.0, seed=3)
WAV = encoded(SOUND, 16000, "WAV", subtype="PCM_16")
FLAC = encoded(SOUND, 16000, "FLAC")
REFUSED = {
    "nothing": b"",
    "another type": b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + bytes(200),
    "a truncated WAV": WAV[: len(WAV) // 2],
    "a truncated FLAC": FLAC[: len(FLAC) // 2],
    "three hours in one second": WAV[:40] + struct.pack("<I", 3 * 3600 * 32000) + WAV[44:],
    "an hour in a few bytes": hour("FLAC"),
    "a few bytes of a tag": b"ID3",
}
ODD = {  # read as sound, or refused by name
    "no numbers": encoded(np.full(4000, np.nan, np.float32), 16000, "WAV", subtype="FLOAT"),
    "no ends": encoded(np.full(4000, np.inf, np.float32), 16000, "WAV", subtype="FLOAT"),
    "eight channels": encoded(np.tile(SOUND[:, None], (1, 8)), 48000, "WAV"),
    "1 kHz": encoded(SOUND[:1000], 1000, "WAV"),
    "192 kHz": encoded(np.repeat(SOUND, 12), 192000, "WAV"),
    "one sample": encoded(SOUND[:1], 16000, "WAV"),
}
FIELDS_OF_SOUND = [(path, name) for path, names in ROUTES for name in names]


def post(path: str, field: str, data: bytes, *more: tuple[str, tuple[str | None, bytes]]) -> httpx.Response:
    names = dict(ROUTES)[path]
    form: Form = [(name, ("a.wav", data if name == field else WAV)) for name in names]
    form += [(name, (None, value)) for name, value in FIELDS.get(path, {}).items()]
    form += [("name", (None, b"unheard of"))] if path == "/v1/audio/voices" else []
    return httpx.post(server().url + path, files=[*form, *more], timeout=60)


@pytest.mark.parametrize(("path", "field"), FIELDS_OF_SOUND)
def test_each_file_is_read_or_refused_by_the_name_of_its_field(path: str, field: str) -> None:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for what, data in {**REFUSED, **ODD}.items():
        answer = post(path, field, data)
        if what in REFUSED or answer.status_code != 200:
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (400, field), f"{what}: {answer.text}"
            assert error["code"] == "invalid_audio", what
        if path == "/v1/audio/voices":
            httpx.delete(f"{server().url}{path}/unheard of")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200 << 10
    assert server().left()


@pytest.mark.parametrize(("path", "field"), FIELDS_OF_SOUND)
def test_a_form_that_is_none_is_refused(path: str, field: str) -> None:
    """Without the file, with text in its place, with more fields or longer ones than anybody needs."""
    missing = httpx.post(server().url + path, files={"other": (None, b"x")}, timeout=60)
    as_text = httpx.post(server().url + path, files={field: (None, b"/etc/hostname")}, timeout=60)
    many = post(path, field, WAV, *((f"x{n}", (None, b"x")) for n in range(2000)))
    huge = post(path, field, WAV, ("huge", (None, bytes(2 << 20))))
    for answer in (missing, as_text, many, huge):
        assert answer.status_code in (400, 413, 422), answer.text
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert server().left()


def test_a_field_that_comes_twice_counts_once() -> None:
    """As with forms in general the last one counts: the file that is read is the one that is refused."""
    for data, status in ((WAV, 200), (b"none", 400)):
        answer = post("/stt", "file", b"none" if data is WAV else WAV, ("file", ("b.wav", data)))
        assert answer.status_code == status, answer.text


@pytest.mark.parametrize("what", [*REFUSED, *ODD])
def test_sound_in_base64_is_read_or_refused(what: str) -> None:

    data = {**REFUSED, **ODD}[what]
    url = f"data:audio/wav;base64,{base64.b64encode(data).decode()}"
    given = {"input": "hello there", "ref_audio": url, "response_format": "pcm", "max_new_tokens": 8}
    answer = httpx.post(f"{server().url}/v1/audio/speech", json=given, timeout=60)
    assert answer.status_code in ((400,) if what in REFUSED else (200, 400)), answer.text
    if answer.status_code == 400:
        assert json.loads(answer.content)["error"]["param"] == "ref_audio"
    assert server().left()


@pytest.mark.parametrize(("seconds", "times"), [(1, 1), (2, 2)])
@pytest.mark.parametrize(
    "path", ["/v1/audio/transcriptions", "/v1/audio/conversions", "/v1/audio/enhancements"]
)
def test_a_short_upload_is_decoded_once(
    monkeypatch: pytest.MonkeyPatch, path: str, seconds: int, times: int
) -> None:
    """A longer one, whose samples would fill the memory, once more as it is used; the answer is the same."""
    field, decoded = dict(ROUTES)[path][0], []
    data, opened = encoded(speechlike(seconds, seed=3), 44100, "WAV"), decoding.opened
    usual = post(path, field, data)
    assert usual.status_code == 200, usual.text

    def noted(source: object) -> object:
        decoded.append(source == data)
        return opened(source)

    monkeypatch.setattr(decoding, "opened", noted)
    monkeypatch.setattr(uploads, "HELD_SECONDS", 0.6)  # 16,000 samples at 44.1 kHz are 0.36 s
    assert post(path, field, data).content == usual.content
    assert sum(decoded) == times


def test_sound_in_base64_may_be_as_large_as_an_upload() -> None:
    """Which a body, that may be larger, does not see to."""
    given = {"input": "hello there", "response_format": "pcm", "max_new_tokens": 8}
    most = (LIMIT - len(WAV)) // 2 + len(SOUND)  # samples in a file as large as may be
    for samples, status in ((most, 200), (most + 1, 400)):
        data = encoded(np.resize(SOUND, samples), 32000, "WAV", subtype="PCM_16")
        url = f"data:audio/wav;base64,{base64.b64encode(data).decode()}"
        answer = httpx.post(f"{server().url}/v1/audio/speech", json={**given, "ref_audio": url}, timeout=60)
        assert answer.status_code == status, answer.text
    assert "are the limit" in answer.json()["error"]["message"]
