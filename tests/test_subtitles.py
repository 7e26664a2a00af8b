"""Subtitles are readable and never overlap; the other forms are what people's tools take."""

import json
import re

import numpy as np
import pytest

from gpa.models.gpa.outputs_gpa import Segment, Transcript, Word
from gpa.models.gpa.subtitles_gpa import FORMATS, SUFFIXES, clock, cues, srt, vtt

FIELDS = {"id", "seek", "start", "end", "text", "tokens", "temperature", "avg_logprob"}
FIELDS |= {"compression_ratio", "no_speech_prob"}


def segment(number: int, words: list[Word]) -> Segment:
    text = " ".join(word.word for word in words)
    numbers = {"temperature": 0.0, "avg_logprob": -0.1, "compression_ratio": 1.0, "no_speech_prob": 0.0}
    return Segment(number, words[0].start, words[-1].end, text, (1, 2), tuple(words), seek=0, **numbers)


def transcript(seed: int) -> Transcript:
    """Words of random lengths, some of no time at all, some after each other without a gap."""
    g, now, segments = np.random.default_rng(seed), 0.0, []
    for number in range(5):
        words = []
        for _ in range(g.integers(1, 40)):
            start = now + g.choice([0.0, 0.1, 1.5], p=[0.6, 0.35, 0.05])
            now = start + g.choice([0.0, 0.2, 0.5])
            words.append(Word("x" * int(g.choice([1, 4, 9, 60], p=[0.3, 0.4, 0.28, 0.02])), start, now))
        segments.append(segment(number, words))
        now += g.choice([0.0, 3.0])
    return Transcript(" ".join(each.text for each in segments), np.array([1]), "stop", tuple(segments), now)


@pytest.mark.parametrize("seed", range(20))
def test_subtitles_are_readable_and_never_overlap(seed: int) -> None:
    found = transcript(seed)
    shown = cues(found)
    assert " ".join(line for cue in shown for line in cue.lines) == found.text
    for cue in shown:
        assert len(cue.lines) <= 2 and cue.start <= cue.end
        assert all(len(line) <= 42 or " " not in line for line in cue.lines)
        assert cue.end - cue.start <= 7
    assert all(one.end <= other.start for one, other in zip(shown, shown[1:], strict=False))


def test_srt_and_vtt_to_the_letter() -> None:
    words = [Word("Hello", 0.5, 0.9), Word("<b>", 1.0, 1.25), Word("again", 3661.0, 3661.5)]
    found = Transcript("Hello <b> again", np.array([1]), "stop", (segment(0, words),), 3662.0)
    assert srt(found) == (
        "1\n00:00:00,500 --> 00:00:01,250\nHello <b>\n\n2\n01:01:01,000 --> 01:01:01,500\nagain\n\n"
    )
    assert vtt(found) == (
        "WEBVTT\n\n00:00:00.500 --> 00:00:01.250\nHello &lt;b&gt;\n\n01:01:01.000 --> 01:01:01.500\nagain\n\n"
    )
    assert clock(59.9996) == "00:01:00.000"


def test_two_lines_are_even() -> None:
    said = "this is a sentence that takes two lines of a subtitle".split()
    words = [Word(word, n / 10, n / 10 + 0.1) for n, word in enumerate(said)]
    (cue,) = cues(Transcript(" ".join(said), np.array([1]), "stop", (segment(0, words),)))
    assert abs(len(cue.lines[0]) - len(cue.lines[1])) < 12


def test_json_forms() -> None:
    found = transcript(1)
    assert json.loads(FORMATS["json"](found)) == {"text": found.text}
    told = json.loads(FORMATS["verbose_json"](found))
    assert set(told) == {"task", "language", "duration", "text", "segments", "words"}
    assert all(set(each) == FIELDS for each in told["segments"])
    assert set(told["words"][0]) == {"word", "start", "end"} and len(told["words"]) == len(found.words)
    assert FORMATS["text"](found) == found.text + "\n"


def test_an_empty_transcript_has_every_form() -> None:
    nothing = Transcript("", np.zeros(0, np.int64), "no speech", duration=3.0, skipped=3.0)
    forms = {name: form(nothing) for name, form in FORMATS.items()}
    assert forms["srt"] == "" and forms["vtt"] == "WEBVTT\n\n" and forms["text"] == "\n"
    assert json.loads(forms["verbose_json"])["segments"] == []
    assert set(FORMATS) == set(SUFFIXES) and all(re.fullmatch(r"\.\w+", s) for s in SUFFIXES.values())
