"""Measures and mathematics to words: what stands behind numbers and between them. Rules in order."""

from __future__ import annotations

import re

from gpa.text import numerals
from gpa.text.numerals import Rule

# Measures ---------------------------------------------------------------------------------------------------

_PREFIXES = {
    "k": "kilo",
    "M": "mega",
    "G": "giga",
    "T": "tera",
    "m": "milli",
    "µ": "micro",
    "μ": "micro",
    "n": "nano",
}
_UNITS = {
    "m": "meter", "km": "kilometer", "cm": "centimeter", "mm": "millimeter", "nm": "nanometer",
    "μm": "micrometer",
    "mi": "mile", "ft": "foot", "yd": "yard", "yds": "yard", "g": "gram", "kg": "kilogram", "Kg": "kilogram",
    "KG": "kilogram", "KM": "kilometer", "mg": "milligram", "μg": "microgram", "mcg": "microgram", "t": "ton",
    "lb": "pound", "lbs": "pound", "oz": "ounce", "l": "liter", "L": "liter", "ml": "milliliter",
    "mL": "milliliter", "cl": "centiliter", "dl": "deciliter", "dL": "deciliter", "μl": "microliter",
    "h": "hour", "hr": "hour", "hrs": "hour", "min": "minute", "mins": "minute", "s": "second",
    "sec": "second",
    "secs": "second", "ms": "millisecond", "μs": "microsecond", "ns": "nanosecond", "yr": "year",
    "yrs": "year",
    "wk": "week", "wks": "week", "mo": "month", "mos": "month", "V": "volt", "W": "watt", "J": "joule",
    "Pa": "pascal",
    "Hz": "hertz", "hz": "hertz", "mA": "milliampere", "mAh": "milliampere hour", "Ah": "ampere hour",
    **{p + "Hz": n + "hertz" for p, n in _PREFIXES.items() if p in "kMGT"}, "khz": "kilohertz",
    "mhz": "megahertz",
    "ghz": "gigahertz", "KHz": "kilohertz", **{p + "W": n + "watt" for p,
    n in _PREFIXES.items() if p in "kMGTm"},
    **{p + "Wh": n + "watt hour" for p, n in _PREFIXES.items() if p in "kMGT"}, "Wh": "watt hour",
    "kwh": "kilowatt hour",
    **{p + "V": n + "volt" for p, n in _PREFIXES.items() if p in "kMm"}, "kJ": "kilojoule", "MJ": "megajoule",
    **{p + "Pa": n + "pascal" for p, n in _PREFIXES.items() if p in "kMG"}, "hPa": "hectopascal",
    **{p.upper() + "B": n + "byte" for p, n in _PREFIXES.items() if p in "kMGT"}, "kB": "kilobyte",
    "PB": "petabyte",
    "GiB": "gibibyte", "MiB": "mebibyte", "gb": "gigabyte", "mb": "megabyte", "kb": "kilobyte",
    "tb": "terabyte",
    "Gb": "gigabit", "Mb": "megabit", "Kb": "kilobit",
    "kbps": "kilobit per second", "Kbps": "kilobit per second", "Mbps": "megabit per second",
    "mbps": "megabit per second", "Gbps": "gigabit per second", "fps": "frame per second",
    "rpm": "revolution per minute", "RPM": "revolution per minute", "bpm": "beat per minute",
    "BPM": "beat per minute",
    "kph": "kilometer per hour", "kmh": "kilometer per hour", "dB": "decibel", "db": "decibel",
    "dpi": "dot per inch",
    "psi": "pound per square inch", "ppm": "part per million", "cal": "calorie", "kcal": "kilocalorie",
    "px": "pixel", "ha": "hectare", "gal": "gallon", "qt": "quart", "pt": "pint", "tsp": "teaspoon",
    "tbsp": "tablespoon", "cc": "cubic centimeter", "mol": "mole", "Ω": "ohm", "kΩ": "kilohm", "MΩ": "megohm",
    "°C": "degree celsius", "°F": "degree fahrenheit", "°": "degree", "° C": "degree celsius",
    "° F": "degree fahrenheit", "degrees C": "degree celsius", "degrees F": "degree fahrenheit",
    "deg C": "degree celsius", "deg F": "degree fahrenheit", "kbit": "kilobit", "Mbit": "megabit",
    "Gbit": "gigabit", "mpg": "mile per gallon", "mph": "mile per hour",
    "MPH": "mile per hour", "K": "kelvin", "deg": "degree", "‰": "per mille",
    "eV": "electronvolt", "keV": "kiloelectronvolt",
    "MeV": "megaelectronvolt", "GeV": "gigaelectronvolt", "hp": "horsepower", "sq ft": "square foot",
    "sq. ft": "square foot", "sqft": "square foot", "sq m": "square meter", "sq. m": "square meter",
    "sq km": "square kilometer", "sq mi": "square mile", "cu ft": "cubic foot", "fl oz": "fluid ounce",
    "fl. oz": "fluid ounce", "mi/h": "mile per hour", "nmi": "nautical mile",
}  # fmt: skip
_PERS = {
    "d": "day",
    "person": "person",
    "unit": "unit",
    "in": "inch",
    "month": "month",
    "mth": "month",
    "pp": "person",
}
_POWERED = ("m", "km", "cm", "mm", "ft", "in", "mi", "yd", "s", "μm", "nm")
_MEASURE = "|".join(re.escape(unit) for unit in sorted(_UNITS, key=len, reverse=True))


