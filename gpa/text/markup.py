"""What stands in a text and is not said: SSML, HTML, entities, Markdown, invisible characters.

`without_markup` is for both formats: text that has nothing of these passes unchanged. A pause is written
`[pause 0.5s]`, which SSML's `<break time="500ms"/>` becomes; `pauses` takes a text apart at them.
"""

from __future__ import annotations

import html
import re

from gpa.errors import PromptError

LONGEST_PAUSE = 60.0  # seconds
DEFAULT_PAUSE = 0.5  # seconds, of [pause] and <break/>

_BLOCKS = (
    "p div br hr h1 h2 h3 h4 h5 h6 ul ol li dl dt dd table tr blockquote pre section article header footer "
    "nav main aside title body paragraph"
).split()
_INLINE = (
    "html head meta link base script style img figure figcaption thead tbody tfoot td th caption span "
    "font b i "
    "u s a em strong small big sub sup mark del ins code kbd samp var q cite abbr label button form input "
    "select option textarea iframe svg path video audio source picture canvas object center strike tt "
    "speak voice prosody emphasis break say-as phoneme lexicon desc w token sentence"
).split()
_TAG = re.compile(
    rf"<(/?)({'|'.join(sorted([*_BLOCKS, *_INLINE], key=len, reverse=True))}|(?:mstts|amazon|google|xml):"
    rf"[\w-]+)"
    r"((?:\s[^<>]*)?/?)>",
    re.IGNORECASE,
)
_HIDDEN = (  # from a start to its end, with what is between
    (re.compile(r"<!--"), re.compile(r"-->")),
    (re.compile(r"<(?:script|style)\b[^<>]*>", re.I), re.compile(r"</(?:script|style)\s*>", re.I)),
    (re.compile(r"<[?!](?=[a-z])", re.I), re.compile(r">")),
)
_ALIAS = re.compile(r"<sub\s[^<>]*?alias\s*=\s*[\"']([^\"'<>]*)[\"'][^<>]*>[^<>]*</sub>", re.I)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_TIME = re.compile(r"time\s*=\s*[\"']?\s*([^\"'/>]*)", re.I)
_STRENGTHS = {"none": 0.0, "x-weak": 0.1, "weak": 0.2, "medium": 0.5, "strong": 0.8, "x-strong": 1.2}
_STRENGTH = re.compile(r"strength\s*=\s*[\"']?\s*([\w-]*)", re.I)
PAUSE = re.compile(r"\[\s*(?:pause|break|silence)\b[\s:=]{0,8}([^\[\]\n]{0,40})\]", re.I)
_SECONDS = re.compile(r"(\d{0,6}\.?\d{1,6}|\d{1,6}\.)\s*(ms|milliseconds?|s|secs?|seconds?)?", re.I)

_BREAKS = str.maketrans(
    {"\r": "\n", "\x85": "\n", "\v": "\n", "\f": "\n\n", "\u2028": "\n", "\u2029": "\n\n"}
)
# Pictures, their variation selectors, keycaps, tags: what a reader sees and nobody says.
_PICTURES = re.compile(
    "[\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff\ufe00-\ufe0f\u20e3\U000e0000-\U000e01ef]"
)
# Letters of scripts that join need these two; anywhere else they are debris of copying.
_JOINERS = re.compile(r"(?<![^\W\d_a-zA-Z])[\u200c\u200d]|[\u200c\u200d](?![^\W\d_a-zA-Z])")
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb]"
)
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
# Of a compound that a line's end divides, the hyphen stays after these.
_KEPT = (
    "well self ex non half all co high low long short much so old new ill good best twenty "
    "thirty forty fifty "
    "sixty seventy eighty ninety"
).split()
_DIVIDED = re.compile(r"(?<![a-z])([A-Za-z]{1,30})[-\u2010]\n[^\S\n]{0,80}(?=[a-z])")


def without_markup(text: str) -> str:
    """A text as it is to be read: no tags, entities, Markdown or invisible characters; breaks as [pause]."""
    text = _DIVIDED.sub(_joined, _visible(text.replace("\u00ad\n", "").replace("\u00ad\r\n", "")))
    if "<" in text:
        text = _without_tags(text)
    if "&" in text:
        text = _ENTITY.sub(lambda m: html.unescape(m[0]), text)
        text = _visible(text)
    return _without_markdown(text) if _MARKDOWN.search(text) else text


