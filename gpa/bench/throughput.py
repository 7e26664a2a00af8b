"""Counts of a measurement to speeds, ratios, a table and JSON. Knows no model and loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gpa.bench.figures import Ratio, shown, table

LIVE, PADDED, PACKED, SORTED, TRAINER = "live", "padded", "packed", "sorted", "trainer"
RUN, TRACKED, SHARDED = "run", "tracked", "sharded"
TITLES = {
    LIVE: "(a) live codec, padded",
    PADDED: "(b) cached ids, padded",
    PACKED: "(c) cached ids, packed",
    SORTED: "(d) cached ids, by length, padded",
    TRAINER: "transformers.Trainer, padded",
    RUN: "(e) a run of gpa train, logged",
    TRACKED: "(f) the same, also to TensorBoard",
    SHARDED: "(g) as (e), from shards that stream",
}


@dataclass(frozen=True)
class Count:
    """One turn of one variant: ids without padding, positions with it, optimiser steps, seconds."""

    tokens: int
    positions: int
    steps: int
    seconds: float


@dataclass(frozen=True)
class Result:
    """A measurement: every variant's turns in order, why others were left out, and what was run.

    `flops_per_token` are model operations of forward and backward pass per id, padding not counted; `peak`
    is what the device can do in a second, None if that is not known.
    """

    about: Mapping[str, Any]
    counts: Mapping[str, Sequence[Count]]
    skipped: Mapping[str, str]
    flops_per_token: float
    peak: float | None = None


def speed(counts: Sequence[Count]) -> float:
    """Tokens per second of all turns together."""
    return sum(c.tokens for c in counts) / sum(c.seconds for c in counts)


def padding(counts: Sequence[Count]) -> float:
    """Share of positions that are padding, 0 to 1."""
    return 1 - sum(c.tokens for c in counts) / sum(c.positions for c in counts)


def step_seconds(counts: Sequence[Count]) -> float:
    """Seconds per optimiser step."""
    return sum(c.seconds for c in counts) / sum(c.steps for c in counts)


def ratio(counts: Sequence[Count], peer: Sequence[Count]) -> Ratio:
    """How many times as fast as a peer; turns are compared with the peer's of the same round."""
    each = [speed([mine]) / speed([theirs]) for mine, theirs in zip(counts, peer, strict=True)]
    return Ratio(speed(counts) / speed(peer), min(each), max(each))


def tree(result: Result) -> dict[str, Any]:
    """The whole measurement for machines; a ratio, or `mfu`, that cannot be said is null."""
    variants = []
    for name, counts in result.counts.items():
        row: dict[str, Any] = {
            "name": name,
            "title": TITLES[name],
            "tokens_per_s": speed(counts),
            "padding": padding(counts),
            "seconds_per_step": step_seconds(counts),
            "flops_per_s": speed(counts) * result.flops_per_token,
        }
        row["mfu"] = row["flops_per_s"] / result.peak if result.peak else None
        for peer in (LIVE, TRAINER, RUN):
            found = result.counts.get(peer)
            row[f"over_{peer}"] = asdict(ratio(counts, found)) if found else None
        variants.append({**row, "rounds": [asdict(count) for count in counts]})
    return {**result.about, "variants": variants, "skipped": dict(result.skipped)}


def lines(result: Result) -> Iterator[str]:
    """The measurement for people."""
    about, found = result.about, tree(result)
    threads = f", {about['threads']} thread{'s' * (about['threads'] > 1)}" if about["device"] == "cpu" else ""
    where = f"{about['precision']}, {about['device']}{threads}"
    yield f"{about['recipe']}: {about['parameters']:,} parameters, {where}"
    yield (
        f"{about['rounds']} rounds of {about['steps']} steps, each after {about['warmup']} to warm up; "
        f"{about['rows']} rows a padded batch, {about['mean_length']:.0f} ids a row; "
        f"packed into {about['pack_ids']} ids, {about['batch_ids']} a batch"
    )
    yield ""
    heads = ("", "tokens/s", "padding", "s/step", "TFLOP/s", "MFU", "times (a)", "times Trainer", "times (e)")
    rows = [
        (
            row["title"],
            f"{row['tokens_per_s']:.0f}",
            f"{100 * row['padding']:.1f} %",
            f"{row['seconds_per_step']:.3f}",
            f"{row['flops_per_s'] / 1e12:.3g}",
            "-" if row["mfu"] is None else f"{100 * row['mfu']:.1f} %",
            shown(row["over_live"]),
            shown(row["over_trainer"]),
            shown(row["over_run"]),
        )
        for row in found["variants"]
    ]
    yield from table(heads, rows)
    for name, reason in result.skipped.items():
        yield f"{TITLES[name]}: left out: {reason}"
