"""The language model's training data: every clip as ids, its letters' times, and a second reading in an invented voice.

Written once from a feature cache and a trained codec; one JSON object per clip. Whoever trains needs neither audio nor codec.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tqdm import tqdm

from gpa import audio
from gpa.codec.bicodec import BiCodecConfig, BiCodecModel
from gpa.codec.features import WhisperFeatures, load_whisper_features
from gpa.codec.losses import LetterHead
from gpa.data.align import align, letter_targets
from gpa.data.features import FeatureCache
from gpa.text import build_tokenizer_json, normalise_text, train_sentencepiece

WARPS = ((0.84, 0.93), (1.08, 1.2))  # stretches of the frequency axis that make another voice of the same words


def load_codec_export(path: Path) -> BiCodecModel:
    """The network of a codec export, for inference."""
    codec = BiCodecModel(BiCodecConfig.from_dict(json.loads((path / "config.json").read_text())))
    codec.load_state_dict(load_file(path / "model.safetensors"))
    return codec.eval()


class Extractor:
    """A trained codec with its CTC head: clip -> row of ids."""

    def __init__(self, export: Path, encoder: Path, seed: int = 0) -> None:
        self.codec = load_codec_export(export)
        self.config = self.codec.config
        self.letters = LetterHead(self.config.quantizer.input_dim)
        self.letters.load_state_dict(torch.load(export / "heads.pt", weights_only=True)["letters"])
        self.whisper: WhisperFeatures = load_whisper_features(encoder)
        self.seed = seed

    @torch.inference_mode()
    def row(self, cache: FeatureCache, i: int) -> dict[str, Any]:
        """Ids of clip i; letter times where it has a transcript; `warped` ids on every second clip."""
        meta, wav = cache.rows[i], cache.wav(i)
        codes = self.codec.encode_semantic(torch.from_numpy(cache.features(i)).T[None])[0]
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
        if i % 2 == 0:
            rng = np.random.default_rng((self.seed, i))
            warp = float(rng.uniform(*WARPS[int(rng.integers(2))]))
            row["warped"] = self.codec.encode_semantic(self.whisper(torch.from_numpy(wav)[None], warp))[0].tolist()
        return row

    def _letter_frames(self, codes: torch.Tensor, text: str) -> list[int] | None:
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
        for line in path.read_text().splitlines():
            yield normalise_text(line.split("\t")[-1])


def read(path: Path) -> list[dict[str, Any]]:
    """All rows of a token folder."""
    return [json.loads(line) for line in (path / "tokens.jsonl").read_text().splitlines()]


def main(argv: list[str] | None = None) -> None:
    """`python -m gpa.data.tokens CACHE --codec EXPORT --encoder DIR -o DIR`."""
    parser = argparse.ArgumentParser(prog="python -m gpa.data.tokens", description=__doc__)
    parser.add_argument("cache", type=Path, help="feature cache of gpa.data.features")
    parser.add_argument("--codec", type=Path, required=True, help="codec export of gpa.train")
    parser.add_argument("--encoder", type=Path, required=True, help="Whisper encoder folder")
    parser.add_argument("--text", type=Path, nargs="*", default=[], help="more text for the text tokenizer, one sentence a line")
    parser.add_argument("--vocab-size", type=int, default=512)
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    cache = FeatureCache(args.cache)
    extractor = Extractor(args.codec, args.encoder)
    train_sentencepiece(texts(cache.rows, args.text), args.out / "spm.model", args.vocab_size)
    speaker = extractor.config.speaker_encoder
    build_tokenizer_json(args.out / "spm.model", extractor.config.quantizer.codebook_size, int(np.prod(speaker.fsq_levels)), args.out)
    partial = args.out / "tokens.jsonl.partial"
    done = [line for line in partial.read_text().splitlines(True) if line.endswith("}\n")] if partial.exists() else []
    with partial.open("w") as file:
        file.writelines(done)
        for i in tqdm(range(len(done), len(cache)), initial=len(done), total=len(cache), desc="ids", dynamic_ncols=True):
            file.write(json.dumps(extractor.row(cache, i)) + "\n")
    partial.rename(args.out / "tokens.jsonl")


if __name__ == "__main__":
    main()
