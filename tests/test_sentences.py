"""Sentences of a text that comes in bits."""

import random

import pytest

from gpa.text.sentences import LONGEST, Sentences

TEXTS = {
    "One. Two! Three? Four": ["One.", "Two!", "Three?", "Four"],
    "Dr. Smith paid $3.50 to J. R. Brown, e.g. at 5 p.m. in May. He left.": [
        "Dr. Smith paid $3.50 to J. R. Brown, e.g. at 5 p.m. in May.",
        "He left.",
    ],
    '"Stop!" he said. (Nobody did.) Then': ['"Stop!"', "he said.", "(Nobody did.)", "Then"],
    "Wait... what?! Yes": ["Wait...", "what?!", "Yes"],
    "A title\n\nA text\nof two lines.\n\n1. First\n2. Second.": [
        "A title",
        "A text\nof two lines.",
        "1. First\n2. Second.",
    ],
    "你好。再见！ok": ["你好。", "再见！", "ok"],
    " \n ... \n\n - - \n": [],
    "In 1999. Then\n12. Twelve. 42": ["In 1999.", "Then\n12. Twelve.", "42"],
    "": [],
}


def cut(text: str, bits: list[str]) -> list[str]:
    assert "".join(bits) == text
    sentences = Sentences()
    return [found for bit in bits for found in sentences.push(bit)] + sentences.finish()


@pytest.mark.parametrize("text", TEXTS)
def test_sentences_do_not_depend_on_how_the_text_came(text: str) -> None:
    draw = random.Random(0)
    assert cut(text, [text]) == TEXTS[text]
    assert cut(text, list(text)) == TEXTS[text]
    for _ in range(20):
        at = sorted(draw.randrange(len(text) + 1) for _ in range(5))
        bits = [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]
        assert cut(text, bits) == TEXTS[text]


def test_a_sentence_comes_with_the_space_after_it() -> None:
    sentences = Sentences()
    assert sentences.push("Good morning.") == []
    assert sentences.push(" ") == ["Good morning."]
    assert sentences.push("It is 3.") == [] and sentences.push("5 now. ") == ["It is 3.5 now."]
    assert len(sentences) == 0 and sentences.finish() == []


def test_nothing_is_lost_and_nothing_grows() -> None:
    draw = random.Random(1)
    for _ in range(50):
        text = "".join(draw.choice("ab c. , ! \n é。9") for _ in range(2000))
        found = cut(text, [text[n : n + 7] for n in range(0, 2000, 7)])
        assert found == cut(text, [text]) and all(len(each) <= LONGEST for each in found)
        letters = [c for c in text if c.isalpha()]
        assert [c for each in found for c in each if c.isalpha()] == letters
    assert [len(each) for each in cut("x" * 1200, ["x" * 1200])] == [LONGEST, LONGEST, 200]
    assert cut("word " * 150 + "end", ["word " * 150 + "end"])[0] == ("word " * 100).strip()
