"""Consents over HTTP: kept whole, listed, withdrawn; a voice with a consent that is not there is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import soundfile

from conftest import speechlike
from gpa import disk
from gpa.errors import DiskError
from gpa.models.gpa import GPA
from gpa.serve import consents
from gpa.serve.library import Library
from gpa.serve.settings import Settings
from serving import Served, served


@pytest.fixture(scope="module")
def model(tiny: Path) -> GPA:
    return GPA.from_pretrained(tiny, device="cpu", threads=1)


@pytest.fixture
def server(model: GPA, tmp_path: Path) -> Iterator[Served]:
    with served(model, Settings(voices=tmp_path / "voices")) as server:
        yield server


def sound(samples: np.ndarray | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, speechlike(2.0) if samples is None else samples, 16000, format="WAV")
    return file.getvalue()


def agree(server: Served, recording: bytes | None = None, **more: Any) -> httpx.Response:
    files = {"recording": ("../../x.wav", sound() if recording is None else recording, "audio/x-wav")}
    data = {"name": "John Doe", "language": "en-US", **more}
    return httpx.post(f"{server.url}/v1/audio/voice_consents", files=files, data=data, timeout=30)


def register(server: Served, name: str, **more: str) -> httpx.Response:
    files = {"audio_sample": ("a.wav", sound(speechlike(3.0, seed=7)))}
    return httpx.post(f"{server.url}/v1/audio/voices", files=files, data={"name": name, **more}, timeout=30)


def told(answer: httpx.Response) -> tuple[int, str | None, str | None]:
    """An error that asking again does not mend: its status, parameter and code."""
    assert answer.headers["x-should-retry"] == "false"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return answer.status_code, error["param"], error["code"]


def test_a_consent_from_its_recording_to_its_withdrawal(server: Served, model: GPA, tmp_path: Path) -> None:
    url, folder = f"{server.url}/v1/audio/voice_consents", tmp_path / "voices"
    made = agree(server).json()
    assert set(made) == {"id", "object", "name", "language", "created_at"} and made["id"].startswith("cons_")
    assert (made["object"], made["name"], made["language"]) == ("audio.voice_consent", "John Doe", "en-US")
    assert (folder / f"{made['id']}.recording").read_bytes() == sound()  # as it came
    assert httpx.get(f"{url}/{made['id']}").json() == made
    renamed = httpx.post(f"{url}/{made['id']}", json={"name": "Jane"}).json()
    assert renamed == made | {"name": "Jane"} == httpx.get(f"{url}/{made['id']}").json()

    voice = register(server, "jane", consent=made["id"]).json()
    assert voice["consent"] == made["id"]
    assert told(httpx.delete(f"{url}/{made['id']}")) == (409, "consent_id", "consent_in_use")
    assert httpx.get(f"{url}/{made['id']}").status_code == 200
    httpx.delete(f"{server.url}/v1/audio/voices/jane").raise_for_status()
    gone = httpx.delete(f"{url}/{made['id']}").json()
    assert gone == {"id": made["id"], "object": "audio.voice_consent", "deleted": True}
    assert told(register(server, "jane", consent=made["id"])) == (400, "consent", "consent_not_found")
    for method in ("GET", "DELETE"):
        assert told(httpx.request(method, f"{url}/{made['id']}")) == (404, "consent_id", "consent_not_found")
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_openais_client_keeps_a_consent_and_uses_it(server: Served) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        kept = client.audio.voice_consents
        made = kept.create(name="Ada", language="en", recording=("a.wav", sound(), "audio/wav"))
        assert kept.retrieve(made.id) == made and kept.update(made.id, name="Ada B.").name == "Ada B."
        assert [each.id for each in kept.list(limit=1)] == [made.id]  # pages until there are no more
        sample = ("b.wav", sound(speechlike(3.0, seed=7)), "audio/wav")
        voice = client.audio.voices.create(name="ada", consent=made.id, audio_sample=sample)
        with pytest.raises(openai.ConflictError) as caught:
            kept.delete(made.id)
        assert caught.value.code == "consent_in_use"
        with pytest.raises(openai.BadRequestError) as refused:
            client.audio.voices.create(name="eve", consent="cons_gone", audio_sample=sample)
        assert (refused.value.param, refused.value.code) == ("consent", "consent_not_found")
        httpx.delete(f"{server.url}/v1/audio/voices/{voice.id}").raise_for_status()
        assert kept.delete(made.id).deleted


def test_consents_are_listed_in_pages_and_last(server: Served, model: GPA, tmp_path: Path) -> None:
    url = f"{server.url}/v1/audio/voice_consents"
    empty = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    assert httpx.get(url).json() == empty
    made = [agree(server, name=f"speaker {number}").json() for number in range(3)]
    ids = [each["id"] for each in made]
    first = httpx.get(url, params={"limit": 2}).json()
    assert first["data"] == made[:0:-1] and first["has_more"]  # the newest first
    assert (first["first_id"], first["last_id"]) == (ids[2], ids[1])
    rest = httpx.get(url, params={"after": ids[1]}).json()
    assert rest["data"] == made[:1] and not rest["has_more"]
    assert told(httpx.get(url, params={"after": "cons_no"})) == (404, "after", "consent_not_found")
    assert told(httpx.get(url, params={"limit": 0})) == (400, "limit", "invalid_value")

    folder = tmp_path / "voices"
    (folder / f"{ids[0]}.recording").unlink()  # without it there is no consent
    (folder / "cons_half.recording").write_bytes(b"written, then killed")
    (folder / ".cons_half.tmp.json").write_text("{")
    again = Library(model, folder)  # of another server that shares the folder
    assert sorted(each["id"] for each in again.consents.newest()) == sorted(ids[1:])
    assert not list(folder.glob("*cons_half*")), "nothing half written stays"
    again.rename_consent(ids[1], "another")
    assert httpx.get(f"{url}/{ids[1]}").json()["name"] == "another"
    again.withdraw_consent(ids[1])
    assert httpx.get(f"{url}/{ids[1]}").status_code == 404
    assert (folder / f"{ids[0]}.json").exists(), "what cannot be used may be somebody's"


def test_what_is_no_consent_is_refused_and_leaves_nothing(server: Served, tmp_path: Path) -> None:
    silence, long = sound(np.zeros(16000)), sound(speechlike(61.0))
    for recording in (b"", b"RIFF", sound()[:30], silence, long):
        assert told(agree(server, recording)) == (400, "recording", "invalid_audio"), len(recording)
    assert told(agree(server, b"\0" * ((10 << 20) + 1))) == (413, "recording", "file_too_large")
    assert told(agree(server, name=""))[:2] == (400, "name")
    for language in ("", "e", "english, please", "../x", "en_US"):
        assert told(agree(server, language=language))[:2] == (400, "language"), language
    url = f"{server.url}/v1/audio/voice_consents"
    bare = httpx.post(url, data={"name": "a", "language": "en"})
    assert told(bare)[1] == "recording"
    assert told(httpx.delete(f"{url}/..%2Fvoices"))[0] == 404
    assert not list((tmp_path / "voices").glob("*cons_*"))


def test_a_server_may_require_a_consent(model: GPA) -> None:
    """Without that, words say who agreed, as before; an id is looked up all the same."""
    with served(model) as free:
        assert register(free, "no words").status_code == 200
        assert register(free, "words", consent="by mail, 3 May").json()["consent"] == "by mail, 3 May"
        assert told(register(free, "id", consent="cons_1")) == (400, "consent", "consent_not_found")
    with served(model, Settings(require_consent=True)) as strict:
        assert told(register(strict, "a")) == (400, "consent", "consent_required")
        assert told(register(strict, "a", consent="by mail")) == (400, "consent", "consent_required")
        assert told(register(strict, "a", consent="cons_1")) == (400, "consent", "consent_not_found")
        made = agree(strict).json()
        assert register(strict, "a", consent=made["id"]).json()["consent"] == made["id"]


def test_a_consent_that_goes_while_a_voice_is_made_is_noticed(
    server: Served, model: GPA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first look and the registration lies the work on the voice."""
    made = agree(server).json()

    def slow(given: Any, **more: Any) -> Any:
        server.service.voices.withdraw_consent(made["id"])
        return GPA.voice(model, given, **more)

    monkeypatch.setattr(model, "voice", slow)
    assert told(register(server, "late", consent=made["id"])) == (400, "consent", "consent_not_found")
    assert "late" not in server.service.voices


