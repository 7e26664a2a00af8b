"""What recognition knows of words while it searches: a prior on text ids, letter by letter."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpa.errors import UsageError
from gpa.text.ctc_prefix import CTCPrefix
from gpa.text.letters import CLASSES
from gpa.text.lexicon import END

if TYPE_CHECKING:
    import numpy as np

    from gpa.text.ngrams import Wording

Prior = Callable[[str, int], tuple[float, str]]
BEFORE = 2  # words that the next one depends on
BETWEEN = "\n"  # the states of two priors


@dataclass(frozen=True)
class SpellingSearch:
    """How recognition searches: `width` hypotheses (1: greedily, without a prior), `words` times the
    prior's log-probability, `ctc` times that of the letters a codec hears, and `letter` for every letter,
    without which short texts win.
    """

    width: int = 1
    words: float = 0.0
    letter: float = 0.0
    ctc: float = 0.0

    def __post_init__(self) -> None:
        weights = (self.words, self.letter, self.ctc)
        if not self.width == int(self.width) >= 1:
            raise UsageError(
                f"beams={self.width}: a width of at least 1 is needed; 1 writes what is likeliest"
            )
        if not all(map(math.isfinite, weights)) or self.words < 0 or self.ctc < 0:
            raise UsageError(f"{self}: a width of at least 1 and finite weights are needed")


class Spelling:
    """Words as a prior on text ids; the state are the words before and the word so far. Other ids end one."""

    def __init__(self, wording: Wording, pieces: dict[int, str], search: SpellingSearch) -> None:
        """`pieces` are the text ids and what they spell, spaces included."""
        self.wording, self.pieces, self.search = wording, pieces, search

    def __call__(self, state: str, token_id: int) -> tuple[float, str]:
        """What the id adds to a hypothesis' score in a state, and the state after it; "" is the first."""
        before, _, word = state.rpartition(END)
        piece = self.pieces.get(token_id)
        spelt = END if piece is None else piece
        score = 0.0 if piece is None else self.search.letter * len(piece)
        for letter in spelt:
            if word or letter != END:  # a space after a space ends no word
                score += self.search.words * self.wording.log_prob(before, word, letter)
            if letter == END:
                before, word = END.join([*before.split(), word][-BEFORE:]) if word else before, ""
            else:
                word += letter
        return score, before + END + word


class Heard:
    """A prior, and letters that CTC hears in one recording; the state is the prior's and the text so far."""

    def __init__(
        self, letters: np.ndarray, weight: float, pieces: dict[int, str], prior: Prior | None
    ) -> None:
        """Of log-probabilities (L, V) of letters; `pieces` are as for `Spelling`; what CTC has no class for,
        it has no opinion on.
        """
        self.ctc, self.weight, self.pieces, self.prior = CTCPrefix(letters), weight, pieces, prior

    def __call__(self, state: str, token_id: int) -> tuple[float, str]:
        """As for `Spelling`."""
        before, _, text = state.partition(BETWEEN)
        score, after = self.prior(before, token_id) if self.prior else (0.0, before)
        piece = self.pieces.get(token_id)
        if piece is None:
            return score + self.weight * self.ctc.end(text), after + BETWEEN + text
        spelt = piece.lower().replace("-", END)
        if not spelt.strip(END) and state and text[-1:] in ("", END):
            return -math.inf, state  # a second space would cost nothing
        for letter in spelt:
            if letter in CLASSES and not (letter == END and text[-1:] in ("", END)):
                score += self.weight * self.ctc.log_prob(text, letter)
                text += letter
        return score, after + BETWEEN + text
