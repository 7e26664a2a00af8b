"""Speech over HTTP, asked for by OpenAI's own client: bodies, events, batches, errors, and who goes away."""

import asyncio
import base64
import io
import json
import shutil
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import soundfile
import soxr

from conftest import speechlike
from gpa import audio
from gpa.models.gpa import GPA
from gpa.serve import answers
from gpa.serve.settings import Settings
from serving import Served, served
from tiny_model import write_keen_model

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
TEXT = "hello there, how are you? a quick brown fox jumps over the lazy dog. " * 2
BRIEF: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0.7, "seed": 3}
LONG = {**BRIEF, "max_new_tokens": 400}


@pytest.fixture(scope="module")
def model(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> GPA:
    """Of a codec that tells voices apart."""
    keen = write_keen_model(tiny, tmp_path_factory.mktemp("keen") / "tiny")
    model = GPA.from_pretrained(keen, device="cpu", threads=1)
    for seed, name in enumerate(("anna", "ben"), 1):
        model.add_voice(name, model.voice((speechlike(3.0, seed=seed), 16000), name=name))
    return model


@pytest.fixture(scope="module")
def server(model: GPA) -> Iterator[Served]:
    with served(model, Settings(text_characters=5000)) as running:
        yield running


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="anybody", max_retries=0) as made:
        yield made
    assert server.settled(), "something is still on its way"


def ask(client: openai.OpenAI, **more: Any) -> bytes:
    given: dict[str, Any] = {"model": "tts-1", "voice": "anna", "input": TEXT, "extra_body": BRIEF}
    return client.audio.speech.create(**given | more).read()


def post(server: Served, path: str = "", **body: Any) -> httpx.Response:
    """What no client of OpenAI's would send."""
    return httpx.post(f"{server.url}/v1/audio/speech{path}", json=body, timeout=60)


def samples(wav: np.ndarray, rate: int = 24000) -> bytes:
    return audio.pcm16(soxr.resample(wav, 16000, rate, "VHQ")).astype("<i2").tobytes()


