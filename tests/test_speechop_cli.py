"""The commands of SpeechOp: files, what is printed where, exit codes; on tiny random models."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from conftest import speechlike
from gpa.cli import main, restoration
from gpa.errors import AudioError, CheckpointError, PromptError, UsageError
from tiny_speechop import write_tiny_speechop

COMMANDS = ("enhance", "extract", "separate", "match", "edit")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_speechop(tmp_path_factory.mktemp("speechop"))


class Shell:
    """Runs `gpa` in this process with both tiny models, and keeps what it wrote."""

    def __init__(self, capfd: pytest.CaptureFixture[str], model: Path, recogniser: Path) -> None:
        self.capfd = capfd
        self.models = ["--model", str(model), "--recogniser", str(recogniser)]
        self.out = self.err = ""

    def __call__(self, *words: str | float, models: bool = True) -> int:
        self.capfd.readouterr()
        code = main.main([*map(str, words), *(self.models if models else [])])
        self.out, self.err = self.capfd.readouterr()
        assert "Traceback" not in self.err
        return code

    @property
    def errors(self) -> str:
        return "\n".join(line for line in self.err.splitlines() if line.startswith("gpa: error: "))


@pytest.fixture
def shell(
    capfd: pytest.CaptureFixture[str],
    model: Path,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Shell:
    """`gpa` in a folder that holds in.wav (1.2 seconds) and voice.wav (3)."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("in.wav", speechlike(1.2), 16000)
    soundfile.write("voice.wav", speechlike(3.0, rate=22050, seed=1), 22050)
    return Shell(capfd, model, tiny)


def wav(path: str) -> np.ndarray:
    samples, rate = soundfile.read(path)
    assert rate == 16000
    return samples


def test_enhance_prints_the_path_alone(shell: Shell) -> None:
    assert shell("enhance", "in.wav", "-o", "a.wav", "--steps", 3) == 0
    assert shell.out == "a.wav\n" and shell.err == "" and len(wav("a.wav")) == 19200
    assert shell("enhance", "in.wav", "-o", "b.wav", "--steps", 3, "--seed", 1) == 0
    assert shell("enhance", "in.wav", "-o", "c.flac", "--steps", 3, "--seed", 0) == 0
    assert np.array_equal(wav("a.wav"), wav("c.flac")) and not np.array_equal(wav("a.wav"), wav("b.wav"))


@pytest.mark.parametrize("words", [("enhance",), ("extract", "--voice", "voice.wav"), ("separate",)])
def test_a_recording_is_filtered_when_asked(words: tuple[str, ...], shell: Shell) -> None:
    """These settings say remade."""
    for name, flags in {"usual": [], "remade": ["--remade"], "filtered": ["--filtered"]}.items():
        assert shell(words[0], "in.wav", *words[1:], "-o", f"{name}.wav", "--steps", 2, *flags) == 0
    assert np.array_equal(wav("usual.wav"), wav("remade.wav"))
    assert not np.allclose(wav("filtered.wav"), wav("remade.wav"), atol=1e-2)
    assert np.abs(wav("filtered.wav")).mean() <= np.abs(wav("in.wav")).mean()
    with pytest.raises(SystemExit, match="2"):
        shell(words[0], "in.wav", *words[1:], "--remade", "--filtered")


def test_enhance_by_a_text_says_so_in_json(shell: Shell) -> None:
    text = ["--transcript", "The rain.", "--gamma", "0.5"]
    assert shell("enhance", "in.wav", "-o", "a.wav", "--json", *text) == 0
    (line,) = shell.out.splitlines()
    found = json.loads(line)
    assert found["transcript"] == "the rain." and found["path"] == "a.wav" and found["task"] == "enhance"
    assert found["evaluations"] == {"enhance(source)": 6, "tts(text)": 3, "tts()": 3}
    assert found["windows"] == [{"begin": 0.0, "end": 1.2, "text": "the rain."}]
    assert found["seconds"] == 1.2 and {"took", "rtf", "seed", "sample_rate"} <= set(found)


def test_enhance_by_recognised_words_and_a_voice(shell: Shell) -> None:
    assert shell("enhance", "in.wav", "-o", "a.wav", "--itc", "--voice", "voice.wav", "--json") == 0
    found = json.loads(shell.out)  # the tiny recogniser hears nonsense, or nothing
    guided = found["transcript"] is not None
    assert ("tts(prompt, text)" in found["evaluations"]) == guided
    assert guided or "no text for 0.0 to 1.2 s" in shell.err


