"""Sound of a manifest as rows of ids: by the codec of a model, or by one that no model has learnt yet.

Where asked for, a row also has the times of its letters, by the CTC head that codec training leaves, and
further copies of a training clip in invented voices, in noise and in rooms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpa import hub
from gpa.codec import trained
from gpa.codec.bicodec import BiCodec
from gpa.codec.feature_encoder import WhisperFeatures
from gpa.codec.losses import LetterHead
from gpa.data import token_folder
from gpa.data.alignment import align, letter_targets
from gpa.data.augmented_copies import AugmentedCopies
from gpa.data.manifest import Clip, ManifestRow
from gpa.errors import DataError
from gpa.models.gpa.configuration_gpa import GPAConfig
from gpa.models.gpa.processing_gpa import GPAProcessor
from gpa.prompt.vocab import Vocab
from gpa.text.tokenizer import build_tokenizer_json, copy_tokenizer, normalise_text, train_sentencepiece

VOICES = 256  # reference voices that are remembered
CONTEXT = 4096  # ids of the longest sequence, where no network says


@dataclass(frozen=True)
class Extras:
    """Columns beyond ids: letters' times if `align`, so many `copies` of a training clip, for which `noise`
    and `rooms` are folders ("": made up).
    """

    align: bool = False
    copies: int = 0
    noise: str = ""
    rooms: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the optional columns."""
        return (("letters",) if self.align else ()) + (("copies",) if self.copies else ())


@dataclass(frozen=True)
class Wording:
    """The text tokenizer of a codec without a model: that of the folder `like`, else one of `size` pieces,
    learnt from the training transcripts and from the lines of `texts` (their last column).
    """

    size: int = 512
    texts: Sequence[Path] = ()
    like: str = ""


def processor_of(codec: Path, tokenizer: Path, device: torch.device) -> GPAProcessor:
    """Codec and tokenizer as a model would have them, without a network; CheckpointError if they differ."""
    loaded = BiCodec.from_pretrained(codec, device=device)
    size = Vocab.from_file(tokenizer).size
    return GPAProcessor(
        tokenizer, loaded, None, GPAConfig(format="instruct"), vocab_size=size, context=CONTEXT
    )


def write_tokenizer(codec: Path, rows: Iterable[ManifestRow], wording: Wording, out: Path) -> None:
    """The tokenizer's files into `out`: text pieces, control tokens and an id for each code of `codec`."""
    out.mkdir(parents=True, exist_ok=True)
    if wording.like:
        return copy_tokenizer(Path(wording.like), out)
    spec = BiCodec.from_pretrained(codec).spec
    train_sentencepiece(_texts(rows, wording.texts), out / "spm.model", wording.size)
    build_tokenizer_json(out / "spm.model", spec.codebook_size, spec.global_size, out)


def _texts(rows: Iterable[ManifestRow], more: Iterable[Path]) -> Iterator[str]:
    """Normalised training transcripts, and lines of further files."""
    for row in rows:
        if row.trains and row.text:
            yield normalise_text(row.text)
    for path in more:
        for line in path.read_text(encoding="utf-8").splitlines():
            yield normalise_text(line.split("\t")[-1])


class Encoder:
    """Rows of a manifest to rows of ids, by a codec and a prompt format; `letters` times the ids' letters.

    DataError for copies by a codec that does not read Whisper's features.
    """

    def __init__(
        self, processor: GPAProcessor, extras: Extras | None = None, letters: LetterHead | None = None
    ) -> None:
        self.processor, self.extras, self.letters = processor, extras or Extras(), letters
        self._voices: dict[Clip, list[int]] = {}
        if self.extras.copies:
            features = processor.codec.features
            if not isinstance(features, WhisperFeatures):
                raise DataError("copies in other voices need a codec that reads Whisper's features")
            self._copy = AugmentedCopies(features, self.extras.noise, self.extras.rooms)

    @classmethod
    def of(cls, processor: GPAProcessor, extras: Extras, codec: Path | None) -> Encoder:
        """With the CTC head of the codec's export if letters are timed; DataError for an export without."""
        if not extras.align:
            return cls(processor, extras)
        if codec is None or not (codec / trained.HEADS).is_file():
            raise DataError(
                f"--align needs --codec EXPORT with {trained.HEADS}, which training a codec leaves"
            )
        head = LetterHead(processor.codec.config.quantizer.input_dim)
        hub.load_strict(head, trained.read_heads(codec)["letters"], where=str(codec / trained.HEADS))
        return cls(processor, extras, head.eval().to(processor.codec.device))

    def rows(self, rows: Sequence[ManifestRow], numbers: Sequence[int] = ()) -> Iterator[dict[str, Any]]:
        """One row of ids for each; AudioError if a file has changed since it was screened.

        `numbers` are the rows' places in the manifest, of which copies are functions.
        """
        p, rate = self.processor, self.processor.codec.spec.sample_rate
        wavs = [row.audio.wav(rate) for row in rows]
        semantic = p.codec.semantic_tokens_batch([(wav, rate) for wav in wavs])
        places = numbers or range(len(rows))
        for n, row, wav, codes in zip(places, rows, wavs, semantic, strict=True):
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
            if self.letters is not None:
                made["letters"] = self._letter_frames(codes, made["text"])
            if self.extras.copies:
                made["copies"] = self._copies(wav, n) if row.trains else []
            yield {**made, "length": token_folder.longest(p.format, row.serves(p.format.tasks), made)}

    @torch.inference_mode()
    def _letter_frames(self, codes: np.ndarray, text: str) -> list[int]:
        """First id of each letter; none without a text, or if it does not fit."""
        if self.letters is None or not text:
            return []
        codec = self.processor.codec
        latents = codec.model.quantizer.decode(torch.from_numpy(codes)[None].to(codec.device))
        log_probs = self.letters(latents)[0].log_softmax(-1).cpu().numpy()
        first = align(log_probs, letter_targets(text))
        return [] if first is None else first.tolist()

    @torch.inference_mode()
    def _copies(self, wav: np.ndarray, n: int) -> list[list[int]]:
        codec, count = self.processor.codec, self.extras.copies
        wav = np.pad(wav, (0, -len(wav) % codec.config.latent_hop_length))
        made = (self._copy(wav, number)[None] for number in range(n * count, (n + 1) * count))
        return [codec.model.encode_semantic(features)[0].tolist() for features in made]

    def _semantic(self, wav: np.ndarray) -> list[int]:
        codec = self.processor.codec
        return codec.semantic_tokens((wav, codec.spec.sample_rate)).tolist()

    def _voice(self, row: ManifestRow, own: tuple[np.ndarray, int]) -> list[int]:
        """Global codes; one reference often serves many rows."""
        codec, clip = self.processor.codec, row.voice
        if clip == row.audio:
            return codec.global_tokens(own).tolist()
        if clip not in self._voices:
            if len(self._voices) >= VOICES:
                self._voices.clear()
            wav = clip.wav(codec.spec.sample_rate)
            self._voices[clip] = codec.global_tokens((wav, codec.spec.sample_rate)).tolist()
        return self._voices[clip]
