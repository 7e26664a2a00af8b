"""Telephone numbers, money, ranges and mixed fractions to words. Cased text in, rules in order."""

from __future__ import annotations

import re

from gpa.text import numerals
from gpa.text.numerals import Rule

# Telephones -------------------------------------------------------------------------------------------------


def _phone(match: re.Match[str]) -> str:
    """Digit by digit, zero as "oh", a comma between the groups."""
    groups = re.findall(r"\+?\d+", match[0])
    if match[0][0] == "+" and sum(map(len, groups)) < 8:  # a sum, a score
        return match[0]
    words = [("plus " if group[0] == "+" else "") + numerals.one_by_one(group, "oh") for group in groups]
    before = " " if match.string[match.start() - 1 : match.start()].isalnum() else ""
    return before + ", ".join(words)


def _short_phone(match: re.Match[str]) -> str:
    called = re.search(
        r"(?i)\b(?:call|dial|phone|fax|tel|text|ring|number|at|mobile|cell)\W*(?:\w+\W+){0,2}$",
                       match.string[max(0, match.start() - 40) : match.start()])  # fmt: skip
    return _phone(match) if called or match[2][0] == "0" or not match[2].endswith("00") else match[0]


_START, _END = r"(?<![\w.,+$£€-])(?<!\d )", r"(?![\w]|[-./]\d)"
_GROUPS = r"(?<![\d.,])\d{1,3}(?:[ '\u00a0\u2009\u202f]\d{3})"
_PHONES: tuple[Rule, ...] = (
    (re.compile(r"(?<![\d.,])([1-9]\d{0,2}) 000(?![\d.,]\d| \d)"), lambda m: f"{m[1]}000"),
    (re.compile(r"(?<![\d.,])\d{1,2}(?:,\d\d){1,4},\d{3}(?![\d,])"), lambda m: m[0].replace(",", "")),
    (
        re.compile(r"(?<![\w.,$£€-])\d{5}-\d{4}(?![\w-])|(?<=\b[A-Z]{2} )\d{5}(?![\w.,]\d|\w)"),
        lambda m: numerals.one_by_one(m[0]),
    ),
    (
        re.compile(r"(?i)(?:(?<=\d) ?,? ?\bext\.?|(?<=\d{3}[ .-]\d{4}) ?x) ?(\d{1,6})\b"),
        lambda m: f" extension {numerals.one_by_one(m[1], 'oh')}",
    ),
    (re.compile(rf"{_GROUPS}{{2,4}}(?![\d.,']|[ -]\d)"), lambda m: re.sub(r"\D", "", m[0])),
    (
        re.compile(r"(?<=[$£€]) ?\d{1,3}(?:[ \u00a0\u2009\u202f]\d{3}){1,4}(?![\d])"),
        lambda m: re.sub(r"\D", "", m[0]),
    ),
    (
        re.compile(r"(?<![\d.,])\d{1,3}(?:[ \u00a0\u2009\u202f]\d{3}){1,4}(?= ?[€$£])"),
        lambda m: re.sub(r"\D", "", m[0]),
    ),
    (
        re.compile(
            rf"{_START}(?:\+?\d{{1,3}}[ .-]?)?(?:\(\d{{3}}\) ?|\d{{3}}[ .-])\d{{3}}[ .-]\d{{4}}{_END}"
        ),
        _phone,
    ),
    (re.compile(rf"{_START}\+\d{{1,4}}(?:[ ./-]?\(?\d{{1,12}}\)?){{1,6}}{_END}"), _phone),
    (re.compile(rf"{_START}\(?0\d{{1,4}}\)?(?:[ /-]\d{{2,8}}){{1,5}}{_END}"), _phone),
    (re.compile(rf"{_START}\d{{1,9}}(?:-\d{{1,9}}){{2,8}}{_END}"), _phone),
    (re.compile(rf"{_START}\d{{4}}(?: \d{{4}}){{2,4}}{_END}"), _phone),
    (re.compile(rf"{_START}(\d{{3}})-(\d{{4}}){_END}"), _short_phone),
    (
        re.compile(
            r"(?i)\b((?:call|dial|phone|ring|tel|telephone|fax|mobile|cell)(?: (?:me|us|him|her|them|at|o"
            r"n|number|no)){0,3}(?:\.?:|\.)? )(\d{7,12}|911|999|112|[1-8]11|988|101)\b(?![.,]\d| ?%)"
        ),
        lambda m: m[1] + numerals.one_by_one(m[2], "oh"),
    ),
    (
        re.compile(
            r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d]|\.\d)"
        ),
        lambda m: " dot ".join(numerals.one_by_one(part) for part in m[0].split(".")),
    ),
)

# Money ------------------------------------------------------------------------------------------------------

