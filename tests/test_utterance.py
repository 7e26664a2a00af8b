"""Speech on its way: planned sentence by sentence, streamed as it is spoken, and never silently wrong."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from gpa import audio
from gpa.engine.request import Completion, Request
from gpa.engine.scheduler import Engine, Progress
from gpa.errors import GenerationError, PromptError, UsageError
from gpa.models.gpa import GPA, pipeline_gpa
from gpa.models.gpa.checkpoint_gpa import SHIPPED
from gpa.models.gpa.outputs_gpa import Chunk, Speech
from gpa.models.gpa.requests_gpa import SEED_STEP
from gpa.models.gpa.segmentation_gpa import audible_seconds, passages
from gpa.models.gpa.utterance_gpa import PARTS, TAKE_STEP, Take, Utterance
from gpa.text.edit_distance import edits, words

SENTENCE = "the quick brown fox jumps over the lazy dog, and how are you today, my dear old friend?"
LONG = "\n\n".join(f"{SENTENCE} {SENTENCE} {SENTENCE}" for _ in range(5))  # 15 parts
SHORT: dict[str, Any] = {"max_new_tokens": 9, "seed": 3}
HA = "ha " * 30  # gpa-mini loops over it
OPEN = "She opened the door and looked out into the garden."


@pytest.fixture(scope="module")
def model(tiny: Path) -> GPA:
    return GPA.from_pretrained(tiny, device="cpu")


@pytest.fixture(scope="module")
def mini() -> GPA:
    return GPA.from_pretrained("gpa-mini", device="cpu")


# The plan ---------------------------------------------------------------------------------------------------


def test_a_text_is_planned_by_sentences_and_rests_by_marks() -> None:
    long = "one, " * 30
    text = f"He came. She, too! {long}and so on; then it was over. Nobody knew\n\n'Why?' The end"
    plan = list(passages(text, 60))
    assert " ".join(" ".join(part.text for part in plan).split()) == " ".join(text.split())
    assert all(0 < len(part.text) <= 60 for part in plan)
    assert plan[0].text == "He came. She, too!" and plan[0].pause == 1  # short ones together
    assert {part.pause for part in plan if part.text.endswith((",", ";"))} == {0.5}
    ends = [part for part in plan if part.pause == 2.5]
    assert [part.text for part in ends] == ["Nobody knew", "'Why?' The end"]  # of paragraphs
    assert [part.done for part in plan] == sorted(part.done for part in plan) and plan[-1].done == 1
    (cut,) = [part for part in passages("word " * 10, 30) if part.done < 1]
    assert cut.pause == 0  # between words nobody rests


def test_a_text_that_fits_is_one_part_as_it_is() -> None:
    assert [part.text for part in passages("  Two. Three. ", 50)] == ["  Two. Three. "]
    assert list(passages(" \n\n \n\n", 50)) == []


def test_a_book_is_planned_as_it_is_spoken() -> None:
    asked: list[str] = []

    def spoken(text: str) -> str:
        asked.append(text)
        return text

    plan = passages("\n\n".join([SENTENCE] * 1000), 160, spoken)
    next(plan)
    next(plan)
    assert len(asked) == 2


# The stream -------------------------------------------------------------------------------------------------


def same(one: Speech, other: Speech) -> None:
    """Sample for sample, and token for token."""
    np.testing.assert_array_equal(one.wav, other.wav)
    np.testing.assert_array_equal(one.tokens, other.tokens)
    assert one.finish_reason == other.finish_reason and one.failures == other.failures


@pytest.mark.parametrize("options", [{}, {"pause": 0.7, "gamma": 2.0}, {"lookahead": 2}])
def test_the_chunks_of_a_stream_are_the_speech(model: GPA, options: dict[str, Any]) -> None:
    whole = model.tts(LONG, "anna", **SHORT, **options)
    for stream in (True, "parts"):
        chunks = list(model.tts(LONG, "anna", stream=stream, **SHORT, **options))  # type: ignore[call-overload]
        same(Speech.of(chunks), whole)
        assert len(chunks) >= 15 and [c.finish_reason for c in chunks] == [""] * (len(chunks) - 1) + [
            "length"
        ]
        assert " ".join(c.text for c in chunks if c.text).split() == " ".join(LONG.split()).split()
        assert chunks[-1].done == 1 and [c.done for c in chunks] == sorted(c.done for c in chunks)


def test_rests_are_as_long_as_asked_for(model: GPA) -> None:
    short, long = (model.tts(LONG, "anna", pause=pause, **SHORT) for pause in (0.0, 1.0))
    assert len(short.wav) == 640 * len(short.tokens)
    assert len(long.wav) - len(short.wav) == 16000 * (10 + 4 * 2.5)  # sentences, paragraphs; none at the end


def test_sound_comes_out_at_borders_of_tokens_first_few_then_more(model: GPA) -> None:
    """Neither how many ids a step brings nor what else runs moves a border."""
    ids = model.vocab.semantic.ids(list(range(60)) * 4)

    def pushed(sizes: int) -> list[int]:
        stream = model.codec.stream(model.voices["anna"])
        push, found = stream.push, []

        def note(tokens: Any) -> np.ndarray:
            found.append(tokens.codes.shape[1])
            return push(tokens)

        stream.push = note  # type: ignore[method-assign]
        take = Take(model.processor, stream)
        for begin in range(0, len(ids), sizes):
            take.add(ids[begin : begin + sizes], None)
        take.add([], Completion(ids, "stop", len(ids)))
        assert len(take.wav) == 640 * len(take.tokens) == 640 * 240
        return found

    assert pushed(1) == pushed(7) == pushed(240) and pushed(1)[:4] == [4, 8, 16, 32]


class Watched(Engine):
    """An engine that notes what is asked of it, and gives a completion another end where told to."""

    made: list["Watched"]
    ends: Callable[[Request], str | None]

    def __init__(self, network: Any) -> None:
        super().__init__(network)
        self.made.append(self)
        self.asked: dict[int, Request] = {}
        self.log: list[str] = []

    def add(self, request: Request) -> int:
        handle = super().add(request)
        self.asked[handle] = request
        self.log.append(f"add {part_of(request)}")
        return handle

    def cancel(self, handle: int) -> None:
        super().cancel(handle)
        self.log.append(f"cancel {part_of(self.asked[handle])}")

    def step(self) -> list[Progress]:
        found = []
        for each in super().step():
            request = self.asked[each.handle]
            if each.completion:
                self.log.append(f"end {part_of(request)}")
                if end := type(self).ends(request):
                    each = replace(each, completion=replace(each.completion, finish_reason=end))
            found.append(each)
        return found


def part_of(request: Request) -> int:
    """Which part of a text a request speaks."""
    return (request.seed - 3) % TAKE_STEP // SEED_STEP


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> type[Watched]:
    """The engines of calls of the test."""

    class Here(Watched):
        made: list[Watched] = []
        ends = staticmethod(lambda request: None)  # type: ignore[assignment]

    monkeypatch.setattr(pipeline_gpa, "Engine", Here)
    return Here


def test_the_first_sentence_is_heard_before_the_second_is_begun(model: GPA, watched: type[Watched]) -> None:
    stream = model.tts(LONG, "anna", stream=True, **SHORT)
    first = next(stream)
    (engine,) = watched.made
    assert len(first.wav) and engine.log[:1] == ["add 0"]
    assert "end 1" not in engine.log and "end 0" in engine.log or "end 0" not in engine.log
    assert [line for line in engine.log if line.startswith("add")].count("add 8") == 0
    list(stream)
    assert sum(line.startswith("end") for line in engine.log) == 15


def test_parts_are_side_by_side_and_heard_in_order(model: GPA, watched: type[Watched]) -> None:
    stream = model.tts(LONG, "anna", stream="parts", **SHORT)
    heard = [next(stream).text for _ in range(3)]
    (engine,) = watched.made
    assert engine.log[:PARTS] == [f"add {n}" for n in range(PARTS)]  # before any has ended
    assert "end 14" not in engine.log and heard == [SENTENCE] * 3
    stream.close()  # type: ignore[attr-defined]


def test_closing_a_stream_cancels_what_is_on_its_way(model: GPA, watched: type[Watched]) -> None:
    stream = model.tts(LONG, "anna", stream=True, **SHORT)
    next(stream)
    next(stream)
    (engine,) = watched.made
    assert engine.busy
    stream.close()  # type: ignore[attr-defined]
    assert not engine.busy and any(line.startswith("cancel") for line in engine.log)


def test_ten_thousand_words_keep_few_parts(model: GPA) -> None:
    """Parts, takes and sound that exist at a time do not grow with the text."""
    text = "\n\n".join([f"{SENTENCE} {SENTENCE}"] * 280)
    assert len(text.split()) > 10_000
    stream = model.tts(text, "anna", stream=True, max_new_tokens=2, pause=0.0)
    alive, n = [], 0
    for n, _ in enumerate(stream):
        if n % 100 == 50:
            gc.collect()
            alive.append(sum(isinstance(each, Take) for each in gc.get_objects()))
    assert n >= 560 and 0 < max(alive) <= PARTS + 1


# Failures ---------------------------------------------------------------------------------------------------


def fails(*parts: int, tries: int = 2, end: str = "loop") -> Callable[[Request], str | None]:
    """Let those parts end so in their first tries."""

    def ends(request: Request) -> str | None:
        tried = (request.seed - 3) // TAKE_STEP
        return end if part_of(request) in parts and tried < tries else None

    return staticmethod(ends)  # type: ignore[return-value]


def test_a_part_that_fails_is_tried_again_with_another_seed(model: GPA, watched: type[Watched]) -> None:
    plain = model.tts(LONG, "anna", **SHORT)
    watched.ends = fails(4, tries=1)
    again = model.tts(LONG, "anna", **SHORT)
    assert again.failures == () and len(again.tokens) == len(plain.tokens)
    engine = watched.made[-1]
    seeds = [request.seed for request in engine.asked.values() if part_of(request) == 4]
    assert seeds == [3 + 4 * SEED_STEP, 3 + 4 * SEED_STEP + TAKE_STEP]
    same(Speech.of(model.tts(LONG, "anna", stream=True, **SHORT)), again)
    tokens = [speech.tokens.reshape(15, 9) for speech in (plain, again)]
    assert [n for n in range(15) if (tokens[0][n] != tokens[1][n]).any()] == [4]


def test_a_part_that_fails_twice_is_left_out_and_said(model: GPA, watched: type[Watched]) -> None:
    whole = model.tts(LONG, "anna", **SHORT)
    watched.ends = fails(4, 14)
    speech = model.tts(LONG, "anna", **SHORT)
    assert [failure.text for failure in speech.failures] == [SENTENCE] * 2
    assert all(
        "repeats itself" in failure.reason and SENTENCE in failure.reason for failure in speech.failures
    )
    kept = np.delete(whole.tokens.reshape(15, 9), (4, 14), 0)
    np.testing.assert_array_equal(speech.tokens, kept.reshape(-1))
    rests = 0.2 * (2 + 2.5 + 1)  # after the parts 0 and 1, 2, and 3
    assert speech.failures[0].seconds == pytest.approx(4 * 9 * 0.04 + rests - 0.2)
    same(Speech.of(model.tts(LONG, "anna", stream=True, **SHORT)), speech)


def test_where_nothing_can_be_spoken_there_is_an_error(model: GPA, watched: type[Watched]) -> None:
    watched.ends = fails(*range(15))
    for text in (LONG, "hello there"):
        with pytest.raises(GenerationError, match="no speech for .*repeats itself"):
            model.tts(text, "anna", **SHORT)
    with pytest.raises(GenerationError):
        list(model.tts(LONG, "anna", stream="parts", **SHORT))
    with pytest.raises(GenerationError):
        model.tts(["hello there", LONG], "anna", **SHORT)


def test_what_was_heard_is_not_taken_back(model: GPA, watched: type[Watched]) -> None:
    """The first part of a live stream is spoken once; it is said that it failed."""
    watched.ends = fails(0, tries=1)
    chunks = list(model.tts(LONG, "anna", stream=True, **SHORT))
    speech = Speech.of(chunks)
    assert [failure.text for failure in speech.failures] == [SENTENCE] and chunks[0].tokens.size
    assert sum(part_of(r) == 0 for r in watched.made[-1].asked.values()) == 1
    assert model.tts(LONG, "anna", **SHORT).failures == ()  # checked first, so tried again
    heard = []
    with pytest.raises(GenerationError, match="no speech"):
        for chunk in model.tts(SENTENCE, "anna", stream=True, **SHORT):
            heard.append(chunk)
    assert sum(len(chunk.wav) for chunk in heard)


@pytest.mark.parametrize(("end", "why"), [("length", "come to an end"), ("loop", "repeats itself")])
def test_only_the_model_ends_speech(model: GPA, watched: type[Watched], end: str, why: str) -> None:
    """A budget of ours that runs out is a failure, one that was asked for is not."""
    watched.ends = fails(0, end=end)
    with pytest.raises(GenerationError, match=why):
        model.tts("hello there", "anna", seed=3)
    if end == "length":
        assert model.tts("hello there", "anna", **SHORT).finish_reason == "length"


def test_silence_is_no_speech(model: GPA, watched: type[Watched], monkeypatch: pytest.MonkeyPatch) -> None:
    watched.ends = fails(0, end="stop")
    assert model.tts("hello there", "anna", seed=3).finish_reason == "stop"
    silent = Take.wav.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(Take, "wav", property(lambda take: 1e-4 * silent(take)))
    with pytest.raises(GenerationError, match=r"0\.0 s of sound, at least 0\.2 are needed"):
        model.tts("hello there", "anna", seed=3)


def test_audible_seconds() -> None:
    tone = np.sin(np.arange(16000) * 0.1).astype(np.float32)
    hum = 1e-2 * tone
    assert audible_seconds(np.concatenate([hum, tone, hum]), 16000) == pytest.approx(1.0, abs=0.03)
    assert audible_seconds(hum, 16000) == pytest.approx(1.0, abs=0.03)
    assert audible_seconds(1e-2 * hum, 16000) == audible_seconds(tone[:100], 16000) == 0.0


def test_greedy_speech_is_not_tried_again(model: GPA, watched: type[Watched]) -> None:
    watched.ends = fails(0)
    with pytest.raises(GenerationError, match="temperature 0"):
        model.tts("hello there", "anna", temperature=0, **SHORT)
    assert len(watched.made[-1].asked) == 1


def test_a_later_part_that_cannot_be_asked_for_is_a_failure_too(
    model: GPA, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Engine.add

    def refuse(engine: Engine, request: Request) -> int:
        if part_of(request) in (3, 14):
            raise PromptError("too long")
        return add(engine, request)

    monkeypatch.setattr(Engine, "add", refuse)
    speech = model.tts(LONG, "anna", **SHORT)
    assert [failure.reason for failure in speech.failures] == ["too long"] * 2 and speech.seconds > 1
    monkeypatch.setattr(Engine, "add", lambda engine, request: (_ for _ in ()).throw(PromptError("no")))
    with pytest.raises(PromptError, match="no"):
        model.tts(LONG, "anna", stream=True, **SHORT)  # at once


def test_what_cannot_be_asked(model: GPA) -> None:
    for options, why in (
        ({"stream": "words"}, "stream='words'"),
        ({"best_of": 0}, "best_of=0"),
        ({"best_of": 2, "temperature": 0}, "best_of=2"),
        ({"verify": 1}, "verify=1"),
    ):
        with pytest.raises(UsageError, match=why):
            model.tts("hello", "anna", **options)  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="one text"):
        model.tts(["hello"], "anna", stream=True)  # type: ignore[call-overload]
    with pytest.raises(PromptError, match="nothing to say"):
        model.tts(" \n\n ", "anna", stream=True)


# The self-check ---------------------------------------------------------------------------------------------


def test_the_take_that_reads_best_is_kept(mini: GPA) -> None:
    """Candidates with seeds of their own, and of them the one in which recognition errs least."""
    best = mini.tts(OPEN, "alloy", best_of=3)
    takes = [mini.tts(OPEN, "alloy", seed=n * TAKE_STEP) for n in range(3)]
    said = words(OPEN)
    errors = [edits(said, words(mini.asr((take.wav, take.sample_rate)).text)) for take in takes]
    same(best, takes[errors.index(min(errors))])


def test_what_reads_wrong_has_failed(model: GPA, watched: type[Watched]) -> None:
    """A random model recognises nothing of what it says."""
    with pytest.raises(GenerationError, match=r"2 of 2 words are wrong: it reads '"):
        model.tts("hello there", "anna", verify=True, **SHORT)
    spoken = [request for request in watched.made[-1].asked.values() if request.rules.max_new == 9]
    assert [request.seed for request in spoken] == [3, 3 + TAKE_STEP]


# The command ------------------------------------------------------------------------------------------------


def gpa_tts(folder: Path, *words: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GPA_THREADS": "1"}
    command = [sys.executable, "-m", "gpa", "tts", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False, **more)


BRIEF = ["--voice", "anna", "--seed", "3", "--max-new-tokens", "9"]


def test_a_stream_on_standard_output(tiny: Path, model: GPA, tmp_path: Path) -> None:
    run = gpa_tts(tmp_path, LONG, "--model", str(tiny), *BRIEF, "--stream", "-o", "-")
    assert run.returncode == 0, run.stderr
    assert run.stdout[:8] == b"RIFF\xff\xff\xff\xff" and run.stdout[36:44] == b"data\xff\xff\xff\xff"
    wav = np.frombuffer(run.stdout[44:], "<i2")
    np.testing.assert_array_equal(wav, audio.pcm16(model.tts(LONG, "anna", **SHORT).wav))
    np.testing.assert_array_equal(audio.load(run.stdout), wav / np.float32(32768))  # players read it


def test_a_stream_into_a_file_has_true_sizes_in_the_end(tiny: Path, tmp_path: Path) -> None:
    for name, more in (("a.wav", ["--stream"]), ("b.wav", []), ("c.flac", ["--stream"])):
        run = gpa_tts(tmp_path, LONG, "--model", str(tiny), *BRIEF, "-o", name, *more)
        assert (run.returncode, run.stdout.decode().strip(), run.stderr) == (0, name, b"")
    found = [soundfile.read(tmp_path / name, dtype="int16")[0] for name in ("a.wav", "b.wav", "c.flac")]
    assert all(np.array_equal(each, found[0]) and len(each) > 16000 for each in found)
    assert (tmp_path / "a.wav").stat().st_size == 44 + 2 * len(found[0])


def test_a_reader_that_goes_ends_the_stream_quietly(tiny: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gpa", "tts", "-", "--model", str(tiny), *BRIEF, "--stream", "-o", "-"]
    speak = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    )
    assert speak.stdin and speak.stdout and speak.stderr
    speak.stdin.write("\n\n".join([LONG] * 40).encode())
    speak.stdin.close()
    assert len(speak.stdout.read(1000)) == 1000
    speak.stdout.close()
    assert speak.wait(timeout=60) == 141 and speak.stderr.read() == b""
    speak.stderr.close()


def test_speech_that_fails_is_exit_code_6_and_no_file(mini: GPA, tmp_path: Path) -> None:
    """Real speech, or an error; never a moment of sound and success."""
    for number, more in enumerate(([], ["--stream"])):
        name = f"{number}.wav"
        run = gpa_tts(tmp_path, HA, "-o", name, *more)
        if run.returncode == 0:
            assert soundfile.info(tmp_path / name).duration > 3
        else:
            assert run.returncode == GenerationError.exit_code and list(tmp_path.iterdir()) == []
            assert b"no speech for 'ha ha" in run.stderr and run.stdout == b""


def test_what_is_missing_is_said_and_the_rest_is_kept(mini: GPA, tmp_path: Path) -> None:
    run = gpa_tts(
        tmp_path, f"{OPEN}\n\n{HA * 2}\n\n{OPEN}", "-o", "o.wav", "--json", "--max-new-tokens", "250"
    )
    said = json.loads(run.stdout)
    assert run.returncode == (GenerationError.exit_code if said.get("failures") else 0), run.stderr
    assert soundfile.info(tmp_path / "o.wav").duration == pytest.approx(said["seconds"], abs=1e-3)
    assert said["seconds"] > 4
    for failure in said.get("failures", []):
        assert failure["text"].startswith("ha ha") and b"missing at" in run.stderr


def test_the_shipped_voice_streams(mini: GPA) -> None:
    assert SHIPPED.is_dir()
    chunks: list[Chunk] = list(mini.tts(OPEN, "alloy", stream=True))
    same(Speech.of(chunks), mini.tts(OPEN, "alloy"))
    utterance = Utterance(mini.processor, Engine(mini.network), OPEN, mini.voices["alloy"], {})
    utterance.cancel()
    assert utterance.done and not utterance.parts
