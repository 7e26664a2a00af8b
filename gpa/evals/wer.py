"""Word and character error rates over a whole test set, and bootstrap intervals for any ratio of sums.

Knows no audio and no judge: strings and counts only. Rates are pooled (all edits over all reference units),
never averages of per-clip rates, so a short clip weighs as little as it should. An item without a hypothesis
is all deletions; it is not left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gpa.errors import MissingExtraError, UsageError

NORMALISER = "whisper-normalizer EnglishTextNormalizer"


class Edits(NamedTuple):
    """Edits of one item against its reference of `length` words or characters."""

    errors: int
    length: int


class Rate(NamedTuple):
    """A ratio of sums with the ends of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def percent(self) -> str:
        """As in the tables: `12.3 [10.1, 14.8]`."""
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def plain(self) -> str:
        """A mean as in the tables: `3.21 [3.10, 3.32]`."""
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def normaliser() -> Callable[[str], str]:
    """The text normaliser of every rate here (NORMALISER): Whisper's, applied to both sides."""
    try:
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as e:
        raise MissingExtraError("whisper-normalizer", "eval") from e
    return EnglishTextNormalizer()


def word_edits(reference: str, hypothesis: str) -> Edits:
    """Substitutions, deletions and insertions of words; both texts normalised already."""
    try:
        import jiwer
    except ImportError as e:
        raise MissingExtraError("jiwer", "eval") from e
    words = reference.split()
    if not words or not hypothesis.split():  # nothing to align: all insertions or all deletions
        return Edits(max(len(words), len(hypothesis.split())), len(words))
    found = jiwer.process_words(reference, hypothesis)
    return Edits(found.substitutions + found.deletions + found.insertions, len(words))


def char_edits(reference: str, hypothesis: str) -> Edits:
    """The same of characters, spaces between words included."""
    reference, hypothesis = " ".join(reference.split()), " ".join(hypothesis.split())
    try:
        import jiwer
    except ImportError as e:
        raise MissingExtraError("jiwer", "eval") from e
    if not reference or not hypothesis:
        return Edits(max(len(reference), len(hypothesis)), len(reference))
    found = jiwer.process_characters(reference, hypothesis)
    return Edits(found.substitutions + found.deletions + found.insertions, len(reference))


def rate(
    parts: Sequence[tuple[float, float]],
    seed: int = 0,
    repeats: int = 1000,
    groups: Sequence[str] | None = None,
) -> Rate:
    """Sum of numerators over sum of denominators of N items, with its interval from resampled items.

    The interval is the 2.5th to 97.5th percentile over `repeats` resamplings with replacement; equal input
    and seed give equal output. Differences of two rates with one denominator pass the difference as numerator
    (a paired bootstrap). With `groups`, one name an item, whole groups are resampled (a cluster bootstrap):
    items of one speaker are not independent. UsageError where all denominators are 0.
    """
    pairs = np.asarray(parts, float).reshape(-1, 2)  # (N, 2)
    if not pairs[:, 1].sum() > 0:
        raise UsageError("a rate needs at least one item with a reference that is not empty")
    value = pairs[:, 0].sum() / pairs[:, 1].sum()
    if groups is not None:
        _, places = np.unique(np.asarray(groups), return_inverse=True)
        pairs = np.stack([np.bincount(places, column) for column in pairs.T], 1)  # sums by group
    rows = np.random.default_rng(seed).integers(0, len(pairs), (repeats, len(pairs)))
    sums = pairs[rows].sum(1)  # (repeats, 2)
    ratios = sums[sums[:, 1] > 0]
    low, high = np.percentile(ratios[:, 0] / ratios[:, 1], [2.5, 97.5])
    return Rate(float(value), float(low), float(high))
