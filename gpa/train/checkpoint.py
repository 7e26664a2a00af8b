"""Run folder: its recipe, and checkpoints that are written whole, carry a digest, and are verified.

One process writes a file `step-N.pt`, whose last line is the SHA-256 of what stands before; of a sharded run
every process writes its part of a folder `step-N` (gpa.train.sharded), listed in its SHA256SUMS. The two
newest are kept. The newest whose digest holds is restored; a damaged one is set aside, loudly.
A digest finds damage. It proves no origin: who can write to the folder can write a digest.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, runtime_checkable

import torch
import yaml
from torch import Tensor, nn

from gpa import config, disk, hub
from gpa.errors import CheckpointError

if TYPE_CHECKING:
    from gpa.train.optim import Optimizer

log = logging.getLogger(__name__)
KEEP = 2
FOLDER, BEST, POSITIONS = "checkpoints", "best.pt", "positions.pt"
SUMS = "SHA256SUMS"
_SEAL = re.compile(rb"\n# sha256 ([0-9a-f]{64})\n\Z")
_SEALED = 75  # bytes of a seal
# What a resumed run may change. More steps keep the past, though the learning rate then had another future.
# `world` and `accumulate` may change against each other: the checkpoint holds their product.
_FREE = """steps max_seconds save_every eval_every log_every profile threads workers async_save world
    accumulate timeout tracker tensorboard best"""
FREE = {f"train.{name}" for name in _FREE.split()} | {"validate.rows", "validate.samples"}


class Stateful(Protocol):
    """What is stored beside weights and optimisers: averaged weights, a loss scale."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


@runtime_checkable
class Seekable(Protocol):
    """A family that finds a batch faster when it knows where an earlier one stood."""

    def position(self) -> dict[str, int]:
        """Where the last batch stood, empty if that is no help."""
        ...

    def seek(self, position: Mapping[str, int]) -> None:
        """Go there."""
        ...


def claim(run: Path, recipe: Any) -> bool:
    """Write the resolved recipe (a dataclass) to run/recipe.yaml; whether the run goes on from a checkpoint.

    CheckpointError if the folder holds checkpoints and its recipe is damaged, edited or missing, or another
    one, whose keys it names; `FREE` ones may differ.
    """
    path = run / "recipe.yaml"
    text = config.dump(recipe)
    if begun := bool(found(run) or found(run, shards=True)):
        saved, ours = _flat(_recipe(path)), _flat(yaml.safe_load(text))
        # A key that the saved recipe lacks is newer than it, and was then what its default is now.
        changed = sorted(k for k in saved.keys() | ours.keys() if k in saved and saved[k] != ours.get(k))
        changed = [key for key in changed if key not in FREE]
        if changed:
            was = ", ".join(f"{key} (was {saved[key]!r}, is {ours.get(key)!r})" for key in changed)
            raise CheckpointError(
                f"{run}: holds checkpoints of another recipe: {was}; give the old values or a new --run"
            )
    disk.write_bytes(path, sealed(text.rstrip("\n").encode()))
    return begun


