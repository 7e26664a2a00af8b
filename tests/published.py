"""The replica of the published checkpoint (specification 8), compact in tests/assets.

Origin: published-tiny of the golden data; the tokenizer is the same JSON without white space, compressed.
"""

import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

DIRECTORY = Path(__file__).parent / "assets" / "published-tiny"
GLM_SIZE = 64
VOCAB_SIZE = 4739


@cache
def tokenizer_json() -> str:
    """The text of the replica's tokenizer.json."""
    return lzma.decompress((DIRECTORY / "tokenizer.json.xz").read_bytes()).decode()


@cache
def read_cases() -> dict[str, Any]:
    """cases.json: `offsets`, `specials`, `texts`, `cases` (prompts) and `training` rows."""
    return json.loads((DIRECTORY / "cases.json").read_text(encoding="utf-8"))


def write_tokenizer(directory: Path) -> Path:
    """Write tokenizer.json into a directory and return that directory."""
    (directory / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    return directory


def unpack(archive: Path) -> dict[str, str]:
    """The text files of an archive: {relative path: content}."""
    return json.loads(lzma.decompress(archive.read_bytes()))


def write_replica(root: Path) -> Path:
    """Write the whole checkpoint directory, golden/ included, weights drawn from their specs; returns it."""
    import torch
    from safetensors.numpy import save_file
    from safetensors.torch import save_file as save_tensors

    from golden import draw_weights

    for name, text in unpack(DIRECTORY / "files.json.xz").items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    write_tokenizer(root)
    (root / "golden").mkdir()
    (root / "golden" / "cases.json").write_text(json.dumps(read_cases()), encoding="utf-8")
    for i in range(3):
        wav, rate = soundfile.read(DIRECTORY / f"audio_{i}.flac", dtype="int16")
        soundfile.write(root / "golden" / f"audio_{i}.wav", wav, rate, subtype="PCM_16")
    with np.load(DIRECTORY / "golden.npz") as file:
        tensors = dict(file)
    codebook = torch.from_numpy(tensors.pop("glm_codebook"))  # data, not drawn
    save_file(tensors, root / "golden" / "tensors.safetensors")
    for spec in sorted(root.rglob("weights_spec.json")):
        state = draw_weights(spec)
        if spec.parent.name.startswith("wav2vec2"):  # a pickle with a prefix and old weight-norm names
            old = {
                "parametrizations.weight.original0": "weight_g",
                "parametrizations.weight.original1": "weight_v",
            }
            for new, was in old.items():
                state = {name.replace(new, was): tensor for name, tensor in state.items()}
            torch.save({f"wav2vec2.{n}": t for n, t in state.items()}, spec.parent / "pytorch_model.bin")
            continue
        if spec.parent.name.startswith("glm"):
            state["codebook.weight"] = codebook
        save_tensors(state, spec.parent / "model.safetensors", metadata={"format": "pt"})
    return root
