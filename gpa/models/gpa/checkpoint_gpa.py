"""Checkpoint directories: where the parts are in the published layout and in ours, and how ours is written.

Knows files, tensor names and fingerprints; nothing about prompts or generation. The page:
docs/checkpoints.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from gpa import disk, hub
from gpa.codec import ctc, load_codec
from gpa.codec.feature_encoder import half_where_it_fits, state_digest
from gpa.engine.network import Network
from gpa.errors import CheckpointError
from gpa.models.gpa.configuration_gpa import FILE, GPAConfig
from gpa.models.gpa.outputs_gpa import Voice
from gpa.text import lexicon, ngrams, pronunciations

if TYPE_CHECKING:
    from gpa.codec.base import LinguisticTokenizer, TokenCodec

SHIPPED = Path(__file__).resolve().parents[2] / "assets"
NESTED = "gpa_0_3b"  # the folder that the first published revision keeps everything in
PUBLISHED_CODEC, CODEC, GLM, VOICES = "BiCodec", "codec", "glm-4-voice-tokenizer", "voices"
GOLDEN, PAGES = "golden", ("README.md", "DATA.md")  # what people and `gpa verify` read
# The text side as transformers reads it, copied verbatim.
TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    lexicon.FILE,
    ngrams.FILE,
    pronunciations.FILE,
)


def shipped() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/gpa.json"))


def find(path_or_repo: str | os.PathLike, revision: str | None = None, offline: bool = False) -> Path:
    """The checkpoint directory behind a path, a shipped name or a repository id."""
    name = os.fspath(path_or_repo)
    if name in shipped() and not Path(name).exists():
        return SHIPPED / name
    folder = hub.resolve(path_or_repo, revision, offline)
    for candidate in (folder, folder / NESTED):
        if (candidate / "config.json").is_file():
            return candidate
    raise CheckpointError(f"{folder}: {_instead(folder)}")


def _instead(folder: Path) -> str:
    """What a folder without a checkpoint is, and what to do."""
    if folder.is_file():
        return f"a file; a model is a folder, perhaps {folder.parent}"
    if (folder / "prepared.json").is_file():
        return (
            "a folder of ids, which a model is trained on; train one and pass its export:  "
            f"gpa train recipes/gpa/own.yaml data.tokens={folder}"
        )
    if (folder / "export" / "config.json").is_file():
        return f"the folder of a training run; pass what it exported: {folder / 'export'}"
    if (folder / "recipe.yaml").is_file():
        return "the folder of a training run that is not finished; the same command again goes on with it"
    known = f"; shipped models: {', '.join(shipped())}" if shipped() else ""
    return f"no checkpoint here (neither config.json nor {NESTED}/config.json){known}"


def known_as(path_or_repo: str | os.PathLike) -> str:
    """A name by which `find` finds the same again from any folder: shipped, a repository id, or absolute."""
    path = Path(path_or_repo).expanduser()
    return str(path.resolve()) if path.exists() else os.fspath(path_or_repo)


def codec_folder(folder: Path) -> Path:
    """Where the codec is, in our layout or in the published one; CheckpointError if nowhere."""
    path = folder / (CODEC if (folder / CODEC).is_dir() else PUBLISHED_CODEC)
    if not path.is_dir():
        raise CheckpointError(
            f"{folder}: no codec, neither {CODEC}/ nor {PUBLISHED_CODEC}/: a language model alone; "
            "python -m gpa.train.export joins it with its codec"
        )
    return path


def load_parts(folder: Path, device: torch.device) -> tuple[TokenCodec, LinguisticTokenizer | None]:
    """The codec and, where the checkpoint has one, the GLM tokenizer."""
    path = codec_folder(folder)
    glm = load_codec(folder / GLM, device=device) if (folder / GLM).is_dir() else None
    return load_codec(path, device=device), glm


def fingerprints(folder: Path) -> Mapping[str, str]:
    """SHA-256 of the parts that rows of ids depend on: as gpa.json says, and of a published checkpoint, which
    has none, computed. Nothing for a language model alone.
    """
    if (folder / FILE).is_file() or not (folder / PUBLISHED_CODEC).is_dir():
        return GPAConfig.read(folder).fingerprints
    codec, glm = load_parts(folder, torch.device("cpu"))
    found = {"codec": codec.fingerprint(), "tokenizer": hub.fingerprint_files(folder / "tokenizer.json")}
    return found | ({"glm": glm.fingerprint()} if glm else {})


def network_fingerprint(folder: Path) -> str:
    """SHA-256 of the weights of a checkpoint's language model, whatever their layout and names of files."""
    network, _ = Network.load(folder)
    return state_digest({}, network.state_dict())