_DOLLARS = {"US": "u s", "A": "australian", "AU": "australian", "C": "canadian", "CA": "canadian",
            "NZ": "new zealand", "HK": "hong kong", "S": "singapore"}  # fmt: skip
_CURRENCIES = {
    "$": ("dollar", "cent"), "£": ("pound", "penny"), "€": ("euro", "cent"), "¥": ("yen", "sen"),
    "₹": ("rupee", "paisa"), "₩": ("won", "jeon"), "₽": ("ruble", "kopek"), "₺": ("lira", "kurus"),
    "₿": ("bitcoin", ""), "₴": ("hryvnia", "kopek"), "₪": ("shekel", "agora"), "₫": ("dong", ""),
    "₱": ("peso", "centavo"), "฿": ("baht", "satang"), "₦": ("naira", "kobo"), "R$": ("real", "centavo"),
    "Rs.": ("rupee", "paisa"), "Rs": ("rupee", "paisa"),
    **{code + "$": (f"{name} dollar", "cent") for code, name in _DOLLARS.items()},
    "USD": ("u s dollar", "cent"), "EUR": ("euro", "cent"), "GBP": ("pound", "penny"), "JPY": ("yen", "sen"),
    "CHF": (
        "swiss franc", "rappen"), "CNY": ("yuan", "fen"), "RMB": ("yuan", "fen"), "INR": ("rupee", "paisa"),
    "AUD": ("australian dollar", "cent"), "CAD": ("canadian dollar", "cent"), "KRW": ("won", "jeon"),
    "BTC": ("bitcoin", ""), "NZD": ("new zealand dollar", "cent"), "SEK": ("swedish krona", "ore"),
    "NOK": ("norwegian krone", "ore"), "DKK": ("danish krone", "ore"), "PLN": ("zloty", "grosz"),
    "BRL": ("real", "centavo"), "MXN": ("mexican peso", "centavo"), "HKD": ("hong kong dollar", "cent"),
    "SGD": ("singapore dollar", "cent"),
}  # fmt: skip
_MAGNITUDES = {
    "k": "thousand", "m": "million", "mn": "million", "mm": "million", "mio": "million", "mil": "million",
    "b": "billion", "bn": "billion", "bln": "billion", "t": "trillion", "tn": "trillion", "trn": "trillion",
}  # fmt: skip
_UNIT = "|".join(re.escape(unit) for unit in sorted(_CURRENCIES, key=len, reverse=True))
_AMOUNT = (
    r"(\d{1,3}(?:[.,]\d{3}){1,4},\d\d(?!\d)|\d{1,9},\d\d?(?!\d)|"
    r"\d{1,3}(?:,\d{3}){1,4}(?:\.\d{1,9})?|\d{0,12}\.\d{1,9}|\d{1,12})"
)
_MAGNITUDE = (
    r"(?:[ -]?((?i:hundred|thousand|million|billion|trillion))\b|((?i:k|mm|mn|mio|bn|bln|trn|tn|m|b|t))\b"
    r"| ((?:[KMBT]|mn|mio|bn|bln|trn|tn))\b)?"
)


def _before(match: re.Match[str]) -> str:
    outer, unit, inner, amount, *magnitude, noun = match.groups()
    return _money(outer or inner, unit, amount, magnitude, noun or "")


def _after(match: re.Match[str]) -> str:
    amount, *magnitude, unit = match.groups()
    return _money("", unit, amount, magnitude, "")


def _money(sign: str | None, unit: str, amount: str, magnitudes: list[str | None], noun: str) -> str:
    large, small = _CURRENCIES[unit]
    scale = next((m.lower() for m in magnitudes if m), "")
    words = _sum(_american(amount), _MAGNITUDES.get(scale, scale), large, small, one=bool(noun))
    return {"-": "minus ", "+": "plus "}.get(sign or "", "") + words + noun


def _american(amount: str) -> str:
    """Without commas that part thousands, and with a point for what a comma parts elsewhere: 1.234,50."""
    if re.search(r",\d\d?$", amount):
        return amount.replace(".", "").replace(",", ".")
    return amount.replace(",", "")


def _sum(amount: str, scale: str, large: str, small: str, *, one: bool) -> str:
    units, _, part = amount.partition(".")
    if scale or not small or (part and len(part) != 2):
        plain = float(amount) == 1 and not scale
        large_number = numerals.decimal(amount) + (f" {scale}" if scale else "")
        return f"{large_number} {numerals.plural(1 if one or plain else 2, large)}"
    units = units.lstrip("0") or "0"
    words = (
        [f"{numerals.whole(units)} {numerals.plural(1 if one else int(units), large)}"]
        if units != "0" or not int(part or 0)
        else []
    )
    words += [f"{numerals.cardinal(int(part))} {numerals.plural(int(part), small)}"] if int(part or 0) else []
    return " and ".join(words)


