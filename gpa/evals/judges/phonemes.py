"""The second opinion on words: hama, a small CTC recogniser of phonemes with a speller of its own.

Our codec is trained with a loss through the encoder of the same Whisper that judges words; a recogniser of
other make shows whether a gain is one of speech or one of that encoder's taste. It is read against its own
spelling of the text, so its rate on recordings is a floor of its own. What it was trained on is not stated.
"""

from __future__ import annotations

import re

import numpy as np

from gpa.errors import MissingExtraError
from gpa.evals.judges import base
from gpa.text.normaliser import normalise_text

NAME = "hama CTC phonemes against its own spelling (gpa.text.normaliser, letters only)"
BY_HAND = "hama (pip install hama)"
_FILES = ("asr_waveform.hama", "encoder.hama", "decoder_step.hama", "g2p_vocab.json")


class PhonemeJudge:
    """`judge(wav)` is the phonemes heard, `judge.spell(text)` those expected."""

    def __init__(self) -> None:
        """Load the weights inside the hama wheel; MissingExtraError where it is not installed."""
        try:
            import hama
        except ImportError as e:
            raise MissingExtraError(BY_HAND, "eval") from e
        self._recogniser, self._speller = hama.ASRModel(), hama.G2PModel()
        self._spelled: dict[str, list[str]] = {}
        weights = [base.folder_of("hama") / "assets" / name for name in _FILES]
        self.about = base.describe("phonemes", NAME, "hama", weights)

    def __call__(self, wav: np.ndarray) -> list[str]:
        """The phonemes of float32 (S,) at 16 kHz, word boundaries left out."""
        return list(self._recogniser.transcribe_waveform(wav, base.SAMPLE_RATE).phonemes)

    def spell(self, text: str) -> list[str]:
        """The phonemes of a text, word by word."""
        words = re.findall(r"[a-z']+", normalise_text(text).lower())
        return [phone for word in words for phone in self._word(word)]

    def _word(self, word: str) -> list[str]:
        if word not in self._spelled:  # its speller takes far longer than its recogniser
            self._spelled[word] = [found.phoneme for found in self._speller(word).alignments]
        return self._spelled[word]
