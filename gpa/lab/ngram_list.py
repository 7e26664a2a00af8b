"""`gpa lab ngram_list MODEL --licence LICENSE -o ngrams.txt.xz`: which words follow which, by a model.

MODEL is a file in ARPA's format, as KenLM and SRILM write it, or the binary one of the package `pocketsphinx`
of PyPI, model/en-us/en-us.lm.bin; of it words, pairs and triples are read. LICENSE travels with them. A
checkpoint takes the result by `gpa.train.export --ngrams`; recognition then weighs what it hears by it.
"""

from __future__ import annotations

import argparse
import math
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from gpa import disk
from gpa.errors import UsageError
from gpa.text import wordlist
from gpa.text.lexicon import words_of
from gpa.text.ngrams import NGrams
from gpa.text.spelling import BEFORE

SOURCE = "Of the n-gram model {name}, under this licence, the more telling part as powers of two.\n\n"
LEAST = 3e-8  # nats a word that an n-gram must tell beyond a shorter one
MAGIC = b"Trie Language Model"  # begins PocketSphinx's file
BINS = 1 << 16  # of its rounded logarithms
BASE = 1.0001  # of these
ROUNDED = 1e-3  # by which a probability of 1 may be off

Shares = dict[str, dict[str, float]]  # how often words follow others: "he said", "said", or "" for all text