def count_weights(folder: Path) -> int:
    """About how many weights a checkpoint has, all parts together, read off its files at two bytes each."""
    found = (path for pattern in ("*.safetensors", "*.bin") for path in folder.rglob(pattern))
    return sum(path.stat().st_size for path in found) // 2


def load_voices(folder: Path) -> dict[str, Voice]:
    """Shipped voices by name."""
    return {path.stem: Voice.load(path) for path in sorted((folder / VOICES).glob("*.json"))}


def read_text_files(folder: Path) -> dict[str, bytes]:
    """The files of the text side, to be written unchanged; CheckpointError without a tokenizer.json."""
    found = {name: (folder / name).read_bytes() for name in TEXT_FILES if (folder / name).is_file()}
    if (before := folder / ngrams.BEFORE_IT).is_file():
        found.setdefault(ngrams.FILE, before.read_bytes())
    if "tokenizer.json" not in found:
        raise CheckpointError(f"{folder}: no tokenizer.json")
    return found


def save_network(network: Network, folder: Path, dtype: torch.dtype) -> None:
    """Write config.json, generation_config.json and model.safetensors as transformers reads them."""
    state = half_where_it_fits(network.state_dict(), dtype)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    given = {k: v for k, v in network.config.items() if k not in ("auto_map", "torch_dtype", "_name_or_path")}
    precision = str(dtype).removeprefix("torch.")
    config = {**given, "dtype": precision, "architectures": ["Qwen3ForCausalLM"]}
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version")
    generation = {name: config[name] for name in names if config.get(name) is not None}
    generation |= {"_from_model_config": True, "use_cache": config.get("use_cache", True)}
    generation |= dict.fromkeys(("output_attentions", "output_hidden_states"), False)
    trees = {"config.json": config, "generation_config.json": generation}
    for name, tree in trees.items():
        text = json.dumps(tree, indent=2, sort_keys=True) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


# Each part of a checkpoint is one argument, given by name: a group of them would be made and unmade once.
def write_checkpoint(  # noqa: PLR0913
    out: str | os.PathLike,
    *,
    network: Network,
    codec: TokenCodec,
    glm: LinguisticTokenizer | None,
    text_files: Mapping[str, bytes],
    voices: Mapping[str, Voice],
    config: GPAConfig,
    fingerprints: Mapping[str, str],
    dtypes: tuple[torch.dtype, torch.dtype | None],
    origin: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a whole checkpoint directory under a temporary name, then rename it: never half of one.

    `dtypes` are the precisions of the language model's and of the codec's weights. Card, page of the data and
    recorded outputs of `origin` come along where the copy computes the same. An existing directory is
    refused unless it is empty or `overwrite`, which keeps a README.md there.
    """
    out = Path(out)
    with disk.written_whole(out, overwrite) as temporary:
        save_network(network, temporary, dtypes[0])
        for name, content in text_files.items():
            (temporary / name).write_bytes(content)
        codec.save_pretrained(temporary / CODEC, dtypes[1])
        found = {**fingerprints, **load_codec(temporary / CODEC).fingerprints()}
        if glm is not None:
            glm.save_pretrained(temporary / GLM)
            found["glm"] = load_codec(temporary / GLM).fingerprint()
        for name, voice in voices.items():
            voice.save(temporary / VOICES / f"{name}.json")
        replace(config, fingerprints=found).write(temporary)
        if origin is not None and _digests(origin) == _digests(temporary):
            _copy_pages(origin, temporary)
    return out


def _digests(folder: Path) -> list[str]:
    """SHA-256 of everything that outputs depend on, whatever the layout."""
    codec, glm = load_parts(folder, torch.device("cpu"))
    texts = [content for _, content in sorted(read_text_files(folder).items())]
    letters = [path.read_bytes() for path in sorted((codec_folder(folder) / ctc.FOLDER).glob("*"))]
    lists = [hashlib.sha256(content).hexdigest() for content in (*texts, *letters)]
    return [
        network_fingerprint(folder),
        codec.fingerprint(),
        *([glm.fingerprint()] if glm else []),
        *lists,
    ]


def _copy_pages(origin: Path, folder: Path) -> None:
    """Card, page of the data and recorded outputs, which say of a checkpoint what is true of its copy."""
    for name in PAGES:
        if (origin / name).is_file():
            shutil.copyfile(origin / name, folder / name)
    if (origin / GOLDEN).is_dir():
        shutil.copytree(origin / GOLDEN, folder / GOLDEN)
