"""Rows of a manifest to rows of ids: by a model's codec and format, or by a codec that has no model yet.

Of a codec alone the text tokenizer is learnt from the corpus, and the codec's codebooks get ids behind it.

Where asked for, a row also has the times of its letters, by the CTC head that codec training leaves, and
further copies of a training clip in invented voices, in noise and in rooms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gpa import disk
from gpa.codec import load_codec, trained
from gpa.data import sequences
from gpa.data.alignment import align
from gpa.data.augmented_copies import AugmentedCopies
from gpa.data.records import read_sentences
from gpa.errors import GenerationError
from gpa.models.gpa.configuration_gpa import GPAConfig
from gpa.models.gpa.processing_gpa import GPAProcessor
from gpa.prompt.attributes import ATTRIBUTES
from gpa.prompt.tasks import DEFAULT, TASKS
from gpa.prompt.vocab import Vocab
from gpa.text.letters import letter_targets
from gpa.text.normaliser import normalise_text
from gpa.text.tokenizer import build_tokenizer_json, copy_tokenizer, train_sentencepiece

if TYPE_CHECKING:
    from gpa.codec.base import CodecSpec
    from gpa.data.manifest import Clip, ManifestRow
    from gpa.models.gpa.pipeline_gpa import GPA

VOICES = 256  # reference voices that are remembered
QUIET_DB = -35.0  # of silence, against a clip's loud frames
SHORTEST_SILENCE = 3  # frames that are worth noting
CONTEXT = 4096  # ids of the longest sequence, where no network says
BATCH = 16  # clips in memory at once; the codec batches those of one length


@dataclass(frozen=True)
class Extras:
    """Columns beyond ids: letters' times if `align`, so many `copies` of a training clip, for which `noise`
    and `rooms` are folders ("": made up), and where a clip's longest `silence` is.
    """

    align: bool = False
    copies: int = 0
    noise: str = ""
    rooms: str = ""
    silence: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the optional columns."""
        asked = {"letters": self.align, "silence": self.silence, "copies": bool(self.copies)}
        return tuple(name for name, wanted in asked.items() if wanted)


@dataclass(frozen=True)
class Wording:
    """The text tokenizer of a codec without a model: that of the folder `like`, else one of `size` pieces,
    learnt from the training transcripts and from the lines of `texts` (records.read_sentences).
    """

    size: int = 512
    texts: Sequence[Path] = ()
    like: str = ""


def write_tokenizer(texts: Iterable[str], spec: CodecSpec, wording: Wording, folder: Path) -> None:
    """Learn a text tokenizer and write it with the codec's tokens behind, whole or not at all."""
    with disk.written_whole(folder) as made:
        if wording.like:
            copy_tokenizer(Path(wording.like), made)
        else:
            _learn_tokenizer(texts, spec, wording, made)


def _learn_tokenizer(texts: Iterable[str], spec: CodecSpec, wording: Wording, folder: Path) -> None:
    texts = chain(texts, *map(read_sentences, wording.texts))
    words = [instruction for task in DEFAULT for instruction in TASKS[task].instructions]
    words += [phrase for attribute in ATTRIBUTES.values() for phrase in attribute.phrases]
    said = [normalise_text(text) for text in texts if text]
    train_sentencepiece([*words, *said], folder / "spm.model", wording.size, at_most=True)
    sizes = (spec.codebook_size, spec.global_size)
    build_tokenizer_json(folder / "spm.model", *sizes, folder, n_codebooks=spec.n_codebooks)


def corpus_processor(codec: str | Path, text: Path, *, device: str, offline: bool) -> GPAProcessor:
    """What makes ids of a corpus for a codec, with the tokenizer in a folder."""
    config = GPAConfig(format="instruct")
    loaded = load_codec(codec, device="cpu" if device == "auto" else device, offline=offline)
    return GPAProcessor(text, loaded, None, config, vocab_size=Vocab.from_file(text).size, context=CONTEXT)


