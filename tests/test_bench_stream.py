"""`gpa bench stream`: who speaks makes sound, a player's waits are counted, who makes none fails.

No time is asserted.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import RATE, speechlike
from gpa import audio
from gpa.bench import machine, material, speakers, stream
from gpa.bench.figures import played
from gpa.bench.speakers import Asked, Program, Turn
from gpa.bench.stream import Settings, measure
from gpa.cli import main
from gpa.errors import GenerationError, UsageError

OPTIONS = {"max_new_tokens": 12}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, threads_kept: None) -> None:
    """Everyone shares this process: seconds instead of minutes."""
    monkeypatch.setattr(machine, "alone", lambda function, *args: function(*args))


@pytest.fixture(scope="module")
def asked(tiny: Path) -> Asked:
    return Asked(str(tiny), material.SENTENCES[:5], OPTIONS, offline=True)


def test_a_player_waits_for_late_chunks() -> None:
    """Sound of 1 s at 2, of 0.5 s at 2.5 (in time), of 1 s at 4 (half a second late), the end at 4.2."""
    found = played(1.5, [(1.8, 0.0), (2.0, 1.0), (2.5, 0.5), (4.0, 1.0), (4.2, 0.0)])
    assert (found.first, found.total, found.audio, found.underrun) == pytest.approx((0.5, 2.7, 2.5, 0.5))
    assert played(0.0, [(1.0, 3.0)]).underrun == 0
    with pytest.raises(GenerationError, match="no sound"):
        played(0.0, [(1.0, 0.0)])


@pytest.mark.parametrize("streams", [1, 3])
def test_streams_say_every_text(streams: int, asked: Asked, threads_kept: None) -> None:
    turn = speakers.take_streams(asked, streams)
    assert len(turn.spoken) == 5 and turn.failed == 0 and turn.peak > 0
    for each in turn.spoken:
        assert 0 < each.first <= each.total and each.underrun >= 0
        assert each.audio == pytest.approx(12 / 25, abs=1 / 25)
    assert turn.rtf == pytest.approx(turn.seconds / sum(each.audio for each in turn.spoken))


def test_never_more_streams_than_asked() -> None:
    """Of five texts, two at a time, the third begins when one of the first two is done; a failure counts."""
    begun: list[int] = []
    alive: set[int] = set()
    most = 0

    class Utterance:
        def __init__(self, number: int) -> None:
            nonlocal most
            self.number, self.steps, self.done = number, 0, False
            begun.append(number)
            alive.add(number)
            most = max(most, len(alive))

        def take(self, progress: Any) -> list[Any]:
            self.steps += 1
            if self.number == 1:
                alive.discard(1)
                raise GenerationError("nothing was said")
            self.done = self.steps == 2 + self.number
            if self.done:
                alive.discard(self.number)
            return [type("Chunk", (), {"wav": np.zeros(800)})]

    class Engine:
        def step(self) -> list[int]:
            return [0]

    texts = [lambda n=n: speakers._Stream(Utterance(n), 0.0) for n in range(5)]  # type: ignore[arg-type, misc]
    spoken, failed = speakers._run(Engine(), texts, 2, 8000)
    assert begun == [0, 1, 2, 3, 4] and most == 2 and failed == 1
    assert [round(each.audio, 1) for each in spoken] == [0.2, 0.4, 0.5, 0.6]


def test_the_loop_of_transformers_speaks_the_same_prompts(asked: Asked, threads_kept: None) -> None:
    turn = speakers.take_loop(asked)
    assert len(turn.spoken) == 5 and turn.failed == 0
    for each in turn.spoken:
        assert each.first == each.total and each.underrun == 0 and 0 < each.audio <= 12 / 25 + 1 / 25


def test_recordings_are_read(asked: Asked, tmp_path: Path, threads_kept: None) -> None:
    files = speakers.write_recordings(asked, tmp_path, 2)
    assert [audio.seconds(file) > 0.5 for file in files] == [True, True]
    reading = speakers.take_reading(speakers.GPA_ASR, asked, files)
    assert len(reading.seconds) == len(reading.texts) == 2
    assert reading.audio == pytest.approx(sum(map(audio.seconds, files)))


def speaking(seconds: float, code: int = 0) -> Program:
    """A program that writes so much sound and ends with `code`."""
    script = (
        "import sys, numpy, soundfile\n"
        f"soundfile.write(sys.argv[2], numpy.zeros(int({seconds} * 8000)), 8000)\n"
        f"sys.stderr.write('alas\\nno voice\\n'); sys.exit({code})"
    )
    return Program("a program", lambda text, out: [sys.executable, "-c", script, text, str(out)])


def test_a_program_is_measured_from_start_to_end(tmp_path: Path) -> None:
    spent, seconds = speakers.take_program(speaking(0.5), "hello", tmp_path / "out.wav")
    assert seconds == 0.5 and 0 < spent.cpu_seconds and 0 < spent.seconds and spent.peak > 1 << 20
    with pytest.raises(GenerationError, match="exited with 3: no voice"):
        speakers.take_program(speaking(0.5, code=3), "hello", tmp_path / "out.wav")
    with pytest.raises(UsageError, match="no-such-program"):
        machine.program(["no-such-program"])


def test_sound_of_the_round_before_does_not_count(tmp_path: Path) -> None:
    out = tmp_path / "out.wav"
    speakers.take_program(speaking(0.5), "hello", out)
    with pytest.raises(GenerationError, match=r"made 0\.00 s of sound"):
        speakers.take_program(Program("mute", lambda text, out: [sys.executable, "-c", ""]), "hello", out)
    with pytest.raises(GenerationError, match=r"made 0\.05 s of sound"):
        speakers.take_program(speaking(0.05), "hello", out)


def test_who_fails_has_no_figures(
    asked: Asked, here: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the second round, too: what it did in the first is gone, the others stay, and the command fails."""
    rounds: list[int] = []

    def loop(asked: Asked) -> Turn:
        rounds.append(len(rounds))
        if len(rounds) > 1:
            raise RuntimeError("out of breath")
        return speakers.take_streams(asked, 1)

    monkeypatch.setattr(speakers, "take_loop", loop)
    command = ["bench", "stream", asked.model, "--streams", "1", "--sentences", "2", "--rounds", "3"]
    command += ["--max-new-tokens", "8", "--only", "streams", "loop", "--threads", "1", "--offline", "--json"]
    assert main.main(command) == GenerationError.exit_code
    out, err = capfd.readouterr()
    tree = json.loads(out)
    assert [row["name"] for row in tree["streams"]] == ["gpa, 1 at a time"] and len(rounds) == 2
    assert list(tree["failed"]) == [stream.LOOP] and "out of breath" in err
    assert tree["streams"][0]["transformers_over"] is None and tree["streams"][0]["texts"] == 6