def events(client: openai.OpenAI, **more: Any) -> list[dict[str, Any]]:
    given: dict[str, Any] = {"model": "tts-1", "voice": "anna", "input": TEXT, "extra_body": BRIEF}
    given |= {"response_format": "pcm", "stream_format": "sse"}
    with client.audio.speech.with_streaming_response.create(**given | more) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = list(response.iter_lines())
    assert lines[1::2] == [""] * (len(lines) // 2) and all(line.startswith("data: ") for line in lines[::2])
    return [json.loads(line.removeprefix("data: ")) for line in lines[::2]]


def test_the_same_bytes_alone_in_events_in_a_batch_and_under_load(
    model: GPA, server: Served, client: openai.OpenAI
) -> None:
    """They are those of the package, for every seed."""
    asked = [{**BRIEF, "seed": seed} for seed in range(16)]
    wanted = [samples(model.tts(TEXT, "anna", **options).wav) for options in asked]
    assert len(set(wanted)) == 16
    assert [ask(client, response_format="pcm", extra_body=options) for options in asked] == wanted

    async def together() -> list[bytes]:
        url = f"{server.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="anybody", max_retries=0) as loaded:
            given: dict[str, Any] = {
                "model": "tts-1",
                "voice": "anna",
                "input": TEXT,
                "response_format": "pcm",
            }
            made = [loaded.audio.speech.create(**given, extra_body=options) for options in asked]
            return [each.read() for each in await asyncio.gather(*made)]

    assert asyncio.run(together()) == wanted
    *deltas, done = events(client, extra_body=asked[5])
    assert {each["type"] for each in deltas} == {"speech.audio.delta"}
    assert b"".join(base64.b64decode(each["audio"]) for each in deltas) == wanted[5]
    assert done["type"] == "speech.audio.done"
    items = [{"input": TEXT, "seed": options["seed"]} for options in asked]
    batch = post(server, "/batch", items=items, voice="anna", response_format="pcm", **BRIEF).json()
    assert [base64.b64decode(each["audio_data"]) for each in batch["results"]] == wanted


@pytest.mark.parametrize("name", ["mp3", "opus", "wav", pytest.param("aac", marks=needs_ffmpeg)])
def test_events_and_body_are_the_same_in_every_format(client: openai.OpenAI, name: str) -> None:
    *deltas, _ = events(client, response_format=name)
    assert b"".join(base64.b64decode(each["audio"]) for each in deltas) == ask(client, response_format=name)


def test_mp3_at_24_kHz_is_the_default(client: openai.OpenAI) -> None:
    response = client.audio.speech.create(model="tts-1", voice="anna", input=TEXT, extra_body=BRIEF)
    assert response.response.headers["content-type"] == "audio/mpeg"
    with soundfile.SoundFile(io.BytesIO(response.read())) as file:
        assert (file.format, file.samplerate, file.channels) == ("MP3", 24000, 1)


@pytest.mark.parametrize(
    ("name", "media_type", "head"),
    [
        ("mp3", "audio/mpeg", b"\xff\xf3"),
        ("opus", "audio/ogg", b"OggS"),
        pytest.param("aac", "audio/aac", b"\xff\xf1", marks=needs_ffmpeg),
        ("flac", "audio/flac", b"fLaC"),
        ("wav", "audio/wav", b"RIFF"),
        ("pcm", "audio/pcm", b""),
    ],
)
def test_the_media_type_is_that_of_the_bytes(
    server: Served, client: openai.OpenAI, name: Any, media_type: str, head: bytes
) -> None:
    made = client.audio.speech.create(
        model="tts-1", voice="anna", input=TEXT, response_format=name, extra_body=BRIEF
    )
    headers = made.response.headers
    assert headers["content-type"] == media_type and made.read().startswith(head)
    assert headers["x-audio-sample-rate"] == "24000" and headers["x-audio-channels"] == "1"
    assert int(headers["x-input-tokens"]) > 0 and headers["x-request-id"].startswith("req_")
    item = post(server, "/batch", items=[{"input": TEXT}], response_format=name, **BRIEF).json()["results"][0]
    assert item["media_type"] == media_type and base64.b64decode(item["audio_data"]).startswith(head)


def test_a_stream_into_a_file_has_one_header_and_a_complete_body_the_true_one(
    model: GPA, server: Served, client: openai.OpenAI, tmp_path: Path
) -> None:
    wanted = samples(model.tts(TEXT, "anna", **BRIEF).wav)
    path = tmp_path / "speech.wav"
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="anna", input=TEXT, response_format="wav", extra_body=BRIEF
    ) as response:
        assert response.headers["transfer-encoding"] == "chunked"
        response.stream_to_file(path)
    body = path.read_bytes()
    assert (
        body[4:8] == body[40:44] == b"\xff\xff\xff\xff" and body.count(b"RIFF") == 1 and body[44:] == wanted
    )
    whole = post(server, input=TEXT, voice="anna", response_format="wav", stream=False, **BRIEF)
    assert int(whole.headers["content-length"]) == len(whole.content)
    assert whole.headers["x-finish-reason"] == "length" and int(whole.headers["x-output-tokens"]) > 0
    with wave.open(io.BytesIO(whole.content)) as file:
        assert file.readframes(file.getnframes()) == wanted and file.getframerate() == 24000


def test_sound_comes_while_it_is_made(server: Served, client: openai.OpenAI) -> None:
    """The first of it, when most is still to be computed."""
    before = server.service.worker.steps
    given: dict[str, Any] = {"model": "tts-1", "voice": "anna", "input": TEXT * 3, "response_format": "pcm"}
    with client.audio.speech.with_streaming_response.create(**given, extra_body=LONG) as response:
        body = response.iter_bytes()
        next(body)
        early = server.service.worker.steps - before
        assert len(list(body)) > 1
    assert early < (server.service.worker.steps - before) / 2


