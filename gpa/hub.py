"""From a path or a Hugging Face repository id to files, and from files to a module, strictly.

Knows files and tensor names only: no codec, no model. torch, safetensors and huggingface_hub are imported
inside the functions that need them, so that `import gpa.hub` stays cheap.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import pickle
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gpa.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor, dtype, nn

    M = TypeVar("M", bound=nn.Module)

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
REMEDIES = {  # by the hub's answer
    0: "check the connection, the name, the revision and your access",
    401: "log in (hf auth login), or set HF_TOKEN; the name may be wrong, too",
    403: "make a token with that right, or accept the terms on the repository's page",
    404: "check owner, name and revision; a private repository asks for its owner's HF_TOKEN",
    429: "too many requests: wait a few minutes",
    500: "the hub has a fault: try again later",
}
# What readers of damaged weights and constructors of impossible sizes raise.
DAMAGE: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
LEAST = 1024  # what a tensor counts, however small
SPARE = 1 << 22  # numbers that a network may have beyond its weights: windows, filters, positions
_DIFF_LINES = 10  # names shown of each kind; the counts are always complete


def resolve(path_or_repo: str | os.PathLike, revision: str | None = None, offline: bool = False) -> Path:
    """Local path of a checkpoint: an existing path as it is, otherwise a repository `owner/name[@revision]`.

    A repository is fetched into the Hugging Face cache: a file goes on where a connection broke, and what a
    failed or killed fetch has brought whole is not fetched again.
    With `offline` (or HF_HUB_OFFLINE=1) only the cache is used. Raises CheckpointError saying what to do.
    """
    text = os.fspath(path_or_repo)
    try:
        path = Path(text).expanduser()
        if path.exists():
            if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return path
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, with a null, of an unknown home
        raise CheckpointError(f"{text!r:.200}: cannot be read ({error})") from error
    repo, _, at = text.partition("@")
    if not _REPO_ID.fullmatch(repo) or repo.startswith("."):
        raise CheckpointError(
            f"{text}: no such file or directory, and not a repository id of the form owner/name[@revision]"
        )
    return _snapshot(repo, revision or at or None, offline)


def _snapshot(repo: str, revision: str | None, offline: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    name = repo + (f"@{revision}" if revision else "")
    instead = f"or download it elsewhere (hf download {repo}) and pass the directory instead of its name"
    with refusals(name, "could not be fetched", instead):
        try:
            return Path(snapshot_download(repo, revision=revision, local_files_only=offline))
        except LocalEntryNotFoundError as error:
            if _status(error):
                raise
            why = "offline use was asked for" if offline else "the hub could not be reached"
            raise CheckpointError(
                f"{name} is not, or not whole, in the local cache and {why}. Either run once with a network "
                f"connection, which goes on where it stopped, {instead}"
            ) from error


@contextmanager
def refusals(name: str, what: str, instead: str) -> Iterator[None]:
    """CheckpointError, with the hub's answer, its remedy and what to do `instead`, for what fails inside."""
    # HTTPError comes from whichever HTTP client this version of the hub uses, and covers its transport errors
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except (HTTPError, OSError, ValueError) as error:
        status = _status(error)
        remedy = REMEDIES.get(status) or REMEDIES[500 if status >= 500 else 0]
        answer = f"{status}, " if status else ""
        raise CheckpointError(f"{name} {what} ({answer}{error}): {remedy}, {instead}") from error


