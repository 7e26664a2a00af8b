"""What somebody would use instead, measured by the same runner: programs, pocketsphinx, and two other codecs.

Programs are run, never linked or shipped (eSpeak NG is GPL). What is not installed is reported as such.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np

from gpa import audio
from gpa.evals.measurement import SAMPLE_RATE, Bench, Case, Made, Make, Suite
from gpa.evals.programs import TIMEOUT, call

NARROW = 8_000  # Hz, of Codec2
CODEC2_MODE = "450"  # bit/s: its lowest (c2enc fills frames of 18 bits up to whole bytes: not counted)


@dataclass(frozen=True)
class Baseline:
    """One of them: what it is, whether it is there, and how it makes one case."""

    about: str
    make: Make
    missing: Callable[[], str]
    version: Callable[[], str]
    reads: bool = False


def suite(baseline: Baseline, cases: Callable[[Bench, int], list[Case]]) -> Suite:
    """A baseline over the cases of the suite it stands beside."""
    return Suite(
        baseline.about,
        cases,
        baseline.make,
        reads=baseline.reads,
        missing=baseline.missing,
        version=baseline.version,
    )


# Programs ---------------------------------------------------------------------------------------------------


def program_missing(program: str, package: str) -> Callable[[], str]:
    """A function that says how to get a program of Debian and its like, "" if it is there."""

    def missing() -> str:
        return "" if shutil.which(program) else f"{program} is not installed: apt-get install {package}"

    return missing


def program_version(*command: str) -> Callable[[], str]:
    """A function that returns the first line of what a program says about its version, "" if it is absent."""

    def version() -> str:
        if not shutil.which(command[0]):
            return ""
        found = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        lines = [line.strip() for line in (found.stdout + found.stderr).splitlines()]
        said = next((line for line in lines if "version" in line or "text-to-speech" in line), "")
        return said.partition("  ")[0]  # eSpeak goes on about its folder

    return version


def _speaker(*command: str) -> Make:
    """A program that speaks a text file; the words IN and OUT of `command` become files."""

    def make(bench: Bench, case: Case, wav: np.ndarray) -> Made:
        with tempfile.TemporaryDirectory() as folder:
            text, sound = Path(folder) / "in.txt", Path(folder) / "out.wav"
            text.write_text(case.text + "\n", encoding="utf-8")
            files = {"IN": str(text), "OUT": str(sound)}
            call(*(files.get(word, word) for word in command))
            return Made(audio.load(sound, SAMPLE_RATE))

    return make


def _codec2(bench: Bench, case: Case, wav: np.ndarray) -> Made:
    samples = audio.load((wav, SAMPLE_RATE), NARROW)
    with tempfile.TemporaryDirectory() as folder:
        raw, bits, back = (str(Path(folder) / name) for name in ("in.raw", "bits", "out.raw"))
        Path(raw).write_bytes(_pcm(samples))
        call("c2enc", CODEC2_MODE, raw, bits)
        call("c2dec", CODEC2_MODE, bits, back)
        made = np.frombuffer(Path(back).read_bytes(), "<i2").astype(np.float32) / 32768
    return Made(made, NARROW, values={"bits_per_second": float(CODEC2_MODE)})


def _pcm(wav: np.ndarray) -> bytes:
    """Float (S,) as 16-bit samples."""
    return (np.clip(wav, -1, 1) * 32767).astype("<i2").tobytes()


# Opus -------------------------------------------------------------------------------------------------------


def _opus(bench: Bench, case: Case, wav: np.ndarray) -> Made:
    import soundfile

    held = io.BytesIO()
    soundfile.write(held, wav, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=1.0)
    size = ogg_payload(held.getvalue())
    made = audio.load(held.getvalue(), SAMPLE_RATE)
    return Made(made, values={"bits_per_second": round(8 * size * SAMPLE_RATE / len(wav), 1)})


def ogg_payload(data: bytes) -> int:
    """Bytes of packets in an Ogg file; page headers and the first two pages (head and tags) do not count."""
    sizes, at = [], 0
    while data[at : at + 4] == b"OggS":
        segments = data[at + 27 : at + 27 + data[at + 26]]
        sizes.append(sum(segments))
        at += 27 + len(segments) + sum(segments)
    return sum(sizes[2:])


def _opus_missing() -> str:
    import soundfile

    try:
        soundfile.write(
            io.BytesIO(), np.zeros(SAMPLE_RATE // 10), SAMPLE_RATE, format="OGG", subtype="OPUS",
            compression_level=1.0,
        )  # fmt: skip
    except (TypeError, ValueError, RuntimeError) as error:
        return f"this soundfile writes no Opus at a chosen rate ({error}): pip install -U soundfile"
    return ""


def _opus_version() -> str:
    import soundfile

    return f"libsndfile {soundfile.__libsndfile_version__}, its lowest rate (compression_level=1)"


# Pocketsphinx -----------------------------------------------------------------------------------------------


def _sphinx_missing() -> str:
    return "" if util.find_spec("pocketsphinx") else "pocketsphinx is not installed: pip install pocketsphinx"


def _sphinx_version() -> str:
    return (
        "" if _sphinx_missing() else f"pocketsphinx {metadata.version('pocketsphinx')}, its own en-us models"
    )


def _sphinx(bench: Bench, case: Case, wav: np.ndarray) -> Made:
    def load() -> Any:
        from pocketsphinx import Decoder

        return Decoder(samprate=SAMPLE_RATE, loglevel="FATAL")

    decoder = bench.keep("pocketsphinx", load)
    decoder.start_utt()
    decoder.process_raw(
        _pcm(wav), no_search=False, full_utt=True
    )  # whole, so nothing is left for the next clip
    decoder.end_utt()
    found = decoder.hyp()
    return Made(text=found.hypstr if found else "")


ESPEAK = Baseline(
    "the same sentences by eSpeak NG, voice en-us",
    _speaker("espeak-ng", "-v", "en-us", "-f", "IN", "-w", "OUT"),
    program_missing("espeak-ng", "espeak-ng"),
    program_version("espeak-ng", "--version"),
)
FLITE = Baseline(
    "the same sentences by Flite, voice slt",
    _speaker("flite", "-voice", "slt", "-f", "IN", "-o", "OUT"),
    program_missing("flite", "flite"),
    program_version("flite", "--version"),
)
SPHINX = Baseline(
    "the same recordings written down by pocketsphinx", _sphinx, _sphinx_missing, _sphinx_version, reads=True
)
OPUS = Baseline("the same recordings through Opus at its lowest rate", _opus, _opus_missing, _opus_version)
CODEC2 = Baseline(
    "the same recordings through Codec2 at 450 bit/s",
    _codec2,
    program_missing("c2enc", "codec2"),
    lambda: f"codec2, mode {CODEC2_MODE}",
)
