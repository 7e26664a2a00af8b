"""Sound of any length written down or converted: nothing taken back, times of the recording, exact joins."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from conftest import speechlike
from gpa import audio
from gpa.engine.sampler import LoopDetector
from gpa.engine.scheduler import Engine, Progress
from gpa.errors import AudioError, GenerationError, UsageError
from gpa.models.gpa import GPA, conversion_gpa
from gpa.models.gpa.alignment_gpa import evidence, first_frames
from gpa.models.gpa.recognition_gpa import settled

MINI = Path(__file__).parents[1] / "gpa" / "assets" / "gpa-mini"
RATE = 16_000
BRIEF = {"max_new_tokens": 40}


def quiet(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * RATE), np.float32)


LONG = np.concatenate(
    [quiet(2.0), speechlike(3.0), quiet(2.5), speechlike(11.0, seed=2), quiet(4.0), speechlike(1.0, seed=3)]
)


@pytest.fixture(scope="module")
def model(tiny: Path) -> GPA:
    made = GPA.from_pretrained(tiny, device="cpu", threads=1)
    made.config = made.processor.config = replace(made.config, max_audio_seconds=4.0)
    return made


@pytest.fixture(scope="module")
def mini() -> GPA:
    if not (MINI / "model.safetensors").is_file():
        pytest.skip("no shipped model")
    return GPA.from_pretrained(MINI, device="cpu", threads=1)


# Recognition ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"beams": 1}, {"beams": 3}, {"temperature": 1.0, "seed": 5}])
def test_partial_results_are_never_taken_back_and_are_the_transcript(model: GPA, options: dict) -> None:
    """Streamed, live in pushes of any size, and at once."""
    whole = model.asr((LONG, RATE), **options, **BRIEF)
    assert whole.text and len(whole.segments) >= 4
    streamed = list(model.asr((LONG, RATE), stream=True, **options, **BRIEF))
    assert "".join(each.text for each in streamed) == whole.text
    assert tuple(each.segment for each in streamed if each.segment) == whole.segments
    for size in (2_000, 33_333):
        live = model.recogniser(**options, **BRIEF)
        told = [each for i in range(0, len(LONG), size) for each in live.push(LONG[i : i + size])]
        assert told, "something is final before the end"
        told += live.finish()
        assert "".join(each.text for each in told) == whole.text
        assert live.transcript.segments == whole.segments


def test_text_comes_while_it_is_written(mini: GPA) -> None:
    """Greedy at once, of a search that on which all hypotheses agree."""
    clip = MINI.parents[2] / "docs/samples/codec-19-198-0003-51d52f.ogg"
    for beams in (1, 4):
        *early, last = mini.asr(clip, stream=True, beams=beams)
        assert sum(not each.segment for each in early) > 1 and last.segment
        assert "".join(each.text for each in (*early, last)) == mini.asr(clip, beams=beams).text


def test_what_may_be_a_loop_is_not_told() -> None:
    g = np.random.default_rng(0)
    for _ in range(200):
        tail = g.integers(0, 9, g.integers(1, 17)).tolist() * 40
        ids, loops, told = [*g.integers(0, 40, 30).tolist(), *tail], LoopDetector(32), []
        for n, each in enumerate(ids, 1):
            told.append(settled(ids[:n]))
            if loops.add(each):
                assert max(told) <= n - loops.excess
                break
        else:
            pytest.fail("no loop")
    assert settled(list(range(30))) >= 29


def test_segments_have_what_verbose_json_needs(model: GPA) -> None:
    found = model.asr((LONG, RATE), beams=1, **BRIEF)
    assert found.duration == pytest.approx(len(LONG) / RATE)
    assert 5.0 < found.skipped < 8.5
    assert found.text == " ".join(each.text for each in found.segments)
    assert found.tokens.tolist() == [i for each in found.segments for i in each.tokens]
    for n, each in enumerate(found.segments):
        assert each.id == n and each.seek <= 100 * each.start + 1
        assert each.avg_logprob < 0 and 0 < each.compression_ratio < 3 and each.no_speech_prob == 0
        assert " ".join(word.word for word in each.words) == " ".join(each.text.split())
    times = [t for word in found.words for t in (word.start, word.end)]
    assert times == sorted(times) and times[0] >= 1.5 and times[-1] <= found.duration


def test_probabilities_are_those_of_the_network(model: GPA) -> None:
    prompt = model.prompt("asr", audio=(speechlike(1.0), RATE))
    ids = model.generate(prompt, task="asr", max_new_tokens=12)
    positions = [n for n, i in enumerate(prompt) if i in model.vocab.semantic]
    shown = evidence(model.network, prompt, ids, positions)
    rows = model.network.logits([*prompt, *ids])[len(prompt) - 1 : -1].log_softmax(-1)
    np.testing.assert_allclose(shown.log_probs, rows[range(len(ids)), ids], atol=1e-5)
    everywhere = evidence(model.network, prompt, ids, range(len(prompt) + len(ids))).attention
    np.testing.assert_allclose(everywhere.sum(1), 1, atol=1e-5)
    assert np.triu(everywhere[:, len(prompt) :]).max() == 0, "an id is chosen before it is seen"


def test_the_best_path_takes_every_frame_and_every_id() -> None:
    attention = np.full((3, 6), 0.1)
    for n, frames in enumerate(([0, 1, 2], [3], [4, 5])):
        attention[n, frames] = 0.8
    assert first_frames(attention).tolist() == [0, 3, 4, 6]
    assert first_frames(np.ones((4, 2))).tolist()[0] == 0 and first_frames(np.ones((4, 2)))[-1] == 2
    assert len(set(first_frames(np.ones((5, 2))).tolist())) == 6


@pytest.mark.parametrize("seconds", [0.1, 30.0])
def test_silence_is_an_empty_transcript_with_a_reason(model: GPA, seconds: float) -> None:
    with pytest.warns(match="silent"):
        found = model.asr((quiet(seconds), RATE))
    assert (found.text, found.finish_reason, found.segments, found.words) == ("", "no speech", (), [])
    assert found.skipped == found.duration == pytest.approx(seconds)
    live = model.recogniser()
    assert live.push(quiet(0.01)) == [] == live.finish() and live.transcript.text == ""


def test_what_the_network_is_not_sure_of_is_no_speech(model: GPA) -> None:
    """And then it is left out of a stream as well; a random network is sure of nothing."""
    believed = model.config
    model.processor.config = replace(believed, logprob_threshold=-0.5)
    try:
        found = model.asr((LONG, RATE), beams=1, **BRIEF)
        assert found.text == "" and found.skipped == pytest.approx(found.duration)
        assert list(model.asr((LONG, RATE), stream=True, beams=1, **BRIEF)) == []
    finally:
        model.processor.config = believed


def test_a_stream_that_is_closed_leaves_nothing_on_its_way(
    model: GPA, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = model.engine()
    monkeypatch.setattr(model, "engine", lambda: engine)
    stream = model.asr((LONG, RATE), stream=True, **BRIEF)
    next(stream)
    assert engine.busy
    stream.close()
    assert not engine.busy
    with pytest.raises(UsageError, match="one recording"):
        model.asr([(LONG, RATE)], stream=True)  # type: ignore[call-overload]


class Failing(Engine):
    """An engine whose oldest request fails in the third step, as a server's may."""

    steps = 0

    def step(self) -> list[Progress]:
        self.steps += 1
        if self.steps == 3:
            oldest = min(job.handle for job in (*self._waiting, *self._running))
            self.cancel(oldest)
            return [Progress(oldest, [], error=GenerationError("the server is gone"))]
        return super().step()


