"""Dates and times of day to words: slashed, dotted, ISO, with names of months. Rules in order."""

from __future__ import annotations

import re

from gpa.text import numerals
from gpa.text.numerals import Rule

MONTHS = ("january february march april may june july august september october november december").split()
_SHORT = {name[:3]: name for name in MONTHS} | {"sept": "september"}
_DAYS = {
    "mon": "monday", "tue": "tuesday", "tues": "tuesday", "wed": "wednesday", "weds": "wednesday",
    "thu": "thursday", "thur": "thursday", "thurs": "thursday", "fri": "friday", "sat": "saturday",
    "sun": "sunday",
}  # fmt: skip
_MONTH = rf"(?i:({'|'.join(sorted([*MONTHS, *_SHORT], key=len, reverse=True))}))(?![a-zA-Z])(?:\.(?!\s*$))?"
_DAY = r"(0?[1-9]|[12]\d|3[01])"
_YEAR = r"((?:1[0-9]|20|21)\d\d)"
_WEEKDAY = rf"({'|'.join(day.capitalize() for day in sorted(_DAYS, key=len, reverse=True))})"


def _date(month: int, day: int, year: str = "") -> str:
    return f"{MONTHS[month - 1]} {numerals.ordinal(day)}" + (f" {_full_year(year)}" if year else "")


def _full_year(digits: str) -> str:
    number = int(digits)
    if len(digits) == 2:
        number += 1900 if number >= 50 else 2000
    return numerals.year(number)


def _iso(match: re.Match[str]) -> str:
    month, day = int(match[3]), int(match[4])
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return match[0]
    return _date(month, day, match[1]) + (" at " if match[5] else "")


def _slashed(match: re.Match[str]) -> str:
    """The month comes first, as in America, unless only the second number can be one."""
    return _ordered(match, int(match[1]), int(match[3]))


def _dotted(match: re.Match[str]) -> str:
    """The day comes first, as in Europe, unless only the second number can be one."""
    return _ordered(match, int(match[3]), int(match[1]))


def _ordered(match: re.Match[str], month: int, day: int) -> str:
    if match[2] == "-" and len(match[4]) == 2:  # a score, a sort code
        return match[0]
    month, day = (day, month) if month > 12 else (month, day)
    return _date(month, day, match[4]) if 1 <= month <= 12 and 1 <= day <= 31 else match[0]


def _month(name: str) -> str:
    return _SHORT.get(name.lower(), name.lower())


def _month_day(match: re.Match[str]) -> str:
    if match[1] in ("may", "march", "mar"):  # verbs, in lower case
        return match[0]
    words = f"{_month(match[1])} {numerals.ordinal(int(match[2]))}"
    words += f" to {numerals.ordinal(int(match[3]))}" if match[3] else ""
    return words + (f"{match[4]} {_full_year(match[5])}" if match[5] else "")


def _day_month(match: re.Match[str]) -> str:
    day = numerals.ordinal(int(match[1])) if match[2] else numerals.cardinal(int(match[1]))
    return f"{day}{match[3] or ''} {_month(match[4])}" + (
        f"{match[5]} {_full_year(match[6])}" if match[6] else ""
    )


def _time(match: re.Match[str]) -> str:
    hour, minute, second = numerals.cardinal(int(match[1])), int(match[2]), match[3]
    words = hour if minute == 0 else f"{hour} {'oh ' if minute < 10 else ''}{numerals.cardinal(minute)}"
    if second and int(second):
        words += f" and {numerals.cardinal(int(second))} second{'s' * (int(second) != 1)}"
    rest = match.string[match.end() : match.end() + 6]
    if match[4]:
        return f"{words} {match[4].lower()} m"
    if minute == 0 and not (second and int(second)) and not re.match(r"(?i) ?[ap]\.? ?m\b", rest):
        words += "" if re.match(r" noon| midn", rest) else " o'clock"
    return words + " " * rest[:1].isalpha()


def _half(match: re.Match[str]) -> str:
    return f"{match[1]} {match[2].lower()} m"