_DESCRIBED = re.compile(
    r" (?:race|sprint|dash|hurdles|freestyle|backstroke|butterfly|lens|film|camera|chips?|gun|cannon|pool"
    r"|angle|turn|rotation)\b"
)


def _name(unit: str) -> str:
    """What an abbreviated unit is called, in the singular; anything else in lower case."""
    return _UNITS.get(unit) or _PERS.get(unit) or unit.lower()


def _powered(unit: str, power: str | None, *, below: bool = False) -> str:
    name = "inch" if unit == "in" else _name(unit)
    if not power:
        return name
    kind = {"2": ("square", "squared"), "3": ("cubic", "cubed")}[power[-1]]
    return f"{name} {kind[1]}" if below and unit == "s" else f"{kind[0]} {name}"


def _measure(match: re.Match[str]) -> str:
    number, gap, unit, power, per, per_power, point = match.groups()
    if (unit == "s" and not gap and number.endswith("0")) or (unit == "K" and gap != " "):  # a decade; 10K
        return match[0]
    name = _powered(unit, power) + (f" per {_powered(per, per_power, below=True)}" if per else "")
    words = numerals.decimal(number)
    end = "." if point and unit != "ft" and match.end() == len(match.string) else ""
    if name in ("per mille", "horsepower"):
        return f"{words} {name}{end}"
    if gap == "-":
        return f"{words}-{name}{end}"
    if _DESCRIBED.match(match.string, match.end()):
        return f"{words} {name}"
    return f"{words} {numerals.plural(float(number.replace(',', '')), name)}{end}"


def _feet(match: re.Match[str]) -> str:
    words = f"{numerals.whole(match[1])} {numerals.plural(int(match[1]), 'foot')}"
    return words + (
        f" {numerals.decimal(match[2])} {numerals.plural(float(match[2]), 'inch')}" if match[2] else ""
    )


def _inches(match: re.Match[str]) -> str:
    quotes = match.string.count('"', 0, match.end() - 1) if len(match.string) < 10_000 else 0
    return (
        match[0]
        if quotes % 2
        else numerals.decimal(match[1])
        + ("-inch" if match.string[match.end() : match.end() + 2].strip().isalpha() else " inches")
    )


def _part(match: re.Match[str]) -> str:
    part = numerals.fraction(match[1], match[2])
    return f"{part} {_name(match[3])}" if match[1] == "1" else f"{part} of {_article(_name(match[3]))}"


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' or noun == 'hour' else 'a'} {noun}"


_MEASURES: tuple[Rule, ...] = (
    (
        re.compile(r"(?<![\d.,])(\d{1,4}),(\d{1,2})(?= ?(?:km|kg|cm|mm|m|g|l|L|%|°)(?![\w]))"),
        lambda m: f"{m[1]}.{m[2]}",
    ),
    (re.compile(r"\b(m|cm|mm|km|ft|in|yd)\.? [x×] (?=\d)"), lambda m: f"{m[1]} by "),
    (
        re.compile(rf"(?<![\w.])(\d{{1,9}}(?:\.\d{{1,6}})?) ?({_MEASURE}) ?- ?(?=\d[\d.]{{0,9}} ?\2(?!\w))"),
        lambda m: f"{m[1]} {m[2]} to ",
    ),
    (re.compile(rf"(?<![\d/.,])([1-9]\d?)/([1-9]\d?) ?({_MEASURE})(?![\w/])"), _part),
    (
        re.compile(r"(?<![\w.'])(\d{1,3})'(?= (?:tall|long|wide|high|deep|x|by)\b)"),
        lambda m: f"{numerals.whole(m[1])} {numerals.plural(int(m[1]), 'foot')}",
    ),
    (
        re.compile(
            r"\b(dollars?|cents?|pounds?|pence|penny|euros?|yen|yuan|rupees?|francs?|(?:m|b|tr)illion|tho"
            r"usand)"
            r" ?/ ?([a-zA-Z]{1,12})\b"
        ),
        lambda m: f"{m[1]} per {_name(m[2])}",
    ),
    (re.compile(r"(?<![\w.'])(\d{1,3})['′] ?(\d{1,2}(?:\.\d)?)(?:\"|″|'')"), _feet),
    (re.compile(r"(?<![\w.,'])(\d{1,3}(?:\.\d{1,3})?)(?:\"(?=[ .,;!?)]|$)|″)"), _inches),
    (
        re.compile(
            rf"{numerals.NUMBER}([ -]?)({_MEASURE}|K|(?<=\d)in|(?<=\d )in(?=\.?$|[,;)]|\.? (?:x|by|wide|t"
            rf"all|long|deep|high|thick)\b))(?:(?<=[a-zμ])\^?([23])(?![\d]))?"
            rf"(?: ?/ ?({_MEASURE}|d|day|week|month|year|person|in|inch|hour|minute|second)(?:\^?([23]))?"
            rf")?(?![\w'^])(\.(?= ?[a-z,]|$))?"
        ),
        _measure,
    ),
    (
        re.compile(r"(?i)(?<![\w'])(per |a |each |/)?(km/h|mph|km|kg|cm|kwh|kmh|mhz|ghz|khz)(?![\w'])"),
        lambda m: (m[1] or "") + numerals.plural(1 if m[1] else 2, _name(m[2].lower().replace("/", ""))),
    ),
)

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
    "×": "times", "÷": "divided by", "±": "plus or minus", "∓": "minus or plus", "≈": "approximately",
    "≅": "approximately",
    "≠": "not equal to", "≤": "less than or equal to", "≥": "greater than or equal to", "∞": "infinity",
    "√": "square root of",
    "∛": "cube root of", "∑": "sum of", "∏": "product of", "∫": "integral of", "∝": "is proportional to",
    "∈": "in",
    "∂": "partial", "∇": "del", "∠": "angle", "⋅": "times", "∆": "delta", "⇒": "implies", "‰": "per mille",
    "§": "section", "¶": "paragraph",
}  # fmt: skip
_OPERAND = r"(?=(?:minus )?[-+]?[$£€]?\.?\d)"


