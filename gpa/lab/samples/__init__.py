"""`gpa lab samples OUT -o docs/samples`: a page of sound from an evaluation's folder.

    gpa eval CHECKPOINT --data DATA --baselines --save-wavs --out OUT
    gpa lab samples OUT -o docs/samples [-k 4] [--credit CREDIT.md] [--data DATA [--references]]

Recordings are shown with --references only, and only those whose licence allows it.
"""

from __future__ import annotations

import argparse
import logging
import re
from pathlib import Path

from gpa.errors import UsageError
from gpa.evals import report_file
from gpa.lab.samples.clips import Clips
from gpa.lab.samples.samples_page import INDEX, Page, groups, written

log = logging.getLogger(__name__)
PAGE_BYTES = 1_200_000


def main(argv: list[str] | None = None) -> None:
    """Entry point of `gpa lab samples`; raises GPAError."""
    args = _parser().parse_args(argv)
    if args.k < 1:
        raise UsageError(f"-k {args.k}: 1 or more")
    report = report_file.read(args.folder / report_file.FILE)
    credit = args.credit.read_text(encoding="utf-8").strip() if args.credit else ""
    chosen = groups(args.folder, report, args.k, args.seed, args.without)
    page = Page(args.folder, report, chosen, Clips(args.data, args.references), args.seed, credit)
    files = written(page, args.page_bytes)
    _store(args.out, files)
    log.info("wrote %s: %d files, %d bytes", args.out, len(files), sum(map(len, files.values())))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpa lab samples", description="Write a page of sound from an evaluation's folder."
    )
    parser.add_argument("folder", type=Path, help="OUT of gpa eval --baselines --save-wavs")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, help="folder of the page, such as docs/samples"
    )
    parser.add_argument("-k", type=int, default=4, help="items of each task (default 4)")
    parser.add_argument("--seed", type=int, default=0, help="chooses them (default 0)")
    parser.add_argument("--without", nargs="+", default=[], metavar="SUITE", help="suites to leave out")
    parser.add_argument("--credit", type=Path, help="Markdown that credits whose recordings are shown")
    parser.add_argument("--data", type=Path, help="data folder: names corpus and licence of every clip")
    parser.add_argument("--references", action="store_true", help="also the recordings that may be passed on")
    parser.add_argument("--page-bytes", type=int, default=PAGE_BYTES, metavar="N",
        help=f"size of everything together (default {PAGE_BYTES})")  # fmt: skip
    return parser


def _store(out: Path, files: dict[str, bytes]) -> None:
    """Write the page; sounds that the page of before linked and this one does not are removed."""
    out.mkdir(parents=True, exist_ok=True)
    index = out / INDEX
    before = re.findall(r"\]\(([\w-]+\.ogg)\)", index.read_text(encoding="utf-8")) if index.is_file() else []
    for name in set(before) - set(files):
        (out / name).unlink(missing_ok=True)
    for name, content in files.items():
        (out / name).write_bytes(content)
