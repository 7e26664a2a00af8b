"""`gpa bench data`: what a large corpus costs before the first step and while training, when it streams.

A prepared folder of each size, of random codes and made-up sentences, is trained from shard by shard, in a
process of its own: the same tiny network, so that what differs is the data. docs/bench.md says what each
number counts.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpa.bench import machine
from gpa.bench.figures import progress, table

if TYPE_CHECKING:
    import pyarrow as pa

    from gpa.prompt.vocab import Vocab

WORDS = (
    "the a one our her that this it we they he she nobody river house morning letter door garden bridge boat "
    "street winter stone bird song key engine valley snow rain train map shop children brother noise answer "
    "old new small white late early open closed said told knew found left kept saw made ran and but or with "
    "into from under over after before near about slowly quickly again once never always almost together"
).split()
FRAME_RATE, VOICE, SECONDS = 25.0, 16, (1, 5)  # ids of speech a second, of a voice; how long clips are
NETWORK_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 64,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Settings:
    """Sizes in rows, rows of a shard, shards in memory at once, steps; whose tokenizer is taken."""

    rows: tuple[int, ...] = (10_000, 1_000_000)
    shard_rows: int = 1000
    shuffle_shards: int = 8
    steps: int = 20
    model: str = "gpa-mini"
    threads: int | None = None
    offline: bool = False


@dataclass(frozen=True)
class Found:
    """Of one size: bytes on disk; seconds to write, to open, to the end of the first step (opening included)
    and of a further step; bytes of memory at most, and of that without files that are mapped.
    """

    rows: int
    shards: int
    disk: int
    written: float
    opened: float
    first_step: float
    step: float
    peak: int
    anonymous: int


def measure(settings: Settings, say: Callable[[str], None] = lambda _: None) -> list[Found]:
    """Write and train from a corpus of each size, in a temporary folder; `say` is told how far it is."""
    found = []
    for rows in settings.rows:
        with tempfile.TemporaryDirectory() as scratch:
            folder, began = Path(scratch) / "tokens", time.perf_counter()
            write(folder, rows, settings, say)
            written = time.perf_counter() - began
            say(f"{rows:,} rows: training from them")
            opened, first, step, peak, anonymous = machine.alone(_trained, folder, settings)
            size = sum(path.stat().st_size for path in folder.glob("*.arrow"))
            shards = -(-rows // settings.shard_rows)
            found.append(Found(rows, shards, size, written, opened, first, step, peak, anonymous))
            say(f"{rows:,} rows: first step after {first:.1f} s, at most {peak / 1e6:.0f} MB")
    return found


def write(folder: Path, rows: int, settings: Settings, say: Callable[[str], None]) -> None:
    """Write a prepared folder of so many rows, one in a thousand of them held out."""
    import pyarrow as pa

    from gpa.data import token_folder

    folder.mkdir(parents=True)
    vocab = _vocabulary(settings, folder)
    shards = -(-rows // settings.shard_rows)
    told = progress(f"writing {rows:,} rows", say, "shard")
    for k in range(shards):
        made = _rows(range(k * settings.shard_rows, min(rows, (k + 1) * settings.shard_rows)), vocab)
        with pa.OSFile(str(folder / token_folder.shard_name(k, shards)), "wb") as file:
            with pa.ipc.new_stream(file, made.schema) as writer:
                writer.write_table(made)
        told(k + 1, shards)
    prints = {"vocabulary": vocab.fingerprint()}
    about = {"kind": token_folder.KIND, "version": token_folder.VERSION, "format": "instruct"}
    about |= {"codec": {"name": "simulated", "frame_rate": FRAME_RATE}, "fingerprints": prints}
    about |= {"vocabulary": token_folder.layout(vocab), "rows": rows, "shards": shards}
    token_folder.write_json(folder / token_folder.PREPARED, about)


def _vocabulary(settings: Settings, folder: Path) -> Vocab:
    from gpa.models.gpa import checkpoint_gpa
    from gpa.prompt.vocab import Vocab
    from gpa.text.tokenizer import copy_tokenizer

    copy_tokenizer(checkpoint_gpa.find(settings.model, offline=settings.offline), folder)
    return Vocab.from_file(folder)


def _rows(numbers: range, vocab: Vocab) -> pa.Table:
    """Rows by number, with the columns of `token_folder`: random codes, a sentence that fits their time."""
    import pyarrow as pa

    from gpa.data import token_folder

    draw, count = np.random.default_rng(numbers.start), len(numbers)
    seconds = draw.uniform(*SECONDS, count)
    words = draw.choice(WORDS, (count, round(2 * SECONDS[1]))).tolist()
    frames, voice = np.rint(seconds * FRAME_RATE).astype(int), vocab.global_.size if vocab.global_ else 1
    columns = {
        "id": [str(n) for n in numbers],
        "task": [""] * count,
        "split": ["dev" if n % 1000 == 999 else "train" for n in numbers],
        "speaker": [str(n % 997) for n in numbers],
        "text": [" ".join(said[: round(2 * s)]) for said, s in zip(words, seconds, strict=True)],
        "semantic": _lists(frames, draw.integers(vocab.semantic.size, size=frames.sum())),
        "glm": _lists(np.zeros(count, int), np.zeros(0)),
        "global": _lists(np.full(count, VOICE), draw.integers(voice, size=VOICE * count)),
        "target": _lists(np.zeros(count, int), np.zeros(0)),
        "seconds": pa.array(seconds, pa.float32()),
        "licence": [""] * count,
        "length": pa.array(np.zeros(count), pa.int32()),
    }
    return pa.table({name: columns[name] for name in token_folder.COLUMNS})


def _lists(sizes: np.ndarray, values: np.ndarray) -> pa.Array:
    import pyarrow as pa

    ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    return pa.ListArray.from_arrays(ends, values.astype(np.int32))


def _trained(folder: Path, settings: Settings) -> tuple[float, float, float, int, int]:
    """Train some steps; what `Found` has of it. What training needs is loaded here, in its own process."""
    from gpa.bench.training import fresh_network
    from gpa.train import launch, loop
    from gpa.train.command import family_of
    from gpa.train.families.lm import LMFamily

    began = time.perf_counter()
    family, recipe = family_of(recipe_tree(folder, settings))
    assert isinstance(family, LMFamily)
    parallel = launch.start(recipe.train)
    opened = time.perf_counter() - began
    module = fresh_network(family, parallel)
    parallel.prepare(module, family.parameters(module), recipe.optim)
    ended = []
    for step in range(settings.steps):
        loop.one_step(family, module, parallel, recipe.train, recipe.optim, step)
        ended.append(time.perf_counter() - began)
    further = (ended[-1] - ended[0]) / max(1, len(ended) - 1)
    return opened, ended[0], further, machine.peak_memory(), machine.anonymous_memory()


def recipe_tree(folder: Path, settings: Settings) -> dict[str, Any]:
    """The recipe: a tiny network, and shards that stream."""
    data = {"tokens": str(folder), "shuffle_shards": settings.shuffle_shards, "batch_ids": 4096}
    train = {"steps": settings.steps, "threads": settings.threads or 0}
    tree: dict[str, Any] = {"kind": "gpa", "data": data, "model": NETWORK_SIZES, "export": "network"}
    return {**tree, "train": train, "weights": {"alignment": 0.0}}


def tree(settings: Settings, found: Sequence[Found]) -> dict[str, Any]:
    """The measurement for machines: seconds and bytes."""
    about = {"bench": "data", **asdict(settings), "machine": machine.about()}
    about |= {"versions": machine.versions("torch", "datasets", "pyarrow", "numpy")}
    return {**about, "sizes": [asdict(each) for each in found]}


def lines(settings: Settings, found: Sequence[Found]) -> Iterator[str]:
    """The measurement for people."""
    yield (
        f"shards of {settings.shard_rows:,} rows, {settings.shuffle_shards} of them in memory at once; "
        f"{settings.steps} steps of a tiny network"
    )
    yield ""
    heads = ("rows", "shards", "on disk", "opened", "first step", "s/step", "peak", "of it anonymous")
    rows = [
        (
            f"{each.rows:,}",
            f"{each.shards:,}",
            f"{each.disk / 1e6:.0f} MB",
            f"{each.opened:.1f} s",
            f"{each.first_step:.1f} s",
            f"{each.step:.3f}",
            f"{each.peak / 1e6:.0f} MB",
            f"{each.anonymous / 1e6:.0f} MB",
        )
        for each in found
    ]
    yield from table(heads, rows)