class Encoder:
    """Rows of a manifest to rows of ids, by a codec and a prompt format, with the `extras` asked for.

    `codec` is the export whose head times letters. UsageError for extras that it cannot give.
    """

    def __init__(self, processor: GPAProcessor, extras: Extras | None = None, codec: str | Path = "") -> None:
        self.processor, self.extras = processor, extras or Extras()
        self._voices: dict[Clip, list[int]] = {}
        if self.extras.align:
            self._scores = trained.letter_scores(Path(codec), processor.codec)
        if self.extras.copies:
            features, self._codes = trained.codes_of_features(processor.codec)
            self._copy = AugmentedCopies(features, self.extras.noise, self.extras.rooms)

    def numbered(self, rows: Iterator[tuple[int, ManifestRow]]) -> Iterator[dict[str, Any]]:
        """As `rows`, of pairs of a number and a row, a few of them at a time."""
        while batch := dict(islice(rows, BATCH)):
            yield from self.rows([*batch.values()], [*batch])

    def rows(self, rows: Sequence[ManifestRow], numbers: Sequence[int] = ()) -> Iterator[dict[str, Any]]:
        """One row of ids for each; AudioError if a file has changed since it was screened.

        `numbers` are the rows' places in the manifest, of which copies are functions.
        """
        p, rate = self.processor, self.processor.codec.spec.sample_rate
        wavs = [row.audio.wav(rate) for row in rows]
        semantic = p.codec.codes_batch([(wav, rate) for wav in wavs])
        places = numbers or range(len(rows))
        for n, row, wav, codes in zip(places, rows, wavs, semantic, strict=True):
            clip = (wav, rate)
            made: dict[str, Any] = {
                "id": row.id,
                "task": row.task,
                "split": row.split,
                "speaker": row.speaker,
                "text": sequences.stored_text(p.format, row.text),
                "semantic": codes.tolist(),
                "glm": p.glm.tokens(clip).tolist() if p.glm else [],
                "global": self._voice(row, clip),
                "target": self._semantic(row.target.wav(rate)) if row.target else [],
                "seconds": len(wav) / rate,
                "licence": row.licence,
            }
            if self.extras.align:
                made["letters"] = self._letter_frames(codes, made["text"])
            if self.extras.silence:
                made["silence"] = quietest(wav, len(codes))
            if self.extras.copies:
                made["copies"] = self._copies(wav, n) if row.trains else []
            yield {**made, "length": sequences.longest(p.format, row.serves(p.format.tasks), made)}

    def _letter_frames(self, codes: np.ndarray, text: str) -> list[int]:
        """First id of each letter; none without a text, or if it does not fit."""
        first = align(self._scores(codes), letter_targets(text)) if text else None
        return [] if first is None else first.tolist()

    @torch.inference_mode()
    def _copies(self, wav: np.ndarray, n: int) -> list[list[int]]:
        count = self.extras.copies
        wav = np.pad(wav, (0, -len(wav) % self.processor.codec.spec.hop_length))
        numbers = range(n * count, (n + 1) * count)
        return [self._codes(self._copy(wav, number)).tolist() for number in numbers]

    def _semantic(self, wav: np.ndarray) -> list[int]:
        codec = self.processor.codec
        return codec.codes((wav, codec.spec.sample_rate)).tolist()

    def _voice(self, row: ManifestRow, own: tuple[np.ndarray, int]) -> list[int]:
        """Global codes; one reference often serves many rows."""
        codec, clip = self.processor.codec, row.voice
        if clip == row.audio:
            return codec.voice_codes(own).tolist()
        if clip not in self._voices:
            if len(self._voices) >= VOICES:
                self._voices.clear()
            wav = clip.wav(codec.spec.sample_rate)
            self._voices[clip] = codec.voice_codes((wav, codec.spec.sample_rate)).tolist()
        return self._voices[clip]


def quietest(wav: np.ndarray, frames: int) -> list[int]:
    """[first, last) of the longest silence of a clip (S,) in so many frames, its edges left out; else []."""
    if not frames:
        return []
    hop = -(-len(wav) // frames)
    power = np.square(np.pad(wav, (0, frames * hop - len(wav)))).reshape(frames, hop).mean(1)
    quiet = power < max(1e-9, 10 ** (QUIET_DB / 10) * np.quantile(power, 0.9))
    edges = np.flatnonzero(np.diff(np.concatenate([[False], quiet, [False]]).astype(int))).reshape(-1, 2)
    begin, end = max(edges.tolist(), key=lambda run: run[1] - run[0], default=[0, 0])
    begin, end = begin + (begin > 0), end - (end < frames)  # an edge hears its neighbour
    return [begin, end] if end - begin >= SHORTEST_SILENCE else []


def transcriber(model: GPA) -> Callable[[np.ndarray], str]:
    """What a model hears of a waveform (S,), "" for no words."""
    rate = model.codec.spec.sample_rate

    def transcribe(wav: np.ndarray) -> str:
        try:
            return model.asr((wav, rate)).text
        except GenerationError:  # it heard no words
            return ""

    return transcribe