def test_as_many_as_may_be_kept_and_no_larger_than_an_upload(
    model: GPA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consents, "MOST", 2)
    with served(model, Settings(upload_bytes=100_000)) as server:
        long = sound(speechlike(4.0))
        assert told(agree(server, long)) == (413, "recording", "file_too_large")  # the server's own limit
        first = [agree(server).json()["id"] for _ in range(2)][0]
        assert told(agree(server)) == (400, "recording", "invalid_value")
        httpx.delete(f"{server.url}/v1/audio/voice_consents/{first}").raise_for_status()
        assert agree(server).status_code == 200


def test_a_consent_has_its_recording_whenever_it_is_there(
    model: GPA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails, and wherever the process ends: half of one is none, and is cleaned away."""
    kept, write = Library(model, tmp_path), disk.write_bytes

    for half in (".recording", ".json"):

        def full(path: Path, content: bytes, half: str = half) -> None:
            if path.suffix == half:
                raise DiskError("the disk is full")
            write(path, content)

        with monkeypatch.context() as patch, pytest.raises(DiskError):
            patch.setattr(disk, "write_bytes", full)
            kept.add_consent("ada", "en", b"sound")
        assert not kept.consents.newest() and not list(tmp_path.glob("*.json"))
    made, unlink = kept.add_consent("ada", "en", b"sound"), Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", killed)
        kept.withdraw_consent(made["id"])
    assert not Library(model, tmp_path).consents.newest()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_only_what_tells_of_itself_is_a_consent(model: GPA, tmp_path: Path) -> None:
    """Files that somebody copied or wrote by hand change nothing about those that there are."""
    made = Library(model, tmp_path).add_consent("ada", "en", b"sound")
    odd = ({"id": "cons_odd", "name": 5}, {"id": "cons_odd", "created_at": "now"})
    for about in odd:
        (tmp_path / "cons_odd.json").write_text(json.dumps(made | about))
        (tmp_path / "cons_odd.recording").write_bytes(b"sound")
        assert Library(model, tmp_path).consents.newest() == [made], about
    (tmp_path / "cons_odd.json").write_text(json.dumps(made))
    (tmp_path / f"{made['id']}.json").unlink()
    assert not Library(model, tmp_path).consents.newest(), "a copy under another name is no consent"