def read(path: Path) -> Shares:
    """Of a file in one of both formats; UsageError for any other."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    try:
        found = gathered(of_sphinx(content) if content.startswith(MAGIC) else of_arpa(content.decode()))
    except (ArithmeticError, ValueError, IndexError, struct.error) as error:
        raise UsageError(f"{path}: neither an ARPA model nor PocketSphinx's: {error}") from error
    if not found.keys() - {""}:
        raise UsageError(f"{path}: no n-grams of two words or more, or no words before them")
    return found


def gathered(ngrams: Iterable[tuple[list[str], float]]) -> Shares:
    """N-grams and their probabilities, by the words before the last one; what is no word is left out.

    Of several spellings of a word ("The" and "the") the likeliest counts. ValueError for what is no
    probability.
    """
    found: Shares = {}
    plain: dict[str, bool] = {}
    for words, share in ngrams:
        if not 0 <= share <= 1 + ROUNDED:
            raise ValueError(f"{' '.join(words)!r:.40} has a probability of {share:.3g}")
        if share and all(plain.setdefault(word, words_of(word) == [word]) for word in words):
            *before, last = words
            following = found.setdefault(" ".join(before), {})
            following[last] = max(share, following.get(last, 0.0))
    return found


def of_arpa(text: str) -> Iterator[tuple[list[str], float]]:
    """N-grams of a text file: sections of lines of a decimal logarithm, words, and perhaps a back-off."""
    lines, order = text.splitlines(), 0
    if "\\end\\" not in lines[-5:]:
        raise ValueError("it does not end as such a file does")
    for line in lines:
        if line.startswith("\\"):
            number = line[1:].partition("-grams:")[0]
            order = int(number) if number.isdigit() else 0
        elif 0 < order <= BEFORE + 1 and line.strip():
            value, *words = line.lower().split()
            if len(words) < order:
                raise ValueError(f"{line!r:.60} is no n-gram of {order} words")
            yield words[:order], 10.0 ** float(value)


def of_sphinx(content: bytes) -> Iterator[tuple[list[str], float]]:
    """N-grams of PocketSphinx's trie of three levels, from the last word to the first.

    Behind its name: the order, three counts, tables of rounded logarithms (of pairs, of their back-offs, of
    triples); unigrams; pairs and triples as fields of bits; words. A unigram and a pair say where those that
    they end begin.
    """
    at = len(MAGIC) + 13 + 4  # behind the order, the counts and the kind of rounding
    order, *counts = struct.unpack_from("<B3I", content, len(MAGIC))
    if order != 3:
        raise ValueError(f"{order} words to an n-gram, not 3")
    tables = np.frombuffer(content, "<f4", 3 * BINS, at).astype(np.float64).reshape(3, BINS)
    pairs_of, _, triples_of = np.exp(tables * math.log(BASE))
    at += 3 * BINS * 4
    layout = np.dtype([("share", "<f4"), ("backoff", "<f4"), ("first", "<u4")])
    unigrams = np.frombuffer(content, layout, counts[0] + 1, at)
    at += unigrams.nbytes
    word, first = counts[0].bit_length(), counts[2].bit_length()
    (seconds, _, pair_bins, begins), at = _fields(content, at, counts[1], (word, 16, 16, first))
    (firsts, triple_bins), at = _fields(content, at, counts[2], (word, 16))
    words = content[at + 4 :].decode().split("\0")
    starts = unigrams["first"].astype(np.int64)
    for n, last in enumerate(words[: counts[0]]):
        yield [last], math.exp(float(unigrams["share"][n]) * math.log(BASE))
        for pair in range(starts[n], starts[n + 1]):
            second = words[seconds[pair]]
            yield [second, last], float(pairs_of[pair_bins[pair]])
            for triple in range(begins[pair], begins[pair + 1]):
                yield [words[firsts[triple]], second, last], float(triples_of[triple_bins[triple]])


def _fields(content: bytes, at: int, count: int, widths: tuple[int, ...]) -> tuple[list[np.ndarray], int]:
    """Fields (count + 1,) of packed records of so many bits, lowest first, and where the next ones begin."""
    size = ((1 + count) * sum(widths) + 7) // 8 + 8
    memory = np.frombuffer(content, np.uint8, size, at)
    memory = np.concatenate([memory, np.zeros(8, np.uint8)])
    begin, found = np.arange(count + 1, dtype=np.int64) * sum(widths), []
    for width in widths:
        eight = (memory[(begin >> 3) + i].astype(np.uint64) << np.uint64(8 * i) for i in range(8))
        values = sum(eight) >> (begin & 7).astype(np.uint64)
        found.append((values & np.uint64((1 << width) - 1)).astype(np.int64))
        begin = begin + width
    return found, at + size


def telling(shares: Shares, least: float = LEAST) -> Shares:
    """N-grams of two and three words that say more than shorter ones: relative entropy (Stolcke 1998)."""
    kept: Shares = {}
    alone = shares.get("", {})
    for before in sorted(shares.keys() - {""}, key=lambda words: words.count(" ")):
        first, _, second = before.partition(" ")
        often = alone.get(first, 0.0) * (shares.get(first, {}).get(second, 0.0) if second else 1.0)
        fewer = kept.get(second, {})
        rest = max(0.0, 1.0 - sum(fewer.values()))
        for word, share in shares[before].items():
            otherwise = fewer.get(word, 0.0) + rest * alone.get(word, 0.0)
            if not otherwise or often * share * math.log(share / otherwise) > least:
                kept.setdefault(before, {})[word] = share
    return kept


def main(argv: list[str] | None = None) -> None:
    """`gpa lab ngram_list MODEL --licence LICENSE -o FILE`."""
    parser = argparse.ArgumentParser(prog="gpa lab ngram_list", description=__doc__)
    parser.add_argument("model", type=Path, help="ARPA's format, or PocketSphinx's en-us.lm.bin")
    parser.add_argument("--licence", type=Path, required=True, help="of the model")
    parser.add_argument(
        "--least", type=float, default=LEAST, help="nats a word that an n-gram tells (default: %(default)s)"
    )
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args(argv)
    licence = wordlist.read_text(args.licence)
    if not (shares := telling(read(args.model), args.least)):
        raise UsageError(f"{args.model}: no n-gram of it tells more than {args.least} nats a word")
    ngrams = NGrams.of_shares(shares, SOURCE.format(name=args.model.name) + licence)
    disk.write_bytes(args.out, ngrams.content())
    print(f"{sum(map(len, shares.values()))} n-grams behind {len(shares)} words or pairs")
