"""`gpa bench WHAT`: how fast something is, as a ratio to a named peer that runs on the same machine, turn by
turn; or, for SpeechOp, how well it restores speech beside its peers.

Here are the parsers and what the commands print; each measurement has a file of its own. Nothing else in the
package, and no test, depends on a time.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from gpa.cli import bench_restoration, bench_serving, commands, options
from gpa.errors import UsageError

RECIPE = "recipes/gpa/mini.yaml"


def add(sub: Any) -> None:
    """Add `bench` and its measurements to the commands of `gpa`."""
    p = options.command(
        sub, "bench", None, "measure speed, or restoration, against named peers", """\
  gpa bench decode
  gpa bench serve --streams 16
  gpa bench train --tokens runs/tokens
  gpa bench data
  gpa bench speechop runs/speechop/export --data DATA
  gpa bench train --help

docs/bench.md says what each number means.
"""
    )  # fmt: skip
    what = p.add_subparsers(dest="bench", metavar="WHAT", required=True)
    _train(what)
    _data(what)
    bench_serving.add(what)
    bench_restoration.add(what)


def _train(sub: Any) -> None:
    p = options.command(
        sub, "train", run_train, "training steps: live codec, cached, packed; and transformers' Trainer", """\
  gpa bench train --tokens runs/tokens
  gpa bench train --tokens runs/tokens --audio corpus/manifest.jsonl --rounds 5 --threads 1
  gpa bench train recipes/gpa/gpa_0_3b.yaml data.batch_ids=8192 --tokens runs/tokens --json

every variant takes the same rows, in turn: round 1 of all, round 2 of all, ... prints a table of tokens per
second (padding is not counted), padding, seconds per step, and ratios with their range over the rounds.
without --audio the live codec is left out. a measurement takes minutes; let nothing else run meanwhile.
"""
    )  # fmt: skip
    p.add_argument("recipe", nargs="?", default=RECIPE, help=f"of kind gpa (default {RECIPE})")
    p.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="recipe keys to change")
    data = p.add_argument_group("data")
    data.add_argument("--tokens", metavar="DIR", help="folder of ids (default: the recipe's data.tokens)")
    data.add_argument(
        "--audio", type=Path, metavar="A", help="manifest, or folder of audio, of the same clips"
    )
    data.add_argument("--model", metavar="M", default=commands.DEFAULT_MODEL,
        help=f"whose codec makes ids of the audio (default {commands.DEFAULT_MODEL})")  # fmt: skip
    data.add_argument("--offline", action="store_true", help="never use the network")
    size = p.add_argument_group("how much")
    size.add_argument("--rounds", type=int, default=3, metavar="N", help="turns of each variant (default 3)")
    size.add_argument("--steps", type=int, default=6, metavar="N", help="timed steps a turn (default 6)")
    size.add_argument("--warmup", type=int, default=2, metavar="N", help="untimed steps first (default 2)")
    size.add_argument("--runs", action="store_true",
        help="also whole runs: plain, with TensorBoard, from shards that stream")  # fmt: skip
    size.add_argument("--rows", type=int, metavar="N",
        help="rows of a padded batch (default: what fills data.batch_ids; the reference has 2)")  # fmt: skip
    size.add_argument(
        "--threads", type=int, metavar="N", help="default: the recipe's, else GPA_THREADS or torch's choice"
    )
    p.add_argument("-v", "--verbose", action="store_true", help="say more, on stderr")
    options.json(p, "print one JSON object: the table, every round, machine and settings")


def run_train(args: argparse.Namespace) -> None:
    """Measure training; UsageError for counts below 1."""
    commands.at_least_one(args, "rounds", "steps", "rows", "threads")
    if args.warmup < 0:
        raise UsageError(f"--warmup {args.warmup}: at least 0")
    from gpa.bench import throughput, training

    settings = training.Settings(
        recipe=args.recipe,
        overrides=tuple(args.overrides),
        tokens=args.tokens,
        audio=args.audio,
        model=args.model,
        offline=args.offline,
        rounds=args.rounds,
        steps=args.steps,
        warmup=args.warmup,
        rows=args.rows,
        threads=args.threads,
        runs=args.runs,
    )
    result = training.measure(settings, commands.say)
    print(
        json.dumps(throughput.tree(result)) if args.json else "\n".join(throughput.lines(result)), flush=True
    )


def _data(sub: Any) -> None:
    p = options.command(
        sub, "data", run_data, "time to the first step, and memory, of 10,000 and of 1,000,000 rows", """\
  gpa bench data
  gpa bench data --rows 10000 100000 1000000 --shuffle-shards 4 --json
  gpa bench data --shard-rows 10000 --shuffle-shards 1

writes simulated corpora (a million rows take 0.5 GB in the temporary folder, and some minutes), trains a tiny
network from each of them shard by shard, in a process of its own, and removes them. prints seconds until it
is open and until the end of the first step, seconds of a further step, and the most memory.
"""
    )  # fmt: skip
    p.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000], metavar="N",
        help="sizes of corpora (default 10000 1000000)")  # fmt: skip
    p.add_argument("--shard-rows", type=int, default=1000, metavar="N", help="of a file (default 1000)")
    p.add_argument("--shuffle-shards", type=int, default=8, metavar="N",
        help="files in memory at once, as data.shuffle_shards (default 8)")  # fmt: skip
    p.add_argument("--steps", type=int, default=20, metavar="N", help="of training (default 20)")
    p.add_argument("--model", metavar="M", default=commands.DEFAULT_MODEL,
        help=f"whose tokenizer and number of codes (default {commands.DEFAULT_MODEL})")  # fmt: skip
    p.add_argument("--threads", type=int, metavar="N", help="default: GPA_THREADS or torch's choice")
    p.add_argument("--offline", action="store_true", help="never use the network")
    options.json(p, "print one JSON object: the table, machine and settings")


def run_data(args: argparse.Namespace) -> None:
    """Measure sizes of corpora; UsageError for counts below 1."""
    commands.at_least_one(args, "rows", "shard_rows", "shuffle_shards", "steps", "threads")
    from gpa.bench import corpus_scale

    settings = corpus_scale.Settings(
        rows=tuple(args.rows),
        shard_rows=args.shard_rows,
        shuffle_shards=args.shuffle_shards,
        steps=args.steps,
        model=args.model,
        threads=args.threads,
        offline=args.offline,
    )
    found = corpus_scale.measure(settings, commands.say)
    if args.json:
        text = json.dumps(corpus_scale.tree(settings, found))
    else:
        text = "\n".join(corpus_scale.lines(settings, found))
    print(text, flush=True)
