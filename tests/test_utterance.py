"""Speech on its way: planned sentence by sentence, streamed as it is spoken, and never silently wrong."""

import argparse
import gc
import json
import math
import os
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from gpa import audio
from gpa.cli import commands
from gpa.cli.main import main
from gpa.engine.request import Completion, Request
from gpa.engine.scheduler import Engine, Progress
from gpa.errors import GenerationError, PromptError, UsageError
from gpa.models.gpa import GPA
from gpa.models.gpa.checkpoint_gpa import SHIPPED
from gpa.models.gpa.outputs_gpa import Chunk, Speech
from gpa.models.gpa.requests_gpa import SEED_STEP
from gpa.models.gpa.segmentation_gpa import audible_range, audible_seconds, passages
from gpa.models.gpa.utterance_gpa import PARTS, TAKE_STEP, Take, Utterance
from gpa.text.letters import letter_targets

SENTENCE = "the quick brown fox jumps over the lazy dog, and how are you today, my dear old friend?"
LONG = "\n\n".join(f"{SENTENCE} {SENTENCE} {SENTENCE}" for _ in range(5))  # 15 parts
SHORT: dict[str, Any] = {"max_new_tokens": 9, "seed": 3}
LIVE: dict[str, Any] = {"max_new_tokens": 24, "seed": 3, "lookahead": 1}  # first sound before the end
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
    assert [part.text for part in ends] == ["then it was over. Nobody knew", "'Why?' The end"]
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


def test_sound_depends_on_the_ids_and_not_on_how_many_come_at_once(model: GPA) -> None:
    ids = model.vocab.semantic.ids(list(range(60)) * 4)

    def sound(size: int) -> np.ndarray:
        take = Take(model.processor, model.codec.stream(model.voices["anna"]))
        for begin in range(0, len(ids), size):
            take.add(ids[begin : begin + size], None)
        take.add([model.vocab.stop], Completion([*ids, model.vocab.stop], "stop", len(ids)))
        assert take.tokens.tolist() == list(range(60)) * 4
        return take.wav

    assert len(sound(1)) == 640 * 240
    assert all(np.array_equal(sound(1), sound(size)) for size in (7, 100, 240))


def test_the_command_keeps_no_sound_that_it_has_written(tmp_path: Path) -> None:
    heard: list[weakref.ref] = []

    def chunks() -> Iterator[Chunk]:
        for n in range(5):
            assert not any(ref() is not None for ref in heard[:-1])
            wav = np.full(1600, n / 10, np.float32)
            heard.append(weakref.ref(wav))
            yield Chunk(wav, 16_000, np.arange(n), "stop")
            del wav

    args = argparse.Namespace(output=str(tmp_path / "a.wav"), stream=True)
    speech, seconds = commands._spoken(args, chunks(), 16_000, bar=False)
    assert seconds == 0.5 == audio.seconds(tmp_path / "a.wav") and len(speech.tokens) == 10


class Watched(Engine):
    """An engine that notes what is asked of it, and gives a completion another end where told to."""

    made: list["Watched"]
    ends: Callable[[Request], str | None]

    def __init__(self, network: Any) -> None:
        super().__init__(network)
        self.made.append(self)
        self.asked: dict[int, Request] = {}
        self.log: list[str] = []
        self.steps, self.begun = 0, {}  # type: ignore[var-annotated]

    def add(self, request: Request) -> int:
        handle = super().add(request)
        self.asked[handle] = request
        self.begun[part_of(request)] = self.steps
        self.log.append(f"add {part_of(request)}")
        return handle

    def cancel(self, handle: int) -> None:
        super().cancel(handle)
        self.log.append(f"cancel {part_of(self.asked[handle])}")

    def step(self) -> list[Progress]:
        found = []
        self.steps += 1
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
def watched(model: GPA, monkeypatch: pytest.MonkeyPatch) -> type[Watched]:
    """The engines of calls of the test."""

    class Here(Watched):
        made: list[Watched] = []
        ends = staticmethod(lambda request: None)  # type: ignore[assignment]

    monkeypatch.setattr(model, "engine", lambda: Here(model.network))
    return Here


