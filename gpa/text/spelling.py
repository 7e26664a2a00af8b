"""What recognition knows of words while it searches: a prior on text ids, letter by letter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpa.errors import UsageError
from gpa.text.lexicon import END

if TYPE_CHECKING:
    from gpa.text.bigrams import Wording


@dataclass(frozen=True)
class SpellingSearch:
    """How recognition searches: `width` hypotheses (1: greedily, without a prior), `words` times the
    prior's log-probability, and `letter` for every letter, without which short texts win.
    """

    width: int = 1
    words: float = 0.0
    letter: float = 0.0

    def __post_init__(self) -> None:
        good = self.width == int(self.width) >= 1 and math.isfinite(self.words) and math.isfinite(self.letter)
        if not good or self.words < 0:
            raise UsageError(f"{self}: a width of at least 1 and finite weights are needed")


class Spelling:
    """Words as a prior on text ids; the state is the word before and the word so far. Other ids end one."""

    def __init__(self, wording: Wording, pieces: dict[int, str], search: SpellingSearch) -> None:
        """`pieces` are the text ids and what they spell, spaces included."""
        self.wording, self.pieces, self.search = wording, pieces, search

    def __call__(self, state: str, token_id: int) -> tuple[float, str]:
        """What the id adds to a hypothesis' score in a state, and the state after it; "" is the first."""
        before, _, word = state.partition(END)
        piece = self.pieces.get(token_id)
        spelt = END if piece is None else piece
        score = 0.0 if piece is None else self.search.letter * len(piece)
        for letter in spelt:
            if word or letter != END:  # a space after a space ends no word
                score += self.search.words * self.wording.log_prob(before, word, letter)
            if letter == END:
                before, word = word or before, ""
            else:
                word += letter
        return score, before + END + word
