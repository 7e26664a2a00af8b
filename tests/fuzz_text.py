"""Random text: Unicode of all planes, markup, numbers, and joins of all of these."""

import time

import numpy as np

from gpa.errors import PromptError
from gpa.models.gpa.segmentation_gpa import passages, with_rests
from gpa.text.markup import LONGEST_PAUSE, pauses, without_markup
from gpa.text.normaliser import normalise_text
from gpa.text.scripts import Sayable

SEGMENTS = (
    "hello world|Mr. Smith|the GPU|World War II|King Henry VIII|e.g. this|U.S.A.|St. Paul|"
    "3 Jan 2020|3/4/2025|31.12.2024|"
    "2024-01-31|(555) 867-5309|+44 20 7946 0958|$5M|€20|1.234,56 €|-$5|5 kg|60km/h|20°C|5'10\"|10³|"
    "x²|3×4|5 > 3|±5|24/7|"
    "10:30pm|10am|.5|1/2|2½|1,000,000|1 000 000|https://example.com/a?b=c#d|a.b@c.org|file.tar.gz|"
    "<speak>|</speak>|"
    "<break time='300ms'/>|[pause 0.5s]|[pause]|<p>|</p>|<b>|<!--|-->|<script>|</script>|&amp;|"
    "&#x2764;|&nbsp;|# Heading|"
    "- item|1. item|**bold**|_it_|`code`|```|| a | b |||---||[text](url)|[^1]|> quote|❤️|1️⃣|👨‍👩‍👧|"
    "\u200b|\u00ad|\u202e|\ufeff|ex-\n|"
    "你好|привет|العربية|हिन्दी|é|ß|ﬁ|Ⅷ|①|µm|\n|\n\n|\r\n|\t|\u2028|.|,|?!|...|'|\"|(|)|[|]|{|}|<|>|&|"
    "$|£|%|^|*|/|\\|-|–|—|~|="
).split("|")  # fmt: skip
BAD = "[pause soon]|[pause -1s]|[pause 90s]|<break time='1 hour'/>|[silence: 3 days]".split("|")
SAID = frozenset("abcdefghijklmnopqrstuvwxyz .,?!;:'-")
SLOWEST = 1.0  # seconds for 2,000 characters, which take some milliseconds; quadratic work takes longer


def trial(random: np.random.Generator, _: object) -> bool:
    """A text is planned: nothing but what can be said, the same when said again, pauses as asked for."""
    text = _text(random)
    begun = time.perf_counter()
    once = normalise_text(text)
    assert time.perf_counter() - begun < SLOWEST, f"slow: {text[:80]!r}"
    assert normalise_text(once) == once, f"not idempotent: {text!r} -> {once!r} -> {normalise_text(once)!r}"
    assert not [c for c in once if c not in SAID and not c.isalpha() and c.isascii()], once
    plain = without_markup(text)
    sayable = Sayable(normalise_text, frozenset())
    texts, rests = pauses(plain)  # PromptError for a pause that is none
    assert all(0 <= rest <= LONGEST_PAUSE for rest in rests)
    plan = list(with_rests(texts, rests, lambda part: passages(part, 200, sayable)))
    sayable.warn()
    said = "".join(passage.text for passage in plan)
    assert set(said) <= SAID, sorted(set(said) - SAID)
    silence = sum(passage.before or 0.0 for passage in plan) + sum(passage.after for passage in plan)
    assert not plan or abs(silence - sum(rests)) < 1e-6
    if not plan:
        raise PromptError(f"nothing to say in {text!r}{sayable.reason()}")
    return True


def _text(random: np.random.Generator) -> str:
    kind = random.integers(5)
    if kind == 0:  # any characters
        points = random.integers(0, 0x10FFFF, random.integers(1, 60))
        return "".join(map(chr, points))
    if kind == 1:  # one thing, many times
        return str(random.choice(SEGMENTS)) * int(2000 // random.integers(4, 40))
    found = [str(each) for each in random.choice(SEGMENTS, random.integers(1, 25))]
    if kind == 2:
        found.insert(int(random.integers(len(found) + 1)), str(random.choice(BAD)))
    if kind == 3:  # characters of them, at random
        return "".join(random.permutation(list("".join(found))))
    return str(random.choice(["", " ", "\n"])).join(found)
