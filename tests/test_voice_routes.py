"""Voices over HTTP: registered from a recording, used, listed, deleted, kept; names that are no paths."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import soundfile

from conftest import speechlike
from gpa.codec.voice import Voice
from gpa.errors import UsageError
from gpa.models.gpa import GPA
from gpa.serve import library
from gpa.serve.library import Library
from gpa.serve.settings import Settings
from serving import Served, served
from tiny_model import write_keen_model

SAY: dict[str, Any] = {"input": "hello there", "model": "tts-1", "response_format": "pcm"}
BRIEF = {"max_new_tokens": 12, "temperature": 0.7}


@pytest.fixture(scope="module")
def model(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> GPA:
    """Of a codec that tells voices apart."""
    keen = write_keen_model(tiny, tmp_path_factory.mktemp("keen") / "tiny")
    model = GPA.from_pretrained(keen, device="cpu", threads=1)
    model.add_voice("anna", model.voice((speechlike(3.0, seed=1), 16000), name="anna"))
    return model


@pytest.fixture
def server(model: GPA, tmp_path: Path) -> Iterator[Served]:
    with served(model, Settings(voices=tmp_path / "voices")) as server:
        yield server


def recording(seconds: float = 3.0, seed: int = 7) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, speechlike(seconds, seed=seed), 16000, format="WAV")
    return file.getvalue()


def register(server: Served, name: str, sample: bytes | None = None, **more: str) -> httpx.Response:
    sample = recording() if sample is None else sample
    files = {"audio_sample": ("../../etc/passwd", sample, "audio/wav")}
    return httpx.post(f"{server.url}/v1/audio/voices", files=files, data={"name": name, **more}, timeout=30)


def test_a_voice_from_its_registration_to_its_end(server: Served, model: GPA, tmp_path: Path) -> None:
    """As OpenAI's client and as our page does; it sounds like the same recording given to the model."""
    client = openai.OpenAI(api_key="-", base_url=f"{server.url}/v1", max_retries=0)
    made = register(server, "Zoë M.", consent="by mail", ref_text="hello", speaker_description="calm").json()
    assert made["object"] == "audio.voice" and made["id"].startswith("voice_") and made["created_at"] > 1.7e9
    assert made["name"] == "Zoë M." and made["consent"] == "by mail" and made["speaker_description"] == "calm"
    assert made["mime_type"] == "audio/wav" and made["file_size"] == len(recording())

    listed = httpx.get(f"{server.url}/v1/audio/voices").json()
    assert listed["object"] == "list" and listed["voices"] == [*model.voices, "Zoë M."]
    assert listed["data"][-1] == made and listed["data"][0]["name"] == listed["voices"][0]
    assert httpx.get(f"{server.url}/v1/audio/voices/{made['id']}").json() == made

    voice = model.voice((speechlike(3.0, seed=7), 16000))
    wanted = model.tts("hello there", voice, seed=3, **BRIEF)
    given = {**SAY, "extra_body": {**BRIEF, "seed": 3, "sample_rate": 16000}}
    by_name = client.audio.speech.create(**given, voice="Zoë M.").content
    by_id = client.audio.speech.create(**given, voice={"id": made["id"]}).content
    assert by_name == by_id != client.audio.speech.create(**given, voice="anna").content
    heard = np.frombuffer(by_name, np.int16) / 32768
    assert len(heard) == len(wanted.wav) and np.abs(heard - wanted.wav).max() < 1e-3

    kept = Voice.load(tmp_path / "voices" / f"{made['id']}.json")
    assert kept.codes == voice.codes and kept.text == "hello" and kept.about["consent"] == "by mail"
    gone = httpx.delete(f"{server.url}/v1/audio/voices/Zoë M.").json()
    assert gone == {"id": made["id"], "object": "audio.voice", "deleted": True}
    with pytest.raises(openai.BadRequestError) as caught:
        client.audio.speech.create(**given, voice={"id": made["id"]})
    assert caught.value.param == "voice"
    assert httpx.delete(f"{server.url}/v1/audio/voices/{made['id']}").status_code == 404
    assert [path.name for path in (tmp_path / "voices").iterdir()] == [".lock"]


def test_what_is_refused_and_leaves_nothing(server: Served, tmp_path: Path) -> None:
    def told(answer: httpx.Response) -> tuple[int, str]:
        assert answer.headers["x-should-retry"] == "false"
        return answer.status_code, answer.json()["error"]["param"]

    mine = register(server, "mine").json()
    for name in ("mine", mine["id"], "anna", "", " ", " a", "a/b", "../x", "a\x00b", "a\nb", "x" * 65):
        status, param = told(register(server, name))
        assert (status, param) == (400, "name"), name
    for sample in (b"", b"RIFF", b"\x00" * 1000, recording()[:30], recording(70)):
        assert told(register(server, "other", sample)) == (400, "audio_sample"), len(sample)
    answer = httpx.post(f"{server.url}/v1/audio/voices", data={"name": "other"})
    assert told(answer) == (400, "audio_sample")
    answer = httpx.post(
        f"{server.url}/v1/audio/voices", data={"name": "other", "audio_sample": "/etc/passwd"}
    )
    assert told(answer)[1] == "audio_sample" and answer.status_code in (400, 422)
    assert told(httpx.delete(f"{server.url}/v1/audio/voices/anna")) == (403, "name")
    assert told(httpx.delete(f"{server.url}/v1/audio/voices/nobody")) == (404, "name")
    assert told(httpx.get(f"{server.url}/v1/audio/voices/nobody")) == (404, "name")
    assert httpx.delete(f"{server.url}/v1/audio/voices/..%2F..%2Fvoices%2Fmine").status_code == 404
    assert len(list((tmp_path / "voices").glob("*.json"))) == 1