_BEFORE = r"(?<![\w./-])"
_AFTER = r"(?![\w/]|[.-]\d)"
RULES: tuple[Rule, ...] = (
    (re.compile(r"(?<=\d)(?=[AaPp]\.[Mm]\.)"), lambda m: " "),
    (re.compile(r"(?<=:\d\d) ?- ?(?=\d{1,2}:\d\d)"), lambda m: " to "),
    (re.compile(r"(?<![\w.])([01]?\d|2[0-3])h(?=[0-5]\d(?!\d))"), lambda m: f"{m[1]}:"),
    (
        re.compile(rf"\b{_WEEKDAY}\.? ?- ?{_WEEKDAY}\b\.?"),
        lambda m: f"{_DAYS[m[1].lower()]} to {_DAYS[m[2].lower()]}",
    ),
    (
        re.compile(r"(?:(?<=\d[AaPp][Mm])|(?<=\d [AaPp][Mm])|(?<=[AaPp]\.[Mm]\.)|(?<=\d0s)) ?- ?(?=\d)"),
        lambda m: " to ",
    ),
    (re.compile(rf"{_BEFORE}{_YEAR}([-/.])(\d\d?)\2(\d\d?)(?:(T(?=\d\d:))|{_AFTER})"), _iso),
    (re.compile(rf"{_BEFORE}(\d{{1,2}})([/-])(\d{{1,2}})\2(\d{{4}}|\d\d){_AFTER}"), _slashed),
    (re.compile(rf"{_BEFORE}(\d{{1,2}})(\.) ?(\d{{1,2}})\. ?(\d{{4}}){_AFTER}"), _dotted),
    (re.compile(rf"{_BEFORE}(\d\d)(\.)(\d\d)\.(\d\d){_AFTER}"), _dotted),
    (
        re.compile(rf"{_BEFORE}(0?[1-9]|1[0-2])/{_YEAR}{_AFTER}"),
        lambda m: f"{MONTHS[int(m[1]) - 1]} {_full_year(m[2])}",
    ),
    (
        re.compile(rf"\b{_WEEKDAY}(?=\.|,? \d|,? (?i:{'|'.join([*MONTHS, *_SHORT])})\b| at )\.?"),
        lambda m: _DAYS[m[1].lower()],
    ),
    (
        re.compile(rf"{_BEFORE}((?:19|20)\d\d)-0([1-9]){_AFTER}"),
        lambda m: f"{MONTHS[int(m[2]) - 1]} {_full_year(m[1])}",
    ),
    (
        re.compile(rf"{_BEFORE}(24)/(7){_AFTER}|{_BEFORE}(9)/(11){_AFTER}|{_BEFORE}([25]0)/(\5){_AFTER}"),
        lambda m: " ".join(numerals.cardinal(int(n)) for n in m.groups() if n),
    ),
    (
        re.compile(
            rf"\b((?i:on|until|till|since|due|dated)|{_WEEKDAY}(?:day|nesday|rsday|urday|sday)?,?) (1[0-2"
            rf"]|0?[1-9])/{_DAY}{_AFTER}"
        ),
        lambda m: f"{m[1]} {_date(int(m[3]), int(m[4]))}",
    ),
    (
        re.compile(
            rf"\b{_MONTH} ?{_DAY}(?:st|nd|rd|th)?(?: ?- ?{_DAY}(?:st|nd|rd|th)?)?(?![\w:/]|\.\d|,\d)"
            rf"(?:(,?) (?:{_YEAR})(?![\d,]))?"
        ),
        _month_day,
    ),
    (
        re.compile(rf"(?<![\w.,/-]){_DAY}(st|nd|rd|th)?( of)?[ -]{_MONTH}(?:(,?)[ -](?:{_YEAR})(?!\d))?"),
        _day_month,
    ),
    (re.compile(rf"\b{_MONTH}(?= ?'?\d\d)"), lambda m: _month(m[1])),
    (re.compile(r"(?<=\d)\.(?=[0-5]\d ?(?i:[ap]m|[ap]\.m\.)(?![a-zA-Z]))"), lambda m: ":"),
    (
        re.compile(
            r"(?<![\d:.,])([01]?\d|2[0-4]):([0-5]\d)(?::([0-5]\d)(?:\.\d{1,9})?)?(?![\d:])(?: o'clock)?(?"
            r": ?([AaPp])[Mm]\b)?(?:Z\b)?"
        ),
        _time,
    ),
    (re.compile(r"(?<![\d.,])(1[0-2]|0?[1-9]) ?([AaPp])[Mm]\b"), _half),
)