def test_command_measures_everyone(tiny: Path, tmp_path: Path) -> None:
    """As a user runs it: streams, loop, recognition and our own program; a peer that is absent says so."""
    clip, png = tmp_path / "clip.wav", tmp_path / "stream.png"
    audio.save(clip, speechlike(1.0), RATE)
    command = [
        sys.executable,
        "-m",
        "gpa",
        "bench",
        "stream",
        str(tiny),
        "--streams",
        "2",
        "--sentences",
        "3",
    ]
    command += ["--rounds", "1", "--max-new-tokens", "8", "--threads", "1", "--offline", "--json"]
    command += ["--clips", str(clip), "--png", str(png)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tree = json.loads(done.stdout)
    assert [row["name"] for row in tree["streams"]] == ["gpa, 2 at a time", stream.LOOP]
    ours, loop = tree["streams"]
    assert ours["texts"] == loop["texts"] == 3 and set(ours["first"]) == {"p50", "p95", "p99"}
    assert ours["rounds"][0]["spoken"][0]["audio"] > 0 and loop["underrun"]["seconds"] == 0
    assert set(ours["transformers_over"]) == {"ratio", "low", "high"}
    assert loop["transformers_over"]["ratio"] == 1 and not tree["failed"]
    assert (
        tree["recognition"][0]["audio_seconds"] == pytest.approx(1.0) and tree["recognition"][0]["clips"] == 1
    )
    assert tree["programs"][0]["name"] == "gpa tts" and tree["programs"][0]["cpu_seconds"] > 0
    assert "Kokoro-82M, onnxruntime" in tree["skipped"]
    assert ("espeak-ng" in tree["skipped"]) == (shutil.which("espeak-ng") is None)
    assert png.read_bytes()[:4] == b"\x89PNG" and "round 1: gpa, 2 at a time" in done.stderr
    assert any("first audio" in line for line in stream.lines(tree))


def test_what_cannot_be_measured_is_refused(tiny: Path) -> None:
    with pytest.raises(UsageError, match="no such part: noise"):
        measure(replace(Settings(str(tiny)), only=("noise",)))
    for words in (["--streams", "0"], ["--sentences", "0"], ["--rounds", "0"], ["--max-new-tokens", "0"]):
        assert main.main(["bench", "stream", str(tiny), *words]) == UsageError.exit_code
