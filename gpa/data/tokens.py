"""The language model's training data: every clip as ids, its letters' times, and further copies of it in
invented voices, in noise and in rooms.

Written once from a feature cache and a trained codec; one JSON object per clip. Whoever trains needs
neither audio nor codec.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from gpa import audio, hub
from gpa.codec import trained
from gpa.codec.feature_encoder import load_whisper_features
from gpa.codec.losses import LetterHead
from gpa.data.alignment import align, letter_targets
from gpa.data.augmented_copies import AugmentedCopies
from gpa.data.feature_cache import FeatureCache, read_lines
from gpa.data.token_folder import PREPARED, TokenSet, write_json
from gpa.errors import CheckpointError
from gpa.prompt.vocab import Vocab
from gpa.text.tokenizer import build_tokenizer_json, copy_tokenizer, normalise_text, train_sentencepiece

MADE = "made.json"  # whose ids they are: the codec export ("model") and its feature encoder
COMMAND = "python -m gpa.data.tokens CACHE --codec EXPORT --encoder DIR -o TOKENS"


class Extractor:
    """A trained codec with its CTC head: clip -> row of ids, with so many further `copies`."""

    def __init__(
        self,
        export: Path,
        encoder: Path,
        copies: int = 1,
        noise: str = "",
        rooms: str = "",
        degraded: FeatureCache | None = None,
    ) -> None:
        self.codec = trained.load_network(export)
        self.config = self.codec.config
        self.letters = LetterHead(self.config.quantizer.input_dim)
        hub.load_strict(
            self.letters, trained.read_heads(export)["letters"], where=str(export / trained.HEADS)
        )
        self.copies, self.copy = copies, AugmentedCopies(load_whisper_features(encoder), noise, rooms)
        self.degraded = degraded

    @property
    def sizes(self) -> tuple[int, int]:
        """How many semantic codes and how many values of a speaker code there are."""
        return self.config.quantizer.codebook_size, int(np.prod(self.config.speaker_encoder.fsq_levels))

    @torch.inference_mode()
    def row(self, cache: FeatureCache, i: int) -> dict[str, Any]:
        """Ids of clip i; letter times where it has a transcript; `copies` of a training clip."""
        meta, wav = cache.rows[i], cache.wav(i)
        codes = self._heard(cache, i)
        reference = audio.reference_clip(wav, int(self.config.ref_segment_duration * self.config.sample_rate))
        row = {
            "id": meta["id"],
            "split": meta["split"],
            "speaker": meta["speaker"],
            "text": normalise_text(meta.get("text") or ""),
            "semantic": codes.tolist(),
            "global": self.codec.encode_global(torch.from_numpy(reference)[None])[0].tolist(),
        }
        if row["text"]:
            row["letters"] = self._letter_frames(codes, row["text"])
        if row["split"].startswith("train"):
            numbers = range(i * self.copies, (i + 1) * self.copies)
            heard = (self.copy(wav, number)[None] for number in numbers)
            row["copies"] = [self.codec.encode_semantic(features)[0].tolist() for features in heard]
            if self.degraded is not None:
                row["copies"].append(self._heard(self.degraded, i).tolist())
        return row

    def _heard(self, cache: FeatureCache, i: int) -> Tensor:
        return self.codec.encode_semantic(torch.from_numpy(cache.features(i)).T[None])[0]

    def _letter_frames(self, codes: Tensor, text: str) -> list[int] | None:
        latents = self.codec.quantizer.decode(codes[None])
        log_probs = self.letters(latents)[0].log_softmax(-1).numpy()
        first = align(log_probs, letter_targets(text))
        return None if first is None else first.tolist()


def texts(rows: list[dict[str, Any]], extra: list[Path]) -> Iterator[str]:
    """Normalised training transcripts and lines of further text files, for the text tokenizer."""
    for row in rows:
        if row["split"].startswith("train") and row.get("text"):
            yield normalise_text(row["text"])
    for path in extra:
        for line in path.read_text(encoding="utf-8").splitlines():
            yield normalise_text(line.split("\t")[-1])


def read(path: Path) -> Sequence[dict[str, Any]]:
    """All rows of a token folder, or of one of `gpa prepare`, memory-mapped; CheckpointError naming the
    command that makes one if there is none.
    """
    if (path / PREPARED).is_file():
        return TokenSet.open(path)
    found = path / "tokens.jsonl"
    if not found.is_file():
        unfinished = found.with_name(found.name + ".partial").is_file()
        state = "not finished, run again" if unfinished else "no tokens there, make them"
        raise CheckpointError(f"{path}: {state}: {COMMAND}")
    return read_lines(found)


def main(argv: list[str] | None = None) -> None:
    """`python -m gpa.data.tokens CACHE --codec EXPORT --encoder DIR -o TOKENS`."""
    parser = argparse.ArgumentParser(prog="python -m gpa.data.tokens", description=__doc__)
    parser.add_argument("cache", type=Path, help="feature cache of gpa.data.feature_cache")
    parser.add_argument("--codec", type=Path, required=True, help="codec export of gpa.train")
    parser.add_argument("--encoder", type=Path, required=True, help="Whisper encoder folder")
    parser.add_argument(
        "--text",
        type=Path,
        nargs="*",
        default=[],
        help="more text for the text tokenizer, one sentence a line",
    )
    parser.add_argument("--vocab-size", type=int, default=512)
    parser.add_argument("--like", type=Path, metavar="TOKENS", help="token folder whose tokenizer to take")
    parser.add_argument("--copies", type=int, default=1, help="further copies of a training clip")
    parser.add_argument(
        "--degraded", type=Path, help="cache of gpa.data.feature_cache --degraded: one copy more"
    )
    parser.add_argument("--noise", default="", help="folder of noise with a manifest.json, for copies")
    parser.add_argument("--rooms", default="", help="folder of impulse responses, for copies")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    cache = FeatureCache(args.cache)
    degraded = cache.degraded(args.degraded) if args.degraded else None
    extractor = Extractor(args.codec, args.encoder, args.copies, args.noise, args.rooms, degraded)
    if args.like:
        _take_tokenizer(args.like, args.out, extractor)
    else:
        train_sentencepiece(texts(cache.rows, args.text), args.out / "spm.model", args.vocab_size)
        build_tokenizer_json(args.out / "spm.model", *extractor.sizes, args.out)
    made = {"model": str(args.codec.resolve()), "encoder": str(args.encoder.resolve())}
    write_json(args.out / MADE, made)
    _write(extractor, cache, args.out / "tokens.jsonl")


def _take_tokenizer(source: Path, out: Path, extractor: Extractor) -> None:
    """The tokenizer of another token folder; CheckpointError if it counts other codes than the codec."""
    vocab = Vocab.from_file(source)
    speaker = vocab.global_.size if vocab.global_ else 0
    if (vocab.semantic.size, speaker) != extractor.sizes:
        raise CheckpointError(
            f"{source}: has {vocab.semantic.size} codes and {speaker} speaker codes, "
            f"the codec {extractor.sizes[0]} and {extractor.sizes[1]}"
        )
    copy_tokenizer(source, out)


def _write(extractor: Extractor, cache: FeatureCache, path: Path) -> None:
    """All rows to `path`, which appears when it is complete; a killed run goes on where it was."""
    partial = path.with_name(path.name + ".partial")
    done = read_lines(partial) if partial.exists() else []
    todo = tqdm(
        range(len(done), len(cache)), initial=len(done), total=len(cache), desc="ids", dynamic_ncols=True
    )
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in done)
        for i in todo:
            file.write(json.dumps(extractor.row(cache, i)) + "\n")
    partial.replace(path)


if __name__ == "__main__":
    main()
