"""Transcription over HTTP by OpenAI's own client: every format, events, uploads that cannot be used."""

import io
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import soundfile

from gpa.models.gpa import GPA
from gpa.models.gpa.subtitles_gpa import srt, vtt
from gpa.serve.settings import Settings
from serving import Served, served

TEXT = "The rain has stopped."
WORDS = "the rain has stopped"
ALL_TEN = {
    *("id", "seek", "start", "end", "text", "tokens"),
    *("temperature", "avg_logprob", "compression_ratio", "no_speech_prob"),
}


@pytest.fixture(scope="module")
def model() -> GPA:
    """The shipped one: what it hears is text."""
    return GPA.from_pretrained("gpa-mini", device="cpu", threads=1)


@pytest.fixture(scope="module")
def wav(model: GPA) -> bytes:
    return written(model.tts(TEXT, "alloy", seed=1).wav)


@pytest.fixture(scope="module")
def server(model: GPA) -> Iterator[Served]:
    with served(model, Settings(upload_bytes=1 << 20, audio_seconds=20)) as running:
        yield running


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="anybody", max_retries=0) as made:
        yield made
    assert server.settled(), "something is still on its way"


def written(samples: np.ndarray, rate: int = 16000, form: str = "WAV", **more: Any) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, **more)
    return file.getvalue()


def ask(client: openai.OpenAI, data: bytes, **more: Any) -> Any:
    return client.audio.transcriptions.create(file=("../x.exe", data), model="whisper-1", **more)


def post(server: Served, data: bytes, **fields: Any) -> httpx.Response:
    """What no client of OpenAI's would send."""
    files = {"file": ("a.wav", data)}
    return httpx.post(f"{server.url}/v1/audio/transcriptions", files=files, data=fields, timeout=60)


def refusal(client: openai.OpenAI, data: bytes, **more: Any) -> tuple[int, str | None, str | None]:
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, data, **more)
    error = caught.value
    assert error.response.headers["x-should-retry"] == "false"
    assert isinstance(error.body, dict) and {"message", "type", "param", "code"} == set(error.body)
    return error.status_code, error.param, error.code


def test_every_format_says_the_same(client: openai.OpenAI, model: GPA, wav: bytes) -> None:
    alone = model.asr(wav)
    assert alone.text == WORDS
    plain = ask(client, wav)
    assert plain.text == WORDS and plain.usage.type == "tokens"
    assert plain.usage.output_tokens == len(alone.tokens)
    assert plain.usage.input_tokens == plain.usage.input_token_details.audio_tokens > 0
    assert plain.usage.total_tokens == plain.usage.input_tokens + plain.usage.output_tokens
    assert ask(client, wav, response_format="text") == f"{WORDS}\n"
    assert ask(client, wav, response_format="srt") == srt(alone)
    assert ask(client, wav, response_format="vtt") == vtt(alone)


@pytest.mark.parametrize("asked", [["word", "segment"], ["word"], ["segment"], None])
def test_times_are_given_as_asked_for(
    client: openai.OpenAI, model: GPA, wav: bytes, asked: list[str] | None
) -> None:
    more = {"timestamp_granularities": asked} if asked else {}
    found = ask(client, wav, response_format="verbose_json", **more)
    assert (found.task, found.language, found.text) == ("transcribe", "english", WORDS)
    alone = model.asr(wav)
    assert found.duration == pytest.approx(alone.duration, abs=1e-3) == found.usage.seconds
    assert found.usage.type == "duration"
    if asked is None or "segment" in asked:
        (segment,) = found.segments
        assert set(segment.to_dict()) == ALL_TEN and segment.text == WORDS
    else:
        assert found.segments is None
    if asked and "word" in asked:
        assert [(w.word, w.start, w.end) for w in found.words] == [
            (w.word, w.start, w.end) for w in alone.words
        ]
    else:
        assert found.words is None


