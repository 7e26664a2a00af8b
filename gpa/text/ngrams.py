"""Which words follow which: what a transcript should say, beside how its words are spelt.

The file `ngrams.txt.xz` has, below its licence, a line for every word, or two words, that others were seen to
follow: `said 3 the to 4 he it that`, a number n before the words that follow 2^-n of the time. These n-grams
join the words that training texts have (`gpa.text.lexicon`): interpolation as in Jelinek and Mercer (1980),
where what is left of probability behind two words falls to what follows the last of them, and what that
leaves to the lexicon.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import accumulate, takewhile
from pathlib import Path

from gpa.errors import CheckpointError
from gpa.text import wordlist
from gpa.text.lexicon import END, LAST, Lexicon

FILE = "ngrams.txt.xz"
BEFORE_IT = "bigrams.txt.xz"  # its name while pairs were all there was
_LINE = re.compile(r"[a-z']+(?: [a-z']+)?(?: \d{1,3}(?: [a-z']+)+)+", re.ASCII)
MOST = 0.95  # of the probability behind words that n-grams may take
KEPT = 1 << 16  # probabilities that are remembered
READ = 1 << 12  # lists of followers, likewise


class NGrams:
    """How often words follow one or two others, as powers of two."""

    def __init__(self, lines: Iterable[str] = (), notice: str = "") -> None:
        """`lines` are those of a file; one is read when it is asked for."""
        self.lines, self.notice = sorted(lines), notice
        self.followers = lru_cache(READ)(lambda before: Followers(self.after(before)))

    @classmethod
    def of_shares(cls, shares: Mapping[str, Mapping[str, float]], notice: str = "") -> NGrams:
        """From how often (0 to 1) words follow others, "said" or "he said"; rounded to powers of two."""
        lines = []
        for before, following in shares.items():
            found: dict[int, list[str]] = {}
            for word, share in sorted(following.items()):
                if share > 0:
                    found.setdefault(max(0, round(-math.log2(share))), []).append(word)
            if found:
                lines.append(" ".join([before, *(f"{n} {' '.join(found[n])}" for n in sorted(found))]))
        return cls(lines, notice)

    @classmethod
    def parse(cls, content: bytes, where: str) -> NGrams:
        """Content of a file; CheckpointError, naming `where`, for anything else."""
        lines, notice = wordlist.unpack(content, where)
        if (good := sum(1 for _ in takewhile(_LINE.fullmatch, lines))) < len(lines):
            raise CheckpointError(
                f"{where}, line {good + 1}: {lines[good]!r:.40}: a word or two and what follows are needed"
            )
        return cls(lines, notice)

    @classmethod
    def read(cls, path: Path) -> NGrams:
        """A file; CheckpointError for one that is none, or is not there."""
        return cls.parse(wordlist.read(path), str(path))

    def content(self) -> bytes:
        """The inverse of `parse`; equal n-grams have equal content."""
        return wordlist.pack(self.lines, self.notice)

    def __len__(self) -> int:
        return len(self.lines)

    def _line(self, before: str) -> str:
        """The line of some words, "" if there is none: where its number would be, between "'" and "a"."""
        at = bisect_left(self.lines, before + END + "0")
        line = self.lines[at] if at < len(self.lines) else ""
        return line if line.startswith(before + END) and line[len(before) + 1].isdigit() else ""

    def after(self, before: str) -> dict[str, float]:
        """Words and how often they follow others; together `MOST` at most."""
        found: dict[str, float] = {}
        share = 0.0
        for each in self._line(before)[len(before) :].split():
            if each.isdigit():
                share = 2.0 ** -int(each)
            else:
                found[each] = share
        total = sum(found.values())
        return found if total <= MOST else {each: MOST * share / total for each, share in found.items()}


class Wording:
    """Log-probabilities of a word's next letter after the words before it."""

    def __init__(self, lexicon: Lexicon, ngrams: NGrams) -> None:
        self.lexicon, self.ngrams = lexicon, ngrams
        self._begun = lru_cache(KEPT)(self._begins)

    def log_prob(self, before: str, prefix: str, letter: str) -> float:
        """Of a letter, or `END`, after the letters of a word so far and the words `before`, two at most."""
        return self._begun(before, prefix + letter) - self._begun(before, prefix)

    def _begins(self, before: str, prefix: str) -> float:
        """That a word begins so; its end may be in the prefix."""
        if not prefix:
            return 0.0
        if not before:
            return sum(self.lexicon.log_prob(prefix[:n], letter) for n, letter in enumerate(prefix))
        followers, fewer = self.ngrams.followers(before), before.partition(END)[2]
        return _log_sum(followers.share(prefix), math.log1p(-followers.total) + self._begun(fewer, prefix))


class Followers:
    """Shares of the words after others, summed over those that begin alike."""

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
