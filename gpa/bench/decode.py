"""`gpa bench decode`: ids per second of the language model alone, batch by batch, beside other engines.

Each decoder has a process of its own in every round, and all of them get the same prompts and make as many
ids. docs/bench.md says what each number means.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from gpa import config, hub
from gpa.bench import machine
from gpa.bench.decoders import DECODERS, GPA, TRANSFORMERS, Work, checked
from gpa.bench.figures import Chart, Ratio, shown, table
from gpa.errors import GPAError, UsageError

SHAPES = {"0.3b": "recipes/gpa/gpa_0_3b.yaml"}
LEGAL = 8192  # semantic ids of the published model
WARM = 2  # ids before the clock starts
SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of a weight


@dataclass(frozen=True)
class Settings:
    """What to measure: a model, or the `shape` of one with random weights, and how much of it."""

    model: str = "gpa-mini"
    shape: str | None = None
    batches: tuple[int, ...] = (1, 8, 32)
    prompt: int = 32
    ids: int = 64
    rounds: int = 3
    threads: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    only: tuple[str, ...] = ()
    offline: bool = False


@dataclass(frozen=True)
class Turn:
    """One batch of one round: the ids of each row, seconds by the clock and of all cores, bytes at most."""

    ids: list[list[int]]
    seconds: float
    cpu_seconds: float
    peak: int

    @property
    def speed(self) -> float:
        """Ids per second."""
        return sum(map(len, self.ids)) / self.seconds


@dataclass
class Found:
    """Turns by decoder and batch in the order of rounds, why others have none, bytes per second by round."""

    turns: dict[str, dict[int, list[Turn]]]
    skipped: dict[str, str]
    failed: dict[str, str]
    bandwidth: list[float]


def measure(settings: Settings, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Run every decoder in turns; the result, ready for JSON. UsageError for settings that do not fit.

    A decoder that fails, or makes fewer ids than it should, has no figures but its reason in `failed`.
    """
    if strange := sorted(set(settings.only) - set(DECODERS)):
        raise UsageError(f"no such decoder: {strange[0]}; there are {', '.join(DECODERS)}")
    with ExitStack() as stack:
        work, weights = _work(settings, stack, say)
        names = [name for name in DECODERS if not settings.only or name in settings.only]
        reasons = {name: DECODERS[name].missing(work) for name in names}
        found = Found({}, {name: why for name, why in reasons.items() if why}, {}, [])
        for number in range(1, settings.rounds + 1):
            if settings.device == "cpu":
                found.bandwidth.append(machine.alone(machine.bandwidth, work.threads))
            for name in (name for name in names if name not in (found.skipped | found.failed)):
                say(f"round {number}: {_round(name, work, found)}")
        return _tree(settings, work, weights, found)


def _round(name: str, work: Work, found: Found) -> str:
    """Let one decoder take a turn; what came of it in a line."""
    title = DECODERS[name].title
    try:
        turns = machine.alone(take_turn, name, work)
    except (GPAError, RuntimeError, OSError, MemoryError) as error:
        found.failed[name] = f"{type(error).__name__}: {error}"
        found.turns.pop(name, None)
        return f"{title}: failed: {error}"
    for batch, turn in turns.items():
        found.turns.setdefault(name, {}).setdefault(batch, []).append(turn)
    return f"{title}: " + ", ".join(f"{turn.speed:.1f} ids/s at {batch}" for batch, turn in turns.items())


def take_turn(name: str, work: Work) -> dict[int, Turn]:
    """Open a decoder in this process and let it decode each batch once, the smallest first."""
    import torch

    from gpa.bench.peer import finished
    from gpa.nn import threads

    threads.settle(None, work.threads)
    decoder, device = DECODERS[name], torch.device(work.device)
    turns = {}
    with ExitStack() as closing:
        decode = decoder.open(work, closing)
        for batch in work.batches:
            prompts = work.prompts[:batch]
            decode(prompts, WARM)
            began, used = finished(device), time.process_time()
            ids = decode(prompts, work.ids)
            seconds, used = finished(device) - began, time.process_time() - used
            checked(decoder.title, ids, batch, work.ids)
            peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else machine.peak_memory()
            turns[batch] = Turn(ids, seconds, used, peak)
    return turns


