"""`python -m gpa.lab.card CHECKPOINT ...`: README.md and DATA.md of a checkpoint, from files alone.

    python -m gpa.lab.card CHECKPOINT --runs RUN RUN ... --manifest DATA/speech/manifest.jsonl \\
        --report OUT/report.json --notes NOTES.md [--watts 65] [-o FOLDER]

What is not given is said to be missing on the card.
"""

from __future__ import annotations

import argparse
import logging
import math
from pathlib import Path

from gpa.data.token_folder import write_text
from gpa.errors import UsageError, exit_code
from gpa.evals import report_file
from gpa.lab.card import card_page, corpora, measured, notes, runs, weights

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> None:
    """Entry point of `python -m gpa.lab.card`; raises GPAError."""
    args = _parser().parse_args(argv)
    if args.watts is not None and not (math.isfinite(args.watts) and args.watts > 0):
        raise UsageError(f"--watts {args.watts:g}: a number above 0 is needed")
    out = args.out or args.checkpoint
    if not out.is_dir():
        raise UsageError(f"{out}: no such folder to write to")
    for name, text in card_page.written(_read(args)).items():
        write_text(out / name, text)
        log.info("wrote %s", out / name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gpa.lab.card", description="Write the model card and the data card of a checkpoint."
    )
    parser.add_argument("checkpoint", type=Path, help="folder with gpa.json")
    parser.add_argument("--runs", type=Path, nargs="+", default=[], metavar="RUN",
        help="folders of the training runs that made it, in their order")  # fmt: skip
    parser.add_argument("--manifest", type=Path, nargs="+", default=[], metavar="JSONL",
        help="manifest.jsonl of the data, and further ones that were trained on")  # fmt: skip
    parser.add_argument("--report", type=Path, help="report.json of gpa eval, of these very weights")
    parser.add_argument("--notes", type=Path, help="Markdown of fixed sections, taken over word for word")
    parser.add_argument(
        "--watts", type=float, metavar="W", help="mean draw of the machine, to estimate energy"
    )
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FOLDER", help="where to write (default: the checkpoint)"
    )
    return parser


def _read(args: argparse.Namespace) -> card_page.Sources:
    checkpoint = weights.read_checkpoint(args.checkpoint)
    found = report_file.read(args.report) if args.report else None
    if found is not None:
        measured.check(found, checkpoint.digest, str(args.report))
    return card_page.Sources(
        checkpoint,
        [runs.read_run(path) for path in args.runs],
        corpora.read_manifests(args.manifest) if args.manifest else None,
        found,
        notes.read_notes(args.notes) if args.notes else notes.Notes(),
        args.watts,
    )


if __name__ == "__main__":
    raise SystemExit(exit_code(main, log))