def test_the_first_sentence_is_heard_while_it_is_made(model: GPA, watched: type[Watched]) -> None:
    """By the order of events: the other parts wait for its first sound, which does not wait for its end."""
    stream = model.tts(LONG, "anna", stream=True, **LIVE)
    first = next(stream)
    (engine,) = watched.made
    assert len(first.wav) > 0 and first.text == SENTENCE
    assert engine.log == [f"add {n}" for n in range(PARTS)]  # nothing has ended
    assert engine.begun[0] == 0 and engine.begun[1] == engine.steps < 24
    list(stream)
    assert sum(line.startswith("end") for line in engine.log) == 15


def test_parts_are_side_by_side_and_heard_in_order(model: GPA, watched: type[Watched]) -> None:
    stream = model.tts(LONG, "anna", stream="parts", **SHORT)
    heard = [next(stream).text for _ in range(3)]
    (engine,) = watched.made
    assert engine.log[:PARTS] == [f"add {n}" for n in range(PARTS)]  # before any has ended
    assert "end 14" not in engine.log and heard == [SENTENCE] * 3
    stream.close()


def test_closing_a_stream_cancels_what_is_on_its_way(model: GPA, watched: type[Watched]) -> None:
    stream = model.tts(LONG, "anna", stream=True, **LIVE)
    next(stream)
    next(stream)
    (engine,) = watched.made
    assert engine.busy
    stream.close()
    assert not engine.busy and any(line.startswith("cancel") for line in engine.log)


def test_ten_thousand_words_keep_few_parts(model: GPA) -> None:
    """Parts, takes and sound that exist at a time do not grow with the text."""
    text = "\n\n".join([f"{SENTENCE} {SENTENCE}"] * 280)
    assert len(text.split()) > 10_000
    alive = []
    for n, _ in enumerate(model.tts(text, "anna", stream=True, max_new_tokens=1, pause=0.0)):
        if n in (20, 150, 270):
            gc.collect()
            alive.append(sum(type(each) is Take for each in gc.get_objects()))
    assert n == 280 and len(alive) == 3 and 0 < max(alive) <= PARTS + 1


# Failures ---------------------------------------------------------------------------------------------------


def fails(*parts: int, tries: int = 2, end: str = "loop") -> Callable[[Request], str | None]:
    """Let those parts end so in their first tries."""

    def ends(request: Request) -> str | None:
        tried = (request.seed - 3) // TAKE_STEP
        return end if part_of(request) in parts and tried < tries else None

    return staticmethod(ends)  # type: ignore[return-value]


def spoken(model: GPA) -> list[np.ndarray]:
    """Tokens of each part."""
    return [c.tokens for c in model.tts(LONG, "anna", stream="parts", **SHORT) if c.text]


def test_a_part_that_fails_is_tried_again_with_another_seed(model: GPA, watched: type[Watched]) -> None:
    plain = spoken(model)
    watched.ends = fails(4, tries=1)
    again = model.tts(LONG, "anna", **SHORT)
    assert again.failures == () and again.seconds > 5
    engine = watched.made[-1]
    seeds = [request.seed for request in engine.asked.values() if part_of(request) == 4]
    assert seeds == [3 + 4 * SEED_STEP, 3 + 4 * SEED_STEP + TAKE_STEP]
    same(Speech.of(model.tts(LONG, "anna", stream=True, **SHORT)), again)
    differ = [
        n for n, (a, b) in enumerate(zip(plain, spoken(model), strict=True)) if not np.array_equal(a, b)
    ]
    assert differ == [4]


