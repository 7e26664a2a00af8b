"""English text to the words that are spoken, without dependencies: rules in order, each in a module by kind.

Our models read and write `normalise_text`. The published checkpoint was trained on text as people write it:
there only markup, invisible characters and letters that it cannot say are looked after (`gpa.text.markup`).
"""

import re
import unicodedata

from gpa.text import amounts, dates, measures, numerals
from gpa.text.abbreviations import expand_abbreviations, expand_cased, spell_acronyms, spell_roman
from gpa.text.addresses import spell_addresses
from gpa.text.markup import PAUSE, without_markup

_PLAIN = str.maketrans({
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u00b4`\u02bc", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033", '"'),
    **dict.fromkeys("\u2010\u2011\u2012\u2212", "-"),
    **dict.fromkeys("\u2013\u2014\u2015", " - "),
    "\u2026": ". ", "\u3002": ". ", "\u3001": ", ", "\u060c": ", ", "\u061b": "; ", "\u061f": "? ",
    "\u00bf": " ", "\u00a1": " ", "\u00e6": "ae", "\u0153": "oe", "\u00f8": "o",
    "\u0142": "l", "\u00df": "ss", "\u00c6": "Ae", "\u0152": "Oe", "\u00d8": "O", "\u0141": "L",
    "\u1e9e": "SS", "\u00fe": "th", "\u00de": "Th", "\u00f0": "th", "\u00d0": "Th", "\u2122": " ",
    "\u00ae": " ",
    "\u2120": " ", "\u00ba": "°", "\u03bc": "μ", "\u00b5": "μ", "\u2215": "/", "\u2044": "/", "\u2217": "*",
    "\u2103": "°C", "\u2109": "°F", "\u0131": "i", "\u014b": "ng", "\u0259": "e", "\u0127": "h",
    "\u2236": ":",
})  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUPERSCRIPT = re.compile(r"((?<![A-Za-z])[A-Za-z]{1,20}|)([⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+)")
_VULGAR = re.compile("(?<=\\d) ?(?=[¼½¾⅐-⅞])")
_POWERED = ("km", "cm", "mm", "nm", "ft", "in", "mi", "yd", "μm", "sin", "cos", "tan", "log", "ha")
_SYMBOLS = {"&": "and", "%": "percent", "+": "plus", "=": "equals", "@": "at", "#": "number", "°": "degrees"}
_PARAGRAPH = re.compile(r"(?<=[\w)\]'\"*%$€£°])([^\S\n]*)\n[^\S\n]*\n(?=\s*[^\s])")
_LATIN = re.compile(r"LATIN (?:SMALL |CAPITAL )?(?:LIGATURE |LETTER )?(?:SMALL CAPITAL )?([A-Z]{1,2})\b")


def normalise_text(text: str) -> str:
    """English text as our models read and write it: lower-case words and . , ? ! ; : - ' only.

    Numbers in all their uses, addresses, abbreviations and acronyms become words, other short words without
    vowels their letters; markup and invisible characters go, a paragraph ends as a sentence does; typographic
    punctuation takes its plain form; Latin accents are dropped. Letters of other scripts stay (byte fallback
    encodes them; `letters_beyond` finds them), all else becomes a space. Idempotent: normalised text passes
    unchanged.
    """
    text = _cased(text)
    # Removing a symbol can join two neighbours into something expandable ("d_r." has "dr."), so repeat
    # until nothing changes; ordinary text needs two rounds, the bound only stops adversarial input.
    for _ in range(8):
        before, text = text, _normalise_once(text)
        if text == before:
            break
    return text


def _cased(text: str) -> str:
    """What capitals, line breaks and typography tell is said in words, before they are lost."""
    text = PAUSE.sub(", ", without_markup(text))
    text = re.sub(r"#{2,}", " ", _PARAGRAPH.sub(".\n", text))  # nothing but a rule, or a heading of nothing
    text = re.sub(r"(?<=\d)[^\S\n]?[\u2012-\u2015\u2212][^\S\n]?(?=[\d$£€.])", "-", text)
    text = re.sub(r"(?<=[KkMmBbNn%°$£€])[^\S\n]?[\u2012-\u2015][^\S\n]?(?=[$£€\d])", "-", text)
    text = _SUPERSCRIPT.sub(_superscript, _VULGAR.sub(" and ", text)).translate(_PLAIN)
    text = unicodedata.normalize("NFKC", text).translate(_PLAIN)
    return re.sub(r"\s+", " ", text)


def _superscript(match: re.Match[str]) -> str:
    before, raised = match[1], match[2].translate(_SUPERSCRIPTS)
    if not before and not re.match(r"[\d)\]\w]", match.string[match.start() - 1 : match.start()]):
        return ""
    return before if len(before) > 2 and before not in _POWERED else f"{before}^{raised}"


def _normalise_once(text: str) -> str:
    text = spell_addresses(re.sub(r"\d{13,}", lambda m: f" {numerals.one_by_one(m[0])} ", text))
    text = expand_cased(text)
    text = _apply((*measures.COMPARISONS, *dates.RULES, *amounts.RULES, *measures.RULES), text)
    text = spell_acronyms(spell_roman(text))
    text = unicodedata.normalize("NFKD", text).lower().translate(_PLAIN)
    text = unicodedata.normalize("NFC", re.sub(r"(?<=[a-z])[\u0300-\u036f]+", "", text))
    text = expand_abbreviations(re.sub(r"\s+", " ", text))
    if re.search(r"\d", text):
        text = _apply(_NUMBERS, text)
    text = re.sub(r"[&%+=@#°]", lambda m: f" {_SYMBOLS[m[0]]} ", text)
    return _tidy(text)


def _apply(rules: tuple[numerals.Rule, ...], text: str) -> str:
    for pattern, spell in rules:
        text = pattern.sub(spell, text)
    return text


def _tidy(text: str) -> str:
    """Only letters, the eight marks and single spaces, each mark where writing puts it."""
    text = re.sub(r"[^a-z .,?!;:'-]", _kept, text)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"(?<![^\W\d_])'|'(?![^\W\d_])", "", text)  # quotes; apostrophes stand between letters
    text = re.sub(r"[\s-]*(?:\s-|-\s|--|^-|-$)[\s-]*", " - ", text)
    text = re.sub(r"[.,?!;:](?:[\s-]*[.,?!;:])+", lambda m: min(m[0], key="?!.;:, -".index), text)
    text = re.sub(r"[\s-]*([.,?!;:])[\s-]*", r"\1 ", text)
    return re.sub(r"\s+", " ", text).lstrip(" .,?!;:-'").rstrip(" -")


def _kept(match: re.Match[str]) -> str:
    """Letters of other scripts, with their marks; a Latin letter without a plain form gives its name's."""
    character = match[0]
    if unicodedata.category(character)[0] not in "LM":
        return " "
    latin = _LATIN.match(unicodedata.name(character, ""))
    return latin[1].lower() if latin else character


_NUMBERS: tuple[numerals.Rule, ...] = (
    (
        re.compile(r"(?<![a-z\d])(\d+(?:,\d{3})*)(?:st|nd|rd|th)\b"),
        lambda m: numerals.ordinal(m[1].replace(",", "")),
    ),
    (re.compile(r"(?<![a-z\d])(1[1-9]|20|)(\d)0'?s\b"), lambda m: numerals.decade(m[1], int(m[2]))),
    # A comma: never a year.
    (re.compile(r"(?<!\d)\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)*"), lambda m: numerals.decimal(m[0])),
    (re.compile(r"(?<=\d)(?=[a-z])|(?<=[a-z])(?=\d)"), lambda m: " "),
    (re.compile(r"(\d+)/(\d+)"), lambda m: numerals.fraction(m[1], m[2])),
    (re.compile(r"(?<=\d) ?/ ?(?=\d)"), lambda m: " over "),
    (re.compile(r"\d+(?:\.\d+)+"), lambda m: numerals.decimal(m[0])),
    (re.compile(r"(?<=\d) ?- ?(?=\d)"), lambda m: " to "),
    (re.compile(r"(?<![^\s])-(?=\d)"), lambda m: "minus "),
    (re.compile(r"(?<!\d)(?:1[1-9]\d\d|20[1-9]\d)(?!\d)"), lambda m: numerals.year(int(m[0]))),
    (re.compile(r"\d+"), lambda m: numerals.whole(m[0])),
)
