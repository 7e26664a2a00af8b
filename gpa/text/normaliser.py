"""English text to the words that are spoken, without dependencies: numbers, abbreviations, punctuation.

Our models read and write this form; the published checkpoint takes text verbatim and never comes here.
"""

import re
import unicodedata
from collections.abc import Callable

_PUNCTUATION = str.maketrans("", "", ".,?!;:")
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
_CURRENCIES = {"$": ("dollar", "cent"), "£": ("pound", "penny"), "€": ("euro", "cent"), "¥": ("yen", "sen")}
_FRACTIONS = {
    ("1", "2"): "one half", ("1", "3"): "one third", ("2", "3"): "two thirds", ("1", "4"): "one quarter",
    ("3", "4"): "three quarters",
}  # fmt: skip
_ABBREVIATIONS = {
    "mr": "mister", "mrs": "missus", "ms": "miss", "dr": "doctor", "prof": "professor", "rev": "reverend",
    "hon": "honorable", "gen": "general", "col": "colonel", "capt": "captain", "lt": "lieutenant",
    "sgt": "sergeant", "gov": "governor", "sen": "senator", "jr": "junior", "sr": "senior", "mt": "mount",
    "messrs": "messieurs", "st": "street", "etc": "et cetera", "vs": "versus", "esq": "esquire",
    "co": "company", "inc": "incorporated", "ltd": "limited", "corp": "corporation", "dept": "department",
    "ave": "avenue", "blvd": "boulevard", "approx": "approximately", "vol": "volume", "jan": "january",
    "feb": "february", "aug": "august", "sept": "september", "oct": "october", "nov": "november",
    "dec": "december", "drs": "doctors", "viz": "namely",
}  # fmt: skip
# Words without vowels that are not read letter by letter, as others are: tv, fpcc.
_VOWELLESS = {
    *_ABBREVIATIONS,
    *"hm hmm mm mmm sh shh pst psst brr brrr grr grrr pfft tsk zzz nth th nd rd ll ft lb lbs".split(),
}
_PLAIN = str.maketrans({
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u00b4`", "'"),
    **dict.fromkeys("\u2010\u2011\u2012\u2212\u00ad", "-"),
    **dict.fromkeys("\u2013\u2014\u2015", " - "),
    "\u2026": ". ", "\u3002": ". ", "\u3001": ", ", "\u060c": ", ", "\u061b": "; ", "\u061f": "? ",
    "\u00bf": " ", "\u00a1": " ", "\u00e6": "ae", "\u0153": "oe", "\u00f8": "o",
    "\u0142": "l", "\u00df": "ss", "\u00c6": "ae", "\u0152": "oe", "\u00d8": "o", "\u0141": "l",
    "\u1e9e": "ss",
})  # fmt: skip
_SYMBOLS = {"&": "and", "%": "percent", "+": "plus", "=": "equals", "@": "at", "#": "number", "°": "degrees"}


def normalise_text(text: str) -> str:
    """English text as our models read and write it: lower-case words and . , ? ! ; : - ' only.

    Digits, ordinals, years, money, percentages, times, fractions and common abbreviations become words, other
    short words without vowels their letters; typographic punctuation its plain form; Latin accents are
    dropped. Letters of other scripts stay (byte fallback encodes them), all else becomes a space. Idempotent:
    normalised text passes unchanged.
    """
    # Removing a symbol can join two neighbours into something expandable ("d_r." has "dr."), so repeat
    # until nothing changes; ordinary text needs two rounds, the bound only stops adversarial input.
    for _ in range(8):
        before, text = text, _normalise_once(text)
        if text == before:
            break
    return text


def without_punctuation(text: str) -> str:
    """The words of a text alone, as recognition writes them."""
    return " ".join(text.translate(_PUNCTUATION).split())


def _normalise_once(text: str) -> str:
    text = re.sub(r"(?<=\d)(?=[¼½¾⅓⅔])", " and ", text).translate(_PLAIN)
    text = unicodedata.normalize("NFKD", text).lower().translate(_PLAIN)
    text = unicodedata.normalize("NFC", re.sub(r"(?<=[a-z])[\u0300-\u036f]+", "", text))
    text = _expand_abbreviations(re.sub(r"\s+", " ", text))
    if re.search(r"\d", text):
        text = _expand_numbers(text)
    text = re.sub(r"[&%+=@#°]", lambda m: f" {_SYMBOLS[m[0]]} ", text)
    return _tidy(text)


def _expand_abbreviations(text: str) -> str:
    text = re.sub(r"\be\.g\.", "for example", text)
    text = re.sub(r"\bi\.e\.", "that is", text)
    text = re.sub(r"(?<=[a-z\d])\.(com|org|net|edu|gov|io|uk)\b", r" dot \1", text)
    # u.s.a. -> u s a; a point that ends the text stays a full stop
    text = re.sub(r"(?<![\w.'])[a-z](?:\.[a-z])+\b(\.?)", _spell_initials, text)
    text = re.sub(r"\bno\. ?(?=\d)", "number ", text)
    text = re.sub(r"(?<=\d) ?ft\b\.?", " feet", text)
    text = re.sub(r"\bst\. (?=[a-z])", "saint ", text)
    text = re.sub(r"\b(mr|mrs|ms|dr|drs|messrs)\b(\.?)", _expand_word, text)
    text = re.sub(r"\b([a-z]+)(\.)(?![a-z])", _expand_word, text)
    return re.sub(r"(?<![\w'])[b-df-hj-np-tv-xz]{2,5}(?![\w'])", _spell_vowelless, text)


def _spell_vowelless(match: re.Match[str]) -> str:
    return match[0] if match[0] in _VOWELLESS else " ".join(match[0])


def _spell_initials(match: re.Match[str]) -> str:
    ends = match[1] and match.end() == len(match.string)
    return " ".join(re.findall("[a-z]", match[0])) + ("." if ends else "")


def _expand_word(match: re.Match[str]) -> str:
    full = _ABBREVIATIONS.get(match[1])
    if full is None:
        return match[0]
    return full + ("." if match[2] and match.end() == len(match.string) else "")


def _expand_numbers(text: str) -> str:
    for pattern, spell in _NUMBER_RULES:
        text = pattern.sub(spell, text)
    return text


def _tidy(text: str) -> str:
    """Only letters, the eight marks and single spaces, each mark where writing puts it."""
    text = re.sub(r"[^a-z .,?!;:'-]", lambda m: m[0] if unicodedata.category(m[0])[0] in "LM" else " ", text)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"(?<![^\W\d_])'|'(?![^\W\d_])", "", text)  # quotes; apostrophes stand between letters
    text = re.sub(r"[\s-]*(?:\s-|-\s|--|^-|-$)[\s-]*", " - ", text)
    text = re.sub(r"[.,?!;:](?:[\s-]*[.,?!;:])+", lambda m: min(m[0], key="?!.;:, -".index), text)
    text = re.sub(r"[\s-]*([.,?!;:])[\s-]*", r"\1 ", text)
    return re.sub(r"\s+", " ", text).lstrip(" .,?!;:-'").rstrip(" -")


def spell_number(number: int) -> str:
    """A cardinal in words, without "and" or hyphens: 1205 -> "one thousand two hundred five"."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        return _TENS[number // 10] + (f" {_ONES[number % 10]}" if number % 10 else "")
    scale, name = next(pair for pair in _SCALES if number >= pair[0])
    rest = f" {spell_number(number % scale)}" if number % scale else ""
    return f"{spell_number(number // scale)} {name}{rest}"


def _spell_digits(digits: str) -> str:
    return " ".join(_ONES[int(digit)] for digit in digits)


def _spell_plain(digits: str) -> str:
    """A cardinal, or digit by digit where one is not read as a number: 007, card numbers."""
    if len(digits) > 12 or (digits[0] == "0" and len(digits) > 1):
        return _spell_digits(digits)
    return spell_number(int(digits))


def _spell_decimal(whole: str, *decimals: str) -> str:
    return " point ".join([_spell_plain(whole), *(_spell_digits(part) for part in decimals)])


def _spell_year(year: int) -> str:
    century, rest = divmod(year, 100)
    if rest == 0:
        return f"{spell_number(century)} hundred"
    return f"{spell_number(century)} {'oh ' if rest < 10 else ''}{spell_number(rest)}"


def _spell_ordinal(match: re.Match[str]) -> str:
    *head, last = _spell_plain(match[1].replace(",", "")).split()
    regular = last[:-1] + "ieth" if last.endswith("y") else last + "th"
    return " ".join([*head, _ORDINALS.get(last, regular)])


def _spell_decade(match: re.Match[str]) -> str:
    century, tens = match[1], int(match[2])
    if (century, tens) == ("20", 0):
        return "two thousands"
    name = {0: "hundreds", 1: "tens"}.get(tens, _TENS[tens][:-1] + "ies")
    return f"{spell_number(int(century))} {name}" if century else name


def _spell_money(match: re.Match[str]) -> str:
    sign, whole, part, scale = match.groups()
    unit, small = _CURRENCIES[sign]
    whole = whole.replace(",", "")
    if scale or (part and len(part) != 2):
        return f"{_spell_decimal(whole, *([part] if part else []))}{scale or ''} {_plural(2, unit)}"
    words = [f"{_spell_plain(whole)} {_plural(int(whole), unit)}"] if int(whole) or not int(part or 0) else []
    words += [f"{spell_number(int(part))} {_plural(int(part), small)}"] if int(part or 0) else []
    return " and ".join(words)


def _plural(count: int, unit: str) -> str:
    irregular = {"penny": "pence", "yen": "yen", "sen": "sen"}
    return unit if count == 1 else irregular.get(unit, unit + "s")


def _spell_time(match: re.Match[str]) -> str:
    hour, minute = spell_number(int(match[1])), int(match[2])
    if minute == 0:
        return f"{hour} o'clock"
    return f"{hour} {'oh ' if minute < 10 else ''}{spell_number(minute)}"


def _spell_fraction(match: re.Match[str]) -> str:
    over = f"{_spell_plain(match[1])} over {_spell_plain(match[2])}"
    return _FRACTIONS.get((match[1], match[2]), over)


# In order: a rule sees what those above it left.
_NUMBER_RULES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    # First, and also because long runs would cost the rules below time quadratic in their length.
    (re.compile(r"\d{13,}"), lambda m: f" {_spell_digits(m[0])} "),
    (
        re.compile(
            r"([$£€¥]) ?(\d+(?:,\d{3})*)(?:\.(\d+))?( (?:hundred|thousand|million|billion|trillion)\b)?"
        ),
        _spell_money,
    ),
    (re.compile(r"(?<!\d)([01]?\d|2[0-4]):([0-5]\d)(?!\d)(?: o'clock)?"), _spell_time),
    (re.compile(r"(?<![a-z\d])(\d+(?:,\d{3})*)(?:st|nd|rd|th)\b"), _spell_ordinal),
    (re.compile(r"(?<![a-z\d])(1[1-9]|20|)(\d)0'?s\b"), _spell_decade),
    (
        re.compile(r"(?<!\d)(\d{1,3}(?:,\d{3})+)(?!\d)((?:\.\d+)*)"),  # a comma: never a year
        lambda m: _spell_decimal(m[1].replace(",", ""), *m[2].split(".")[1:]),
    ),
    (re.compile(r"(?<=\d)(?=[a-z])|(?<=[a-z])(?=\d)"), lambda m: " "),
    (re.compile(r"(\d+) ?[/\u2044] ?(\d+)"), _spell_fraction),
    (re.compile(r"\d+(?:\.\d+)+"), lambda m: _spell_decimal(*m[0].split("."))),
    (re.compile(r"\d+(?:-\d+){2,}"), lambda m: _spell_digits(m[0].replace("-", ""))),  # telephone
    (re.compile(r"(?<=\d) ?- ?(?=\d)"), lambda m: " to "),
    (re.compile(r"(?<![^\s])-(?=\d)"), lambda m: "minus "),
    (re.compile(r"(?<!\d)(?:1[1-9]\d\d|20[1-9]\d)(?!\d)"), lambda m: _spell_year(int(m[0]))),
    (re.compile(r"\d+"), lambda m: _spell_plain(m[0])),
)