def test_granularities_need_no_brackets(server: Served, wav: bytes) -> None:
    found = post(server, wav, response_format="verbose_json", timestamp_granularities="word").json()
    assert [word["word"] for word in found["words"]] == WORDS.split()


def test_media_types_and_what_the_headers_tell(server: Served, wav: bytes) -> None:
    kinds = {"text": "text/plain", "srt": "text/plain", "vtt": "text/vtt", "json": "application/json"}
    for form, kind in kinds.items():
        answer = post(server, wav, response_format=form, prompt="Hm.", language="de")
        assert answer.headers["content-type"].partition(";")[0] == kind
    assert answer.headers["x-finish-reason"] == "stop" and float(answer.headers["x-audio-seconds"]) > 1
    assert answer.headers["x-ignored-fields"] == "language, prompt"
    answer = post(server, wav, keywords="rain", diarise="yes", **{"two words": "a"})
    assert answer.headers["x-ignored-fields"] == "diarise, keywords"  # whose name is keywords[]


def test_deltas_are_the_text_at_the_end(client: openai.OpenAI, server: Served, model: GPA) -> None:
    """Three sentences with pauses: more than one delta, none of which is revised."""
    pause = np.zeros(24000, np.float32)
    sentences = [model.tts(text, "kore", seed=2).wav for text in ("The rain has stopped.", "We can go.")]
    data = written(np.concatenate([pause, sentences[0], pause, sentences[1], pause]))
    events = list(ask(client, data, stream=True))
    *deltas, done = events
    assert len(deltas) > 1 and {event.type for event in deltas} == {"transcript.text.delta"}
    assert done.type == "transcript.text.done"
    assert "".join(event.delta for event in deltas) == done.text == model.asr(data).text
    assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens > 0
    assert done.finish_reason == "stop" and done.skipped > 1
    raw = post(server, data, stream="true")
    assert raw.headers["content-type"].startswith("text/event-stream") and "[DONE]" not in raw.text
    lines = raw.text.strip().split("\n\n")
    assert all(line.startswith("data: {") for line in lines)
    assert [json.loads(line[6:])["type"] for line in lines] == [event.type for event in events]


def test_logprobs_are_those_of_the_ids(client: openai.OpenAI, server: Served, model: GPA) -> None:
    """They spell the text, and score the ids as the network does; events have them segment by segment."""
    pause = np.zeros(24000, np.float32)
    sentences = [model.tts(text, "kore", seed=2).wav for text in ("The rain has stopped.", "We can go.")]
    data = written(np.concatenate([sentences[0], pause, sentences[1]]))
    alone = model.asr(data)
    assert len(alone.segments) == 2
    plain = ask(client, data, include=["logprobs"])
    spelt = [bytes(map(int, each.bytes)).decode() for each in plain.logprobs]
    assert spelt == [each.token for each in plain.logprobs] and "".join(spelt) == plain.text == alone.text
    assert len(spelt) == len(alone.tokens) and all(each.logprob <= 0 for each in plain.logprobs)
    segment = alone.segments[1]
    own = [each.logprob for each in plain.logprobs[len(alone.segments[0].tokens) :]]
    assert own == pytest.approx(segment.log_probs)
    end = segment.avg_logprob * (len(own) + 2) - sum(own)  # the mean counts the two ids that end it, too
    assert -5 < end <= 1e-3
    assert ask(client, data).to_dict().keys() == {"text", "usage"}  # for who did not ask

    *deltas, done = ask(client, data, include=["logprobs"], stream=True)
    assert "".join(each.delta for each in deltas) == done.text == alone.text
    assert ["".join(each.token for each in delta.logprobs) for delta in deltas] == [d.delta for d in deltas]
    assert [each.to_dict() for each in done.logprobs] == [each.to_dict() for each in plain.logprobs]
    assert "logprobs" not in post(server, data, stream="true").text


