"""The codec of a training run before it is packed into a checkpoint: an export folder or a checkpoint `.pt`.

The feature encoder is not part of such an export, so its folder is named separately.
"""

from __future__ import annotations

from pathlib import Path

import torch

from gpa import config, hub
from gpa.codec.bicodec import BiCodec, BiCodecConfig, BiCodecModel
from gpa.codec.features import load_features


def codec_export(path: Path, features: Path) -> BiCodec:
    """Load an export folder (config.json, model.safetensors), or checkpoints/step-N.pt beside recipe.yaml.

    `features` is the folder of the encoder that the codec was trained on. CheckpointError where tensors are
    missing or left over.
    """
    if path.suffix == ".pt":
        raw = config.load_yaml(path.parent.parent / "recipe.yaml")["model"]
        whole = torch.load(path, map_location="cpu", weights_only=True)["module"]
        state = {k.removeprefix("codec."): v for k, v in whole.items() if k.startswith("codec.")}
    else:
        raw, state = hub.read_json(path / "config.json"), hub.read_state(path)
    network = BiCodecModel(BiCodecConfig.from_dict(raw))
    hub.load_strict(network, state, where=str(path))
    return BiCodec(network, load_features(features, network.config.features))
