"""Training data and recipes of a few clips and a few thousand weights, for tests of the real loop."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from conftest import speechlike
from gpa import audio
from gpa.codec.feature_encoder import save_features
from gpa.data import sequences, token_folder
from gpa.prompt.vocab import Vocab
from gpa.text.letters import letter_targets
from gpa.text.tokenizer import build_tokenizer_json, train_sentencepiece
from gpa.train import metrics
from gpa.train.meter import SECONDS
from tiny_model import random_features

TEXTS = [
    "hello world.",
    "it's a test, yes!",
    "a fox and a quiz",
    "we shook hands.",
    "glad to see you",
    "zebra; vow: jack?",
]
MORE_TEXT = [
    "the author of the danger trail, philip steels, et cetera.",
    "will we ever forget it? it's a well-known question; who knows!",
    "for the twentieth time that evening the two men shook hands.",
    "lord, but i'm glad to see you again, jack: quiz, fox, zebra, vow.",
]
CODES, VALUES, GLOBAL_IDS = 27, 16, 4
_VOCOS = {"vocos_dim": 16, "vocos_intermediate_dim": 32, "vocos_num_layers": 1, "out_channels": 16}
CODEC: dict[str, Any] = {
    "features": "whisper",
    "standardise": True,
    "volume_normalize": False,
    "latent_hop_length": 640,
    "ref_segment_duration": 1.0,
    "encoder": {"input_channels": 16, "sample_ratios": [2], **_VOCOS},
    "quantizer": {"input_dim": 16, "codebook_size": CODES, "codebook_dim": 3},
    "speaker_encoder": {
        "input_dim": 20,
        "out_dim": 16,
        "latent_dim": 8,
        "token_num": GLOBAL_IDS,
        "fsq_levels": [4, 4],
        "channels": 16,
        "normalise": True,
    },
    "prenet": {"input_channels": 16, "sample_ratios": [2], "condition_dim": 16, **_VOCOS},
    "decoder": {
        "input_channel": 16,
        "channels": 16,
        "hidden": 32,
        "layers": 1,
        "n_fft": 1280,
        "hop_length": 320,
    },
    "mel_params": {"num_mels": 20, "log": True},
}
LATENT: dict[str, Any] = {
    "channels": 4,
    "mels": 20,
    "width": 16,
    "hidden": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "bands": 12,
}
LM = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


def write_encoder(folder: Path, seed: int = 0) -> Path:
    """A Whisper encoder with random weights, 8 wide."""
    torch.manual_seed(seed)
    save_features(random_features(d_model=8, encoder_ffn_dim=16), folder, torch.float32)
    return folder


def write_manifest(folder: Path) -> Path:
    """Six clips of a little over a second by two speakers: four to train, one without text, one held out."""
    rows = []
    for n, text in enumerate(TEXTS):
        audio.save(folder / f"{n}.wav", speechlike(1.2 + 0.1 * n, seed=n), 16_000)
        split = {3: "train-notext", 5: "dev"}.get(n, "train")
        speaker = "ab"[n % 2]
        spoken = "" if split == "train-notext" else text.upper()
        rows.append({"id": str(n), "path": f"{n}.wav", "speaker": speaker, "text": spoken, "split": split})
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_rows(folder: Path, rows: list[dict[str, Any]], codes: int = CODES) -> Path:
    """A prepared folder of given rows, 25 ids a second, and the tokenizer of `MORE_TEXT`."""
    folder.mkdir(parents=True, exist_ok=True)
    train_sentencepiece([*TEXTS, *MORE_TEXT], folder / "spm.model", vocab_size=300)
    build_tokenizer_json(folder / "spm.model", codes, VALUES, folder)
    about = {"kind": token_folder.KIND, "version": token_folder.VERSION, "format": "instruct"}
    vocab = Vocab.from_file(folder)
    prints = {"vocabulary": vocab.fingerprint()}
    about |= {"codec": {"name": "random", "frame_rate": 25.0}, "fingerprints": prints}
    sequences.write(folder, rows, about | {"vocabulary": token_folder.layout(vocab)})
    return folder


def plain(clip: Mapping[str, Any]) -> dict[str, Any]:
    """A row with lists in place of arrays."""
    made = {key: cell.tolist() if isinstance(cell, np.ndarray) else cell for key, cell in clip.items()}
    return made | ({"copies": [copy.tolist() for copy in clip["copies"]]} if "copies" in clip else {})


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """All rows of a prepared folder, in plain lists."""
    return [plain(row) for row in token_folder.TokenSet.open(folder)]


def write_tokens(folder: Path, codes: int = CODES) -> Path:
    """A prepared folder with random codes, two frames a letter, every second clip with two copies."""
    draw, rows = np.random.default_rng(0), []
    for n, text in enumerate(TEXTS):
        letters = len(letter_targets(text))
        row: dict[str, Any] = {"id": str(n), "speaker": "ab"[n % 2], "text": text}
        row["split"] = "dev" if n == 5 else "train"
        row["semantic"] = draw.integers(0, CODES, 2 * letters).tolist()
        row["global"] = draw.integers(0, VALUES, GLOBAL_IDS).tolist()
        row["letters"] = (2 * np.arange(letters)).tolist()
        if n % 2 == 0:
            row["copies"] = draw.integers(0, CODES, (2, 2 * letters)).tolist()
        rows.append(row)
    return write_rows(folder, rows, codes)


def codec_tree(cache: Path, **changes: Any) -> dict[str, Any]:
    """A codec recipe as a mapping."""
    data = {"cache": str(cache), "dev_clips": 1, "batch_frames": 400, "crops": 4, "crop_ids": 8}
    tree: dict[str, Any] = {"kind": "codec", "data": {**data, "reference_frames": 30}, "model": CODEC}
    return {**tree, **_schedule(), **changes}


def ctc_tree(cache: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of letters as a mapping."""
    sizes = {"input_channels": 16, "dim": 16, "hidden": 32, "layers": 1}
    data = {"cache": str(cache), "dev": ["dev"], "batch_frames": 400, "mask_frames": 8}
    return {"kind": "ctc", "data": data, "model": sizes, **_schedule(), **changes}


def latent_tree(cache: Path, **changes: Any) -> dict[str, Any]:
    """A latent-codec recipe as a mapping."""
    data = {"cache": str(cache), "dev_clips": 1, "crops": 4, "crop_latents": 8}
    return {"kind": "latent", "data": data, "model": LATENT, **_schedule(), **changes}


def lm_tree(tokens: Path, **changes: Any) -> dict[str, Any]:
    """A language-model recipe as a mapping."""
    data = {"tokens": str(tokens), "batch_ids": 300, "dev_rows": 1}
    tree = {"kind": "gpa", "data": data, "model": LM, "export": "network", **_schedule()}
    return {**tree, **changes}


def _schedule() -> dict[str, Any]:
    train = {"steps": 6, "save_every": 2, "eval_every": 3, "log_every": 1, "threads": 1}
    return {"train": train, "optim": {"lr": 3e-3, "warmup": 2}}


def write_recipe(path: Path, tree: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def timeless(row: Mapping[str, float]) -> dict[str, float]:
    """A line of metrics without what depends on the clock."""
    clock = ("seconds", "tokens_per_s", "frames_per_s", "mfu")
    return {key: value for key, value in row.items() if key not in clock and not key.startswith(SECONDS)}


def story(run: Path) -> list[dict[str, float]]:
    """The metrics of a run, likewise."""
    return [timeless(row) for row in metrics.read(run / "metrics.jsonl")]
