"""The speaker judge: Resemblyzer embeddings and their cosine (same speaker about 0.87, different about 0.52).

Like the recogniser it only measures; no model is trained towards it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpa.errors import MissingExtraError

SPEAKER_JUDGE = "Resemblyzer cosine"
BY_HAND = "resemblyzer (pip install librosa; pip install --no-deps resemblyzer webrtcvad-wheels)"
_LEAST = 8_000  # samples; voice activity detection may leave less, and then says nothing about the voice


class SpeakerJudge:
    """`judge.embed(wav)` -> unit vector (D,); `judge.enrol(wavs)` -> unit mean of several."""

    def __init__(self) -> None:
        """Load the weights inside the resemblyzer wheel; MissingExtraError where it is not installed."""
        try:
            from resemblyzer import VoiceEncoder, preprocess_wav
        except ImportError as e:
            raise MissingExtraError(BY_HAND, "eval") from e
        self._prepare = preprocess_wav
        self._encoder = VoiceEncoder("cpu", verbose=False)

    def embed(self, wav: np.ndarray) -> np.ndarray:
        """Embedding (D,) of float32 (S,) at 16 kHz, long silences cut and loudness evened first."""
        prepared = self._prepare(wav.astype(np.float32), source_sr=16_000) if np.any(wav) else wav
        if len(prepared) < _LEAST:
            prepared = wav.astype(np.float32)
        return self._encoder.embed_utterance(prepared)

    def enrol(self, wavs: Sequence[np.ndarray]) -> np.ndarray:
        """One voice (D,) from several clips."""
        mean = np.mean([self.embed(wav) for wav in wavs], axis=0)
        return mean / max(float(np.linalg.norm(mean)), 1e-8)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two vectors (D,), 0 where one is all zeros."""
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale else 0.0