def test_a_language_that_is_not_the_models_changes_nothing(server: Served, wav: bytes) -> None:
    for given, ignored in (
        ("en", None),
        ("en-GB", None),
        ("english", None),
        ("EN", None),
        ("de", "language"),
    ):
        answer = post(server, wav, language=given)
        assert answer.status_code == 200 and answer.headers.get("x-ignored-fields") == ignored, given
    answer = post(server, wav, **{"languages[]": ["en", "fr"], "language": "en"})
    assert answer.headers["x-ignored-fields"] == "languages"


def test_silence_is_no_text(client: openai.OpenAI, server: Served) -> None:
    silence = written(np.zeros(32000, np.float32))
    assert ask(client, silence).text == ""
    (done,) = ask(client, silence, stream=True)
    assert (done.type, done.text, done.finish_reason) == ("transcript.text.done", "", "no speech")
    verbose = ask(client, silence, response_format="verbose_json")
    assert verbose.text == "" and verbose.segments == []


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"timestamp_granularities": ["word"]}, "timestamp_granularities[]", "invalid_value"),
        (
            {"timestamp_granularities": ["phone"], "response_format": "verbose_json"},
            "timestamp_granularities[]",
            "invalid_value",
        ),
        ({"response_format": "diarized_json"}, "response_format", "invalid_value"),
        ({"temperature": 1.5}, "temperature", "invalid_value"),
        ({"include": ["pitch"]}, "include[]", "invalid_value"),
        ({"include": ["logprobs"], "response_format": "verbose_json"}, "include[]", "invalid_value"),
        ({"include": ["logprobs"], "response_format": "text", "stream": True}, "include[]", "invalid_value"),
        ({"language": "the one I speak"}, "language", "invalid_value"),
        ({"extra_body": {"languages": ["en", "?"]}}, "languages[]", "invalid_value"),
        ({"chunking_strategy": "often"}, "chunking_strategy", "invalid_value"),
        ({"stream": True, "response_format": "srt"}, "stream", "invalid_value"),
        ({"extra_body": {"known_speaker_names": ["Ann"]}}, "known_speaker_names[]", "unsupported_value"),
        ({"chunking_strategy": '{"type": "other"}'}, "chunking_strategy", "invalid_value"),
        ({"chunking_strategy": "[" * 100_000}, "chunking_strategy", "invalid_value"),
        ({"extra_body": {"beams": 0}}, "beams", "invalid_value"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    client: openai.OpenAI, wav: bytes, more: dict[str, Any], param: str, code: str
) -> None:
    assert refusal(client, wav, **more) == (400, param, code)


def test_other_fields_of_the_client_are_accepted(client: openai.OpenAI, wav: bytes) -> None:
    vad = {"type": "server_vad", "threshold": 0.5, "silence_duration_ms": 300, "prefix_padding_ms": 200}
    more = {"temperature": 0, "language": "en", "prompt": "Hm.", "chunking_strategy": "auto"}
    assert ask(client, wav, **more).text == WORDS
    more = {"chunking_strategy": vad, "extra_body": {"keywords": ["rain"], "languages": ["en"]}}
    assert ask(client, wav, **more).text == WORDS


def test_another_model_is_not_found(client: openai.OpenAI, wav: bytes) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.audio.transcriptions.create(file=("a.wav", wav), model="whisper-9")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


def test_uploads_are_bounded(client: openai.OpenAI, server: Served) -> None:
    """In bytes, and in the seconds that they decode to, which a few bytes may hold many of."""
    full = written(np.zeros((1 << 19) - 22, np.float32), 32000)
    assert len(full) == 1 << 20 and ask(client, full).text == ""
    assert refusal(client, full + b"\0") == (413, "file", "file_too_large")
    bomb = written(np.zeros(20 * 16000 + 1, np.float32), form="FLAC")
    assert len(bomb) < 10_000
    assert refusal(client, bomb) == (400, "file", "invalid_audio")
    assert refusal(client, bomb, stream=True) == (400, "file", "invalid_audio")
    assert ask(client, written(np.zeros(20 * 16000, np.float32), form="FLAC")).text == ""