def test_extract_match_and_separate(shell: Shell) -> None:
    assert shell("extract", "in.wav", "--voice", "voice.wav", "-o", "e.wav") == 0
    assert shell("match", "in.wav", "--like", "voice.wav", "-o", "m.wav") == 0
    assert shell.out == "m.wav\n" and len(wav("e.wav")) == len(wav("m.wav")) == 19200
    assert shell("separate", "in.wav", "--steps", 2) == 0
    assert shell.out == "speech.wav\nbackground.wav\n"
    assert shell("separate", "in.wav", "-o", "s.wav", "--background", "b.wav", "--json", "--steps", 2) == 0
    found = json.loads(shell.out)
    assert (found["path"], found["background"], found["task"]) == ("s.wav", "b.wav", "iso_fg")
    assert np.array_equal(wav("s.wav"), wav("speech.wav")) and len(wav("b.wav")) == 19200
    assert np.array_equal(wav("b.wav"), wav("background.wav"))


def test_edit(shell: Shell) -> None:
    span = ["--span", 0.4, 0.8, "--before", "so", "--after", "well"]
    assert shell("edit", "in.wav", "on friday", *span, "-o", "a.wav") == 0
    assert shell.out == "a.wav\n" and np.abs(wav("a.wav")[:4000] - wav("in.wav")[:4000]).max() < 1e-4
    assert shell("edit", "in.wav", "on friday", "--span", 0.9, 0.4, *span[3:]) == UsageError.exit_code
    assert "reversed" in shell.errors


def test_windows_from_the_command(shell: Shell) -> None:
    cut = ["--window", 1, "--overlap", 0.2, "--steps", 2, "--json"]
    assert shell("enhance", "voice.wav", "-o", "a.wav", "--transcript", "one two three four", *cut) == 0
    assert len(json.loads(shell.out)["windows"]) == 4 and "a guess" in shell.err
    assert len(wav("a.wav")) == 48000
    assert shell("enhance", "in.wav", "--window", 1, "--overlap", 0.9) == UsageError.exit_code


def test_wrong_use_is_refused_before_the_work(shell: Shell) -> None:
    for words, code, message in (
        (["enhance", "in.wav", "--gamma", "1"], UsageError, "--itc"),
        (["enhance", "in.wav", "--transcript", "hi", "--gamma", "nan"], UsageError, "gamma"),
        (["enhance", "in.wav", "--transcript", "слово"], PromptError, "trained on"),
        (["enhance", "in.wav", "--transcript", ""], PromptError, "no words"),
        (["enhance", "in.wav", "--steps", "0"], UsageError, "steps=0"),
        (["enhance", "in.wav", "-o", "a.xyz"], UsageError, ".flac"),
        (["enhance", "none.wav"], AudioError, "none.wav"),
        (["separate", "in.wav", "-o", "a.wav", "--background", "a.wav"], UsageError, "two names"),
        (["separate", "in.wav", "--background", "-"], UsageError, ".flac"),
        (["edit", "in.wav", "hi", "--span", "5", "6", "--before", "", "--after", ""], UsageError, "1.20 s"),
    ):
        assert shell(*words) == code.exit_code, words  # type: ignore[attr-defined]
        assert message in shell.errors and shell.out == ""
    assert sorted(path.name for path in Path().iterdir()) == ["in.wav", "voice.wav"]
    for words in (["enhance"], ["extract", "in.wav"], ["enhance", "in.wav", "--itc", "--transcript", "x"]):
        with pytest.raises(SystemExit) as stopped:
            shell(*words)
        assert stopped.value.code == 2


def test_an_absent_model_says_what_to_do(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpa.models.speechop import checkpoint_speechop as files_speechop

    monkeypatch.setattr(files_speechop, "SHIPPED", Path("assets"))
    assert shell("enhance", "in.wav", models=False) == CheckpointError.exit_code
    assert "speechop-mini" in shell.errors and "--model" in shell.errors
    assert shell("enhance", "in.wav", "--model", "nowhere", models=False) == CheckpointError.exit_code
    assert "nowhere" in shell.errors


def test_sound_through_pipes(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path("in.wav").read_bytes())))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out))
    assert shell("enhance", "-", "-o", "-", "--steps", 2) == 0
    assert len(soundfile.read(io.BytesIO(out.getvalue()))[0]) == 19200


def test_steps_are_shown_on_a_terminal(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Any] = []

    class Bar:
        def __init__(self, total: int, **more: Any) -> None:
            self.total, self.done, self.closed = total, 0, False
            bars.append(self)

        def update(self, n: int) -> None:
            self.done += n

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr("tqdm.tqdm", Bar)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert shell("separate", "in.wav", "--steps", 2) == 0
    assert [(bar.total, bar.done, bar.closed) for bar in bars] == [(3, 3, True)] * 2


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main.main([command, "--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0 and f"gpa {command}" in shown and "examples:" in shown
    assert restoration.DEFAULT_MODEL in shown and ("--itc" in shown) == (command not in ("match", "edit"))
