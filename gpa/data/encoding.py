"""Rows of a manifest to rows of ids: by a model's codec and format, or by a codec that has no model yet.

Of a codec alone the text tokenizer is learnt from the corpus, and the codec's codebooks get ids behind it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpa.codec import load_codec
from gpa.data import token_folder
from gpa.errors import GenerationError
from gpa.models.gpa.configuration_gpa import GPAConfig
from gpa.models.gpa.processing_gpa import GPAProcessor
from gpa.prompt.tasks import DEFAULT, TASKS
from gpa.prompt.vocab import Vocab
from gpa.text.tokenizer import build_tokenizer_json, normalise_text, train_sentencepiece

if TYPE_CHECKING:
    from gpa.codec import CodecSpec
    from gpa.data.manifest import Clip, ManifestRow
    from gpa.models.gpa.pipeline_gpa import GPA

VOICES = 256  # reference voices that are remembered
PIECES = 512  # of text, at most
CONTEXT = 4096  # ids of a row at most, where no model says


def write_tokenizer(texts: Iterable[str], spec: CodecSpec, folder: Path) -> None:
    """Learn a text tokenizer and write it with the codec's tokens behind, whole or not at all."""
    words = [instruction for task in DEFAULT for instruction in TASKS[task].instructions]
    said = [normalise_text(text) for text in texts if text]
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent))
    train_sentencepiece([*words, *said], made / "spm.model", PIECES, at_most=True)
    sizes = (spec.codebook_size, spec.global_size)
    build_tokenizer_json(made / "spm.model", *sizes, made, n_codebooks=spec.n_codebooks)
    os.replace(made, folder)


def corpus_processor(codec: str | Path, text: Path, *, device: str, offline: bool) -> GPAProcessor:
    """What makes ids of a corpus for a codec, with the tokenizer in a folder."""
    config = GPAConfig(format="instruct")
    loaded = load_codec(codec, device="cpu" if device == "auto" else device, offline=offline)
    return GPAProcessor(text, loaded, None, config, vocab_size=Vocab.from_file(text).size, context=CONTEXT)


class Encoder:
    """Rows of a manifest to rows of ids, by a model's own codec and prompt format."""

    def __init__(self, processor: GPAProcessor) -> None:
        self.processor = processor
        self._voices: dict[Clip, list[int]] = {}

    def rows(self, rows: list[ManifestRow]) -> Iterator[dict[str, Any]]:
        """One row of ids for each; AudioError if a file has changed since it was screened."""
        p, rate = self.processor, self.processor.codec.spec.sample_rate
        wavs = [row.audio.wav(rate) for row in rows]
        semantic = p.codec.codes_batch([(wav, rate) for wav in wavs])
        for row, wav, codes in zip(rows, wavs, semantic, strict=True):
            clip = (wav, rate)
            made: dict[str, Any] = {
                "id": row.id,
                "task": row.task,
                "split": row.split,
                "speaker": row.speaker,
                "text": token_folder.stored_text(p.format, row.text),
                "semantic": codes.tolist(),
                "glm": p.glm.tokens(clip).tolist() if p.glm else [],
                "global": self._voice(row, clip),
                "target": self._semantic(row.target.wav(rate)) if row.target else [],
                "seconds": len(wav) / rate,
                "licence": row.licence,
            }
            yield {**made, "length": token_folder.longest(p.format, row.serves(p.format.tasks), made)}

    def _semantic(self, wav: np.ndarray) -> list[int]:
        codec = self.processor.codec
        return codec.codes((wav, codec.spec.sample_rate)).tolist()

    def _voice(self, row: ManifestRow, own: tuple[np.ndarray, int]) -> list[int]:
        """Codes of the voice; one reference often serves many rows."""
        codec, clip = self.processor.codec, row.voice
        if clip == row.audio:
            return codec.voice_codes(own).tolist()
        if clip not in self._voices:
            if len(self._voices) >= VOICES:
                self._voices.clear()
            wav = clip.wav(codec.spec.sample_rate)
            self._voices[clip] = codec.voice_codes((wav, codec.spec.sample_rate)).tolist()
        return self._voices[clip]


def transcriber(model: GPA) -> Callable[[np.ndarray], str]:
    """What a model hears of a waveform (S,), "" for no words."""
    rate = model.codec.spec.sample_rate

    def transcribe(wav: np.ndarray) -> str:
        try:
            return model.asr((wav, rate)).text
        except GenerationError:  # it heard no words
            return ""

    return transcribe