def lying(seconds: int) -> bytes:
    """One second of sound whose header claims more."""
    data = bytearray(written(np.zeros(16000, np.float32)))
    data[40:44] = (32000 * seconds).to_bytes(4, "little")
    return bytes(data)


def test_what_is_no_sound_is_the_clients_fault(client: openai.OpenAI, server: Served, wav: bytes) -> None:
    flac = written(np.random.default_rng(0).normal(0, 0.1, 32000), form="FLAC")
    broken = (
        b"",
        b"x",
        b"nonsense" * 500,
        wav[:30],
        flac[: len(flac) // 2],
        lying(3 * 3600),
        b"RIFF" + wav[:3],
    )
    for data in broken:
        assert refusal(client, data) == (400, "file", "invalid_audio"), data[:20]
    url = f"{server.url}/v1/audio/transcriptions"
    answers = (
        httpx.post(url, data={"model": "whisper-1"}),
        httpx.post(url, data={"model": "whisper-1", "file": "/etc/hostname"}),  # a path is not opened
        httpx.post(url, json={"file": "/etc/hostname"}),
        httpx.post(url, content=b"--x\r\n", headers={"content-type": "multipart/form-data; boundary=x"}),
    )
    for answer in answers:
        assert answer.status_code in (400, 422) and set(answer.json()["error"]) >= {"message", "param"}


def test_odd_sound_is_sound(client: openai.OpenAI, wav: bytes) -> None:
    """Many channels, rates from 1 to 192 kHz, no samples, samples that are no numbers: never our fault."""
    noise = np.random.default_rng(0).normal(0, 0.1, 4000).astype(np.float32)
    eight = written(np.tile(noise[:, None], (1, 8)), 48000)
    no_number = written(np.full(4000, np.nan, np.float32), subtype="FLOAT")
    for data in (eight, written(noise, 1000), written(noise, 192000), written(noise[:0]), no_number):
        try:
            assert isinstance(ask(client, data).text, str)
        except openai.BadRequestError as error:
            assert error.param == "file"
    samples, _ = soundfile.read(io.BytesIO(wav))
    assert ask(client, written(samples, form="OGG")).text == WORDS
    assert "rain" in ask(client, written(np.repeat(samples[:, None], 2, 1), form="MP3")).text


def test_who_goes_away_leaves_nothing(server: Served, model: GPA) -> None:
    """The request is broken off after the first event, and in the middle of the upload."""
    sentences = [model.tts(f"Number {n}.", "echo", seed=n).wav for n in range(3)]
    data = written(np.concatenate([np.pad(each, 12000) for each in sentences]))
    form = {"files": {"file": ("a.wav", data)}, "data": {"stream": "true"}}
    url = f"{server.url}/v1/audio/transcriptions"
    for _ in range(3):
        with httpx.stream("POST", url, timeout=60, **form) as answer:  # type: ignore[arg-type]
            next(answer.iter_lines())
    for seconds in (0.01, 0.03, 0.06):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, files=form["files"], timeout=seconds)
    assert server.settled()


def test_a_failure_after_the_first_event_is_an_event(
    client: openai.OpenAI, server: Served, wav: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("gpa.models.gpa.recognition_gpa.Recognition._complete", broken)
    with pytest.raises(openai.APIError, match="the server failed") as caught:
        list(ask(client, wav, stream=True))
    assert "secret" not in str(caught.value)
    with pytest.raises(openai.InternalServerError):
        ask(client, wav)


def test_the_reference_has_its_route(server: Served, wav: bytes) -> None:
    answer = httpx.post(f"{server.url}/stt", files={"file": wav}, data={"temperature": 0}, timeout=60)
    assert answer.json() == {"text": WORDS}
    answer = httpx.post(f"{server.url}/stt", files={"file": b"x"}, timeout=60)
    assert answer.status_code == 400 and re.search(r'"param":\s*"file"', answer.text)
