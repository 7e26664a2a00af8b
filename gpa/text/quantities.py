"""Telephone numbers, money, measures, fractions, mathematics to words. Cased text in, rules in order.

What is left of digits and marks falls to the plain numbers of `gpa.text.normaliser`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from gpa.text import numerals

Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], str]]
_NUMBER = r"(?<![\d.,^])((?:\d{1,3}(?:,\d{3}){1,4}(?!\d)|\d{1,12})(?:\.\d{1,12})?|\.\d{1,12})(?![\d]|[.,]\d)"

# Telephones -------------------------------------------------------------------------------------------------


def _phone(match: re.Match[str]) -> str:
    """Digit by digit, zero as "oh", a comma between the groups."""
    groups = re.findall(r"\+?\d+", match[0])
    words = [("plus " if group[0] == "+" else "") + numerals.one_by_one(group, "oh") for group in groups]
    before = " " if match.string[match.start() - 1 : match.start()].isalnum() else ""
    return before + ", ".join(words)


def _short_phone(match: re.Match[str]) -> str:
    called = re.search(r"(?i)\b(?:call|dial|phone|fax|tel|text|ring|number|at|mobile|cell)\W*(?:\w+\W+){0,2}$",
                       match.string[max(0, match.start() - 40) : match.start()])  # fmt: skip
    return _phone(match) if called or not match[2].endswith("00") and int(match[2][:1]) else match[0]


_START, _END = r"(?<![\w.,+$£€-])", r"(?![\w]|[-./]\d)"
_PHONES: tuple[Rule, ...] = (
    (re.compile(rf"{_START}(?:\+?\d{{1,3}}[ .-]?)?(?:\(\d{{3}}\) ?|\d{{3}}[ .-])\d{{3}}[ .-]\d{{4}}{_END}"), _phone),
    (re.compile(rf"{_START}\+\d{{1,4}}(?:[ ./-]?\(?\d{{1,12}}\)?){{1,6}}{_END}"), _phone),
    (re.compile(rf"{_START}\(?0\d{{1,4}}\)?(?:[ /-]\d{{2,8}}){{1,5}}{_END}"), _phone),
    (re.compile(rf"{_START}\d{{1,9}}(?:-\d{{1,9}}){{2,8}}{_END}"), _phone),
    (re.compile(rf"{_START}\d{{4}}(?: \d{{4}}){{2,4}}{_END}"), _phone),
    (re.compile(rf"{_START}(\d{{3}})-(\d{{4}}){_END}"), _short_phone),
    (re.compile(r"(?i)(?<=\d) ?,? ?\b(?:ext\.?|x) ?(\d{1,6})\b"), lambda m: f" extension {numerals.one_by_one(m[1], 'oh')}"),
    (
        re.compile(r"(?i)\b((?:call|dial|phone|ring|tel|telephone|fax|mobile|cell)(?:\.?:|\.)? )(\d{7,12}|911|999|112|[1-8]11|988|101)\b(?![.,]\d| ?%)"),
        lambda m: m[1] + numerals.one_by_one(m[2], "oh"),
    ),
    (
        re.compile(r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d]|\.\d)"),
        lambda m: " dot ".join(numerals.one_by_one(part) for part in m[0].split(".")),
    ),
)  # fmt: skip

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
    "CHF": ("swiss franc", "rappen"), "CNY": ("yuan", "fen"), "RMB": ("yuan", "fen"), "INR": ("rupee", "paisa"),
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
_AMOUNT = r"(\d{1,3}(?:[.,]\d{3}){1,4},\d\d(?!\d)|\d{1,9},\d\d(?!\d)|\d{1,3}(?:,\d{3}){1,4}(?:\.\d{1,9})?|\d{0,12}\.\d{1,9}|\d{1,12})"
_MAGNITUDE = (
    r"(?:[ -]?((?i:hundred|thousand|million|billion|trillion))\b|((?i:k|mm|mn|mio|bn|bln|trn|tn|m|b|t))\b"
    r"| ((?:[KMBT]|mn|mio|bn|bln|trn|tn))\b)?"
)
_PER = r"(?: ?/ ?([a-zA-Z]{1,12})\b)?"


def _before(match: re.Match[str]) -> str:
    outer, unit, inner, amount, *magnitude, per, noun = match.groups()
    return _money(outer or inner, unit, amount, magnitude, per, noun or "")


def _after(match: re.Match[str]) -> str:
    amount, *magnitude, unit, per = match.groups()
    return _money("", unit, amount, magnitude, per, "")


def _money(sign: str | None, unit: str, amount: str, magnitudes: list[str | None], per: str | None, noun: str) -> str:
    large, small = _CURRENCIES[unit]
    scale = next((m.lower() for m in magnitudes if m), "")
    words = _sum(_american(amount), _MAGNITUDES.get(scale, scale), large, small, one=bool(noun))
    words = {"-": "minus ", "+": "plus "}.get(sign or "", "") + words + noun
    return words + (f" per {unit_name(per)}" if per else "")


def _american(amount: str) -> str:
    """Without commas that part thousands, and with a point for what a comma parts elsewhere: 1.234,50."""
    if re.search(r",\d\d$", amount):
        return amount.replace(".", "").replace(",", ".")
    return amount.replace(",", "")


def _sum(amount: str, scale: str, large: str, small: str, *, one: bool) -> str:
    units, _, part = amount.partition(".")
    if scale or not small or (part and len(part) != 2):
        plain = float(amount) == 1 and not scale
        return f"{numerals.decimal(amount)}{' ' + scale if scale else ''} {_plural(1 if one or plain else 2, large)}"
    units = units.lstrip("0") or "0"
    words = [f"{numerals.whole(units)} {_plural(1 if one else int(units), large)}"] if units != "0" or not int(part or 0) else []
    words += [f"{numerals.cardinal(int(part))} {_plural(int(part), small)}"] if int(part or 0) else []
    return " and ".join(words)


_PLURALS = {"penny": "pence", "foot": "feet", "inch": "inches", "zloty": "zlotys", "swedish krona": "swedish kronor",
            "norwegian krone": "norwegian kroner", "danish krone": "danish kroner", "agora": "agorot",
            "paisa": "paise", "lux": "lux", "century": "centuries"}  # fmt: skip
_INVARIABLE = ("hertz", "yen", "sen", "won", "baht", "yuan", "fen", "ore", "jeon", "percent", "mil", "siemens", "rappen", "kobo", "dong", "satang", "naira")


def _plural(count: float, unit: str) -> str:
    """A unit as it follows a number: degrees celsius, square feet, kilometers per hour."""
    head, per, rest = unit.partition(" per ")
    head, degrees, scale = head.partition("degree ")[0], *head.partition("degree ")[1:]
    if degrees:
        return unit if count == 1 else f"degrees {scale}{per}{rest}"
    if count == 1 or head.endswith(_INVARIABLE):
        return unit
    *before, last = (_PLURALS[head].split() if head in _PLURALS else head.split())
    last = last if head in _PLURALS else _PLURALS.get(last, last + "s")
    return " ".join([*before, last]) + per + rest


_MONEY: tuple[Rule, ...] = (
    (re.compile(rf"(?<![\w.])({_UNIT}) ?(\d{{1,9}}(?:\.\d\d?)?) ?- ?(?=\d{{1,9}}(?:\.\d\d?)?(?![\d-]))"), lambda m: f"{m[2]} to {m[1]}"),
    (
        re.compile(rf"(?:(?<![\w)])([-+]))?(?<![A-Za-z$])({_UNIT})(?: ?([-+])| ?){_AMOUNT}(?![\d]){_MAGNITUDE}{_PER}([ -](?:bill|note|coin)\b)?"),
        _before,
    ),
    (re.compile(rf"(?<![\d.,]){_AMOUNT}{_MAGNITUDE} ?({_UNIT})(?![\w]| ?\d){_PER}"), _after),
    (re.compile(rf"{_NUMBER} ?¢"), lambda m: f"{numerals.decimal(m[1])} {_plural(float(m[1].replace(',', '')), 'cent')}"),
)  # fmt: skip

# Measures ---------------------------------------------------------------------------------------------------

_PREFIXES = {"k": "kilo", "M": "mega", "G": "giga", "T": "tera", "m": "milli", "µ": "micro", "μ": "micro", "n": "nano"}
_UNITS = {
    "m": "meter", "km": "kilometer", "cm": "centimeter", "mm": "millimeter", "nm": "nanometer", "μm": "micrometer",
    "mi": "mile", "ft": "foot", "yd": "yard", "yds": "yard", "g": "gram", "kg": "kilogram", "Kg": "kilogram",
    "KG": "kilogram", "KM": "kilometer", "mg": "milligram", "μg": "microgram", "mcg": "microgram", "t": "ton",
    "lb": "pound", "lbs": "pound", "oz": "ounce", "l": "liter", "L": "liter", "ml": "milliliter",
    "mL": "milliliter", "cl": "centiliter", "dl": "deciliter", "dL": "deciliter", "μl": "microliter",
    "h": "hour", "hr": "hour", "hrs": "hour", "min": "minute", "mins": "minute", "s": "second", "sec": "second",
    "secs": "second", "ms": "millisecond", "μs": "microsecond", "ns": "nanosecond", "yr": "year", "yrs": "year",
    "wk": "week", "wks": "week", "mo": "month", "mos": "month", "V": "volt", "W": "watt", "J": "joule", "Pa": "pascal",
    "Hz": "hertz", "hz": "hertz", "mA": "milliampere", "mAh": "milliampere hour", "Ah": "ampere hour",
    **{p + "Hz": n + "hertz" for p, n in _PREFIXES.items() if p in "kMGT"}, "khz": "kilohertz", "mhz": "megahertz",
    "ghz": "gigahertz", "KHz": "kilohertz", **{p + "W": n + "watt" for p, n in _PREFIXES.items() if p in "kMGTm"},
    **{p + "Wh": n + "watt hour" for p, n in _PREFIXES.items() if p in "kMGT"}, "Wh": "watt hour", "kwh": "kilowatt hour",
    **{p + "V": n + "volt" for p, n in _PREFIXES.items() if p in "kMm"}, "kJ": "kilojoule", "MJ": "megajoule",
    **{p + "Pa": n + "pascal" for p, n in _PREFIXES.items() if p in "kMG"}, "hPa": "hectopascal",
    **{p.upper() + "B": n + "byte" for p, n in _PREFIXES.items() if p in "kMGT"}, "kB": "kilobyte", "PB": "petabyte",
    "GiB": "gibibyte", "MiB": "mebibyte", "gb": "gigabyte", "mb": "megabyte", "kb": "kilobyte", "tb": "terabyte",
    "Gb": "gigabit", "Mb": "megabit", "Kb": "kilobit",
    "kbps": "kilobit per second", "Kbps": "kilobit per second", "Mbps": "megabit per second",
    "mbps": "megabit per second", "Gbps": "gigabit per second", "fps": "frame per second",
    "rpm": "revolution per minute", "RPM": "revolution per minute", "bpm": "beat per minute", "BPM": "beat per minute",
    "kph": "kilometer per hour", "kmh": "kilometer per hour", "dB": "decibel", "db": "decibel", "dpi": "dot per inch",
    "psi": "pound per square inch", "ppm": "part per million", "cal": "calorie", "kcal": "kilocalorie",
    "px": "pixel", "ha": "hectare", "gal": "gallon", "qt": "quart", "pt": "pint", "tsp": "teaspoon",
    "tbsp": "tablespoon", "cc": "cubic centimeter", "mol": "mole", "Ω": "ohm", "kΩ": "kilohm", "MΩ": "megohm",
    "°C": "degree celsius", "°F": "degree fahrenheit", "°": "degree", "° C": "degree celsius",
    "° F": "degree fahrenheit", "deg": "degree", "‰": "per mille", "eV": "electronvolt", "keV": "kiloelectronvolt",
    "MeV": "megaelectronvolt", "GeV": "gigaelectronvolt", "hp": "horsepower", "sq ft": "square foot",
    "sq. ft": "square foot", "sqft": "square foot", "sq m": "square meter", "sq. m": "square meter",
    "sq km": "square kilometer", "sq mi": "square mile", "cu ft": "cubic foot", "fl oz": "fluid ounce",
    "fl. oz": "fluid ounce", "mi/h": "mile per hour", "nmi": "nautical mile",
}  # fmt: skip
_PERS = {"d": "day", "person": "person", "unit": "unit", "in": "inch", "month": "month", "mth": "month", "pp": "person"}
_POWERED = ("m", "km", "cm", "mm", "ft", "in", "mi", "yd", "s", "μm", "nm")
_MEASURE = "|".join(re.escape(unit) for unit in sorted(_UNITS, key=len, reverse=True))


def unit_name(unit: str) -> str:
    """What an abbreviated unit is called, in the singular; anything else in lower case."""
    return _UNITS.get(unit) or _PERS.get(unit) or unit.lower()


def _powered(unit: str, power: str | None, *, below: bool = False) -> str:
    name = "inch" if unit == "in" else unit_name(unit)
    if not power:
        return name
    kind = {"2": ("square", "squared"), "3": ("cubic", "cubed")}[power[-1]]
    return f"{name} {kind[1]}" if below and unit == "s" else f"{kind[0]} {name}"


def _measure(match: re.Match[str]) -> str:
    number, gap, unit, power, per, per_power, point = match.groups()
    name = _powered(unit, power) + (f" per {_powered(per, per_power, below=True)}" if per else "")
    words = numerals.decimal(number)
    end = "." if point and unit != "ft" and match.end() == len(match.string) else ""
    if name in ("per mille", "horsepower"):
        return f"{words} {name}{end}"
    if gap == "-":
        return f"{words}-{name}{end}"
    return f"{words} {_plural(float(number.replace(',', '')), name)}{end}"


def _feet(match: re.Match[str]) -> str:
    words = f"{numerals.whole(match[1])} {_plural(int(match[1]), 'foot')}"
    return words + (f" {numerals.decimal(match[2])} {_plural(float(match[2]), 'inch')}" if match[2] else "")


def _inches(match: re.Match[str]) -> str:
    quotes = match.string.count('"', 0, match.end() - 1) if len(match.string) < 10_000 else 0
    return match[0] if quotes % 2 else f"{numerals.decimal(match[1])}-inch "


_MEASURES: tuple[Rule, ...] = (
    (re.compile(r"(?<![\w.'])(\d{1,3})['′] ?(\d{1,2}(?:\.\d)?)(?:\"|″|'')"), _feet),
    (re.compile(r"(?<![\w.,'])(\d{1,3}(?:\.\d{1,3})?)(?:\"(?=[ .,;!?)]|$)|″)"), _inches),
    (
        re.compile(
            rf"{_NUMBER}([ -]?)({_MEASURE}|(?<=\d)in)(?:(?<=[a-zμ])\^?([23])(?![\d]))?"
            rf"(?: ?/ ?({_MEASURE}|d|day|week|month|year|person|in|inch|hour|minute|second)(?:\^?([23]))?)?(?![\w'^])(\.(?= ?[a-z,]|$))?"
        ),
        _measure,
    ),
    (re.compile(r"(?<![\d.,])(\d{1,12}(?:\.\d{1,6})?)(k|K|M|bn|B|mn)\b(?! ?(?:run|race|video|tv|TV|res|disp|mon|mar|foot|cam|ultra))"),
     lambda m: m[0] if m[2] in "kK" and m[1] in ("4", "8") else f"{numerals.decimal(m[1])} {_MAGNITUDES[m[2].lower()]}"),
    (re.compile(r"(?i)(?<![\w'])(per |a |each |/)?(km|kg|cm|kwh|kmh|mhz|ghz|khz)(?![\w'])"),
     lambda m: (m[1] or "") + _plural(1 if m[1] else 2, unit_name(m[2].lower()))),
)  # fmt: skip

# Mathematics ------------------------------------------------------------------------------------------------

_GREEK = dict(
    zip(
        "αβγδεζηθικλμνξοπρστυφχψω",
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau "
        "upsilon phi chi psi omega".split(),
        strict=True,
    )
)
_SIGNS = {
    "×": "times", "÷": "divided by", "±": "plus or minus", "∓": "minus or plus", "≈": "approximately", "≅": "approximately",
    "≠": "not equal to", "≤": "less than or equal to", "≥": "greater than or equal to", "∞": "infinity", "√": "square root of",
    "∛": "cube root of", "∑": "sum of", "∏": "product of", "∫": "integral of", "∝": "is proportional to", "∈": "in",
    "∂": "partial", "∇": "del", "∠": "angle", "⋅": "times", "∆": "delta", "⇒": "implies", "‰": "per mille",
    "§": "section", "¶": "paragraph",
}  # fmt: skip
_LEFT, _RIGHT = r"(?<=[\w)\]%°])( ?)", r"(?= ?[\w(\[$£€.√+-])"
_OPERAND = r"(?=[-+]?[$£€]?\.?\d)"


def _power(match: re.Match[str]) -> str:
    sign, exponent = match[1] or "", match[2]
    if not sign and exponent in ("2", "3"):
        return " squared " if exponent == "2" else " cubed "
    if sign == "-":
        return f" to the minus {exponent} "
    return f" to the {numerals.ordinal(exponent) if exponent.isdigit() else exponent} "


def _root(match: re.Match[str]) -> str:
    return f" {_SIGNS[match[0]]} "


_MATHS: tuple[Rule, ...] = (
    (re.compile(r"(?<=\d)[eE]([+-]?)(\d{1,3})(?![\w.])"), lambda m: f" times ten{_power(m)}"),
    (re.compile(r"(?<=[\w)\]])\*\*(?=[\w(+-])"), lambda m: "^"),
    (re.compile(r"(?<=[\w)\]])\^[({]?([+-]?)(\d{1,12}|[a-zA-Z])[)}]?(?!\w)"), _power),
    (re.compile(r"(?<=\d) ?\* ?(?=[\d(])"), lambda m: " times "),
    (re.compile(r"(?<=\d) ?[x×] ?(?=\d)(?=[^=]{0,12}(?:\d ?[x×]))"), lambda m: " by "),
    (re.compile(r"(?<![\w.])(\d{1,6}) ?x ?(?=\d)"), lambda m: f"{m[1]} by "),
    (re.compile(r"(?<![\w.])(\d{1,6}(?:\.\d{1,3})?)[x×](?![\w×]| ?[-+=^])"), lambda m: f"{m[1]} times"),
    (re.compile(r"(?<=\d) [-–] (?=\d{1,12}(?:\.\d{1,9})? ?=)"), lambda m: " minus "),
    (re.compile(r"(?<![<>=!-])(?:<=|=<)(?![<>=|])"), lambda m: " less than or equal to "),
    (re.compile(r"(?<![<>=!-])>=(?![<>=|])"), lambda m: " greater than or equal to "),
    (re.compile(r"(?<![<>=])!=(?![<>=])"), lambda m: " not equal to "),
    (re.compile(r"(?<![<>=!])==+(?![<>=])"), lambda m: " equals "),
    (re.compile(rf"(?<![<>=|-])<(?![<>=|/-])(?= ?{_OPERAND})"), lambda m: " less than "),
    (re.compile(rf"(?<![<>=|/-])>(?![<>=|])(?= ?{_OPERAND})"), lambda m: " greater than "),
    (re.compile(r"(?<=[\w)]) > (?=[a-zA-Z]\b)"), lambda m: " greater than "),
    (re.compile(r"(?<=[\w)]) < (?=[a-zA-Z]\b)"), lambda m: " less than "),
    (re.compile(rf"~ ?{_OPERAND}"), lambda m: " about "),
    (re.compile(f"[{''.join(_SIGNS)}]"), _root),
    (re.compile(r"(?<![Ͱ-Ͽἀ-῿])[Α-Ωα-ω](?![Ͱ-Ͽἀ-῿])"), lambda m: f" {_GREEK.get(m[0].lower(), m[0])} "),
)  # fmt: skip

# Numbers in general -----------------------------------------------------------------------------------------


def _mixed(match: re.Match[str]) -> str:
    return f"{numerals.whole(match[1])} and {numerals.fraction(match[2], match[3])}"


_NUMBERS: tuple[Rule, ...] = (
    (re.compile(r"(?<![\d.,])\d{1,3}(?:[ '\u00a0\u2009\u202f]\d{3}){2,4}(?![\d.,']|[ -]\d)"), lambda m: re.sub(r"\D", "", m[0])),
    (re.compile(r"(?<![\d.,])\d{1,3}(?:\.\d{3}){2,4}(?![\d.])"), lambda m: m[0].replace(".", "")),
    (re.compile(r"(?<![\d/.,])(\d{1,6})[ -]([1-9]\d?)/([1-9]\d{0,2})(?![\d/])"), _mixed),
    (re.compile(r"(?<![\d:.])(\d{1,4}) ?: ?(\d)(?![\d:])"), lambda m: f"{m[1]} to {m[2]}"),
    (re.compile(r"(?<![\d.,\w-])(\d{1,12}(?:[.,]\d{1,9})?)(%|°)? ?- ?(?=\d{1,12}(?:[.,]\d{1,9})?(?![\d-]))"), lambda m: f"{m[1]}{m[2] or ''} to "),
    (re.compile(r"(?<![\w).,%°'\"-])-(?=[$£€¥]?\.?\d)"), lambda m: "minus "),
)  # fmt: skip
_POINTED: tuple[Rule, ...] = (
    (re.compile(r"(?<![\w.)])\.(\d{1,12})(?![.\d])"), lambda m: f"point {numerals.one_by_one(m[1])}"),
)
EARLY: tuple[Rule, ...] = _PHONES
RULES: tuple[Rule, ...] = (*_MONEY, *_NUMBERS, *_MEASURES, *_MATHS, *_POINTED)
