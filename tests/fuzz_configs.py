"""Random bad settings: configs, weights, tokenizers, voices and recipes, changed by value or by byte.

What still loads is used once; what says the same in other words (a byte order mark, other blanks) must load
equal. Nothing may take long or much memory.
"""

from __future__ import annotations

import atexit
import json
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from conftest import speechlike
from gpa import GPA, SpeechOp, config
from gpa.codec import load_codec
from gpa.codec.bicodec_config import BiCodecConfig
from gpa.codec.kl import LatentConfig
from gpa.errors import GPAError
from gpa.models.gpa.modeling_gpa import meta_backbone
from gpa.train.command import family_of
from test_hf_codec import BUILD
from tiny_model import write_tiny_model
from tiny_speechop import write_tiny_speechop

SECONDS, MEGABYTES = 3.0, 600  # of one trial: a second on an idle core, and what it may add
RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*/*.yaml"))
ODD: list[Any] = [None, True, -1, 0, 1, 2, 3, 7, 10**4, 10**9, 10**30, 2.5, -0.5, 1e-30, 1e300, float("nan")]
ODD += [float("inf"), "", "x", "7", "\ud800", "sdpa", "org/kernel", [], [1], ["x"], [0] * 300, {}, {"a": 1}]
CHOICES = (
    "_attn_implementation",
    "attn_implementation",
    "auto_map",
    "quantization_config",
    "dtype",
    "surprise",
)


@cache
def originals() -> Path:
    """A folder of every kind that is loaded: gpa, speechop, and the codecs of transformers."""
    root = Path(tempfile.mkdtemp(prefix="gpa-fuzz-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    write_tiny_model(root / "made")
    shutil.move(root / "made" / "tiny", root / "gpa")
    write_tiny_speechop(root)
    for kind, make in BUILD.items():
        make().save_pretrained(root / kind)
    return root


def used_gpa(folder: Path) -> Any:
    model = GPA.from_pretrained(folder, device="cpu")
    made = model.tts("hello", voice="anna", max_new_tokens=4) if "anna" in model.voices else None
    assert made is None or np.isfinite(made.wav).all()
    model.codec.encode((speechlike(0.5, seed=1), 16000))
    return model.processor.fingerprints()


def used_speechop(folder: Path) -> Any:
    op = SpeechOp.from_pretrained(folder, device="cpu")
    assert np.isfinite(op.enhance((speechlike(0.5, seed=1), 16000), steps=1).wav).all()
    return op.codec.fingerprint()


def used_codec(folder: Path) -> Any:
    codec = load_codec(folder)
    tokens = codec.encode((speechlike(0.2, seed=1), 16000))
    assert np.isfinite(codec.decode(tokens)).all()
    return codec.fingerprint()


USES: dict[str, Callable[[Path], Any]] = {"gpa": used_gpa, "speechop": used_speechop}


@cache
def expected(kind: str) -> Any:
    """What use of the unchanged folder gives."""
    return USES.get(kind, used_codec)(originals() / kind)


def trial(random: np.random.Generator, folder: Path) -> bool:
    kinds = ("recipe", "recipe", "gpa", "gpa", "gpa", "speechop", *BUILD)
    kind = str(random.choice(kinds))
    known = None if kind == "recipe" else expected(kind)
    started, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        return recipe_trial(random, folder) if known is None else folder_trial(random, folder, kind, known)
    finally:
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) >> 10
        assert time.process_time() - started < SECONDS, "took too long"
        assert grown < MEGABYTES, f"took {grown} MB"


def folder_trial(random: np.random.Generator, folder: Path, kind: str, known: Any) -> bool:
    copy = folder / kind
    shutil.copytree(originals() / kind, copy)
    files = sorted(path for path in copy.rglob("*") if path.suffix in (".json", ".safetensors"))
    path = files[random.integers(len(files))]
    same = damage_tensors(random, path) if path.suffix == ".safetensors" else damage_json(random, path)
    same = same and path.name != "tokenizer.json"  # whose bytes have a fingerprint
    try:
        found = USES.get(kind, used_codec)(copy)
    except GPAError as error:
        assert not same, f"{path.name} says the same, and was refused: {error}"
        raise
    assert not same or found == known, f"{path.name} says the same, and loads as something else"
    return True


def recipe_trial(random: np.random.Generator, folder: Path) -> bool:
    source = RECIPES[random.integers(len(RECIPES))]
    path = folder / source.name
    shutil.copyfile(source, path)
    same = damage_json(random, path)
    tree = config.load_yaml(path)
    assert not same or tree == yaml.safe_load(source.read_text(encoding="utf-8"))
    if "kind" in tree:
        sizes = tree.get("model")
        if tree["kind"] == "codec" and sizes:
            BiCodecConfig.from_dict(sizes)
        elif tree["kind"] == "latent" and sizes:
            config.build(LatentConfig, sizes, "model")
        elif tree["kind"] == "gpa" and sizes:
            meta_backbone({"vocab_size": 64, **sizes} if isinstance(sizes, dict) else sizes)
        elif tree["kind"] != "text":
            family_of(tree)
    return True


# Changes: each returns whether the file still says the same -------------------------------------------------


def damage_json(random: np.random.Generator, path: Path) -> bool:
    """Change a JSON or YAML file by value, or its text by one of the ways in which files go wrong."""
    text = path.read_text(encoding="utf-8")
    tree = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    if random.random() < 0.6:
        change_value(random, tree)
        dumped = yaml.safe_dump(tree) if path.suffix == ".yaml" else json.dumps(tree)
        path.write_text(dumped, encoding="utf-8", errors="surrogatepass")
        return False
    if path.suffix == ".json" and random.random() < 0.2:
        path.write_text(json.dumps(tree, indent=int(random.integers(5))), encoding="utf-8-sig")
        return True
    damage_text(random, path, text)
    return False


def change_value(random: np.random.Generator, tree: Any) -> None:
    """Another value, a key less or a key more, anywhere in a tree."""
    node = tree
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = keys[random.integers(len(keys))]
        inner = node[key]
        if not isinstance(inner, (dict, list)) or not inner or random.random() < 0.2:
            break
        node = inner
    choice = random.random()
    if choice < 0.1:
        del node[key]
    elif choice < 0.2 and isinstance(node, dict):
        node[CHOICES[random.integers(len(CHOICES))]] = ODD[random.integers(len(ODD))]
    elif choice < 0.4 and isinstance(inner, (int, float)):
        node[key] = [inner * 2, inner + 1, inner - 1, str(inner), float(inner), -inner][random.integers(6)]
    else:
        node[key] = ODD[random.integers(len(ODD))]


def damage_text(random: np.random.Generator, path: Path, text: str) -> None:
    """Bytes: cut, flipped, in another encoding, nested too deep, an alias bomb, a folder for a file."""
    raw = text.encode()
    cut = int(random.integers(len(raw)))
    deep = int(random.integers(2000, 200_000))
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
    )
    merges = "a0: &a0 {k: 1}\n"
    merges += "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 9))
    flipped = bytearray(raw)
    for place in random.integers(len(raw), size=3):
        flipped[place] = random.integers(256)
    ways = [
        b"",
        raw[:cut],
        bytes(flipped),
        text.encode("utf-16"),
        text.encode("utf-16-le"),
        ("# é\n" + text).encode("latin-1", "replace"),
        b"[" * deep,
        (b'{"a": ' if path.suffix == ".json" else b"- ") * deep + b"1",
        bomb.encode() if path.suffix == ".yaml" else b'{"model_type": 1, "model_type": 2}',
        merges.encode(),
        b"a: &a [*a]\nmodel: *a",
        b'{"version": ' + b"9" * 5000 + b"}",
        bytes(random.integers(0, 256, 200, dtype=np.uint8)),
        b"null",
    ]
    way = int(random.integers(len(ways) + 1))
    path.unlink()
    if way == len(ways):
        path.mkdir()
    else:
        path.write_bytes(ways[way])


def damage_tensors(random: np.random.Generator, path: Path) -> bool:
    """A safetensors file whose header lies, whose numbers are wild, or that ends too early."""
    raw = bytearray(path.read_bytes())
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    names = [name for name in header if name != "__metadata__"]
    way = int(random.integers(6))
    if way == 0:
        raw[: 8 + size] = raw[: 8 + size].replace(
            b"F32", [b"F16", b"I32", b"F64", b"XXX"][random.integers(4)]
        )
    elif way == 1:
        entry = header[names[random.integers(len(names))]]
        change_value(random, entry)
        text = json.dumps(header).encode()
        raw[: 8 + size] = len(text).to_bytes(8, "little") + text
    elif way == 2:
        del raw[int(random.integers(len(raw))) :]
    elif way == 3:
        raw[:8] = random.bytes(8)
    elif way == 4:
        for place in random.integers(8, 8 + size, size=3):
            raw[place] = random.integers(256)
    else:
        from safetensors.torch import load_file, save_file

        state = load_file(path)
        floating = [n for n in state if state[n].is_floating_point() and state[n].numel()]
        name = floating[random.integers(len(floating))]
        wild = [torch.nan, torch.inf, -torch.inf][random.integers(3)]
        state[name].view(-1)[int(random.integers(state[name].numel()))] = wild
        save_file(state, path)
        return False
    path.write_bytes(raw)
    return False


if __name__ == "__main__":
    for found in map(int, sys.argv[1:]):
        with tempfile.TemporaryDirectory() as made:
            print(found, trial(np.random.default_rng(found), Path(made)))