def test_a_part_that_fails_twice_is_left_out_and_said(model: GPA, watched: type[Watched]) -> None:
    parts = spoken(model)
    watched.ends = fails(4, 14)
    speech = model.tts(LONG, "anna", **SHORT)
    assert [failure.text for failure in speech.failures] == [SENTENCE] * 2
    assert all("repeats itself" in each.reason and SENTENCE in each.reason for each in speech.failures)
    np.testing.assert_array_equal(speech.tokens, np.concatenate([*parts[:4], *parts[5:14]]))
    rests = 0.2 * (1 + 1 + 2.5)  # after the parts 0, 1 and 2
    assert speech.failures[0].seconds == pytest.approx(rests + 0.04 * sum(map(len, parts[:4])))
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
    chunks = list(model.tts(LONG, "anna", stream=True, **LIVE))
    speech = Speech.of(chunks)
    assert [failure.text for failure in speech.failures] == [SENTENCE] and chunks[0].tokens.size
    assert sum(part_of(r) == 0 for r in watched.made[-1].asked.values()) == 1
    assert model.tts(LONG, "anna", **LIVE).failures == ()  # checked first, so tried again
    heard = []
    with pytest.raises(GenerationError, match="no speech"):
        for chunk in model.tts(SENTENCE, "anna", stream=True, **LIVE):
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
    assert audible_range(np.concatenate([hum, tone, hum]), 16000) == pytest.approx((1.0, 2.0), abs=0.03)
    assert audible_range(1e-2 * hum, 16000) == (0.0, 1.0)


def test_words_are_said_where_something_is_heard() -> None:
    """Attention alone begins with the first frame of the sound and ends with its last, which are silent."""
    mini = GPA.from_pretrained("gpa-mini", device="cpu")
    chunks = list(
        mini.tts(
            "The boy was there when the sun rose.",
            "alloy",
            seed=5,
            gamma=0,
            temperature=0.8,
            stream=True,
            word_times=True,
        )
    )
    words, wav = [w for chunk in chunks for w in chunk.words], np.concatenate([c.wav for c in chunks])
    begin, end = audible_range(wav, 16000)
    assert 0.1 < begin and end < len(wav) / 16000 - 0.1, "a sound with silence at both ends is needed"
    assert begin - 0.02 <= words[0].start < begin + 0.1 and end - 0.2 < words[-1].end <= end + 0.02
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times) and len(words) == 8


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
        ({"pause": -0.1}, "pause=-0.1"),
        ({"pause": math.nan}, "pause=nan"),
    ):
        with pytest.raises(UsageError, match=why):
            model.tts("hello", "anna", **options)  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="one text"):
        model.tts(["hello"], "anna", stream=True)  # type: ignore[call-overload]
    with pytest.raises(PromptError, match="nothing to say"):
        model.tts(" \n\n ", "anna", stream=True)


# The self-check ---------------------------------------------------------------------------------------------


SAID = "she opened the door and looked out into the garden"


def by_letters(mini: GPA, take: Speech) -> float:
    """By torch's own CTC."""
    _, letters = mini.codec.codes_and_letters((take.wav, take.sample_rate))
    assert letters is not None
    lengths = torch.tensor([len(letters)]), torch.tensor([len(SAID)])
    target = torch.tensor([letter_targets(SAID)])
    loss = torch.nn.functional.ctc_loss(torch.from_numpy(letters)[:, None], target, *lengths, reduction="sum")
    return -float(loss)


def by_the_network(mini: GPA, take: Speech) -> float:
    ids = [*mini.processor.text_tokenizer.encode(SAID), mini.vocab.control["end_content"]]
    prompt = mini.prompt("asr", audio=(take.wav, take.sample_rate))
    rows = torch.log_softmax(mini.network.logits([*prompt, *ids]), -1)[len(prompt) - 1 :]
    return sum(float(row[i]) for row, i in zip(rows, ids, strict=False))


