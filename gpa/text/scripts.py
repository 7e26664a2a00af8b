"""Letters that a model has not learnt to say: they are named and left out, never guessed."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Callable

from gpa.errors import TextWarning

PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz")
_READ = (
    "LATIN",
    "CJK",
    "FULLWIDTH",
    "COMBINING",
    "MODIFIER",
    "MASCULINE",
    "FEMININE",
)  # by the published model


class Sayable:
    """Makes paragraphs what a model can say; keeps the letters that it left out, to name each once."""

    def __init__(self, spoken: Callable[[str], str], alphabet: frozenset[str] | None) -> None:
        """`spoken` gives a paragraph the model's form, in which `alphabet` is known beside plain letters."""
        self._spoken, self._alphabet = spoken, alphabet
        self._strange: dict[str, str] = {}
        self._named = 0

    def __call__(self, text: str) -> str:
        said = self._spoken(text)
        beyond = letters_beyond(said, self._alphabet)
        if not beyond:
            return said
        self._strange.update(beyond)
        said = self._spoken(said.translate(dict.fromkeys(map(ord, beyond), " ")))
        return said if any(c.isalnum() for c in said) else ""

    def warn(self) -> None:
        """TextWarning that names what was left out since the last one."""
        if new := dict(list(self._strange.items())[self._named :]):
            message = (
                f"the model has not learnt {names_of(new)}: left out; write the words in letters it knows"
            )
            warnings.warn(message, TextWarning, stacklevel=3)
            self._named = len(self._strange)

    def reason(self) -> str:
        """Why nothing is left, if that is because of letters."""
        known = "write it in letters it knows"
        return f": the model has not learnt {names_of(self._strange)}; {known}" if self._strange else ""


def letters_beyond(text: str, alphabet: frozenset[str] | None = None) -> dict[str, str]:
    """Letters and their marks that are not in an alphabet, with their scripts, in the order of the text.

    Without an alphabet the Latin and the Chinese scripts are known, those of the published checkpoint.
    """
    if text.isascii():
        return {}
    strange = {c: _script(c) for c in dict.fromkeys(text) if unicodedata.category(c)[0] in "LM"}
    if alphabet is None:
        return {c: script for c, script in strange.items() if script not in _READ}
    return {c: script for c, script in strange.items() if c not in alphabet and c not in PLAIN}


def _script(letter: str) -> str:
    """As Unicode's names begin: CYRILLIC, ARABIC."""
    return unicodedata.name(letter, "UNNAMED").partition(" ")[0]


def names_of(letters: dict[str, str]) -> str:
    """Letters as a message shows them: at most ten of each script, which is named."""
    shown = []
    for script in dict.fromkeys(letters.values()):
        found = [letter for letter, each in letters.items() if each == script]
        shown.append(f"{' '.join(found[:10])}{' ...' if len(found) > 10 else ''} ({script.capitalize()})")
    return ", ".join(shown).replace("(Cjk)", "(Chinese)")