def test_voices_last_and_few_of_them_are_in_memory(
    model: GPA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is what lasts: those used last are loaded, any other is read again; damage costs one."""
    monkeypatch.setattr(library, "LOADED", 2)
    monkeypatch.setattr(library, "MOST", 5)
    voice = model.voice((speechlike(3.0), 16000))
    first = Library(model, tmp_path)
    names = [f"voice {number}" for number in range(5)]
    for name in names:
        first.register(Voice(voice.codes, voice.codec, name))
    assert list(first._loaded) == [first.about(name)["id"] for name in names[-2:]]
    assert first["voice 0"].codes == voice.codes and first["voice 0"] in first._loaded.values()
    assert len(first._loaded) == 2
    with pytest.raises(UsageError, match="5 voices are registered"):
        first.register(Voice(voice.codes, voice.codec, "one more"))
    about = [first.about(name) for name in names]

    (tmp_path / f"{about[3]['id']}.json").write_text("{")
    Voice(voice.codes, "of another codec", "stranger").save(tmp_path / "voice_other.json")
    again = Library(model, tmp_path)
    left = [each for number, each in enumerate(about) if number != 3]
    assert sorted(again) == sorted([*model.voices, *(each["name"] for each in left)])
    assert [again.about(each["id"]) for each in left] == left
    assert (tmp_path / "voice_other.json").exists(), "what cannot be used may be somebody's"


def test_servers_share_a_folder(model: GPA, tmp_path: Path) -> None:
    """What is registered or deleted at one is so at the other, at once; a name is given once."""
    settings = Settings(voices=tmp_path / "voices")
    with served(model, settings) as one, served(model, settings) as other:
        made = register(one, "mine").json()
        assert httpx.get(f"{other.url}/v1/audio/voices/{made['id']}").json() == made
        said = {"input": "hello there", **BRIEF, "response_format": "pcm", "voice": "mine"}
        heard = [httpx.post(f"{s.url}/v1/audio/speech", json=said, timeout=60).content for s in (one, other)]
        assert heard[0] == heard[1] and len(heard[0]) > 1000
        assert register(other, "mine").status_code == 400
        with ThreadPoolExecutor(8) as pool:
            tried = pool.map(register, [one, other] * 4, ["theirs"] * 8)
            assert sorted(answer.status_code for answer in tried) == [200] + [400] * 7
        assert httpx.delete(f"{other.url}/v1/audio/voices/mine").status_code == 200
        assert httpx.get(f"{one.url}/v1/audio/voices").json()["voices"] == [*model.voices, "theirs"]
        assert httpx.post(f"{one.url}/v1/audio/speech", json=said).status_code == 400


def test_a_folder_is_read_again_only_if_it_changed(
    model: GPA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also within the clock's tick, in which two changes look alike."""
    voice = model.voice((speechlike(3.0), 16000))
    one, other = Library(model, tmp_path), Library(model, tmp_path)
    one.register(Voice(voice.codes, voice.codec, "first"))
    assert other["first"].codes == voice.codes
    shown = tmp_path.stat().st_mtime_ns
    one.register(Voice(voice.codes, voice.codec, "second"))
    os.utime(tmp_path, ns=(shown, shown))  # as a coarse clock shows it
    assert other["second"].codes == voice.codes
    os.utime(tmp_path, (1e9, 1e9))  # nothing has changed for long
    assert "first" in other
    monkeypatch.setattr(Path, "glob", lambda *_: pytest.fail("it reads the folder"))
    assert "second" in other and "third" not in other and len(other) == len(model.voices) + 2


def test_without_a_folder_a_voice_lasts_as_long_as_the_process(model: GPA) -> None:
    with served(model) as server:
        made = register(server, "mine").json()
        assert server.service.voices[made["id"]] is server.service.voices["mine"]
        assert httpx.delete(f"{server.url}/v1/audio/voices/mine").status_code == 200
        assert "mine" not in server.service.voices and made["id"] not in server.service.voices


@pytest.mark.parametrize("ask", ["list", "speak", "read"])
def test_a_voice_may_go_while_somebody_asks(
    server: Served, model: GPA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: str
) -> None:
    """Another server deletes it right after this one looked: the answer is that of before or of after."""
    register(server, "mine").raise_for_status()
    other, look, resolve = Library(model, tmp_path / "voices"), Library._look, model.resolve_voice

    def gone() -> None:
        if "mine" in other:
            other.remove("mine")

    def looked(self: Library) -> None:
        look(self)
        if self is server.service.voices:
            gone()

    def resolved(given: Any) -> Voice:
        gone()  # it is not in memory, and its file goes
        return resolve(given)

    if ask == "read":
        server.service.voices._loaded.clear()
        monkeypatch.setattr(model, "resolve_voice", resolved)
    else:
        monkeypatch.setattr(Library, "_look", looked)
    if ask == "list":
        found = httpx.get(f"{server.url}/v1/audio/voices").json()
        assert found["voices"] == [each["name"] for each in found["data"]] == [*model.voices, "mine"]
        assert httpx.get(f"{server.url}/v1/audio/voices").json()["voices"] == [*model.voices]
    else:
        said = {"input": "hello there", **BRIEF, "voice": "mine"}
        answers = [httpx.post(f"{server.url}/v1/audio/speech", json=said, timeout=30) for _ in range(2)]
        assert answers[0].status_code in (200, 400), answers[0].text
        assert answers[1].json()["error"]["code"] == "voice_not_found"
