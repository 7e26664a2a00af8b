"""How likely a text begins a recording, by CTC: prefix scores for joint decoding.

Joint CTC/attention decoding (Hori, Watanabe and Hershey 2017, section 3.3): a language model that hears can
skip words and repeat them, CTC reads the sound from left to right and cannot.

    T frames   V classes, the blank is 0, then LETTERS
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gpa.text.letters import CLASSES, letters_of

FAR = 60.0  # nats behind the likeliest frame: from there on no path adds to a sum


class Paths(NamedTuple):
    """Log-probabilities: of all paths that spell a text after so many frames (T + 1,) and end in a letter or
    a blank; of all texts that begin with it; of those that go on with each class (V,).
    """

    letter: np.ndarray
    blank: np.ndarray
    prefix: float
    following: np.ndarray


class CTCPrefix:
    """Scores of texts, letter by letter, for log-probabilities (T, V)."""

    def __init__(self, log_probs: np.ndarray) -> None:
        self._log_probs = np.asarray(log_probs, np.float64)
        sums = np.cumsum(self._log_probs, 0)
        self._sums = np.concatenate([np.zeros((1, sums.shape[1])), sums])  # (T + 1, V)
        nowhere = np.full(len(self._sums), -np.inf)
        self._paths = {"": self._paths_of("", nowhere, self._sums[:, 0], 0.0)}

    def log_prob(self, text: str, letter: str) -> float:
        """Of a letter after a text of letters and single spaces; 0 for what is no letter."""
        paths = self._known(text)
        return float(paths.following[CLASSES[letter]]) - paths.prefix if letter in CLASSES else 0.0

    def end(self, text: str) -> float:
        """Log-probability that the recording ends with the text, a space at its end aside."""
        return self.whole(text.rstrip()) - self._known(text).prefix

    def whole(self, text: str) -> float:
        """Log-probability that the recording says the text, and nothing else."""
        paths = self._known(text)
        return float(np.logaddexp(paths.letter[-1], paths.blank[-1]))

    def _known(self, text: str) -> Paths:
        """Made from those of the longest beginning that is known."""
        known = len(text)
        while text[:known] not in self._paths:
            known -= 1
        for n in range(known, len(text)):
            self._paths[text[: n + 1]] = self._extended(text[:n], text[n])
        return self._paths[text]

    def _extended(self, text: str, letter: str) -> Paths:
        before, c = self._paths[text], CLASSES[letter]
        begun = self._entered(before.letter, before.blank, text, c)
        spelt = self._run(begun, c)
        return self._paths_of(text + letter, spelt, self._run(spelt, 0), float(before.following[c]))

    def _run(self, entered: np.ndarray, c: int) -> np.ndarray:
        """Paths that stay in a class, entered from other paths (T + 1,) at any frame.

        r[t] = (r[t - 1] + entered[t - 1]) p[t], which is a sum once divided by the product of p.
        """
        sums = self._sums[:, c]
        inside = np.logaddexp.accumulate(entered[:-1] - sums[:-1])
        return np.concatenate([[-np.inf], inside + sums[1:]])

    @staticmethod
    def _entered(letter: np.ndarray, blank: np.ndarray, text: str, c: int) -> np.ndarray:
        """Paths from which a class is entered: a letter like the last one needs a blank between."""
        return blank if text and CLASSES[text[-1]] == c else np.logaddexp(letter, blank)

    def _paths_of(self, text: str, letter: np.ndarray, blank: np.ndarray, prefix: float) -> Paths:
        ended = np.logaddexp(letter, blank)[:-1]
        near = np.flatnonzero(ended > ended.max(initial=-np.inf) - FAR)
        if not len(near):
            return Paths(letter, blank, prefix, np.full(self._log_probs.shape[1], -np.inf))
        frames = slice(near[0], near[-1] + 1)
        log_probs = self._log_probs[frames]
        following = np.logaddexp.reduce(ended[frames, None] + log_probs, 0)
        if text:
            c = CLASSES[text[-1]]
            following[c] = np.logaddexp.reduce(blank[frames] + log_probs[:, c])
        return Paths(letter, blank, prefix, following)


def log_likelihood(log_probs: np.ndarray, text: str) -> float | None:
    """Of a transcript, given letters (T, V) that were heard; None for one in other letters than these."""
    spelt = letters_of(text)
    return CTCPrefix(log_probs).whole(spelt) if spelt else None
