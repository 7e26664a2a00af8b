"""From a path or a Hugging Face repository id to files, and from files to a module, strictly.

Knows files and tensor names only: no codec, no model. torch, safetensors and huggingface_hub are imported
inside the functions that need them, so that `import gpa.hub` stays cheap.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpa.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
_DIFF_LINES = 10  # names shown of each kind; the counts are always complete


def resolve(path_or_repo: str | os.PathLike, revision: str | None = None, offline: bool = False) -> Path:
    """Local path of a checkpoint: an existing path as it is, otherwise a repository `owner/name[@revision]`.

    A repository is fetched into the Hugging Face cache; an interrupted download continues where it stopped.
    With `offline` (or HF_HUB_OFFLINE=1) only the cache is used. Raises CheckpointError saying what to do.
    """
    text = os.fspath(path_or_repo)
    path = Path(text).expanduser()
    if path.exists():
        return path
    repo, _, at = text.partition("@")
    if not _REPO_ID.fullmatch(repo) or repo.startswith("."):
        raise CheckpointError(
            f"{text}: no such file or directory, and not a repository id of the form owner/name[@revision]"
        )
    return _snapshot(repo, revision or at or None, offline)


def _snapshot(repo: str, revision: str | None, offline: bool) -> Path:
    from huggingface_hub import snapshot_download

    # HTTPError comes from whichever HTTP client this version of the hub uses, and covers its transport errors
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

    name = repo + (f"@{revision}" if revision else "")
    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=offline))
    except LocalEntryNotFoundError as error:
        why = "offline use was asked for" if offline else "huggingface.co could not be reached"
        raise CheckpointError(
            f"{name} is not in the local cache and {why}. Either run once with a network connection, "
            f"or download it elsewhere (hf download {repo}) and pass the directory instead of its name"
        ) from error
    except (HTTPError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{name} could not be fetched ({error}). Check the name, the revision and your access, "
            "or pass a local directory instead"
        ) from error


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The JSON object in a file; CheckpointError naming the file if it is absent, broken or not an object."""
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_state(path: str | os.PathLike) -> dict[str, Tensor]:
    """All tensors of a checkpoint, on the CPU, in the precision of the file.

    `path` is a weight file, or a directory holding one of model.safetensors, model.safetensors.index.json
    (shards) or pytorch_model.bin, tried in this order. Pickles are read with weights_only: they cannot run
    code. A missing, truncated or damaged file raises CheckpointError naming it.
    """
    path = _weight_file(Path(path))
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def _weight_file(path: Path) -> Path:
    if path.is_dir():
        found = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
        if not found:
            raise CheckpointError(f"{path}: none of {', '.join(WEIGHT_FILES)} is there")
        return found[0]
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weight file")
    return path


def weight_files(path: str | os.PathLike) -> tuple[Path, ...]:
    """The files that `read_state(path)` reads: one, or an index and its shards."""
    file = _weight_file(Path(path))
    if not file.name.endswith(".index.json"):
        return (file,)
    return (file, *(file.parent / shard for shard in sorted(set(_weight_map(file).values()))))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors, or is damaged; it was not executed. Convert it to "
            "safetensors, or download it again"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise CheckpointError(f"{path}: expected a flat mapping from names to tensors")
    return dict(state)


def _read_shards(index: Path) -> dict[str, Tensor]:
    names = _weight_map(index)
    state: dict[str, Tensor] = {}
    for shard in sorted(set(names.values())):
        state.update(read_state(index.parent / shard))
    if absent := [name for name in names if name not in state]:
        raise CheckpointError(f"{index}: {_listing('listed but not in any shard', absent)}")
    return state


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> shard, as an index file lists them."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{index}: no weight_map")
    for shard in names.values():
        if not isinstance(shard, str) or Path(shard).name != shard:  # never outside the index's own folder
            raise CheckpointError(f"{index}: shard {shard!r} is not a plain file name")
    return names


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
    return CheckpointError(f"{path}: truncated or damaged ({reason}); download or copy the file again")


def load_strict(
    module: nn.Module,
    state: dict[str, Tensor],
    *,
    ignore: Sequence[str] = (),
    optional: Sequence[str] = (),
    where: str = "",
) -> None:
    """Copy `state` into `module`; every tensor must be there, be expected, and have its shape.

    `ignore` and `optional` are glob patterns (fnmatch): tensors of the file that the module does not want,
    and tensors of the module that the file may lack. Floating tensors take the module's precision. Parameters
    on the meta device are replaced, as float32, rather than filled. Raises CheckpointError with a readable
    difference headed by `where`, before anything is changed.
    """
    wanted = module.state_dict()
    unexpected = [n for n in state if n not in wanted and not _matches(n, ignore)]
    missing = [n for n in wanted if n not in state and not _matches(n, optional)]
    shared = [n for n in wanted if n in state]
    bad = [line for n in shared if (line := _mismatch(n, state[n], wanted[n]))]
    if missing or unexpected or bad:
        parts = [
            _listing("missing", missing),
            _listing("unexpected", unexpected),
            _listing("wrong shape", bad),
        ]
        head = f"{where or type(module).__name__}: weights do not fit the model"
        raise CheckpointError("\n".join([head, *(p for p in parts if p)]))
    meta = any(t.is_meta for t in wanted.values())
    chosen = {n: state[n].float() if meta and state[n].is_floating_point() else state[n] for n in shared}
    module.load_state_dict(chosen, strict=False, assign=meta)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _mismatch(name: str, found: Tensor, wanted: Tensor) -> str:
    if found.shape != wanted.shape:
        return f"{name}: file {list(found.shape)}, model {list(wanted.shape)}"
    if found.is_floating_point() != wanted.is_floating_point():
        return f"{name}: file {found.dtype}, model {wanted.dtype}"
    return ""


def _listing(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    shown = [f"    {line}" for line in lines[:_DIFF_LINES]]
    if len(lines) > _DIFF_LINES:
        shown.append(f"    ... and {len(lines) - _DIFF_LINES} more")
    return "\n".join([f"  {title} ({len(lines)}):", *shown])


def fingerprint_files(*paths: str | os.PathLike) -> str:
    """SHA-256 (hex) over names and contents of files; their order and folders do not matter."""
    lines = sorted(f"{Path(p).name} {_sha256(Path(p))}\n" for p in paths)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sha256(path: Path) -> str:
    try:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
        return digest.hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