def pauses(text: str) -> tuple[list[str], list[float]]:
    """What is said (n + 1 texts, some of them empty) and the seconds of silence (n) between.

    PromptError for a pause that is none, or longer than `LONGEST_PAUSE`.
    """
    said, seconds, begin = [], [], 0
    for match in PAUSE.finditer(text):
        said.append(text[begin : match.start()])
        seconds.append(_seconds(match[1], match[0]))
        begin = match.end()
    return [*said, text[begin:]], seconds


def _seconds(asked: str, where: str) -> float:
    if not asked.strip():
        return DEFAULT_PAUSE
    match = _SECONDS.fullmatch(asked.strip())
    if not match:
        raise PromptError(f"{where}: a pause is written [pause 0.5s] or [pause 500ms]")
    seconds = float(match[1]) / (1000 if (match[2] or "").lower().startswith("m") else 1)
    if seconds > LONGEST_PAUSE:
        raise PromptError(f"{where}: a pause lasts {LONGEST_PAUSE:.0f} s at most")
    return seconds


def _visible(text: str) -> str:
    if text.isascii() and not _CONTROL.search(text) and not re.search("[\r\v\f]", text):
        return text
    text = text.replace("\r\n", "\n").translate(_BREAKS)
    text = _CONTROL.sub(" ", _INVISIBLE.sub("", _JOINERS.sub("", _PICTURES.sub("", text))))
    return text


def _joined(match: re.Match[str]) -> str:
    return match[1] + ("-" if match[1].lower() in _KEPT else "")


# SSML and HTML ----------------------------------------------------------------------------------------------


def _without_tags(text: str) -> str:
    for start, end in _HIDDEN:
        text = _without_hidden(text, start, end)
    text = _ALIAS.sub(lambda m: m[1], text)
    return _TAG.sub(_tag, text)


def _without_hidden(text: str, start: re.Pattern[str], end: re.Pattern[str]) -> str:
    kept, at = [], 0
    while found := start.search(text, at):
        closed = end.search(text, found.end())
        if not closed:  # nor for those that follow
            break
        kept.append(text[at : found.start()])
        at = closed.end()
    return "".join([*kept, text[at:]])


def _tag(match: re.Match[str]) -> str:
    closes, name, rest = match[1], match[2].lower(), match[3]
    if len(name) == 1 and rest.strip("/ ") and "=" not in rest:  # "a <b and c> d" compares
        return match[0]
    if name == "break":
        return "" if closes else _break(rest)
    if name in _BLOCKS:
        return "\n" if name == "br" else "\n\n"
    return " " if name in ("td", "th", "option", "button") else ""


def _break(attributes: str) -> str:
    if time := _TIME.search(attributes):
        return f" [pause {time[1].strip()}] "
    strength = _STRENGTH.search(attributes)
    return f" [pause {_STRENGTHS.get(strength[1].lower() if strength else '', DEFAULT_PAUSE)}s] "


# Markdown ---------------------------------------------------------------------------------------------------