def _recipe(path: Path) -> Any:
    """The recipe that a run's checkpoints were made with."""
    try:
        with path.open("rb") as file:
            fault = _fault(file)
        tree = {} if fault else yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        fault = f"cannot be read: {error.strerror or error}"
    except (ValueError, yaml.YAMLError):
        fault = "no YAML"
    if fault:
        raise CheckpointError(
            f"{path}: {fault}. What the checkpoints here were trained with is not known, so they are not "
            "continued: bring the file back as the run wrote it, or choose a new --run"
        )
    return tree


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by dotted key."""
    if not isinstance(tree, dict) or not tree:
        return {prefix.rstrip("."): tree}
    return {key: leaf for name, part in tree.items() for key, leaf in _flat(part, f"{prefix}{name}.").items()}


def found(run: Path, *, shards: bool = False) -> list[Path]:
    """Complete checkpoints, oldest first: files, or folders of shards."""
    paths = (run / "checkpoints").glob("step-*" if shards else "step-*.pt")
    named = (p for p in paths if p.name.removesuffix(".pt")[5:].isdigit())
    return sorted(p for p in named if p.is_dir() == shards)


def sweep(run: Path) -> None:
    """Remove what a killed process was writing."""
    for path in (run / FOLDER).glob(".*.tmp.pt"):
        path.unlink()
    for path in (run / FOLDER).glob("step-*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def newest(run: Path, *, shards: bool = False) -> Path | None:
    """The newest checkpoint whose digest holds, None for a fresh run; newer ones are set aside, loudly.

    CheckpointError if there are checkpoints and all of them are damaged.
    """
    sweep(run)
    faults: dict[Path, str] = {}
    for path in reversed(found(run, shards=shards)):
        if not (fault := _fault_of(path)):
            break
        faults[path] = fault
    else:
        if faults:
            told = "; ".join(f"{path.name} {fault}" for path, fault in faults.items())
            raise CheckpointError(
                f"{run / FOLDER}: every checkpoint is damaged ({told}). Bring one back from a copy, or start "
                "in a new --run"
            )
        return None
    for damaged_one, fault in faults.items():
        aside = damaged_one.with_name(damaged_one.name + ".damaged")
        log.error("%s: damaged (%s); it is now %s", damaged_one, fault, aside.name)
        log.error("the run goes on from the checkpoint before it, %s", path.name)
        if aside.is_dir():
            shutil.rmtree(aside)
        os.replace(damaged_one, aside)
    return path


class Writer:
    """Writes a checkpoint on a thread beside the steps that follow, one at a time."""

    def __init__(self) -> None:
        self.job: Future[Any] | None = None

    def start(self, write: Callable[[], Any]) -> None:
        """Begin to write; the one before was waited for."""
        pool = ThreadPoolExecutor(1, "checkpoint")
        self.job = pool.submit(write)
        pool.shutdown(wait=False)

    @property
    def failed(self) -> bool:
        """Whether what was begun has ended in an error."""
        return self.job is not None and self.job.done() and self.job.exception() is not None

    def wait(self) -> None:
        """Until it is written; raises what kept it from that, once."""
        job, self.job = self.job, None
        if job is not None:
            job.result()

    def join(self) -> None:
        """Until it is written or not: for a run that already ends by another error."""
        if self.job is not None:
            wait([self.job])


def copied(tree: Any, known: dict[Any, Tensor] | None = None) -> Any:
    """Nested containers, their tensors copied to where no step reaches them; tied weights stay one."""
    known = {} if known is None else known
    if isinstance(tree, Tensor):
        key = (tree.data_ptr(), tree.dtype, tree.shape, tree.stride())
        if key not in known:
            known[key] = tree.detach().to("cpu", copy=True)
        return known[key]
    if isinstance(tree, dict):
        made = copy.copy(tree)  # of its class, with torch's notes on versions
        made.update((key, copied(value, known)) for key, value in tree.items())
        return made
    if isinstance(tree, (list, tuple)):
        return type(tree)(copied(value, known) for value in tree)
    return tree


def state_of(
    module: nn.Module,
    optimizers: Mapping[str, Optimizer],
    parts: Mapping[str, Stateful] | None = None,
    batches: int = 1,
) -> dict[str, Any]:
    """What a checkpoint holds; `parts` are stored under their names, `batches` is micro-batches in a step."""
    optim = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
    state = {"module": module.state_dict(), "optim": optim, "batches": batches}
    return state | {name: part.state_dict() for name, part in (parts or {}).items()}


def save(run: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write one checkpoint atomically: a kill while writing leaves the previous one in place.

    Only the `KEEP` newest checkpoints stay.
    """
    path = run / FOLDER / f"step-{step:08d}.pt"
    write(path, {"step": step, **state})
    for old in found(run)[:-KEEP]:
        old.unlink()
    return path


def save_best(run: Path, step: int, module: nn.Module, metric: str, value: float) -> Path:
    """Write checkpoints/best.pt: the weights alone, the step, and the metric they were best at."""
    path = run / FOLDER / BEST
    write(path, {"step": step, "module": module.state_dict(), "metric": {metric: value}})
    return path


def save_position(run: Path, step: int, position: Mapping[str, int]) -> None:
    """Write beside the checkpoint of a step where its data stood, epoch, shard and offset."""
    steps = {**_positions(run), step: dict(position)}
    write(run / FOLDER / POSITIONS, {"positions": {n: steps[n] for n in sorted(steps)[-KEEP:]}})


def position(run: Path, step: int) -> dict[str, int]:
    """Where the data stood at a checkpoint, empty if that is not known: its batches are then counted anew."""
    return _positions(run).get(step, {})