def _status(error: BaseException | None) -> int:
    """The hub's answer behind an error; 0 where none came."""
    while error is not None:
        if (response := getattr(error, "response", None)) is not None:
            return int(response.status_code)
        error = error.__cause__ or error.__context__
    return 0


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file; CheckpointError naming the file and what is wrong with it."""
    from gpa.config import read_json as read  # here, since half the package needs hub and nothing of yaml

    return read(path, CheckpointError)


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


def write_model(folder: Path, state: dict[str, Tensor], sizes: dict[str, Any]) -> None:
    """Write config.json and model.safetensors into a folder, made where it is missing."""
    from safetensors.torch import save_file

    from gpa import disk

    with disk.room(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    disk.write_text(folder / "config.json", json.dumps(sizes, indent=2) + "\n")


def _weight_file(path: Path) -> Path:
    if path.is_dir():
        found = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
        if not found:
            folders = [name for name in WEIGHT_FILES if (path / name).is_dir()]
            state = f"{folders[0]} is a folder, a file is needed" if folders else "all are missing"
            raise CheckpointError(f"{path}: none of {', '.join(WEIGHT_FILES)}, {state}")
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
    except SafetensorError as error:
        raise _damaged(path, error) from error
    except DAMAGE as error:
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
    except DAMAGE as error:
        raise _damaged(path, error) from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise CheckpointError(f"{path}: expected a flat mapping from names to tensors")
    for name, tensor in state.items():
        held = tensor.untyped_storage().nbytes() if tensor.layout == torch.strided else 0
        if not isinstance(name, str) or tensor.is_meta or tensor.nbytes > held:  # a view may claim any size
            raise CheckpointError(f"{path}: {name!r:.80} is no tensor that the file holds whole")
    return dict(state)


def _read_shards(index: Path) -> dict[str, Tensor]:
    names = _weight_map(index)
    state: dict[str, Tensor] = {}
    for shard in sorted(set(names.values())):
        state.update(read_state(index.parent / shard))
    if absent := [name for name in names if name not in state]:
        raise CheckpointError(f"{index}: {listing('listed but not in any shard', absent)}")
    return state


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> shard, as an index file lists them."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{index}: no weight_map")
    for shard in names.values():
        plain = isinstance(shard, str) and Path(shard).name == shard  # never outside the index's own folder
        if not plain or not shard.endswith((".safetensors", ".bin")):
            raise CheckpointError(f"{index}: shard {shard!r:.80} is not the name of a weight file")
    return names


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
    return CheckpointError(f"{path}: truncated or damaged ({reason}); download or copy the file again")


def build_strict(
    make: Callable[[], M],
    state: dict[str, Tensor],
    *,
    ignore: Sequence[str] = (),
    optional: Sequence[str] = (),
    where: str = "",
) -> M:
    """`load_strict` into what `make` builds, which may not take much more memory than the tensors have.

    CheckpointError for sizes of which no network can be built, too.
    """
    with sizes_checked(state, where):
        module = make()
    load_strict(module, state, ignore=ignore, optional=optional, where=where)
    return module


@contextmanager
def sizes_checked(state: Mapping[str, Tensor], where: str = "") -> Iterator[None]:
    """A float32 network is built inside, hardly larger than a state; CheckpointError for impossible sizes."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Budget(TorchFunctionMode):
        """Refuses a tensor before its memory is taken."""

        left = SPARE + 2 * sum(max(tensor.numel(), LEAST) for tensor in state.values())

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(func, "__name__", "") in ("empty", "zeros", "ones", "randn", "hann_window"):
                size = args[0] if args and isinstance(args[0], (tuple, list)) else args
                self.left -= max(math.prod(size), LEAST)
                if self.left < 0:
                    raise MemoryError("more numbers than the file of its weights holds")
            return func(*args, **(kwargs or {}))

    usual = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float32)  # that of our files, whatever the program around us likes
        with Budget():
            yield
    except DAMAGE as error:
        raise CheckpointError(
            f"{where}: weights do not fit the model: no network has the sizes of its config ({error})"
        ) from error
    finally:
        torch.set_default_dtype(usual)


def load_strict(
    module: nn.Module,
    state: dict[str, Tensor],
    *,
    ignore: Sequence[str] = (),
    optional: Sequence[str] = (),
    where: str = "",
) -> None:
    """Copy `state` into `module`; every tensor must be there, be expected, have its shape and be finite.

    `ignore` and `optional` are glob patterns (fnmatch): tensors of the file that the module does not want,
    and tensors of the module that the file may lack. Floating tensors take the module's precision. Parameters
    on the meta device are replaced, as float32, rather than filled. Raises CheckpointError with a readable
    difference headed by `where`, before anything is changed.
    """
    wanted = _compare(module, state, ignore, optional, where)
    shared = [n for n in wanted if n in state]
    check_finite({n: state[n] for n in shared}, where or type(module).__name__)
    meta = any(t.is_meta for t in wanted.values())
    chosen = {n: state[n].float() if meta and state[n].is_floating_point() else state[n] for n in shared}
    module.load_state_dict(chosen, strict=False, assign=meta)


def check_finite(state: Mapping[str, Tensor], where: str) -> None:
    """CheckpointError naming the tensors that hold NaN or infinity."""
    if wild := [n for n, tensor in state.items() if tensor.is_floating_point() and not _finite(tensor)]:
        head = f"{where}: damaged weights, or those of a training that diverged"
        raise CheckpointError(f"{head}\n{listing('NaN or infinite', wild)}")


def _finite(tensor: Tensor) -> bool:
    if not tensor.numel():
        return True
    wide = tensor if tensor.element_size() > 1 else tensor.float()
    return all(bool(end.isfinite()) for end in wide.aminmax())  # in one pass; a NaN is both


def _compare(
    module: nn.Module,
    state: dict[str, Tensor],
    ignore: Sequence[str],
    optional: Sequence[str],
    where: str,
) -> dict[str, Tensor]:
    """The tensors of a module; CheckpointError where a state does not fit them."""
    wanted: dict[str, Tensor] = module.state_dict()
    unexpected = [n for n in state if n not in wanted and not _matches(n, ignore)]
    missing = [n for n in wanted if n not in state and not _matches(n, optional)]
    bad = [line for n in wanted if n in state and (line := _mismatch(n, state[n], wanted[n]))]
    if missing or unexpected or bad:
        parts = [
            listing("missing", missing),
            listing("unexpected", unexpected),
            listing("wrong shape", bad),
        ]
        head = f"{where or type(module).__name__}: weights do not fit the model"
        raise CheckpointError("\n".join([head, *(p for p in parts if p)]))
    return wanted


def stored_precision(state: dict[str, Tensor]) -> dtype:
    """The precision of a state's first floating tensor; CheckpointError without one."""
    found = next((tensor.dtype for tensor in state.values() if tensor.is_floating_point()), None)
    if found is None:
        raise CheckpointError("the weights hold no floating-point tensor")
    return found


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _mismatch(name: str, found: Tensor, wanted: Tensor) -> str:
    if found.shape != wanted.shape:
        return f"{name}: file {list(found.shape)}, model {list(wanted.shape)}"
    if found.is_floating_point() != wanted.is_floating_point():
        return f"{name}: file {found.dtype}, model {wanted.dtype}"
    return ""


def listing(title: str, lines: Sequence[str]) -> str:
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