def test_the_last_event_counts(model: GPA, client: openai.OpenAI) -> None:
    *deltas, done = events(client, extra_body={**BRIEF, "timestamps": True, "stream": "true"})
    alone = model.tts(TEXT, "anna", **BRIEF)
    usage = done["usage"]
    assert usage["output_tokens"] == len(alone.tokens)
    assert usage["input_token_details"] == {
        "text_tokens": len(model.processor.text_tokenizer.encode(TEXT)),
        "audio_tokens": len(model.voices["anna"].codes),
    }
    assert usage["input_tokens"] == sum(usage["input_token_details"].values())
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert done["finish_reason"] == "length" and done["duration"] == pytest.approx(alone.seconds)
    times = [time for each in done["segments"] for time in (each["start"], each["end"])]
    assert times == sorted(times) and times[0] == 0 and times[-1] == pytest.approx(alone.seconds)
    assert [each["text"] for each in done["segments"]] == [e["text"] for e in deltas if "text" in e]


@pytest.mark.parametrize("speed", [1, 2])
def test_words_have_times_for_who_asks(client: openai.OpenAI, server: Served, speed: float) -> None:
    """With the end of each segment, on the clock of what is heard; the sound is the same."""
    plain = events(client, speed=speed)
    *deltas, done = events(client, speed=speed, extra_body={**BRIEF, "timestamps": "word"})
    sound = [b"".join(base64.b64decode(e["audio"]) for e in each[:-1]) for each in (plain, [*deltas, done])]
    assert sound[0] == sound[1] and not any("words" in event for event in plain)
    assert [word for e in deltas for word in e.get("words", ())] == [
        word for segment in done["segments"] for word in segment["words"]
    ]
    for segment in done["segments"]:
        words = segment["words"]
        assert [word["word"] for word in words] == segment["text"].split()
        times = [time for word in words for time in (word["start"], word["end"])]
        assert times == sorted(times) and segment["start"] <= times[0]
        assert times[-1] <= segment["end"] + 0.04 / speed  # a frame
    assert done["segments"][-1]["words"][-1]["start"] > done["duration"] / 2
    item = post(server, "/batch", items=[{"input": "hello there"}], timestamps="word", **BRIEF).json()
    (segment,) = item["results"][0]["segments"]
    assert [word["word"] for word in segment["words"]] == ["hello", "there"]
    assert post(server, input="a", timestamps="letter").status_code in (400, 422)


def test_ids_and_where_they_begin_are_shown_to_who_asks(
    model: GPA, client: openai.OpenAI, server: Served
) -> None:
    """They are those of the package, a frame apart within a segment; the sound is the same."""
    alone, shown = model.tts(TEXT * 3, "anna", **BRIEF), {**BRIEF, "return_token_ids": True}
    plain = events(client, input=TEXT * 3, response_format="mp3")  # whose encoder holds sound back
    *deltas, done = events(
        client, input=TEXT * 3, response_format="mp3", extra_body={**shown, "timestamps": True}
    )
    sound = [b"".join(base64.b64decode(e["audio"]) for e in each[:-1]) for each in (plain, [*deltas, done])]
    assert sound[0] == sound[1] and not any("token_ids" in event for event in plain)
    assert [token for e in deltas for token in e["token_ids"]] == alone.tokens.tolist()
    starts = [start for e in deltas for start in e["token_starts"]]
    assert len(starts) == len(alone.tokens) and starts == sorted(starts) and starts[-1] < done["duration"]
    assert [round(after - before, 3) for before, after in zip(starts[:11], starts[1:12], strict=True)] == [
        pytest.approx(1 / model.processor.codec.spec.frame_rate, abs=0.002)
    ] * 11
    assert len(starts) == 12 * len(done["segments"]) > 12
    for segment, first, last in zip(done["segments"], starts[::12], starts[11::12], strict=True):
        assert segment["start"] <= first < last < segment["end"]
    *fast, _ = events(client, input=TEXT * 3, speed=2, extra_body=shown)
    halved = [start for e in fast for start in e["token_starts"]]
    assert halved == pytest.approx([start / 2 for start in starts], abs=0.001)
    (item,) = post(server, "/batch", items=[{"input": TEXT * 3}], voice="anna", **shown).json()["results"]
    assert item["token_ids"] == alone.tokens.tolist() and item["token_starts"] == starts


