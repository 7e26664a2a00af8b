"""What codec training leaves behind and the next step starts from.

The one place that writes and reads such an export: config.json, model.safetensors, heads.safetensors.
Training only sees the features of a clip; the encoder that makes them lies in features/, so that the export
is a whole codec for `BiCodec.from_pretrained`. `load` reads exports without it, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from gpa import config, disk, hub
from gpa.codec.bicodec import BiCodec, BiCodecConfig, BiCodecModel
from gpa.codec.feature_encoder import (
    FeatureEncoder,
    WhisperFeatures,
    load_features,
    restore_positions,
    save_features,
)
from gpa.codec.losses import LetterHead
from gpa.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from gpa.codec.base import TokenCodec

Heads = dict[str, dict[str, Tensor]]
HEADS = "heads.safetensors"
ENCODER = "features"  # of a whole codec: its feature encoder


def load_encoder(folder: str | Path, config: BiCodecConfig) -> FeatureEncoder:
    """The feature encoder in a folder; CheckpointError if its features are not those that the codec reads."""
    encoder = load_features(folder, config.features)
    if encoder.channels != config.encoder.input_channels:
        raise CheckpointError(
            f"{folder}: gives {encoder.channels} channels, the codec reads {config.encoder.input_channels}: "
            "name the encoder of the feature cache"
        )
    restore_positions(encoder)
    return encoder


def write(network: BiCodecModel, heads: Heads, folder: Path, encoder: FeatureEncoder | None = None) -> None:
    """Write an export: the network, its feature encoder, and the heads that only training uses, if any."""
    hub.write_model(folder, network.state_dict(), network.config.to_dict())
    state = {f"{name}.{key}": tensor for name, head in heads.items() for key, tensor in head.items()}
    if state:
        with disk.room(folder):
            save_file(state, folder / HEADS, metadata={"format": "pt"})
    if encoder is not None:
        save_features(encoder, folder / ENCODER, torch.float32)


def read_config(path: Path) -> BiCodecConfig:
    """Sizes of an export; CheckpointError naming the command that makes one if there is none."""
    _found(path, "config.json")
    return BiCodecConfig.read(path)


def settings_of(recipe: Mapping[str, Any]) -> BiCodecConfig:
    """What a codec recipe means: `model`, or the settings of `init` with what `model` says otherwise."""
    tree = dict(recipe["model"])
    if recipe["init"]:
        tree = _changed(read_config(Path(recipe["init"])).to_dict(), tree)
    return BiCodecConfig.from_dict(tree)


def _changed(tree: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A tree with other values, section by section."""
    found = dict(tree)
    for name, value in changes.items():
        inner = found.get(name)
        both = isinstance(inner, dict) and isinstance(value, Mapping)
        found[name] = _changed(inner, value) if both else value  # type: ignore[arg-type]
    return found


def read_heads(path: Path) -> Heads:
    """States of the heads of an export, by name; CheckpointError if it has none."""
    heads: Heads = {}
    for key, tensor in hub.read_state(_found(path, HEADS)).items():
        name, _, inner = key.partition(".")
        heads.setdefault(name, {})[inner] = tensor
    return heads


def load_network(path: Path) -> BiCodecModel:
    """The network of an export folder, or of checkpoints/step-N.pt in a run folder, for inference.

    CheckpointError if there is none or it does not fit.
    """
    if path.suffix == ".pt":
        recipe = config.load_yaml(path.parent.parent / "recipe.yaml")
        settings = settings_of(recipe)
        module = torch.load(path, map_location="cpu", weights_only=True)["module"]
        state = {k.removeprefix("codec."): v for k, v in module.items() if k.startswith("codec.")}
    else:
        settings, state = read_config(path), hub.read_state(_found(path, "model.safetensors"))
    return hub.build_strict(lambda: BiCodecModel(settings), state, where=str(path)).eval()


def load(path: str | Path, features: str | Path = "") -> BiCodec:
    """A whole codec from an export (or checkpoint) and the folder of the encoder it was trained on, which an
    export may hold itself.
    """
    if not features and (Path(path) / ENCODER).is_dir():
        return BiCodec.from_pretrained(path)
    if not features:
        raise CheckpointError(f"{path}: no {ENCODER}/ here: name the folder of the codec's feature encoder")
    network = load_network(Path(path))
    return BiCodec(network, load_encoder(features, network.config))


def letter_scores(export: Path, codec: TokenCodec) -> Callable[[np.ndarray], np.ndarray]:
    """Codes (T,) to log probabilities (T, 29) of CTC letters, by the head that training left in the export.

    UsageError for an export without one.
    """
    if not isinstance(codec, BiCodec) or not (export / HEADS).is_file():
        raise UsageError(f"{export}: letters are timed by {HEADS}, which the export of a codec run holds")
    head = LetterHead(codec.config.quantizer.input_dim)
    hub.load_strict(head, read_heads(export)["letters"], where=str(export / HEADS))
    head.eval().to(codec.device)

    @torch.inference_mode()
    def scores(codes: np.ndarray) -> np.ndarray:
        latents = codec.model.quantizer.decode(torch.from_numpy(codes)[None].to(codec.device))
        found: np.ndarray = head(latents)[0].log_softmax(-1).cpu().numpy()
        return found

    return scores


def codes_of_features(codec: TokenCodec) -> tuple[WhisperFeatures, Callable[[Tensor], np.ndarray]]:
    """The Whisper encoder that a codec reads, and its features (C, T) to codes (T',).

    UsageError for a codec that reads something else.
    """
    features = codec.features if isinstance(codec, BiCodec) else None
    if not isinstance(codec, BiCodec) or not isinstance(features, WhisperFeatures):
        raise UsageError("augmented copies need a codec that reads Whisper's features")

    def codes(heard: Tensor) -> np.ndarray:
        found: np.ndarray = codec.model.encode_semantic(heard[None])[0].cpu().numpy()
        return found

    return features, codes


def _found(path: Path, name: str) -> Path:
    if not (path / name).is_file():
        run = path.parent.name or "codec"
        raise CheckpointError(
            f"{path}: no codec export ({name} missing); a finished run of a codec recipe leaves it there: "
            f"gpa train recipes/gpa/{run}.yaml --run {path.parent}"
        )
    return path / name
