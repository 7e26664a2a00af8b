"""A small evaluation as `gpa eval --baselines --save-wavs` leaves it, and the data that it was made from."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from conftest import speechlike
from gpa import audio
from gpa.evals import report, report_file, significance
from gpa.evals.measurement import wav_path
from gpa.evals.report import Item
from gpa.evals.suites import SUITES
from gpa.evals.wer import Edits

JUDGE = {"measures": "words", "name": "a judge", "version": "1.0", "weights": "0" * 64, "as_pinned": True}
LICENCES = {"clip-0": "CC-BY-4.0", "clip-1": "CC-BY-NC-4.0", "clip-2": "public-domain"}
TEXTS = ("the first text", "a second | text", "and a third")


def item(suite: str, number: int, **more: Any) -> Item:
    """An item as measured, two of its words wrong."""
    name, labels = f"s-{number}", {"voice": "anna"}
    if suite.startswith(("codec", "asr", "floor")):
        name, labels = f"clip-{number}", {"speaker": "a", "corpus": "small corpus"}
    elif suite.startswith("vc"):
        name, labels = f"clip-{number}>clip-{(number + 1) % 3}", {"speaker": "a", "target": "b"}
    found = Item(name, TEXTS[number], heard=f"{suite} heard {number}", labels=labels, audio_seconds=1.0)
    found.words, found.chars, found.seconds = Edits(2, 3), Edits(4, 14), 0.5
    if suite.startswith(("codec", "vc")):
        found.floor, found.floor_words = "as recorded", Edits(1, 3)
    for key, value in more.items():
        setattr(found, key, value)
    return found


FAILED = item("tts", 2, heard=None, error="GenerationError: silence", audio_seconds=0.0, words=Edits(3, 3))
ITEMS = {
    "floor": [item("floor", n) for n in range(3)],
    "codec": [item("codec", n) for n in range(3)],
    "tts": [item("tts", 0), item("tts", 1), FAILED],
    "asr": [item("asr", n) for n in range(3)],
    "vc-lm": [item("vc-lm", n) for n in range(3)],
    "vc-codec": [item("vc-codec", n) for n in range(3)],
    "tts-flite": [item("tts-flite", n, labels={}) for n in range(3)],
}


def write_evaluation(folder: Path, model_sha256: str = "") -> Path:
    """Write report.json, every SUITE.jsonl and wavs/; returns the folder."""
    settings = {
        "model_sha256": model_sha256, "data_sha256": "d" * 64, "code_sha256": "c" * 64, "split": "dev",
        "seed": 0, "voices": ["anna"], "normaliser": "lower case", "judges": {"words": JUDGE},
    }  # fmt: skip
    rows = {suite: [report_file.compact(one) for one in found] for suite, found in ITEMS.items()}
    peers = {
        "tts / tts-flite": significance.plain(
            significance.items("tts / tts-flite", rows["tts"], rows["tts-flite"])
        )
    }
    content = {
        "results_sha256": report_file.results_digest(settings, ITEMS),
        "settings": settings,
        "command": ["gpa", "eval", "a model", "--baselines"],
        "taken": "2026-01-02T03:04:05Z",
        "timing": {"wall_seconds": 600.0},
        "machine": {"processor": "a processor", "usable_cores": 2, "python": "3.11"},
        "programs": {"tts-flite": "flite 2"},
        "about": {suite: SUITES[suite].about for suite in ITEMS},
        "suites": {suite: report.plain(report.summarise(suite, found)) for suite, found in ITEMS.items()},
        "not_measured": {"quality": "speechmos is not installed"},
        "skipped": {},
        "peers": peers,
        "items": rows,
    }
    report_file.write(folder / report_file.FILE, content)
    for suite, found in ITEMS.items():
        lines = [json.dumps(asdict(one)) + "\n" for one in found]
        (folder / f"{suite}.jsonl").write_text("".join(lines), encoding="utf-8")
        if suite not in ("asr", "floor"):
            _write_wavs(folder / "wavs", suite, found)
    return folder


def _write_wavs(folder: Path, suite: str, found: list[Item]) -> None:
    for seed, one in enumerate(found):
        if one.heard is not None:
            path = wav_path(folder, suite, one.id)
            path.parent.mkdir(parents=True, exist_ok=True)
            audio.save(path, speechlike(0.5, seed=seed), 16_000)


def write_data(folder: Path) -> Path:
    """Write a data folder with the clips and their licences; returns it."""
    (folder / "speech").mkdir(parents=True)
    rows = []
    for name, licence in LICENCES.items():
        audio.save(folder / "speech" / f"{name}.wav", speechlike(0.5, seed=9), 16_000)
        about = {"speaker": "a", "corpus": "small corpus", "text": "t", "duration": 1.0, "split": "dev"}
        rows.append({"id": name, "path": f"{name}.wav", "licence": licence, **about})
    (folder / "speech/manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def noise(seconds: float) -> np.ndarray:
    """White noise, float32 (S,) at 16 kHz: the sound that compresses worst."""
    return (
        (0.3 * np.random.default_rng(0).standard_normal(round(seconds * 16_000)))
        .clip(-1, 1)
        .astype(np.float32)
    )
