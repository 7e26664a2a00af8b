"""`gpa lab word_list MANIFEST ... -o words.txt`: words of training texts, and how often they are
said.

The list is what recognition spells by (`gpa.text.lexicon`); a checkpoint carries it as words.txt.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from gpa import disk
from gpa.errors import UsageError
from gpa.text.lexicon import Lexicon


def texts_in(files: Iterable[Path], *, training: bool) -> list[str]:
    """Texts of manifests that are for training, or of those that are not and of an evaluation's items."""
    rows = (json.loads(line) for path in files for line in path.read_text(encoding="utf-8").splitlines())
    found = (row for row in rows if str(row.get("split")).startswith("train") == training)
    return [row.get("text") or row.get("reference") or "" for row in found]


def main(argv: list[str] | None = None) -> None:
    """`gpa lab word_list MANIFEST ... -o words.txt`."""
    parser = argparse.ArgumentParser(prog="gpa lab word_list", description=__doc__)
    parser.add_argument("manifest", type=Path, nargs="+", help="only rows of a training split are read")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args(argv)
    found = Lexicon.of_texts(texts_in(args.manifest, training=True))
    if not found:
        raise UsageError("no training text in these manifests")
    disk.write_text(args.out, found.lines())
    print(f"{len(found)} words")