_MONEY: tuple[Rule, ...] = (
    (
        re.compile(r"(?<![\w.])(\d{1,2})p\b"),
        lambda m: f"{numerals.whole(m[1])} {numerals.plural(int(m[1]), 'penny')}",
    ),
    (re.compile(r"(?<=[\dkKmMbBnN]) ?- ?(?=[$£€¥]\d)|(?<=\d[$£€¥]) ?- ?(?=\d)"), lambda m: " to "),
    (
        re.compile(
            rf"(?<![\w.])({_UNIT}) ?(\d{{1,9}}(?:\.\d\d?)?(?:[kKmMB]|bn)?) ?- ?(?=\d{{1,9}}(?:\.\d\d?)?(?"
            rf"![\d-]))"
        ),
        lambda m: f"{m[1]}{m[2]} to {m[1]}" if m[2][-1].isalpha() else f"{m[2]} to {m[1]}",
    ),
    (
        re.compile(
            rf"(?:(?<![\w)])([-+]))?(?<![A-Za-z$])({_UNIT})(?: ?([-+])| ?){_AMOUNT}(?![\d]){_MAGNITUDE}(["
            rf" -](?:bill|note|coin)\b)?"
        ),
        _before,
    ),
    (re.compile(rf"(?<![\d.,]){_AMOUNT}{_MAGNITUDE} ?({_UNIT})(?![\w]| ?\d)"), _after),
    (
        re.compile(rf"{numerals.NUMBER} ?¢"),
        lambda m: f"{numerals.decimal(m[1])} {numerals.plural(float(m[1].replace(',', '')), 'cent')}",
    ),
)

# Numbers in general -----------------------------------------------------------------------------------------


def _mixed(match: re.Match[str]) -> str:
    return f"{numerals.whole(match[1])} and {numerals.fraction(match[2], match[3])}"


_NUMBERS: tuple[Rule, ...] = (
    (re.compile(r"(?<=\d) ?[-–] ?(?=\d{1,12}(?:\.\d{1,9})? ?=)"), lambda m: " minus "),
    (re.compile(r"(?<![\d.,])\d{1,3}(?:\.\d{3}){2,4}(?![\d.])"), lambda m: m[0].replace(".", "")),
    (re.compile(r"(?<![\d/.,])(\d{1,6})[ -]([1-9]\d?)/([1-9]\d{0,2})(?![\d/])"), _mixed),
    (re.compile(r"(?<![\d:.])(\d{1,4}) ?: ?(\d)(?![\d:])"), lambda m: f"{m[1]} to {m[2]}"),
    (
        re.compile(
            r"(?<![\d.,\w-])(\d{1,12}(?:[.,]\d{1,9})?)(%|°)? ?- ?(?=\d{1,12}(?:[.,]\d{1,9})?(?![\d-]))"
        ),
        lambda m: f"{m[1]}{m[2] or ''} to ",
    ),
    (re.compile(r"(?<![\w).,%°'\"^-])-(?=[$£€¥]?\.?\d)"), lambda m: "minus "),
)
_LABELLED = re.compile(  # behind which a number has a letter, and is no multiple: Apt. 4B, gate 12B
    r"\b(?:apt|apartment|unit|room|rm|flat|suite|ste|gate|seat|row|section|building|block|level|platform|grade"
    r"|class|type|chapter|figure|fig|table|exhibit|form|hall|door|bus|route|terminal|question|appendix)\.? $",
    re.IGNORECASE,
)
_STREET = re.compile(r" (?:[A-Z][a-z]+ ){1,3}(?i:st|street|ave|avenue|rd|road|ln|lane|dr|drive|blvd)\b")


def _multiple(match: re.Match[str]) -> str:
    labelled = _LABELLED.search(match.string, max(0, match.start() - 12), match.start())
    if labelled or (match[2] == "B" and _STREET.match(match.string, match.end())):
        return match[0]
    if match[2] in "kK" and match[1] in ("4", "8"):
        return match[0]
    return f"{numerals.decimal(match[1])} {_MAGNITUDES[match[2].lower()]}"


_MULTIPLES: tuple[Rule, ...] = (
    (
        re.compile(
            r"(?<![\w.,])(\d{1,12}(?:\.\d{1,6})?)(k|K|M|bn|B|mn)\b(?! ?(?:run|race|video|tv|TV|res|disp|m"
            r"on|mar|foot|cam|ultra))"
        ),
        _multiple,
    ),
)
RULES: tuple[Rule, ...] = (*_PHONES, *_MONEY, *_NUMBERS, *_MULTIPLES)
