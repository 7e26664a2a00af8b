"""The replica of the published checkpoint, compact in tests/assets.

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


def write_prepared(folder: Path, **layout: int) -> Path:
    """Write the golden training rows as `gpa prepare` does, with the recorded codes; returns the folder.

    `layout` is what prepared.json says of the vocabulary.
    """
    from gpa.data import token_folder
    from gpa.prompt.formats import canonical_task
    from gpa.prompt.vocab import Vocab

    folder.mkdir(parents=True, exist_ok=True)
    vocab = Vocab.from_file(write_tokenizer(folder), **{"glm_size": GLM_SIZE, "size": VOCAB_SIZE, **layout})
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with np.load(DIRECTORY / "golden.npz") as file:
        recorded = {name: file[name].reshape(-1).tolist() for name in file.files}
    rows = []
    for n, case in enumerate(read_cases()["training"]):
        given = {key: Path(value).stem[-1] for key, value in case["example"].items() if value[-4:] == ".wav"}
        source, voice, target = given["audio"], given.get("ref_audio", given["audio"]), given.get("vc_audio")
        row = {"id": str(n), "task": canonical_task(case["example"]["task"]), "split": "train", "speaker": ""}
        row |= {"text": case["example"].get("text", ""), "seconds": 1.0, "licence": "", "length": 0}
        row |= {"semantic": recorded[f"semantic_{source}"], "glm": recorded[f"glm_{source}"]}
        row |= {"global": recorded[f"global_{voice}"]}
        row |= {"target": recorded[f"semantic_{target}"] if target else []}
        rows.append(row)
    token_folder.write_shard(folder / token_folder.shard_name(0, 1), rows, folder)
    head = {"kind": token_folder.KIND, "version": token_folder.VERSION, "rows": len(rows), "shards": 1}
    head |= {"format": "published", "codec": {"frame_rate": 50.0}, "vocabulary": token_folder.layout(vocab)}
    prints = {"vocabulary": vocab.fingerprint()}
    token_folder.write_json(folder / token_folder.PREPARED, {**head, "fingerprints": prints})
    return folder