def test_voices_by_id_by_openais_names_and_by_a_recording(model: GPA, client: openai.OpenAI) -> None:
    def pcm(voice: Any, **more: Any) -> bytes:
        return ask(client, voice=voice, response_format="pcm", extra_body={**BRIEF, **more})

    ben = samples(model.tts(TEXT, "ben", **BRIEF).wav)
    assert pcm({"id": "ben"}) == pcm("ben") == ben != pcm("anna")
    names = ("alloy", "ash", "ballad", "coral", "echo", "fable", "onyx")
    names += ("nova", "sage", "shimmer", "verse", "marin", "cedar")
    assert {pcm(name) for name in names} == {ben, pcm("anna")}
    file = io.BytesIO()
    soundfile.write(file, speechlike(3.0, seed=9), 16000, format="FLAC")
    url = f"data:audio/flac;base64,{base64.b64encode(file.getvalue()).decode()}"
    copied = model.voice(file.getvalue())
    assert pcm("anna", ref_audio=url) == samples(model.tts(TEXT, copied, **BRIEF).wav)


def test_options_are_the_models_own(model: GPA, client: openai.OpenAI) -> None:
    more = {"top_k": 5, "pause": 0.5, "initial_chunk_tokens": 2}
    made = ask(client, response_format="pcm", extra_body={**BRIEF, **more, "sample_rate": 16000})
    options = {"top_k": 5, "pause": 0.5, "lookahead": 2}
    assert made == audio.pcm16(model.tts(TEXT, "anna", **BRIEF, **options).wav).astype("<i2").tobytes()
    plain, fast = (ask(client, response_format="pcm", speed=speed) for speed in (1.0, 2.0))
    assert abs(len(fast) - len(plain) / 2) <= 4


def test_what_changes_nothing_is_said(server: Served, client: openai.OpenAI) -> None:
    made = client.audio.speech.create(
        model="tts-1",
        voice="anna",
        input=TEXT,
        instructions="whisper",
        extra_body={**BRIEF, "task_type": "Base"},
    )
    assert made.response.headers["x-ignored-fields"] == "instructions, task_type"
    odd = post(server, input=TEXT, **{"a\r\nset-cookie: b": 1, "é": 2, "ref_text": "so"}, **BRIEF)
    assert odd.status_code == 200 and odd.headers["x-ignored-fields"] == "ref_text"
    assert "set-cookie" not in odd.headers
    many = post(server, input=TEXT, **{f"field_{number}": 1 for number in range(5000)}, **BRIEF)
    assert many.status_code == 200 and many.headers["x-ignored-fields"].count(",") == answers.NAMED - 1


BAD = openai.BadRequestError


