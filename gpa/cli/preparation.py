"""`gpa prepare`: its options, and how they become a job of `gpa.data.prepare`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from gpa.cli import commands, options
from gpa.errors import UsageError


def add(sub: Any) -> None:
    from gpa.data.checks import OPTIONS, REASONS

    p = options.command(
        sub, "prepare", prepare, "check a corpus and encode it once, for training", """\
  gpa prepare corpus/manifest.jsonl -o tokens
  gpa prepare recordings/ -o tokens --licence CC0-1.0 --workers 4
  gpa prepare LJSpeech-1.1/ -o tokens --licence PD
  gpa prepare common-voice/en/train.tsv -o tokens --licence CC0-1.0
  gpa prepare hf:owner/corpus -o tokens --split train --columns text=sentence
  gpa prepare "shards/train-*.tar" -o tokens --licence CC0-1.0
  gpa prepare corpus/manifest.jsonl -o shards --to tar
  gpa prepare corpus.parquet -o tokens --columns audio=clip speaker=reader
  gpa prepare manifest.jsonl -o tokens --codec runs/codec/export --align --copies 2 --noise noise/
  gpa prepare corpus/ -o tokens --codec path/to/encodec
  accelerate launch --num_processes 8 -m gpa prepare manifest.jsonl -o /shared/tokens

every row is judged first; dropped rows stand with their reason in DIR/rejected.jsonl, and above
--max-rejected nothing is encoded. a run that was killed goes on where it was: start it again.
docs/data.md explains manifests, label files, reasons and the files written. prints a table, then the
throughput.
"""
    )  # fmt: skip
    p.add_argument(
        "source",
        help="manifest, folder of audio, label file, tar shards, saved dataset, Parquet, or hf:owner/name",
    )
    p.add_argument("-o", "--output", type=Path, metavar="DIR", required=True, help="folder to write")
    p.add_argument("--to", choices=("ids", "tar"), default="ids",
        help="tar: the recordings that are kept, as WebDataset shards (default ids)")  # fmt: skip
    p.add_argument("--licence", default="", metavar="L", help="of rows that state none")
    p.add_argument(
        "--codec",
        default="",
        metavar="DIR",
        help="ids of this codec, not of --model: for models that are yet to be trained (docs/add-a-codec.md)",
    )
    sets = p.add_argument_group("datasets and tables")
    sets.add_argument(
        "--columns", nargs="+", default=[], metavar="KEY=NAME", help="what its columns are called"
    )
    sets.add_argument("--split", nargs="+", default=[], metavar="SPLIT", help="default: all of them")
    sets.add_argument("--streaming", action="store_true", help="of the hub and Parquet: keep no copy")
    rows = p.add_argument_group("which rows")
    rows.add_argument("--max-rejected", type=float, default=0.1, metavar="SHARE", help="default 0.1")
    allowed = ", ".join(code for code, reason in REASONS.items() if reason.optional)
    rows.add_argument("--allow", nargs="+", default=[], metavar="CODE", help=f"keep such rows: {allowed}")
    rows.add_argument("--seen-speakers", nargs="+", default=[], metavar="SPLIT", help="which share voices")
    rows.add_argument("--check-text", action="store_true", help="also compare with what the model hears")
    for name, (value, about) in OPTIONS.items():
        rows.add_argument(name, type=float, default=value, metavar="X", help=f"{about} (default {value:g})")
    made = p.add_argument_group("with --codec")
    made.add_argument("--vocab-size", type=int, default=512, metavar="N",
        help="pieces of its text tokenizer, learnt from the training texts (default 512)")  # fmt: skip
    made.add_argument("--text", type=Path, nargs="+", default=[], metavar="FILE",
        help="more text to learn it from, a sentence a line")  # fmt: skip
    made.add_argument("--tokenizer", default="", metavar="DIR", help="take that of another folder instead")
    made.add_argument("--align", action="store_true", help="also store when each letter is spoken")
    made = p.add_argument_group("augmented copies")
    made.add_argument("--copies", type=int, default=0, metavar="N",
        help="of each training clip, in other voices, noise and rooms (default 0)")  # fmt: skip
    made.add_argument("--noise", default="", metavar="DIR", help="of noise, with a manifest.json")
    made.add_argument("--rooms", default="", metavar="DIR", help="of impulse responses")
    made = p.add_argument_group("instructions")
    made.add_argument("--silence", action="store_true",
        help="also store where each clip is silent: pauses that wordings ask for are of it")  # fmt: skip
    work = p.add_argument_group("work")
    work.add_argument("--workers", type=int, default=1, metavar="N", help="processes here (default 1)")
    work.add_argument("--shard-rows", type=int, default=1000, metavar="N", help="of a file (default 1000)")
    work.add_argument("--wait", type=float, default=1800, metavar="S", help="for others (default 1800 s)")
    options.model(p)
    options.json(p, "print prepared.json instead of the table")


def prepare(args: argparse.Namespace) -> None:
    """Turn a corpus into a folder of ids; the lead of several processes alone prints."""
    from gpa.data.checks import OPTIONS, Limits

    if strange := [pair for pair in args.columns if "=" not in pair]:
        raise UsageError(f"--columns {strange[0]}: write KEY=NAME, such as text=sentence")
    if not args.codec and args.model == commands.DEFAULT_MODEL and not Path(args.model).exists():
        commands.check_shipped()
    if args.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # which `datasets` reads when it is imported
    from gpa.data import validation_summary
    from gpa.data.encoding import Extras, Wording
    from gpa.data.prepare import Job
    from gpa.data.prepare import prepare as run

    numbers = {name: getattr(args, name) for name in (n[2:].replace("-", "_") for n in OPTIONS)}
    seen, allow = tuple(args.seen_speakers), tuple(args.allow)
    report = run(
        Job(
            args.source,
            args.output,
            args.model,
            codec=args.codec,
            wording=Wording(args.vocab_size, tuple(args.text), args.tokenizer),
            extras=Extras(args.align, args.copies, args.noise, args.rooms, args.silence),
            limits=Limits(**numbers, check_text=args.check_text, seen_speakers=seen, allow=allow),
            licence=args.licence,
            columns=dict(pair.split("=", 1) for pair in args.columns),
            splits=args.split,
            streaming=args.streaming,
            to=args.to,
            shard_rows=args.shard_rows,
            max_rejected=args.max_rejected,
            workers=args.workers,
            patience=args.wait,
            device=args.device,
            offline=args.offline,
            threads=args.threads,
        )
    )
    if report.is_main:
        commands.print_json(report.about) if args.json else print(
            validation_summary.table(report.about), flush=True
        )
        commands.say(f"{report.speed()}; written to {args.output}")