_RULE = re.compile(r"[^\S\n]{0,3}(?:(?:-[^\S\n]?){3,}|(?:\*[^\S\n]?){3,}|(?:_[^\S\n]?){3,}|={3,})[^\S\n]*")
_HEADING = re.compile(r"[^\S\n]{0,3}#{1,6}[^\S\n]+(.*?)[^\S\n]*#*[^\S\n]*")
_ITEM = re.compile(
    r"[^\S\n]*(?:[-*+\u2022\u2023\u25e6\u2043\u25aa\u00b7](?:[^\S\n]+\[[ xX]\])?)[^\S\n]+(?=[^\s\d])(.*)"
)
_NUMBERED = re.compile(r"[^\S\n]{0,8}\d{1,2}[.)][^\S\n]+(?=[^\s\d])")
_QUOTE = re.compile(r"^[^\S\n]{0,3}(?:>[^\S\n]?)+(?=[^\s\d>=$£€.+-])")
_TABLE_RULE = re.compile(r"[|\s:-]*-{2,}[|\s:-]*")
_FENCE = re.compile(r"[^\S\n]*(?:`{3,}|~{3,})[^`\n]*")
_LINK = re.compile(r"!?\[([^\[\]\n]{0,500})\]\((?:[^()\s]|\([^()\s]*\)){0,2000}(?:\s+\"[^\"\n]{0,200}\")?\)")
_REFERENCE = re.compile(r"\[\^[\w-]{1,30}\]:?|(?<=\])\[[\w-]{0,60}\]|(?<=[\w.,;:\"')])\[\d{1,3}\]")
_BBCODE = re.compile(r"\[/?(?:b|i|u|s|url|img|quote|code|size|color|list)(?:=[^\[\]\n]{0,200})?\]", re.I)
_AUTOLINK = re.compile(r"<((?:https?://|mailto:)[^<>\s]+)>")
_STRONG = re.compile(r"(?<![\w*])\*{1,3}(?=[^\s*])([^*\n]{1,2000}?)(?<=[^\s*])\*{1,3}(?![\w*])")
_STRONGER = re.compile(r"(\*\*|~~)(?=[^\s*~])([^*~\n]{1,2000}?)(?<=[^\s*~])\1")
_UNDERLINED = re.compile(r"(?<![\w_])_{1,3}(?=[^\s_])([^_\n]{1,2000}?)(?<=[^\s_])_{1,3}(?![\w_])")
_FORMULA = re.compile(
    r"\${1,2}(?=[A-Za-z\\({])([^$\n]{1,400}?[\^_\\=+{][^$\n]{0,400}?)\${1,2}|\\[(\[]([^\n]{1,400}?)\\[)\]]"
)
_COMMAND = re.compile(r"\\(frac|sqrt|times|cdot|pm|leq?|geq?|neq?|approx|infty|[a-zA-Z]{2,20})\b")
_COMMANDS = {
    "sqrt": "\u221a", "times": "\u00d7", "cdot": "\u00d7", "pm": "\u00b1", "le": "\u2264",
    "leq": "\u2264", "ge": "\u2265",
    "geq": "\u2265", "ne": "\u2260", "neq": "\u2260", "approx": "\u2248", "infty": "\u221e",
    "left": "", "right": "",
}  # fmt: skip
_ESCAPE = re.compile(r"\\([\\`*_{}\[\]()#+.!|>~-])")
_MARKDOWN = re.compile(
    r"[*_`~\[\\|#<$\u2022\u2023\u25e6\u2043\u25aa]|^[^\S\n]*(?:[-+=>\u00b7]|\d{1,2}[.)] )", re.M
)


def _without_markdown(text: str) -> str:
    text = "\n".join(_line(line) for line in text.split("\n"))
    if "$" in text or "\\" in text:
        text = _FORMULA.sub(_formula, text)
    for pattern in (_LINK, _AUTOLINK):
        text = pattern.sub(lambda m: m[1], text)
    text = _BBCODE.sub("", _REFERENCE.sub("", text))
    text = _STRONGER.sub(lambda m: m[2], text)
    for pattern in (_STRONG, _UNDERLINED):
        text = pattern.sub(lambda m: m[1], text)
    return _ESCAPE.sub(lambda m: m[1], text.replace("`", "") if text.count("`") > 1 else text)


def _formula(match: re.Match[str]) -> str:
    """TeX between dollars as it is read; fractions and the commonest signs."""
    said = re.sub(r"\\frac\{([^{}]{1,100})\}\{([^{}]{1,100})\}", r"\1 over \2", match[1] or match[2])
    said = _COMMAND.sub(lambda m: f" {_COMMANDS.get(m[1], m[1])} ", said)
    return re.sub(r"\^\{([^{}]{1,20})\}", r"^\1", said).replace("{", " ").replace("}", " ")


def _line(line: str) -> str:
    """A line without what marks it; headings and items stand for themselves, as paragraphs do."""
    if _FENCE.fullmatch(line) or _RULE.fullmatch(line):
        return "" if line.strip() else line
    if "|" in line and _TABLE_RULE.fullmatch(line):
        return ""
    line = _QUOTE.sub("", line)
    if match := _HEADING.fullmatch(line):
        return f"\n{match[1]}\n"
    if match := _ITEM.fullmatch(line):
        return f"\n{match[1]}\n"
    if _NUMBERED.match(line):
        return "\n" + line.replace(")", ".", 1) + "\n"
    if line.count("|") > 1 and line.strip().startswith("|"):
        return "\n" + ", ".join(cell.strip() for cell in line.strip().strip("|").split("|")) + "\n"
    return line
