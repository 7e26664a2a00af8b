"""Words and how often they are said: what the spelling of a word should be, letter by letter.

A lexicon is a text file, `words.txt`, one word and its count a line, so that people can read it, cut it and
add to it. Recognition uses it as a prior beside the network (`gpa.engine.search`): shallow fusion
(Gulcehre et al. 2015) with a model that knows words and nothing of what surrounds them.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import accumulate

from gpa.errors import CheckpointError

FILE = "words.txt"
END = " "  # of a word, after its last letter
FOLLOWING = "abcdefghijklmnopqrstuvwxyz'" + END  # all that can come next
LAST = "~"  # sorts behind every letter
RARITY = 2000  # a word that a user adds
LISTED = 1  # the count of a word that is known and was never counted
NEAR = 3  # letters that are looked at where no word begins like this


def words_of(text: str) -> list[str]:
    """The words of a text in order: runs of letters and apostrophes, in lower case."""
    return re.findall(r"[a-z']+", text.lower())


class Lexicon:
    """Log-probabilities of a word's next letter.

    What follows a prefix is counted over the words that begin with it; how much that is believed depends on
    how many letters were seen to follow it (Witten and Bell 1991), and the rest falls to what follows its
    last letters in all words. So a word that is not known costs more, but can be said.
    """

    def __init__(self, counts: Mapping[str, int], listed: Iterable[str] = ()) -> None:
        """Words and how often they were said; `listed` ones are known beside them."""
        self.counts = {word: int(n) for word, n in counts.items() if n > 0}
        self.listed = tuple(listed)
        weights = sorted({**dict.fromkeys(self.listed, LISTED), **self.counts}.items())
        self._words = [word + END for word, _ in weights]  # sorted: "a " comes before "ab "
        self._sums = [0, *accumulate(weight for _, weight in weights)]
        self._known: dict[str, dict[str, float]] = {}

    @classmethod
    def of_texts(cls, texts: Iterable[str]) -> Lexicon:
        """Of the words of some texts."""
        return cls(Counter(word for text in texts for word in words_of(text)))

    @classmethod
    def parse(cls, text: str, where: str) -> Lexicon:
        """From lines of a word and its count; CheckpointError, naming `where`, for any other line."""
        counts: Counter[str] = Counter()
        for number, line in enumerate(text.splitlines(), 1):
            word, _, count = line.partition(" ")
            if words_of(word) != [word] or not (count.isascii() and count.isdigit()):
                raise CheckpointError(
                    f"{where}, line {number}: {line!r:.60}: a word and its count are needed"
                )
            counts[word] += int(count)
        return cls(counts)

    def lines(self) -> str:
        """The inverse of `parse`, the most frequent word first."""
        ordered = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        return "".join(f"{word} {count}\n" for word, count in ordered)

    def with_words(self, texts: Iterable[str]) -> Lexicon:
        """A lexicon that knows the words of some texts as well, each as if it were one in `RARITY` said."""
        count = max(1, sum(self.counts.values()) // RARITY)
        more = Counter({word: count for text in texts for word in words_of(text)})
        return Lexicon(Counter(self.counts) + more, self.listed)

    def __len__(self) -> int:
        return len(self.counts)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def log_prob(self, prefix: str, letter: str) -> float:
        """Of a letter, or `END`, after the letters of a word so far."""
        known = self._known.get(prefix)
        if known is None:
            known = self._known[prefix] = self._following(prefix)
        return known.get(letter, known[""])

    def _following(self, prefix: str) -> dict[str, float]:
        """Log-probability of every letter that was seen after a prefix; "" is any other letter."""
        share: dict[str, float] = {}
        rest = 1 / len(FOLLOWING)
        orders: list[Mapping[str, float]] = [self._from(prefix)]
        orders[:0] = (self._after(prefix[len(prefix) - n :]) for n in range(min(NEAR + 1, len(prefix))))
        for counts in orders:
            if counts:
                total, kinds = sum(counts.values()), len(counts)
                seen = {
                    c: (counts.get(c, 0) + kinds * share.get(c, rest)) / (total + kinds)
                    for c in {*share, *counts}
                }
                share, rest = seen, kinds * rest / (total + kinds)
        return {c: math.log(p) for c, p in share.items()} | {"": math.log(rest)}

    def _from(self, prefix: str) -> dict[str, float]:
        """Which letters follow a prefix in the words that begin with it, and how often."""
        low, high = bisect_left(self._words, prefix), bisect_left(self._words, prefix + LAST)
        found: dict[str, float] = {}
        while low < high:
            letter = self._words[low][len(prefix)]
            after = bisect_left(self._words, prefix + letter + LAST, low, high)
            found[letter] = self._sums[after] - self._sums[low]
            low = after
        return found

    def _after(self, letters: str) -> dict[str, int]:
        """Which letters follow some letters anywhere in a word, and how often."""
        return {c: self._runs[letters + c] for c in FOLLOWING if letters + c in self._runs}

    @cached_property
    def _runs(self) -> dict[str, int]:
        """How often letters stand in a row anywhere in a word, up to `NEAR` and the one that follows."""
        runs: dict[str, int] = {}
        for word, count in self.counts.items():
            spelt = word + END
            for n in range(1, NEAR + 2):
                for i in range(len(spelt) - n + 1):
                    run = spelt[i : i + n]
                    runs[run] = runs.get(run, 0) + count
        return runs