@pytest.mark.parametrize("score", [by_letters, by_the_network])
def test_the_take_whose_text_is_likeliest_is_kept(
    score: Callable[[GPA, Speech], float], mini: GPA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Candidates with seeds of their own, and of them the one whose sound says the text most clearly: by the
    letters that the codec hears, and where it hears none, to the network.
    """
    if score is by_the_network:
        monkeypatch.setattr(mini.codec, "ctc", None)
    best = mini.tts(OPEN, "alloy", best_of=4, seed=1)
    takes = [mini.tts(OPEN, "alloy", seed=1 + n * TAKE_STEP) for n in range(4)]
    scores = [score(mini, take) for take in takes]
    assert len(set(scores)) == 4 and np.argmax(scores) > 0
    same(best, takes[int(np.argmax(scores))])


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


def test_a_stream_into_a_file_has_true_sizes_in_the_end(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, more in (("a.wav", ["--stream"]), ("b.wav", []), ("c.flac", ["--stream"])):
        assert main(["tts", LONG, "--model", str(tiny), *BRIEF, "-o", name, *more]) == 0
    found = [soundfile.read(name, dtype="int16")[0] for name in ("a.wav", "b.wav", "c.flac")]
    assert all(np.array_equal(each, found[0]) and len(each) > 16000 for each in found)
    assert Path("a.wav").stat().st_size == 44 + 2 * len(found[0])
    assert Path("a.wav").read_bytes()[40:44] == (2 * len(found[0])).to_bytes(4, "little")


def test_a_file_gets_as_many_takes_as_the_checkpoint_says(
    tiny: Path, model: GPA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One where speech is heard as it is made, where all takes are the same, where one is asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Utterance, "_likelihood", lambda self, part, evidence, take: part.takes.index(take))
    shutil.copytree(tiny, "model")
    settings = json.loads(Path("model/gpa.json").read_text())
    Path("model/gpa.json").write_text(json.dumps(settings | {"takes": 3}))
    one, three = (model.tts(LONG, "anna", **SHORT, best_of=n).wav for n in (1, 3))
    assert not np.array_equal(one, three)
    for more, options in (
        ([], {"best_of": 3}),
        (["--stream"], {}),
        (["--best-of", "1"], {}),
        (["--temperature", "0"], {"temperature": 0.0}),
    ):
        assert main(["tts", LONG, "--model", "model", *BRIEF, "-o", "o.wav", *more]) == 0
        made, _ = soundfile.read("o.wav", dtype="int16")
        expected = model.tts(LONG, "anna", **SHORT, **options)  # type: ignore[call-overload]
        np.testing.assert_array_equal(made, audio.pcm16(expected.wav))


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
    assert (speak.wait(timeout=60), speak.stderr.read()) == (141, b"")
    speak.stderr.close()


@pytest.mark.parametrize("more", [[], ["--stream"], ["--best-of", "2"]])
def test_speech_that_fails_is_exit_code_6_and_no_file(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, more: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["tts", "hello there", "--model", str(tiny), *BRIEF, "--verify", "-o", "o.wav", *more]
    assert main(command) == GenerationError.exit_code
    said = capfd.readouterr()
    assert "error: no speech for 'hello there': 2 of 2 words are wrong" in said.err and said.out == ""
    assert list(tmp_path.iterdir()) == []


def test_ha_ha_is_speech_or_an_error_and_the_rest_is_kept(tmp_path: Path) -> None:
    """gpa-mini gave a moment of sound for it, and success."""
    run = gpa_tts(tmp_path, f"{OPEN}\n\n{HA}\n\n{OPEN}", "-o", "o.wav", "--json")
    said = json.loads(run.stdout)
    assert run.returncode == (GenerationError.exit_code if said.get("failures") else 0), run.stderr
    assert soundfile.info(tmp_path / "o.wav").duration == pytest.approx(said["seconds"], abs=1e-3)
    assert said["seconds"] > (4 if said.get("failures") else 7)
    for failure in said.get("failures", []):
        assert failure["text"].startswith("ha ha") and b"missing at" in run.stderr


def test_the_shipped_voice_streams(mini: GPA) -> None:
    assert SHIPPED.is_dir()
    chunks: list[Chunk] = list(mini.tts(OPEN, "alloy", stream=True))
    same(Speech.of(chunks), mini.tts(OPEN, "alloy"))
    utterance = Utterance(mini.processor, Engine(mini.network), OPEN, mini.voices["alloy"], {})
    utterance.cancel()
    assert utterance.done and not utterance.parts