# The work ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """How many weights a step multiplies: `body`, and `head` for each id whose logit it computes."""

    total: int
    body: int
    head: int
    vocab: int

    def read(self, ids: int) -> int:
        """Weights that a step reads for the logits of so many ids."""
        return self.body + ids * self.head


def _work(settings: Settings, stack: ExitStack, say: Callable[[str], None]) -> tuple[Work, Weights]:
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    if settings.shape is not None:
        folder = scratch / "shape"
        tree = config.load_yaml(SHAPES.get(settings.shape, settings.shape))
        say(f"writing random weights of {settings.shape} to {folder}")
        machine.alone(write_shape, tree.get("model") or {}, folder)
        vocab_size = int(hub.read_json(folder / "config.json")["vocab_size"])
        legal, stop = range(vocab_size - min(LEGAL, vocab_size // 2), vocab_size), 0
    else:
        from gpa.models.gpa import checkpoint_gpa
        from gpa.prompt.vocab import Vocab

        folder = checkpoint_gpa.find(settings.model, offline=settings.offline)
        vocab_size = int(hub.read_json(folder / "config.json")["vocab_size"])
        vocab = Vocab.from_file(folder)
        legal, stop = vocab.semantic.span, vocab.stop
    draw = random.Random(0)
    batches = tuple(sorted(set(settings.batches)))
    prompts = [[draw.randrange(vocab_size) for _ in range(settings.prompt)] for _ in range(batches[-1])]
    weights = count_weights(folder)
    work = Work(
        folder,
        scratch,
        prompts,
        settings.ids,
        batches,
        legal,
        stop,
        machine.threads(weights.total, settings.threads),
        settings.device,
        settings.dtype,
    )
    return work, weights


def write_shape(sizes: Mapping[str, Any], folder: Path) -> None:
    """Write a folder of random float32 weights; UsageError for sizes that are no Qwen3's."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    if "vocab_size" not in sizes:
        raise UsageError("--shape takes a recipe of kind gpa whose model has a vocab_size")
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(**sizes)).save_pretrained(folder)


def count_weights(folder: Path) -> Weights:
    """Of a checkpoint, by its config alone."""
    import torch

    from gpa.engine.network import Network

    with torch.device("meta"):
        network = Network(hub.read_json(folder / "config.json"))
    s, total = network.sizes, sum(p.numel() for p in network.parameters())
    tables = 1 if s.tie_word_embeddings else 2
    return Weights(total, total - tables * s.vocab_size * s.hidden_size, s.hidden_size, s.vocab_size)


# The result -------------------------------------------------------------------------------------------------


def _tree(settings: Settings, work: Work, weights: Weights, found: Found) -> dict[str, Any]:
    read = {"vocabulary": weights.read(weights.vocab), "legal": weights.read(len(work.legal) + 1)}
    return {
        "bench": "decode",
        **{name: value for name, value in asdict(settings).items() if name not in ("only", "offline")},
        "batches": list(work.batches),
        "threads": work.threads,
        "machine": machine.about(),
        **machine.versions("torch", "transformers"),
        "parameters": weights.total,
        "weights_read": read,
        "bytes_per_second": found.bandwidth,
        "decoders": [_row(name, settings, weights, work, found) for name in found.turns],
        "skipped": found.skipped,
        "failed": found.failed,
    }


def _row(name: str, settings: Settings, weights: Weights, work: Work, found: Found) -> dict[str, Any]:
    decoder = DECODERS[name]
    size = decoder.weight_bytes or SIZES[settings.dtype]
    read = size * weights.read(len(work.legal) + 1 if decoder.slice else weights.vocab)
    batches = []
    for batch, turns in found.turns[name].items():
        speed = median(turn.speed for turn in turns)
        floor = batch * median(found.bandwidth) / read if found.bandwidth else None
        batches.append(
            {
                "batch": batch,
                "ids_per_s": speed,
                "ms_per_step": 1000 * batch / speed,
                "floor_ids_per_s": floor,
                "of_floor": speed / floor if floor else None,
                "gain": speed / median(turn.speed for turn in found.turns[name][work.batches[0]]),
                "over_transformers": _over(name, TRANSFORMERS, batch, found),
                "gpa_over": _over(GPA, name, batch, found),
                "same_rows": _same(name, batch, found) if decoder.same else None,
                "peak": max(turn.peak for turn in turns),
                "rounds": [
                    {"ids_per_s": t.speed, "seconds": t.seconds, "cpu_seconds": t.cpu_seconds, "peak": t.peak}
                    for t in turns
                ],
            }
        )
    return {"name": name, "title": decoder.title, "bytes_per_step": read, "batches": batches}


def _over(name: str, peer: str, batch: int, found: Found) -> dict[str, float] | None:
    mine, theirs = (found.turns.get(each, {}).get(batch) for each in (name, peer))
    if not mine or not theirs:
        return None
    return asdict(Ratio.of([turn.speed for turn in mine], [turn.speed for turn in theirs]))


def _same(name: str, batch: int, found: Found) -> float | None:
    """Share of rows whose ids are those of transformers; None without it."""
    theirs = found.turns.get(TRANSFORMERS, {}).get(batch)
    if not theirs:
        return None
    pairs = list(zip(found.turns[name][batch][0].ids, theirs[0].ids, strict=True))
    return sum(mine == other for mine, other in pairs) / len(pairs)


def lines(tree: Mapping[str, Any]) -> Iterator[str]:
    """The result for people."""
    what = f"shape {tree['shape']}, random weights" if tree["shape"] else tree["model"]
    yield (
        f"{what}: {tree['parameters']:,} parameters, {tree['dtype']}, {tree['device']}, "
        f"threads: {tree['threads']}"
    )
    yield (
        f"{tree['rounds']} rounds, {tree['ids']} ids after prompts of {tree['prompt']}; medians, "
        "and ratios with their range over the rounds"
    )
    if tree["bytes_per_second"]:
        yield f"memory is read at {median(tree['bytes_per_second']) / 1e9:.1f} GB/s"
    yield ""
    heads = (
        "decoder",
        "batch",
        "ids/s",
        "ms/step",
        "of floor",
        "times transformers",
        "gpa over it",
        "same",
        "peak",
    )
    rows = []
    for row in tree["decoders"]:
        for each in row["batches"]:
            share, same = each["of_floor"], each["same_rows"]
            rows.append(
                (
                    row["title"],
                    str(each["batch"]),
                    f"{each['ids_per_s']:.1f}",
                    f"{each['ms_per_step']:.2f}",
                    "-" if share is None else f"{100 * share:.0f} %",
                    shown(each["over_transformers"]),
                    shown(each["gpa_over"]),
                    "-" if same is None else f"{100 * same:.0f} %",
                    f"{each['peak'] / 2**20:.0f} MiB",
                )
            )
    yield from table(heads, rows)
    for name, reason in {**tree["skipped"], **tree["failed"]}.items():
        yield f"{DECODERS[name].title}: left out: {reason}"


def charts(tree: Mapping[str, Any]) -> list[Chart]:
    """A chart of ids per second for each batch."""
    found: dict[int, list[tuple[str, float, float, float]]] = {batch: [] for batch in tree["batches"]}
    for row in tree["decoders"]:
        for each in row["batches"]:
            speeds = [turn["ids_per_s"] for turn in each["rounds"]]
            found[each["batch"]].append((row["title"], each["ids_per_s"], min(speeds), max(speeds)))
    return [Chart(f"ids/s, batch {batch}", bars) for batch, bars in found.items() if bars]
