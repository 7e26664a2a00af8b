"""The letters that CTC spells, their classes, and a text in them; class 0 is the blank."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

LETTERS = " abcdefghijklmnopqrstuvwxyz'"  # classes 1 to 28
CLASSES = {letter: n for n, letter in enumerate(LETTERS, 1)}


def letters_of(text: str) -> str:
    """The part of a transcript that CTC spells: lower-case letters, apostrophes and single spaces."""
    kept = "".join(c for c in text.lower().replace("-", " ") if c in CLASSES)
    return " ".join(kept.split())


def letter_targets(text: str) -> list[int]:
    """Classes of a transcript."""
    return [CLASSES[c] for c in letters_of(text)]


def spelt(classes: Iterable[int]) -> str:
    """The text of classes."""
    return "".join(LETTERS[c - 1] for c in classes if c)


def spelt_by(path: Iterable[int]) -> str:
    """The text of a path: a class in every frame."""
    return " ".join(spelt(c for c, _ in groupby(path)).split())
