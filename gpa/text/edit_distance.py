"""Edit distance and the words it counts: what separates two texts, whichever units they are cut into."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

import numpy as np

_PUNCTUATION = str.maketrans("", "", ".,?!;:")
# Letters and digits with inner apostrophes; an ideograph is a word of its own.
_WORD = re.compile(r"[\u3040-\u9fff]|[^\W_\u3040-\u9fff]+(?:'[^\W_\u3040-\u9fff]+)*")


def words(text: str) -> list[str]:
    """The words of a text, without case and punctuation."""
    return _WORD.findall(text.lower())


def without_punctuation(text: str) -> str:
    """The words of a text alone, as recognition writes them."""
    return " ".join(text.translate(_PUNCTUATION).split())


def edits(said: Sequence[Hashable], heard: Sequence[Hashable]) -> int:
    """The fewest substitutions, deletions and insertions that turn `heard` into `said`."""
    number = {unit: n for n, unit in enumerate(dict.fromkeys(heard))}
    units = np.array([number[unit] for unit in heard], np.int64)
    along = np.arange(len(heard) + 1)
    row = along
    for i, unit in enumerate(said, 1):
        step = np.minimum(row[1:] + 1, row[:-1] + (units != number.get(unit, -1)))
        # Insertions run along the row: the best of every earlier cell plus the distance to it.
        row = np.minimum.accumulate(np.concatenate([[i], step]) - along) + along
    return int(row[-1])