@pytest.mark.parametrize(
    ("given", "error", "param", "code"),
    [
        ({"input": " \n"}, BAD, "input", "invalid_value"),
        ({"input": "..."}, BAD, "input", "invalid_value"),
        ({"input": "a" * 5001}, BAD, "input", "string_above_max_length"),
        ({"voice": "nobody"}, BAD, "voice", "voice_not_found"),
        ({"voice": "/etc/passwd"}, BAD, "voice", "voice_not_found"),
        ({"voice": {"id": "../ben.json"}}, BAD, "voice", "voice_not_found"),
        ({"voice": {"name": "ben"}}, openai.UnprocessableEntityError, "voice", "invalid_value"),
        ({"model": "gpt-9"}, openai.NotFoundError, "model", "model_not_found"),
        ({"speed": 4.5}, BAD, "speed", "invalid_value"),
        ({"speed": 0.2}, BAD, "speed", "invalid_value"),
        ({"instructions": "a" * 4097}, BAD, "instructions", "invalid_value"),
        ({"response_format": "wma"}, BAD, "response_format", "invalid_value"),
        ({"stream_format": "websocket"}, BAD, "stream_format", "invalid_value"),
        ({"extra_body": {"sample_rate": 7999}}, BAD, "sample_rate", "invalid_value"),
        (
            {"response_format": "opus", "extra_body": {"sample_rate": 44100}},
            BAD,
            "sample_rate",
            "invalid_value",
        ),
        ({"extra_body": {"seed": 1 << 63}}, BAD, "seed", "invalid_value"),
        ({"extra_body": {"temperature": -1}}, BAD, "temperature", "invalid_value"),
        ({"extra_body": {"temperature": 0, "best_of": 2}}, BAD, "best_of", "invalid_value"),
        ({"extra_body": {"pronunciations": {"a": "AH0"}}}, BAD, "pronunciations", "invalid_value"),
        ({"extra_body": {"ref_audio": "http://127.0.0.1/a.wav"}}, BAD, "ref_audio", "invalid_value"),
        ({"extra_body": {"ref_audio": "file:///etc/passwd"}}, BAD, "ref_audio", "invalid_value"),
        ({"extra_body": {"ref_audio": "data:audio/wav;base64,AAAA"}}, BAD, "ref_audio", "invalid_value"),
        ({"extra_body": {"ref_audio": "data:audio/wav;base64,A"}}, BAD, "ref_audio", "invalid_value"),
        ({"extra_body": {"input": 5}}, openai.UnprocessableEntityError, "input", "invalid_value"),
        ({"extra_body": {"seed": "x"}}, openai.UnprocessableEntityError, "seed", "invalid_value"),
    ],
)
def test_errors_are_openais(
    client: openai.OpenAI, given: dict[str, Any], error: type[openai.APIStatusError], param: str, code: str
) -> None:
    with pytest.raises(error) as raised:
        ask(client, **given)
    found = raised.value
    assert (found.param, found.code) == (param, code)
    assert found.request_id and found.response.headers["x-should-retry"] == "false"
    assert set(found.response.json()["error"]) == {"message", "type", "param", "code"}


def test_what_is_no_request_is_an_error_of_the_same_shape(server: Served) -> None:
    url = f"{server.url}/v1/audio/speech"
    head = {"Content-Type": "application/json", "X-Request-Id": "mine.1"}
    for body in (
        b"{",
        b"[]",
        b"null",
        b"",
        b'{"input": "\\ud800"}',
        b'{"input": "a", "speed": NaN}',
        b"\xff",
    ):
        answer = httpx.post(url, content=body, headers=head)
        assert answer.status_code in (400, 422), body
        assert answer.headers["x-request-id"] == "mine.1"
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    for path, status, kind, what in (
        (url, 405, "invalid_request_error", "GET /v1/audio/speech: the route takes POST alone"),
        (
            f"{url}/none",
            404,
            "not_found_error",
            "no GET /v1/audio/speech/none: /openapi.json has every route",
        ),
    ):
        answer = httpx.get(path)
        assert answer.status_code == status and answer.headers["x-should-retry"] == "false"
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == kind and what in error["message"]
    for content, more, what in (
        (b'{"input": "a"', head, "no JSON (Expecting ',' delimiter at character 13)"),
        (b'{"input": "a"}', {}, "Content-Type: application/json"),  # as curl sends it
    ):
        error = httpx.post(url, content=content, headers=more).json()["error"]
        assert error["param"] is None and what in error["message"], error


def test_speech_that_fails_has_a_status_or_is_an_event_or_breaks_the_connection(
    server: Served, client: openai.OpenAI
) -> None:
    """This model, greedy, repeats itself without end: there is sound, and then there is no speech."""
    bad: dict[str, Any] = {"input": "hello there", "extra_body": {"temperature": 0}}
    with pytest.raises(openai.InternalServerError) as raised:
        ask(client, input="hello there", extra_body={"temperature": 0, "stream": False})
    assert raised.value.code == "generation_failed" and "hello there" in str(raised.value)
    *deltas, last = events(client, **bad)
    assert deltas and last["error"]["code"] == "generation_failed"
    with pytest.raises((httpx.RemoteProtocolError, openai.APIConnectionError)):
        ask(client, response_format="pcm", **bad)