@pytest.mark.parametrize(
    "work",
    [
        lambda model: list(model.asr((LONG, RATE), stream=True, **BRIEF)),
        lambda model: model.asr([(LONG, RATE)] * 2, **BRIEF),
        lambda model: list(model.vc((LONG, RATE), "anna", stream=True, mode="lm", **BRIEF)),
        lambda model: model.vc((LONG, RATE), "anna", mode="lm", **BRIEF),
        lambda model: model.tts(["one two three."] * 3, "anna", **BRIEF),
    ],
)
def test_a_failure_of_the_engine_is_told_and_leaves_nothing_on_its_way(
    model: GPA, monkeypatch: pytest.MonkeyPatch, work: Callable[[GPA], object]
) -> None:
    engine = Failing(model.network)
    monkeypatch.setattr(model, "engine", lambda: engine)
    with pytest.raises(GenerationError, match="the server is gone"):
        work(model)
    assert not engine.busy


def test_live_recognition_goes_on_after_a_failure(model: GPA, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Failing(model.network)
    monkeypatch.setattr(model, "engine", lambda: engine)
    live = model.recogniser(**BRIEF)
    with pytest.raises(GenerationError, match="the server is gone"):
        live.push(LONG[: 12 * RATE])
    assert not engine.busy and live.push(LONG[12 * RATE :]) + live.finish()
    assert live.transcript.text and not engine.busy


def test_few_stretches_are_on_their_way_however_long_the_sound(
    model: GPA, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = model.engine()
    monkeypatch.setattr(model, "engine", lambda: engine)
    most = 0
    for _ in model.asr((np.tile(LONG, 6), RATE), stream=True, beams=1, max_new_tokens=4):
        most = max(most, len(engine._waiting) + len(engine._running))  # type: ignore[attr-defined]
    assert 2 <= most <= 8


# Sound bit by bit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "suffix"), [(16_000, "wav"), (44_100, "flac"), (24_000, "ogg")])
def test_blocks_are_what_load_gives(tmp_path: Path, rate: int, suffix: str) -> None:
    path = tmp_path / f"long.{suffix}"
    soundfile.write(path, np.stack([speechlike(23.3, rate), 0.5 * speechlike(23.3, rate, seed=4)], 1), rate)
    found = list(audio.blocks(path))
    assert max(map(len, found)) <= 10 * RATE + 1
    np.testing.assert_array_equal(np.concatenate(found), audio.load(path))
    for given in (path.read_bytes(), soundfile.read(path)):
        np.testing.assert_array_equal(np.concatenate(list(audio.blocks(given))), audio.load(path))


def test_blocks_of_bad_audio_are_errors(tmp_path: Path) -> None:
    wav = speechlike(12.0)
    wav[-1] = np.nan
    soundfile.write(tmp_path / "nan.wav", wav, RATE, "FLOAT")
    with pytest.raises(AudioError, match=r"nan\.wav contains NaN"):
        list(audio.blocks(tmp_path / "nan.wav"))
    data = (tmp_path / "nan.wav").read_bytes()
    with pytest.raises(AudioError, match="truncated"):
        list(audio.blocks(data[:-5000]))
    with pytest.raises(AudioError, match="does not exist"):
        list(audio.blocks(tmp_path / "none.wav"))


# Conversion -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"seed": 3}, {"seed": 3, "transcript": "asr"}, {"mode": "codec"}])
def test_a_long_conversion_is_its_codes_decoded_at_once(model: GPA, options: dict) -> None:
    voice = model.voices["anna"]
    whole = model.vc((LONG, RATE), voice, **options)
    if options.get("mode") == "codec":
        assert whole.seconds == pytest.approx(len(LONG) / RATE, abs=0.04)
    np.testing.assert_allclose(
        whole.wav, model.codec.decode(model.codec.tokens(whole.tokens), voice), atol=1e-6
    )
    chunks = list(model.vc((LONG, RATE), voice, stream=True, **options))
    assert len([chunk for chunk in chunks if len(chunk.wav)]) > 1
    np.testing.assert_array_equal(np.concatenate([chunk.wav for chunk in chunks]), whole.wav)
    assert chunks[-1].finish_reason == whole.finish_reason and whole.mode == options.get("mode", "lm")


def test_silence_between_speech_keeps_its_codes(model: GPA) -> None:
    wav = np.concatenate([speechlike(2.0), quiet(6.0), speechlike(2.0, seed=2)])
    made = model.vc((wav, RATE), "anna", seed=3)
    kept = model.codec.codes((quiet(4.0), RATE)).tolist()
    assert any(made.tokens[n : n + len(kept)].tolist() == kept for n in range(len(made.tokens)))


def test_codes_that_are_kept_are_made_in_windows(model: GPA, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whole frames, with what surrounds them, for any blocks."""
    monkeypatch.setattr(conversion_gpa, "WINDOW", 4.0)
    wav = speechlike(11.3)
    made = [
        np.concatenate(
            [
                chunk.tokens
                for chunk in conversion_gpa.exchanged(
                    model.processor, model.voices["anna"], np.split(wav, cuts)
                )
            ]
        )
        for cuts in ([], [5], range(0, len(wav), 777))
    ]
    assert len(made[0]) == len(model.codec.codes((wav, RATE)))
    assert all(np.array_equal(each, made[0]) for each in made)


# The shipped model ------------------------------------------------------------------------------------------


def test_words_are_where_they_are_said(mini: GPA) -> None:
    """Two recordings with silence around them: the words of each lie where it does."""
    clips = [audio.load(MINI / "golden" / f"audio_{n}.wav")[: 5 * RATE] for n in (0, 1)]
    wav = np.concatenate([quiet(3.0), clips[0], quiet(2.0), clips[1], quiet(1.0)])
    border = 3.0 + len(clips[0]) / RATE
    found = mini.asr((wav, RATE))
    first = [each for each in found.segments if each.start < border]
    assert first and len(first) < len(found.segments)
    assert all(2.9 <= word.start < word.end <= border + 0.4 for each in first for word in each.words)
    later = [word for each in found.segments[len(first) :] for word in each.words]
    assert all(border + 1.6 <= word.start < word.end <= len(wav) / RATE - 0.6 for word in later)
    assert found.language == "english" and 2.0 < found.skipped < 6.0
    assert all(each.no_speech_prob < 0.5 and each.avg_logprob > -0.5 for each in found.segments)


def test_no_words_are_invented_for_what_is_no_speech(mini: GPA) -> None:
    """Steady noise does not reach the network; bursts do, and it is not sure of any word."""
    g = np.random.default_rng(1)
    noise = g.standard_normal(20 * RATE).astype(np.float32)
    bursts = noise * (np.sin(2 * np.pi * 0.7 * np.arange(len(noise)) / RATE) > 0.3)
    assert mini.asr((0.05 * noise, RATE), beams=1).finish_reason == "no speech"
    assert len(mini.asr(((0.1 * bursts).astype(np.float32), RATE), beams=1).words) <= 3


T = np.arange(6 * RATE) / RATE
SOUNDS = {
    "tone": 0.3 * np.sin(2 * np.pi * 440 * T),
    "hum": sum(0.2 / k * np.sin(2 * np.pi * 50 * k * T) for k in range(1, 20)) * (T % 2 > 1),
    "chirp": 0.3 * np.sin(2 * np.pi * (100 * T + 325 * T**2)),
    "vibrato": 0.3 * np.sin(2 * np.pi * (300 * T + 1.2 * np.sin(10 * np.pi * T))),
    "chords": sum(
        0.1 * np.sin(2 * np.pi * k * f * 2 ** (np.floor(T / 1.5) * 5 % 12 / 12) * T) * np.exp(-2 * (T % 1.5))
        for f in (262, 330, 392) for k in (1, 2, 3)
    ),
    "offset": np.full(6 * RATE, 0.4),
}  # fmt: skip


@pytest.mark.parametrize("name", SOUNDS)
def test_no_words_are_invented_for_tones_and_music(mini: GPA, name: str) -> None:
    found = mini.asr((SOUNDS[name].astype(np.float32), RATE), beams=1)
    assert (found.text, found.finish_reason) == ("", "no speech") and found.skipped == found.duration


def test_speech_after_zeros_and_across_a_gap_is_read(mini: GPA) -> None:
    """The gap is skipped, and nothing is lost beside it."""
    clip = audio.load(MINI / "golden" / "audio_0.wav")[: 5 * RATE]
    alone = mini.asr((clip, RATE), beams=1)
    wav = np.concatenate([quiet(10.0), clip, quiet(20.0), clip])
    found = mini.asr((wav, RATE), beams=1)
    assert alone.text and len(found.text.split()) >= 2 * len(alone.text.split()) - 2
    assert found.skipped > 25 and found.words[0].start > 9.5


# The command line -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    folder = tmp_path_factory.mktemp("site")
    soundfile.write(folder / "long.wav", LONG, RATE)
    soundfile.write(folder / "short.flac", speechlike(1.0), RATE)
    soundfile.write(folder / "silent.wav", quiet(2.0), RATE)
    return folder


def gpa(site: Path, tiny: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    own = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gpa", "asr", *arguments, "--model", str(tiny), "--offline"]
    return subprocess.run(
        [*command, "--max-new-tokens", "20"], cwd=site, env=own, capture_output=True, text=True, check=False
    )


def test_gpa_asr_writes_every_format(site: Path, tiny: Path) -> None:
    text = gpa(site, tiny, "long.wav")
    assert text.returncode == 0 and text.stdout.strip() and "skipped" in text.stderr
    assert gpa(site, tiny, "long.wav", "--stream").stdout.split() == text.stdout.split()
    many = gpa(site, tiny, "long.wav", "short.flac", "silent.wav", "--format", "srt", "-o", "out")
    assert many.stdout.splitlines() == ["out/long.srt", "out/short.srt", "out/silent.srt"]
    assert "silent.wav: no speech in 2.0 s" in many.stderr
    assert (site / "out/silent.srt").read_text() == "" != (site / "out/long.srt").read_text()
    told = json.loads(gpa(site, tiny, "long.wav", "--format", "verbose_json").stdout)
    assert told["text"].split() == text.stdout.split() and len(told["segments"][0]) == 10 and told["words"]
    row = json.loads(gpa(site, tiny, "long.wav", "--json").stdout)
    assert row["text"] == told["text"] and row["skipped"] > 5 and row["segments"] == told["segments"]


def test_gpa_asr_takes_the_format_from_the_name_and_refuses_what_does_not_go_together(
    site: Path, tiny: Path
) -> None:
    assert gpa(site, tiny, "short.flac", "-o", "a.vtt").stdout == "a.vtt\n"
    assert (site / "a.vtt").read_text().startswith("WEBVTT\n\n00:00:0")
    for arguments in (
        ["long.wav", "short.flac", "--format", "srt"],
        ["long.wav", "--json", "--format", "vtt"],
        ["long.wav", "short.flac", "--stream"],
        ["long.wav", "./long.wav", "-o", "out"],
        ["long.wav", "-o", "long.wav/no.txt"],
    ):
        refused = gpa(site, tiny, *arguments)
        assert refused.returncode == UsageError.exit_code and not refused.stdout, arguments
        assert refused.stderr.splitlines()[-1].startswith("gpa: error: ")
