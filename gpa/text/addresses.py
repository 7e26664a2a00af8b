"""Addresses of the web, of mail and of files to words: a point is a dot, and no sentence ends inside."""

from __future__ import annotations

import re

_SAID = {
    ".": "dot", "/": "slash", "\\": "backslash", "-": "dash", "_": "underscore", "@": "at", ":": "colon",
    "?": "question mark", "=": "equals", "&": "and", "#": "hash", "%": "percent", "~": "tilde", "+": "plus",
}  # fmt: skip
# Ends of names that no English sentence begins with: "it", "in", "me", "to" and their like need a scheme.
_DOMAINS = (
    "com org net edu gov mil info biz dev app xyz online site shop tech blog cloud io ai co uk de fr es "
    "eu ca au "
    "jp cn ru br nl se ch tv gg ly fm pl"
).split()
_SPELT = {*(name for name in _DOMAINS if len(name) == 2), "biz"} - {"co", "biz"}
_FILES = (
    "pdf txt py js ts css html htm xml json yaml yml csv tsv jpg jpeg png gif svg zip tar gz exe doc docx "
    "xls xlsx "
    "ppt pptx md mp3 mp4 wav flac ogg avi mov sh cpp rs go java ini cfg log toml"
).split()
_TAIL = r"[^\s<>\"\u3000-\u9fff]{0,2000}"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_WEB = re.compile(rf"(?<![A-Za-z0-9])(?i:(?:https?|ftp)://|mailto:|www\.(?=\w)){_TAIL}")
_MAIL = re.compile(rf"(?<![\w.+-])[\w.+-]{{1,64}}@{_LABEL}(?:\.{_LABEL}){{1,8}}")
_BARE = re.compile(
    rf"(?<![\w.@/-])(?:{_LABEL}\.){{1,8}}(?:{'|'.join(_DOMAINS)})(?![\w@]|\.[A-Za-z])(?::\d{{1,5}})?(?:[/"
    rf"?#]{_TAIL})?"
    rf"|(?<![\w.@/-])(?:{_LABEL}\.){{1,8}}[a-z]{{2,6}}/{_TAIL}"
)
_FILE = re.compile(
    rf"(?<![\w.])[\w/~-]{{1,64}}(?:\.[\w-]{{1,20}}){{0,2}}\.(?:{'|'.join(_FILES)})(?![\w.]\w|\w)"
)
_SCHEME = re.compile(r"(?i)^(?:(?:https?|ftp)://|mailto:)")
_PART = re.compile(r"[A-Za-z]+|\d+|[^\sA-Za-z\d]")


def spell_addresses(text: str) -> str:
    """A text with what can be visited, written to or opened in words."""
    if "." not in text and "://" not in text and "@" not in text:
        return text
    for pattern in (_WEB, _MAIL, _BARE, _FILE):
        text = pattern.sub(_spell, text)
    return text


def _spell(match: re.Match[str]) -> str:
    address = match[0].rstrip(".,;:!?\"'*_")
    while address.endswith((")", "]")) and address.count("(") < address.count(")") + address.count("]"):
        address = address[:-1].rstrip(".,;:!?'\"")
    left = match[0][len(address) :]
    bare = _SCHEME.sub("", address).rstrip("/")
    parts, words = _PART.findall(bare), []
    host = len(_PART.findall(re.split(r"[/?#]", bare, maxsplit=1)[0]))
    for n, part in enumerate(parts):
        word = _SAID.get(part, part.lower() if part.isalnum() else "")
        last = n > 0 and parts[n - 1] == "." and n < host and (n + 1 == host or parts[n + 1] in ":.")
        words.append(" ".join(word) if word == "www" or (last and word in _SPELT) else word)
    return " ".join(filter(None, words)) + left