def _positions(run: Path) -> dict[int, dict[str, int]]:
    path = run / FOLDER / POSITIONS
    try:
        return read(path)["positions"] if path.is_file() else {}
    except CheckpointError as error:
        log.warning("%s", error)
        return {}


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a file whole or not at all, with its digest; DiskError for a full disk."""
    with disk.file_whole(path) as partial:
        with partial.open("wb") as file:
            torch.save(state, file)
        with partial.open("rb+") as file:
            file.write(_seal(_sha256(file)))


def publish(partial: Path, path: Path, run: Path) -> None:
    """Give a folder of shards, complete now, its digests and its name; older ones beyond `KEEP` go."""
    with disk.room(path):
        lines = [f"{_digest(file)}  {file.relative_to(partial).as_posix()}\n" for file in _files(partial)]
        (partial / SUMS).write_text("".join(lines), encoding="utf-8")
        for file in (*_files(partial), partial / SUMS):
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        if path.exists():
            shutil.rmtree(path)
        os.replace(partial, path)
    for old in found(run, shards=True)[:-KEEP]:
        shutil.rmtree(old)


def _files(folder: Path) -> list[Path]:
    """Those of a folder of shards that have a digest."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / SUMS)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return _sha256(file)


def _sha256(file: BinaryIO, size: int | None = None) -> str:
    """SHA-256 of the first `size` bytes, or of all."""
    digest = hashlib.sha256()
    left = file.seek(0, os.SEEK_END) if size is None else size
    file.seek(0)
    while part := file.read(min(left, 1 << 20)):
        digest.update(part)
        left -= len(part)
    return digest.hexdigest()


def sealed(content: bytes) -> bytes:
    """Content with the line that its digest is read from."""
    return content + _seal(hashlib.sha256(content).hexdigest())


def _seal(digest: str) -> bytes:
    """The line that ends a file: of whatever stands before it."""
    return f"\n# sha256 {digest}\n".encode()


def _fault(file: BinaryIO) -> str:
    """What is wrong with a sealed file, nothing if its content has the digest that it carries."""
    size = file.seek(0, os.SEEK_END) - _SEALED
    seal = _SEAL.match(file.read()) if file.seek(max(size, 0)) == size else None
    if seal is None:
        return "it carries no digest: cut off, or of an earlier version of gpa"
    same = _sha256(file, size) == seal[1].decode()
    return "" if same else "it is not what was written: its digest differs"


def _fault_of(path: Path) -> str:
    """What is wrong with a checkpoint, a file or a folder of shards."""
    try:
        if path.is_file():
            with path.open("rb") as file:
                return _fault(file)
        text = (path / SUMS).read_text(encoding="utf-8", errors="replace")
        listed = dict(line.split("  ", 1)[::-1] for line in text.splitlines() if "  " in line)
        files = {file.relative_to(path).as_posix(): file for file in _files(path)}
        if odd := sorted(files.keys() ^ listed.keys()):
            return f"{odd[0]} is {'not there' if odd[0] in listed else 'not in ' + SUMS}"
        wrong = [name for name, file in files.items() if _digest(file) != listed[name]]
        return f"{wrong[0]} is not what was written: its digest differs" if wrong else ""
    except FileNotFoundError:
        return f"it has no {SUMS}: a part of it is gone, or it is of an earlier version of gpa"
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error


def restore(
    path: Path,
    module: nn.Module,
    optimizers: Mapping[str, Optimizer],
    parts: Mapping[str, Stateful] | None = None,
    batches: int = 1,
) -> int:
    """Load the checkpoint `newest` found into module, optimisers and parts; returns its step.

    CheckpointError if it does not fit.
    """
    parts = parts or {}
    state = _read(path)
    check_batches(path, int(state.get("batches", 1)), batches)
    if set(state["optim"]) != set(optimizers):
        raise CheckpointError(
            f"{path}: holds optimisers {sorted(state['optim'])}, this recipe has {sorted(optimizers)}; "
            "use a new run folder"
        )
    missing = sorted(set(parts) - set(state))
    if missing:
        raise CheckpointError(
            f"{path}: lacks {', '.join(missing)}, which this recipe has; use a new run folder"
        )
    hub.load_strict(module, state["module"], where=str(path))
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(state["optim"][name])
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])


def check_batches(path: Path, was: int, now: int) -> None:
    """CheckpointError unless a step has as many micro-batches as before."""
    if was != now:
        raise CheckpointError(
            f"{path}: a step had {was} micro-batches (processes x train.accumulate), now it would have {now} "
            "and the data another order: choose processes and train.accumulate whose product is "
            f"{was}, or a new --run"
        )


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote; CheckpointError if it is damaged."""
    if fault := _fault_of(path):
        raise damaged(path, fault)
    return _read(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise damaged(path, str(error) or type(error).__name__) from error


def damaged(path: Path, reason: str) -> CheckpointError:
    """What to say of a checkpoint that cannot be read."""
    told = reason.splitlines()[0][:160]
    return CheckpointError(f"{path}: damaged ({told}); bring it back from a copy, or choose a new --run")
