"""Sentences of a text that is still being written: each as soon as it is complete, whatever comes next."""

from __future__ import annotations

import re

LONGEST = 500  # characters; a sentence that grows longer is cut at a clause or between words

# A mark ends a sentence where white space follows, an ideographic one or a blank line anywhere.
_END = re.compile(r"[.!?…]+[\"'”’)\]*_]*(?=\s)|[。！？；]|\n[^\S\n]*\n")
_CLAUSE, _SPACE = re.compile(r"[,;:—]\s|[、，：]"), re.compile(r"\s")
_POINTED = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]|[A-HJ-Z]")  # e.g, p.m, U.S; initials of a name
_SHORT = frozenset(
    "mr mrs ms dr prof rev hon gen col capt lt sgt gov sen rep pres mt st ste messrs vs cf ca approx "
    "fig figs no nos vol pp ed eds al eq sec ch jan feb mar apr jun jul aug sep sept oct nov dec".split()
)


class Sentences:
    """Cuts text that comes in bits. Where it is cut does not depend on the bits; nothing sayable is lost."""

    def __init__(self) -> None:
        self._text = ""

    def __len__(self) -> int:
        """Characters that wait for the rest of their sentence."""
        return len(self._text)

    def push(self, text: str) -> list[str]:
        """More text; the sentences that it completes."""
        self._text = (self._text + text).lstrip()
        found = []
        while end := self._end():
            found.append(self._text[:end].rstrip())
            self._text = self._text[end:].lstrip()
        return [sentence for sentence in found if _sayable(sentence)]

    def finish(self) -> list[str]:
        """That was all: the rest, if there is any. More may be pushed, as a new text."""
        rest, self._text = self._text.rstrip(), ""
        return [rest] if _sayable(rest) else []

    def _end(self) -> int:
        """Where the first sentence ends, 0 if that is not known yet."""
        for match in _END.finditer(self._text, 0, LONGEST):
            if _sayable(self._text[: match.start()]) and not self._shortened(match):
                return match.end()
        if len(self._text) <= LONGEST:
            return 0
        for cut in (_CLAUSE, _SPACE):
            if ends := [match.end() for match in cut.finditer(self._text, 1, LONGEST)]:
                return ends[-1]
        return LONGEST

    def _shortened(self, match: re.Match[str]) -> bool:
        """Whether a point belongs to an abbreviation, or to the number of an item of a list."""
        if not match[0].startswith(".") or match[0].startswith(".."):
            return False
        before = self._text[: match.start()]
        if before.rpartition("\n")[2].strip().isdecimal():
            return True
        words = before.split()
        word = words[-1].lstrip("(\"'“‘[*_") if words else ""
        return word.lower() in _SHORT or bool(_POINTED.fullmatch(word))


def _sayable(text: str) -> bool:
    return any(c.isalnum() for c in text)