def test_a_batch_has_a_status_for_each(server: Served, client: openai.OpenAI) -> None:
    items: list[dict[str, Any]] = [
        {"input": TEXT},
        {"input": ""},
        {"input": TEXT, "voice": "nobody"},
        {"input": TEXT, "speed": 9},
        {},
        {"input": TEXT, "response_format": "wav", "voice": {"id": "ben"}},
    ]
    made = post(server, "/batch", items=items, voice="anna", response_format="flac", **BRIEF).json()
    assert made["id"].startswith("speech-batch-")
    assert (made["total"], made["succeeded"], made["failed"]) == (6, 2, 4)
    results = made["results"]
    assert [each["index"] for each in results] == list(range(6))
    assert [each["status"] for each in results] == ["success", *["error"] * 4, "success"]
    errors = [(each["error"]["param"], each["error"]["code"]) for each in results[1:5]]
    assert errors[:2] == [("input", "invalid_value"), ("voice", "voice_not_found")]
    assert errors[2:] == [("speed", "invalid_value"), ("input", "invalid_value")]
    assert [results[0]["media_type"], results[5]["media_type"]] == ["audio/flac", "audio/wav"]
    assert results[0]["usage"]["output_tokens"] > 0 and results[0]["finish_reason"] == "length"
    for items in ([], [{"input": "a"}] * 33):
        refused = post(server, "/batch", items=items)
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "items"


def test_models(client: openai.OpenAI) -> None:
    (only,) = client.models.list().data
    assert only.id == "tiny" and only.owned_by == "gpa" and only.object == "model" and only.created > 1.7e9
    assert client.models.retrieve("tts-1").id == "tts-1" and client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("meta/llama")
    assert raised.value.code == "model_not_found" and raised.value.param == "model"


@pytest.mark.parametrize("more", [{}, {"stream": False}, {"stream": True}, {"batch": True}])
def test_who_goes_away_frees_the_engine(server: Served, more: dict[str, Any]) -> None:
    """While it streams, before the first sound, and while a complete body is made."""
    worker = server.service.worker
    body = {"voice": "anna", "input": TEXT * 10, "response_format": "pcm", **LONG, **more}
    path = "/batch" if body.pop("batch", False) else ""
    body |= {"items": [{}] * 5} if path else {}
    for wait in (0.0, 0.05, 0.3):
        with (
            pytest.raises(httpx.TimeoutException),
            httpx.Client(timeout=httpx.Timeout(5, read=0.3)) as client,
        ):
            with client.stream("POST", f"{server.url}/v1/audio/speech{path}", json=body) as response:
                assert response.status_code == 200
                time.sleep(wait)
                raise httpx.ReadTimeout("enough")
        steps = worker.steps
        assert server.settled(3)
        assert worker.steps - steps < 60
    assert worker.engine.cache.used == 0  # type: ignore[attr-defined]


def test_the_event_loop_does_not_encode(
    server: Served, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    threads, push = set(), answers.Encoder.push

    def noted(self: answers.Encoder, wav: np.ndarray) -> bytes:
        threads.add(threading.current_thread().name.rstrip("_0123456789"))
        return push(self, wav)

    monkeypatch.setattr(answers.Encoder, "push", noted)
    assert ask(client) and threads == {"gpa-pool"}


def test_the_shipped_model_is_understood() -> None:
    """Through MP3, resampled and at another speed: what it said reads back."""
    model = GPA.from_pretrained("gpa-mini", device="cpu")
    text = "The rain has stopped, and the children went out to play."
    with served(model) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="anybody", max_retries=0)
        made = client.audio.speech.create(model="tts-1", voice="alloy", input=text, speed=0.9).read()
        said = model.asr(made).text.lower().replace(",", "").replace(".", "")
    wrong = set(text.lower().replace(",", "").replace(".", "").split()) - set(said.split())
    assert len(wrong) <= 1, said


def test_a_body_that_cannot_be_encoded_is_counted(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: answers.Encoder) -> bytes:
        raise RuntimeError("the encoder is broken")

    def failures() -> float:
        return server.app.state.measures.encode_failures._value.get()

    before = failures()
    monkeypatch.setattr(answers.Encoder, "finish", broken)
    body = {"input": "hello there", "stream": False, "max_new_tokens": 12}
    answer = httpx.post(f"{server.url}/v1/audio/speech", json=body, timeout=60)
    assert answer.status_code == 500 and server.settled(10)
    assert failures() == before + 1
