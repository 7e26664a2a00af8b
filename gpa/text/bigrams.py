"""Which words follow which: what a transcript should say, beside how its words are spelt.

The file `bigrams.txt.xz` has, below its licence, a line for every word that others were seen to follow:
`said 3 the to 4 he it that`, a number n before the words that follow it 2^-n of the time. Bigrams that were
counted in many books join the words that training texts have (`gpa.text.lexicon`): interpolation as in
Jelinek and Mercer (1980), where what the bigrams leave of probability falls to the lexicon.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from itertools import accumulate
from pathlib import Path

from gpa.errors import CheckpointError
from gpa.text import wordlist
from gpa.text.lexicon import END, LAST, Lexicon

FILE = "bigrams.txt.xz"
_LINE = re.compile(r"[a-z']+( \d{1,3}( [a-z']+)+)+", re.ASCII)
MOST = 0.95  # of the probability after a word that bigrams may take


class Bigrams:
    """How often words follow a word, as powers of two."""

    def __init__(self, lines: Mapping[str, str], notice: str = "") -> None:
        """`lines` are what stands behind each word in a file; a line is read when it is asked for."""
        self.lines, self.notice = dict(lines), notice

    @classmethod
    def of_shares(cls, shares: Mapping[str, Mapping[str, float]], notice: str = "") -> Bigrams:
        """From how often (0 to 1) words follow a word, each rounded to a power of two."""
        lines = {}
        for word, following in shares.items():
            found: dict[int, list[str]] = {}
            for other, share in sorted(following.items()):
                if share > 0:
                    found.setdefault(max(0, round(-math.log2(share))), []).append(other)
            if found:
                lines[word] = " ".join(f"{n} {' '.join(found[n])}" for n in sorted(found))
        return cls(lines, notice)

    @classmethod
    def parse(cls, content: bytes, where: str) -> Bigrams:
        """Content of a file; CheckpointError, naming `where`, for anything else."""
        lines, notice = wordlist.unpack(content, where)
        for number, line in enumerate(lines, 1):
            if not _LINE.fullmatch(line):
                raise CheckpointError(
                    f"{where}, line {number}: {line!r:.40}: a word and what follows it are needed"
                )
        return cls({word: rest for word, _, rest in (line.partition(" ") for line in lines)}, notice)

    @classmethod
    def read(cls, path: Path) -> Bigrams:
        """A file; CheckpointError for one that is none, or is not there."""
        return cls.parse(wordlist.read(path), str(path))

    def content(self) -> bytes:
        """The inverse of `parse`; equal bigrams have equal content."""
        return wordlist.pack((f"{word} {rest}" for word, rest in sorted(self.lines.items())), self.notice)

    def __len__(self) -> int:
        return len(self.lines)

    def after(self, word: str) -> dict[str, float]:
        """Words and how often they follow a word; together `MOST` at most."""
        found: dict[str, float] = {}
        share = 0.0
        for each in self.lines.get(word, "").split():
            if each.isdigit():
                share = 2.0 ** -int(each)
            else:
                found[each] = share
        total = sum(found.values())
        return found if total <= MOST else {each: MOST * share / total for each, share in found.items()}


class Wording:
    """Log-probabilities of a word's next letter after the word before it."""

    def __init__(self, lexicon: Lexicon, bigrams: Bigrams) -> None:
        self.lexicon, self.bigrams = lexicon, bigrams
        self._followers: dict[str, _Followers] = {}
        self._log_probs: dict[str, float] = {}

    def log_prob(self, before: str, prefix: str, letter: str) -> float:
        """Of a letter, or `END`, after the letters of a word so far and the word `before` ("": none)."""
        plain = self.lexicon.log_prob(prefix, letter)
        followers = self._followers.get(before)
        if followers is None:
            followers = self._followers[before] = _Followers(self.bigrams.after(before))
        here = followers.share(prefix)
        if not here:
            return plain
        spelt = math.log1p(-followers.total) + self._spelt(prefix)
        return _log_sum(followers.share(prefix + letter), spelt + plain) - _log_sum(here, spelt)

    def _spelt(self, prefix: str) -> float:
        """Log-probability of the letters of a prefix, by the lexicon."""
        if prefix not in self._log_probs:
            each = (self.lexicon.log_prob(prefix[:n], letter) for n, letter in enumerate(prefix))
            self._log_probs[prefix] = sum(each)
        return self._log_probs[prefix]


class _Followers:
    """Shares of the words after a word, summed over those that begin alike."""

    def __init__(self, shares: Mapping[str, float]) -> None:
        ordered: Iterable[tuple[str, float]] = sorted((word + END, share) for word, share in shares.items())
        self._words = [word for word, _ in ordered]
        self._sums = [0.0, *accumulate(share for _, share in ordered)]
        self.total = self._sums[-1]

    def share(self, prefix: str) -> float:
        """Of the words that begin with a prefix; their end may be in it."""
        low = bisect_left(self._words, prefix)
        high = bisect_left(self._words, prefix + LAST, low)
        return self._sums[high] - self._sums[low] if high > low else 0.0


def _log_sum(share: float, log_prob: float) -> float:
    """log(share + exp(log_prob))"""
    if not share:
        return log_prob
    high, low = sorted((math.log(share), log_prob), reverse=True)
    return high + math.log1p(math.exp(low - high))