def _power(match: re.Match[str]) -> str:
    sign, exponent = match[1] or "", match[2]
    if not sign and exponent in ("2", "3"):
        return " squared " if exponent == "2" else " cubed "
    if sign == "-":
        return f" to the minus {exponent} "
    return f" to the {numerals.ordinal(exponent) if exponent.isdigit() else exponent} "


def _root(match: re.Match[str]) -> str:
    return f" {_SIGNS[match[0]]} "


COMPARISONS: tuple[Rule, ...] = (
    (re.compile(r"(?<=\b[IiWw]) <3(?= )"), lambda m: " love"),
    (re.compile(r"(?<![<>=!-])(?:<=|=<)(?![<>=|])"), lambda m: " less than or equal to "),
    (re.compile(r"(?<![<>=!-])>=(?![<>=|])"), lambda m: " greater than or equal to "),
    (re.compile(r"(?<![<>=])!=(?![<>=])"), lambda m: " not equal to "),
    (re.compile(r"(?<![<>=!])==+(?![<>=])"), lambda m: " equals "),
    (re.compile(rf"(?<![<>=|-])<(?![<>=|/-])(?= ?{_OPERAND})"), lambda m: " less than "),
    (re.compile(rf"(?<![<>=|/-])>(?![<>=|])(?= ?{_OPERAND})"), lambda m: " greater than "),
    (re.compile(r"(?<=[\w)]) > (?=[a-zA-Z]\b)|(?<=\b[a-zA-Z])>(?=[a-zA-Z]\b)"), lambda m: " greater than "),
    (re.compile(r"(?<=[\w)]) < (?=[a-zA-Z]\b)|(?<=\b[a-zA-Z])<(?=[a-zA-Z]\b)"), lambda m: " less than "),
    (re.compile(rf"~ ?{_OPERAND}"), lambda m: " about "),
)
_MATHS: tuple[Rule, ...] = (
    (re.compile(r"° ?C\b"), lambda m: " degrees celsius"),
    (re.compile(r"° ?F\b"), lambda m: " degrees fahrenheit"),
    (re.compile(r"\b(CO|NO|SO)(?=\d)"), lambda m: " ".join(m[1])),
    (re.compile(r"(?<=\d)[eE]([+-]?)(\d{1,3})(?![\w.])"), lambda m: f" times ten{_power(m)}"),
    (re.compile(r"(?<=[\w)\]])\*\*(?=[\w(+-])"), lambda m: "^"),
    (re.compile(r"(?<=[\w)\]])\^[({]?([+-]?)(\d{1,12}|[a-zA-Z])[)}]?(?!\w)"), _power),
    (re.compile(r"(?<=\d) ?\* ?(?=[\d(])"), lambda m: " times "),
    (re.compile(r"(?<=\d) ?[x×] ?(?=\d)(?=[^=]{0,12}(?:\d ?[x×]))"), lambda m: " by "),
    (re.compile(r"(?<![\w.])(\d{1,6}) ?x ?(?=\d)"), lambda m: f"{m[1]} by "),
    (re.compile(r"(?<![\w.])(\d{1,6}(?:\.\d{1,3})?)[x×](?![\w×]| ?[-+=^])"), lambda m: f"{m[1]} times"),
    (re.compile(f"[{''.join(_SIGNS)}]"), _root),
    (re.compile(r"(?<![Ͱ-Ͽἀ-῿])[Α-Ωα-ω](?![Ͱ-Ͽἀ-῿])"), lambda m: f" {_GREEK.get(m[0].lower(), m[0])} "),
)
_POINT: Rule = (
    re.compile(r"(?<![\w.)])\.(\d{1,12})(?![.\d])"),
    lambda m: f"point {numerals.one_by_one(m[1])}",
)
RULES: tuple[Rule, ...] = (*_MEASURES, *_MATHS, _POINT)
