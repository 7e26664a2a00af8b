"""Numbers and what is counted to English words, Roman numerals to numbers; knows digits, no sentences."""

from __future__ import annotations

import re
from collections.abc import Callable

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
_TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
_SCALES = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred"))
_ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip
_ROMAN = re.compile(r"M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})")
# A number of any kind, 1,205.50 or .5, that is no part of another.
NUMBER = r"(?<![\d.,^])((?:\d{1,3}(?:,\d{3}){1,4}(?!\d)|\d{1,12})(?:\.\d{1,12})?|\.\d{1,12})(?![\d]|[.,]\d)"
Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], str]]
_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}


def cardinal(number: int) -> str:
    """A cardinal in words, without "and" or hyphens: 1205 -> "one thousand two hundred five"."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        return _TENS[number // 10] + (f" {_ONES[number % 10]}" if number % 10 else "")
    scale, name = next(pair for pair in _SCALES if number >= pair[0])
    rest = f" {cardinal(number % scale)}" if number % scale else ""
    return f"{cardinal(number // scale)} {name}{rest}"


def one_by_one(digits: str, zero: str = "zero") -> str:
    """Each digit by itself; what is no digit is left out."""
    return " ".join(zero if digit == "0" else _ONES[int(digit)] for digit in digits if digit.isdigit())


def whole(digits: str) -> str:
    """A cardinal, or digit by digit where one is not read as a number: 007, card numbers."""
    digits = digits.replace(",", "")
    if len(digits) > 12 or (digits[0] == "0" and len(digits) > 1):
        return one_by_one(digits)
    return cardinal(int(digits))


def decimal(number: str) -> str:
    """What may hold commas and points: "1,205.50", ".5", a version's "1.2.3"."""
    first, *rest = number.split(".")
    return " point ".join([whole(first) if first else "", *map(one_by_one, rest)]).strip()


def year(number: int) -> str:
    """A year as it is said: 1905, 2005, 2025; a cardinal where there is no other way."""
    century, rest = divmod(number, 100)
    if not 11 <= century <= 99 or 2000 <= number < 2010 or (rest == 0 and century % 10 == 0):
        return cardinal(number)
    if rest == 0:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} {'oh ' if rest < 10 else ''}{cardinal(rest)}"


def ordinal(number: str | int) -> str:
    """An ordinal in words, of digits or of a number: 21 -> "twenty first"."""
    *head, last = whole(str(number)).split()
    regular = last[:-1] + "ieth" if last.endswith("y") else last + "th"
    return " ".join([*head, _ORDINALS.get(last, regular)])


def decade(century: str, tens: int) -> str:
    """What "1960s" and "60s" say; `century` is "" for the latter."""
    if (century, tens) == ("20", 0):
        return "two thousands"
    name = {0: "hundreds", 1: "tens"}.get(tens, _TENS[tens][:-1] + "ies")
    return f"{cardinal(int(century))} {name}" if century else name


def fraction(above: str, below: str) -> str:
    """A fraction as it is said: two thirds, five eighths; others with "over"."""
    n, d = int(above[:13]), int(below[:13])
    if not 0 < n < max(d, 10) or not (2 <= d <= 20 or d == 100) or above[0] == "0" or below[0] == "0":
        return f"{whole(above)} over {whole(below)}"
    name = {2: "half", 4: "quarter"}.get(d) or ordinal(d)
    return f"{cardinal(n)} {name if n == 1 else 'halves' if d == 2 else name + 's'}"


_PLURALS = {
    "penny": "pence", "foot": "feet", "inch": "inches", "zloty": "zlotys", "swedish krona": "swedish kronor",
            "norwegian krone": "norwegian kroner", "danish krone": "danish kroner", "agora": "agorot",
    "paisa": "paise", "lux": "lux", "century": "centuries",
}  # fmt: skip
_INVARIABLE = (
    "hertz",
    "yen",
    "sen",
    "won",
    "baht",
    "yuan",
    "fen",
    "ore",
    "jeon",
    "percent",
    "mil",
    "siemens",
    "rappen",
    "kobo",
    "dong",
    "satang",
    "naira",
)


def plural(count: float, unit: str) -> str:
    """A unit as it follows a number: degrees celsius, square feet, kilometers per hour."""
    head, per, rest = unit.partition(" per ")
    head, degrees, scale = head.partition("degree ")[0], *head.partition("degree ")[1:]
    if degrees:
        return unit if count == 1 else f"degrees {scale}{per}{rest}"
    if count == 1 or head.endswith(_INVARIABLE):
        return unit
    *before, last = _PLURALS[head].split() if head in _PLURALS else head.split()
    last = last if head in _PLURALS else _PLURALS.get(last, last + "s")
    return " ".join([*before, last]) + per + rest


def roman(numeral: str) -> int | None:
    """The value of a Roman numeral in its one right spelling, in either case; None for other letters."""
    letters = numeral.upper()
    if not letters or not _ROMAN.fullmatch(letters):
        return None
    values = [_VALUES[letter] for letter in letters]
    return sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))
