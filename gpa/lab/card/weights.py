"""What a checkpoint folder is: its settings, and of every part the sizes, precision and hashes.

Only JSON and the headers of weight files are read: no tensor is loaded, no model known.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpa import hub
from gpa.errors import CheckpointError, UsageError
from gpa.evals import report_file
from gpa.lab.card.tables import sha256

SIZES = {  # keys of config.json that a reader asks for, wherever they stand in it
    "num_hidden_layers": "layers",
    "hidden_size": "width",
    "num_attention_heads": "heads",
    "num_key_value_heads": "key/value heads",
    "vocab_size": "ids",
    "max_position_embeddings": "ids of context",
    "d_model": "width",
    "encoder_layers": "layers",
    "sample_rate": "Hz",
    "codebook_size": "semantic ids",
    "token_num": "speaker ids a clip",
}


@dataclass(frozen=True)
class Part:
    """A network of the checkpoint; `name` is its folder, "." at the top."""

    name: str
    kind: str
    sizes: dict[str, int | float]
    parameters: int | None  # None where the weights are no safetensors
    dtypes: tuple[str, ...]
    size: int  # bytes
    hashes: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """`settings` is gpa.json; `digest` is the hash by which a report names the same weights."""

    settings: Mapping[str, Any]
    parts: tuple[Part, ...]
    voices: tuple[str, ...]
    digest: str

    @property
    def name(self) -> str:
        """Name of the model."""
        return str(self.settings.get("name") or "unnamed")


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint folder; UsageError naming the file that is missing."""
    if not (folder / "gpa.json").is_file():
        raise UsageError(f"{folder / 'gpa.json'}: no such file; give a checkpoint folder")
    places = sorted({path.parent for path in folder.rglob("config.json")})
    parts = tuple(_part(folder, place) for place in places if _has_weights(place))
    if not parts:
        raise UsageError(f"{folder}: no part of it has config.json and weights")
    voices = tuple(sorted(path.stem for path in (folder / "voices").glob("*.json")))
    return Checkpoint(
        hub.read_json(folder / "gpa.json"), parts, voices, report_file.folder_hash(folder) or ""
    )


def _has_weights(place: Path) -> bool:
    return any((place / name).is_file() for name in hub.WEIGHT_FILES)


def _part(folder: Path, place: Path) -> Part:
    about = hub.read_json(place / "config.json")
    files = [path for path in hub.weight_files(place) if not path.name.endswith(".index.json")]
    headers = [_header(path) for path in files if path.suffix == ".safetensors"]
    tensors = [tensor for header in headers for tensor in header.values()]
    return Part(
        name=place.relative_to(folder).as_posix(),
        kind=str(about.get("model_type") or "not stated"),
        sizes=_sizes(about),
        parameters=sum(math.prod(tensor["shape"]) for tensor in tensors)
        if len(headers) == len(files)
        else None,
        dtypes=tuple(sorted({tensor["dtype"] for tensor in tensors})),
        size=sum(path.stat().st_size for path in files),
        hashes={path.name: sha256(path) for path in files},
    )


def _header(path: Path) -> dict[str, Any]:
    """{tensor: {dtype, shape}} of a safetensors file."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return {name: tensor for name, tensor in found.items() if name != "__metadata__"}
    except (OSError, ValueError, MemoryError, OverflowError) as error:
        raise CheckpointError(f"{path}: truncated or corrupt ({error}); copy the file again") from error


def _sizes(about: Mapping[str, Any]) -> dict[str, int | float]:
    """Sizes by what they mean; a codec's ids a second where its hop is stated."""
    flat: dict[str, Any] = dict(about)
    for section in about.values():
        flat |= (
            {key: value for key, value in section.items() if key not in flat}
            if isinstance(section, dict)
            else {}
        )
    found = {name: flat[key] for key, name in SIZES.items() if isinstance(flat.get(key), (int, float))}
    rate, hop = about.get("sample_rate"), about.get("latent_hop_length")
    return found | ({"semantic ids a second": rate / hop} if rate and hop else {})
