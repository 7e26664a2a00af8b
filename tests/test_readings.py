"""What texts are read as: a corpus by kind, markup, pauses, scripts, and how long it takes."""

import os
import re
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gpa.errors import PromptError, TextWarning
from gpa.models.gpa import GPA
from gpa.text.markup import pauses, without_markup
from gpa.text.normaliser import normalise_text
from tiny_model import write_tiny_model

CASES = Path(__file__).parent / "assets" / "readings.tsv"
ESCAPE = re.compile(r"\\(?:u([0-9a-f]{4})|(.))")
SAID = set("abcdefghijklmnopqrstuvwxyz .,?!;:'-")


def unescaped(text: str) -> str:
    """As the table writes what cannot be seen."""
    marks = {"n": "\n", "r": "\r", "t": "\t"}
    return ESCAPE.sub(lambda m: chr(int(m[1], 16)) if m[1] else marks.get(m[2], m[2]), text)


def cases() -> dict[str, list[tuple[str, str]]]:
    """Texts and their readings, by kind."""
    found = defaultdict(list)
    for line in CASES.read_text(encoding="utf-8").split("\n")[1:-1]:
        kind, text, reading = line.split("\t")
        found[kind].append((unescaped(text), reading))
    return found


def test_the_corpus_is_large() -> None:
    found = cases()
    assert sum(map(len, found.values())) >= 300 and min(map(len, found.values())) >= 10


@pytest.mark.parametrize("kind", sorted(cases()))
def test_readings(kind: str) -> None:
    wrong = [
        f"{text!r}: {normalise_text(text)!r}, not {reading!r}"
        for text, reading in cases()[kind]
        if normalise_text(text) != reading
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("kind", sorted(cases()))
def test_a_reading_is_read_as_it_is(kind: str) -> None:
    """Also in a sentence, where nothing of it is lost."""
    for text, reading in cases()[kind]:
        assert normalise_text(reading) == reading
        assert kind == "script" or set(reading) <= SAID
        once = normalise_text(f"We saw {text} there.")
        assert normalise_text(once) == once


UNITS = ["a", "1", "1,", ".", "1.", "a.", "a@", "<", "<!--", "<p ", "&", "&#", "[", "[pause ", "*",
         "_", "`", "\n",
         "- ", "# ", "| ", "$1", "1-", "1/", "1 000 ", "(555) ", "+1 ", "5 km ", "http://a.", "I ",
         "X", "GPU ", "\u0301",
         "\u200d", "^2", "-\n", "\\", "$a^", "’", "5'1", "Mr.", "no. ", "1:1"]  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
def test_time_is_linear_in_length(unit: str) -> None:
    """Eight times the text takes about eight times as long; were it quadratic, 64 times."""

    def seconds(characters: int) -> float:
        text = unit * (characters // len(unit))
        begun = time.perf_counter()
        normalise_text(text)
        return time.perf_counter() - begun

    small = min(seconds(2_500) for _ in range(2))
    assert seconds(20_000) < 24 * small + 0.3


CLEAN = [
    "Plain text, as it is: 5 > 3, 10€ & 3*4; a_b! (1) [see below] {x}",
    "你好，世界。 Mixed 中文 and English 2024年",
    "Two paragraphs.\n\nThe second one,\nwith a line break.",
    "  leading and trailing  ",
    "caf\u00e9, na\u00efve, \u201cquoted\u201d \u2014 dashes \u2026",
]


@pytest.mark.parametrize("text", CLEAN)
def test_text_without_markup_passes_unchanged(text: str) -> None:
    """What the published format sees is what people write."""
    assert without_markup(text) == text


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("<p>Hello &amp; <b>good</b> bye</p>", "Hello & good bye"),
        ("Hi<break time='1s'/>you", "Hi [pause 1s] you"),
        ("**Bold** [link](http://x.y)", "Bold link"),
        (
            "I \u2764\ufe0f you 1\ufe0f\u20e3 soft\u00adhyphen zero\u200bwidth",
            "I  you 1 softhyphen zerowidth",
        ),
        ("你<b>好</b>\u200b世", "你好世"),
    ],
)
def test_markup_goes_and_case_and_numbers_stay(text: str, plain: str) -> None:
    assert without_markup(text).strip() == plain


