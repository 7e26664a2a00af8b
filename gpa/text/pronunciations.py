"""How words are spoken: a pronouncing dictionary, and texts whose words are replaced by their sounds.

A dictionary is the file `pronunciations.txt.xz`, one word and its phones a line as the CMU Pronouncing
Dictionary writes them, `stupid S T UW1 P AH0 D`, below its licence, in lines that begin with `;;;`. Speech is
asked for by sound where the dictionary knows the word, one character a phone, none of which occurs in
normalised text; other words stay as they are spelt.
So a network that has met few words knows how the rest are said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from gpa.errors import CheckpointError, UsageError
from gpa.text import wordlist

FILE = "pronunciations.txt.xz"
STRESS = '"'  # before the vowel of the main stress, in words of several vowels
SCHWA = "AH0"
_CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH".split()
_VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split()
SYMBOLS = dict(zip(_CONSONANTS, "BCD6FGHJKLMN9PRS$T0VWYZ3", strict=True)) | dict(
    zip(_VOWELS, "A&^O#%E521I4+7U", strict=True), **{SCHWA: "@"}
)
_PHONES = {phone: SYMBOLS[phone] for phone in _CONSONANTS} | {
    vowel + stress: SYMBOLS.get(vowel + stress, SYMBOLS[vowel]) for vowel in _VOWELS for stress in "012"
}
_WORD = re.compile(r"[a-z']+")
_OWNED = {**dict.fromkeys("P T K F TH".split(), "S"), **dict.fromkeys("S Z SH ZH CH JH".split(), "IH0 Z")}


class Verbatim(str):
    """A text to be read as it stands, not normalised: it has sounds in it, or was read back from ids."""


class Respelt(NamedTuple):
    """A text of sounds, and for each of its characters the place of its origin in the text before."""

    text: Verbatim
    origins: list[int]


def symbols(phones: str) -> str:
    """`T AH0 M EY1 T OW0` as characters: a phone each, and the main stress; UsageError for other phones."""
    found = phones.split()
    several = sum(phone[-1].isdigit() for phone in found) > 1
    out = []
    for phone in found:
        if phone not in _PHONES:
            raise UsageError(f"phone {phone!r}: those of the CMU Pronouncing Dictionary are needed")
        out.append((STRESS if several and phone.endswith("1") else "") + _PHONES[phone])
    return "".join(out)


def _known(phones: str) -> bool:
    found = phones.split()
    return bool(found) and all(phone in _PHONES for phone in found)


class Pronunciations:
    """Words and their phones, and whose they are."""

    def __init__(self, phones: Mapping[str, str], notice: str = "") -> None:
        self.phones, self.notice = dict(phones), notice
        self._symbols: dict[str, str] = {}

    @classmethod
    def parse(cls, content: bytes, where: str) -> Pronunciations:
        """Content of a dictionary's file; CheckpointError, naming `where`, for anything else."""
        lines, notice = wordlist.unpack(content, where)
        found = {word: phones for word, _, phones in (line.partition(" ") for line in lines)}
        phones = set(" ".join(found.values()).split())  # all at once: there are many words
        if not (
            all(found)
            and _WORD.fullmatch("a".join(found))
            and phones <= _PHONES.keys()
            and all(found.values())
        ):
            wrong = next(
                (f"{w} {p}" for w, p in found.items() if not _WORD.fullmatch(w) or not _known(p)), None
            )
            if wrong is not None:
                raise CheckpointError(f"{where}: {wrong!r:.60}: a word and its phones are needed")
        return cls(found, notice)

    @classmethod
    def read(cls, path: Path) -> Pronunciations:
        """A dictionary's file; CheckpointError for a file that is none, or is not there."""
        return cls.parse(wordlist.read(path), str(path))

    def content(self) -> bytes:
        """The inverse of `parse`; equal dictionaries have equal content."""
        return wordlist.pack(
            (f"{word} {phones}" for word, phones in sorted(self.phones.items())), self.notice
        )

    def __len__(self) -> int:
        return len(self.phones)

    def with_words(self, more: Mapping[str, str]) -> Pronunciations:
        """With a user's own: word -> phones, UsageError for what is neither."""
        for word, phones in more.items():
            strings = isinstance(word, str) and isinstance(phones, str)
            if not strings or not _WORD.fullmatch(word.lower()) or not symbols(phones):
                raise UsageError(f"pronunciations: {word!r}: {phones!r}: a word and its phones are needed")
        more = {word.lower(): phones for word, phones in more.items()}
        return Pronunciations(self.phones | more, self.notice)

    def sounds(self, word: str) -> str | None:
        """The symbols of a word, None if it is not known; what is somebody's (`alice's`) if they are."""
        if word not in self._symbols:
            phones = self.phones.get(word) or self.phones.get(word.strip("'"))
            if phones is None and word.endswith("'s") and (owner := self.phones.get(word[:-2])):
                phones = f"{owner} {_OWNED.get(owner.split()[-1], 'Z')}"
            self._symbols[word] = symbols(phones) if phones else ""
        return self._symbols[word] or None

    def respelt(self, text: str, spelt: Callable[[str], bool] | None = None) -> Respelt:
        """A normalised text with the sounds of its words; those for which `spelt` is true stay."""
        out: list[str] = []
        origins: list[int] = []
        at = 0
        for match in _WORD.finditer(text):
            word, start = match[0], match.start()
            sounds = None if spelt and spelt(word) else self.sounds(word)
            out += [text[at:start], sounds or word]
            origins += range(at, start)
            n = len(out[-1])
            origins += (start + i * len(word) // n for i in range(n))
            at = match.end()
        return Respelt(Verbatim("".join([*out, text[at:]])), [*origins, *range(at, len(text))])


def of_cmudict(lines: Iterable[str], notice: str = "") -> Pronunciations:
    """From the lines of `cmudict.dict` and its licence, without words whose sound depends on what is meant.

    Of a word with several pronunciations the first is taken if all have the same vowel under the main stress
    and end alike; else it stays with its spelling, which the network reads in its context (read, live, use).
    What `sounds` derives is left out.
    """
    found: dict[str, list[str]] = {}
    for line in lines:
        word, _, phones = line.partition("#")[0].strip().partition(" ")
        word = re.sub(r"\(\d+\)$", "", word)
        if _WORD.fullmatch(word) and any(c != "'" for c in word):
            found.setdefault(word, []).append(" ".join(phones.split()))
    alike = {word: each[0] for word, each in found.items() if len({_heard(phones) for phones in each}) == 1}
    derived = {word for word in alike if word.endswith("'s") and word[:-2] in alike}
    return Pronunciations({word: alike[word] for word in alike if word not in derived}, notice)


def _heard(phones: str) -> tuple[tuple[tuple[int, str], ...], str]:
    """By what homographs differ: the stressed vowel, its place, and the last consonant."""
    found = phones.split()
    vowels = [phone for phone in found if phone[-1].isdigit()]
    stressed = tuple((n, phone) for n, phone in enumerate(vowels) if phone.endswith("1"))
    return stressed, "" if found[-1][-1].isdigit() else found[-1]
