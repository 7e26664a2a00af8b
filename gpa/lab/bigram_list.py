"""`gpa lab bigram_list PAIRS --words WORDS --licence LICENSE -o bigrams.txt.xz`: what follows what.

PAIRS has two words and their count a line, WORDS a word and its count, LICENSE travels with them: the two
English lists of the package `symspellpy` of PyPI, counted in Google Books. A checkpoint takes the result by
`gpa.train.export --bigrams`; recognition then weighs what it hears by it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from gpa import disk
from gpa.errors import UsageError
from gpa.text import wordlist
from gpa.text.bigrams import Bigrams
from gpa.text.lexicon import words_of

SOURCE = """\
Pairs of words counted in Google Books (Google Books Ngram Viewer, http://books.google.com/ngrams, CC BY 3.0)
as the Python package symspellpy distributes them under this licence; here as powers of two.

"""


def counts_in(path: Path, words: int) -> dict[tuple[str, ...], int]:
    """Lines of so many words and a count; UsageError for a line or a file that is not this."""
    lines = wordlist.read_text(path).splitlines()
    found: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(lines, 1):
        *each, count = line.split() or [""]
        if len(each) != words or not (count.isascii() and count.isdigit()):
            raise UsageError(f"{path}, line {number}: {line!r:.60}: {words} word(s) and a count are needed")
        if int(count) and all(words_of(word) == [word] for word in each):
            found[tuple(each)] = int(count)
    return found


def shares_of(
    pairs: Mapping[tuple[str, ...], int], words: Mapping[tuple[str, ...], int]
) -> dict[str, dict[str, float]]:
    """How often a word follows another. Where pairs and words were counted in different texts, the pairs of
    the best known word ("accordance with") are taken to be all there is after it.
    """
    known: dict[str, dict[str, int]] = {}
    for (word, other), count in pairs.items():
        if (word,) in words:
            known.setdefault(word, {})[other] = count
    if not known:
        raise UsageError("none of the pairs begins with a word of --words")
    times = max(sum(after.values()) / words[word,] for word, after in known.items())
    return {
        word: {other: count / (times * words[word,]) for other, count in after.items()}
        for word, after in known.items()
    }


def main(argv: list[str] | None = None) -> None:
    """`gpa lab bigram_list PAIRS --words WORDS --licence LICENSE -o FILE`."""
    parser = argparse.ArgumentParser(prog="gpa lab bigram_list", description=__doc__)
    parser.add_argument("pairs", type=Path, help="two words and a count a line")
    parser.add_argument("--words", type=Path, required=True, help="a word and its count a line")
    parser.add_argument("--licence", type=Path, required=True, help="of both lists")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args(argv)
    shares = shares_of(counts_in(args.pairs, 2), counts_in(args.words, 1))
    bigrams = Bigrams.of_shares(shares, SOURCE + wordlist.read_text(args.licence))
    disk.write_bytes(args.out, bigrams.content())
    print(f"{sum(len(after) for after in shares.values())} pairs of {len(shares)} words")