def test_pauses_part_a_text() -> None:
    assert pauses("a [pause 0.5s] b[PAUSE: 250 ms]c [pause]") == (["a ", " b", "c ", ""], [0.5, 0.25, 0.5])
    for wrong in ("[pause soon]", "[pause -1s]", "[pause 61s]", "[pause 1 hour]"):
        with pytest.raises(PromptError, match="pause"):
            pauses(f"a {wrong} b")


# By a model -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("readings") / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> GPA:
    return GPA.from_pretrained(folder)


def spoken(model: GPA, text: str) -> np.ndarray:
    return model.tts(text, "anna", max_new_tokens=10, temperature=0).wav


def test_a_pause_is_that_much_silence(model: GPA) -> None:
    hello, world = spoken(model, "hello"), spoken(model, "world")
    for text, seconds in [
        ("hello [pause 0.5s] world", 0.5),
        ("<speak>hello <break time='1s'/> world</speak>", 1.0),
        ("[pause 300ms] hello [pause 0.2s] [pause 0.3s] world [pause 0.4s]", 1.2),
    ]:
        wav = spoken(model, text)
        assert len(wav) == len(hello) + len(world) + round(seconds * model.sample_rate)
    lead = round(0.3 * model.sample_rate)
    assert not wav[:lead].any() and wav[lead : lead + len(hello)].any()
    assert not wav[-round(0.4 * model.sample_rate) :].any()


def test_letters_that_are_not_known_are_named_and_left_out(model: GPA) -> None:
    with pytest.warns(TextWarning, match=r"你 好 \(Chinese\), м и р \(Cyrillic\)"):
        wav = spoken(model, "你好 hello мир")
    np.testing.assert_array_equal(wav, spoken(model, "hello"))
    for text, named in (("你好", "你 好 .Chinese"), ("Привет", "Cyrillic"), ("👍", "nothing to say")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(PromptError, match=named):
                spoken(model, text)


def test_the_published_format_is_spared_markup_and_foreign_scripts(replica: Path) -> None:
    published = GPA.from_pretrained(replica)
    voice = [0] * published.codec.spec.voice_size

    def texts(text: str) -> list[str]:
        return [passage.text for passage in published.processor.passages(text, voice)]

    assert texts("Dr. Smith paid $5, 你好。") == ["Dr. Smith paid $5, 你好。"]
    assert texts("<p>Dr. <b>Smith</b></p>") == ["Dr. Smith"]
    with pytest.warns(TextWarning, match=r"м и р \(Cyrillic\)"):
        assert " ".join(texts("Hello мир")).split() == ["Hello"]
    with pytest.raises(PromptError, match="Arabic"):
        texts("مرحبا")


def test_the_command_reads_markup_and_pauses(folder: Path, tmp_path: Path) -> None:
    def command(text: str, name: str) -> subprocess.CompletedProcess[str]:
        words = [
            "tts",
            text,
            "--model",
            str(folder),
            "--voice",
            "anna",
            "--seed",
            "3",
            "-o",
            str(tmp_path / name),
        ]
        words += ["--max-new-tokens", "10"]
        env = os.environ | {"HF_HUB_OFFLINE": "1"}
        return subprocess.run([sys.executable, "-m", "gpa", *words], env=env, capture_output=True, text=True)

    done = command("<p>Hello</p> [pause 1.5s] 你好 it costs 20€", "b.wav")
    assert done.returncode == 0 and "你 好 (Chinese)" in done.stderr
    wav, rate = soundfile.read(tmp_path / "b.wav")
    silent = np.flatnonzero(np.abs(wav) > 0)
    assert np.diff(silent).max() >= 1.5 * rate
    refused = command("hello [pause soon]", "c.wav")
    assert refused.returncode == 5 and "[pause 0.5s]" in refused.stderr and not (tmp_path / "c.wav").exists()
    refused = command("Привет, мир", "c.wav")
    assert refused.returncode == 5 and "Cyrillic" in refused.stderr
    assert "Traceback" not in done.stderr + refused.stderr
