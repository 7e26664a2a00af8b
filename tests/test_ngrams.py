"""Which word follows which: probabilities that sum to one, files and their faults, models of others."""

import lzma
import math
import struct
from pathlib import Path

import numpy as np
import pytest

from gpa.errors import CheckpointError, UsageError
from gpa.lab import ngram_list as command
from gpa.models.gpa import GPA
from gpa.text import wordlist
from gpa.text.lexicon import END, Lexicon
from gpa.text.ngrams import MOST, NGrams, Wording

LETTERS = "abcdefghijklmnopqrstuvwxyz'" + END
SHARES = {
    "said": {"the": 0.25, "they": 0.125, "to": 0.06},
    "is": {"said": 0.5, "to": 0.5, "a": 0.25},
    "he said": {"they": 0.5},
    "said 'em": {"all": 0.5},  # sorted before "said 2 the"
}


@pytest.fixture(scope="module")
def wording() -> Wording:
    lexicon = Lexicon.of_texts(["the cat said that they are the cats", "he is"])
    return Wording(lexicon, NGrams.of_shares(SHARES, "whose it is"))


@pytest.mark.parametrize("before", ["", "said", "is", "cat", "he said", "she said", "said cat"])
@pytest.mark.parametrize("prefix", ["", "t", "th", "the", "they", "sai", "zz", "a"])
def test_what_follows_sums_to_one(wording: Wording, before: str, prefix: str) -> None:
    total = sum(math.exp(wording.log_prob(before, prefix, letter)) for letter in LETTERS)
    assert math.isclose(total, 1.0, rel_tol=1e-9)


def test_a_whole_word_is_an_interpolation(wording: Wording) -> None:
    """The product of its letters is the share of the n-gram, plus what is left times a shorter one's."""

    def whole(before: str, word: str) -> float:
        return math.exp(sum(wording.log_prob(before, word[:i], c) for i, c in enumerate(word + END)))

    followers = wording.ngrams.after("said")
    assert followers == {"the": 0.25, "they": 0.125, "to": 0.0625}
    rest = 1 - sum(followers.values())
    for word in ("the", "they", "to", "cat", "zebra"):
        expected = followers.get(word, 0.0) + rest * whole("", word)
        assert whole("said", word) == pytest.approx(expected, rel=1e-9)
        assert whole("unknown", word) == pytest.approx(whole("", word), rel=1e-9)
        longer = 0.5 * (word == "they") + 0.5 * whole("said", word)
        assert whole("he said", word) == pytest.approx(longer, rel=1e-9)
        assert whole("she said", word) == pytest.approx(whole("said", word), rel=1e-9)


def test_absurdly_long_words_are_finite() -> None:
    long = "t" * 3000
    wording = Wording(Lexicon.of_texts(["the cat"]), NGrams.of_shares({"said": {long: 0.5}}))
    assert math.isfinite(wording.log_prob("said", long[:2500], "t"))
    assert wording.log_prob("said", long[:2500], "t") > wording.log_prob("", long[:2500], "t")
    assert math.isfinite(wording.log_prob("said", long * 2, "t"))


def test_something_is_left_to_words_never_seen(wording: Wording) -> None:
    assert sum(wording.ngrams.after("is").values()) == pytest.approx(MOST)


def test_files_come_back(tmp_path: Path) -> None:
    made = NGrams.of_shares(SHARES, "whose it is\n\nand how")
    path = tmp_path / "ngrams.txt.xz"
    path.write_bytes(made.content())
    again = NGrams.read(path)
    assert (again.lines, again.notice) == (made.lines, made.notice)
    assert again.content() == made.content()
    assert again.lines == ["he said 1 they", "is 1 said to 2 a", "said 'em 1 all", "said 2 the 3 they 4 to"]
    assert not NGrams.parse(NGrams().content(), "none") and not NGrams.of_shares({"rare": {}})
    assert again.after("said") and not any(map(again.after, ("he", "sai", "said 2", "she said", "z")))


@pytest.mark.parametrize(
    "line",
    [
        "said",
        "said the 3",
        "Said 3 the",
        "3 the",
        "said -3 the",
        "",
        "said \u00b2 the",
        "said 3the",
        "said 3",
        "said 3 the 4444 to",
        "so he said 3 the",
        "he  said 3 the",
    ],
)
def test_other_lines_are_refused(line: str) -> None:
    with pytest.raises(CheckpointError, match="mine, line 2"):
        NGrams.parse(wordlist.pack(["a 3 b", line]), "mine")


@pytest.mark.parametrize("content", [b"", b"said 3 the", lzma.compress(b"\xff\xfe")])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError, match="no compressed list of words"):
        NGrams.read(tmp_path / "x")
    with pytest.raises(CheckpointError, match="No such file"):
        NGrams.read(tmp_path / "y")


ARPA = """\\data\\
ngram 1=5

\\1-grams:
-0.60206 said -0.5
-0.60206 the -0.5
-0.60206 he -0.5
-1 <s> -0.5
-3 Rare
-4 RARE
-99 never

\\2-grams:
-0.1 said the -0.2
-2.5 said rare
-0.7 <s> he -0.2
-0.30103 he said -0.2
-0.60206 the said

\\3-grams:
-0.04576 he said the
-3 he said rare

\\4-grams:
-0.5 the he said the

\\end\\
"""


def trie(shares: command.Shares) -> bytes:
    """PocketSphinx's format, every probability in a bin of its own.

    That it is theirs was checked once: all n-grams behind 400 contexts of their file, as the reader of these
    bytes finds them, have the probabilities that pocketsphinx 5.1.1 says.
    """
    words = sorted({word for before, after in shares.items() for word in (*before.split(), *after)})
    ngrams = sorted(
        ([words.index(word) for word in (last, *reversed(before.split()))], share)
        for before, after in shares.items()
        for last, share in after.items()
    )
    by_order = [[each for each in ngrams if len(each[0]) == n] for n in (1, 2, 3)]
    counts = [len(words), *map(len, by_order[1:])]
    logs = [[math.log(share) / math.log(1.0001) for _, share in each] for each in by_order]
    tables = np.zeros((3, 1 << 16), "<f4")
    tables[0, : counts[1]], tables[2, : counts[2]] = logs[1], logs[2]

    def packed(rows: list[list[int]], widths: list[int]) -> bytes:
        whole, at = 0, 0
        for row in rows:
            for value, width in zip(row, widths, strict=True):
                whole, at = whole | value << at, at + width
        return whole.to_bytes(((1 + len(rows)) * sum(widths) + 7) // 8 + 8, "little")

    def begin(order: int, path: list[int]) -> int:
        """Where those of an order that a path ends begin."""
        return sum(each[: len(path)] < path for each, _ in by_order[order])

    word, first = counts[0].bit_length(), counts[2].bit_length()
    alone = {path[0]: log for (path, _), log in zip(by_order[0], logs[0], strict=True)}
    unigrams = [struct.pack("<2fI", alone.get(n, -9e5), 0, begin(1, [n])) for n in range(len(words) + 1)]
    pairs = [[path[1], 0, n, begin(2, path)] for n, (path, _) in enumerate(by_order[1])]
    pairs.append([0, 0, 0, counts[2]])
    triples = [[path[2], n] for n, (path, _) in enumerate(by_order[2])]
    strings = "".join(f"{each}\0" for each in words).encode()
    return b"".join(
        (
            b"Trie Language Model",
            struct.pack("<B3Ii", 3, *counts, 1),
            tables.tobytes(),
            *unigrams,
            packed(pairs, [word, 16, 16, first])[: ((1 + counts[1]) * (word + 32 + first) + 7) // 8 + 8],
            packed(triples, [word, 16]),
            struct.pack("<i", len(strings)),
            strings,
        )
    )


def test_both_formats_of_a_model_are_read(tmp_path: Path) -> None:
    """What is no word is left out, words are lower-case, and of four words nothing is read."""
    (tmp_path / "arpa").write_text(ARPA)
    shares = command.read(tmp_path / "arpa")
    assert set(shares) == {"", "said", "he", "the", "he said"}
    assert shares["he said"] == pytest.approx({"the": 0.9, "rare": 0.001}, rel=1e-4)
    assert shares[""]["rare"] == pytest.approx(0.001)
    assert not {"<s>", "the he said"} & set(shares[""])
    (tmp_path / "trie").write_bytes(trie(shares))
    again = command.read(tmp_path / "trie")
    assert set(again) == set(shares)
    assert all(again[before] == pytest.approx(after, rel=1e-3) for before, after in shares.items())


def test_what_shorter_ngrams_tell_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "arpa").write_text(ARPA)
    (tmp_path / "licence").write_text("yours")
    told = [str(tmp_path / "arpa"), "--licence", str(tmp_path / "licence"), "-o", str(tmp_path / "out")]
    command.main(told)
    assert capsys.readouterr().out == "4 n-grams behind 3 words or pairs\n"
    made = NGrams.read(tmp_path / "out")
    assert made.lines == ["he 1 said", "he said 0 the", "said 0 the 8 rare"]  # the rest is no news
    assert made.notice.endswith("yours")
    with pytest.raises(UsageError, match="no n-gram of it tells more than 9"):
        command.main([*told, "--least", "9"])
    command.main([*told, "--least", "0.05"])
    assert NGrams.read(tmp_path / "out").lines == ["he 1 said", "said 0 the"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\\1-grams:\n-1 the\n\\end\\\n", "no n-grams of two words"),
        (b"\\2-grams:\nmany the cat\n\\end\\\n", "neither an ARPA model nor PocketSphinx's"),
        (b"\\2-grams:\n-1 cat\n\\end\\\n", "is no n-gram of 2 words"),
        (b"\\2-grams:\n2 the cat\n\\end\\\n", "a probability of 100"),
        (b"\\2-grams:\nnan the cat\n\\end\\\n", "a probability of nan"),
        (b"\\2-grams:\n400 the cat\n\\end\\\n", "neither an ARPA model nor PocketSphinx's"),
        (b"\\2-grams:\n-1 the cat\n", "does not end as such a file does"),
        (b"Trie Language Model\3abc", "neither an ARPA model nor PocketSphinx's"),
        (b"Trie Language Model" + struct.pack("<B3Ii", 2, 1, 1, 1, 1), "2 words to an n-gram, not 3"),
        (b"\xff\xfe", "neither an ARPA model nor PocketSphinx's"),
    ],
)
def test_other_models_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        command.read(tmp_path / "model")
    with pytest.raises(UsageError, match="No such file"):
        command.read(tmp_path / "absent")


def asked(model: GPA, words: list[str]) -> Wording:
    """What recognition searches by."""
    return model.processor.search(2, words).prior.wording  # type: ignore[union-attr]


def test_a_checkpoint_carries_them(tiny: Path, tmp_path: Path) -> None:
    model = GPA.from_pretrained(tiny, device="cpu")
    assert not model.processor.ngrams and model.info()["ngrams"] == 0
    (tmp_path / "pairs").write_bytes(NGrams.of_shares(SHARES).content())
    with pytest.raises(CheckpointError, match=r"words\.txt: it is needed"):
        model.processor.take_ngrams(tmp_path / "pairs")
    (tmp_path / "words").write_text("the 3\nhe 1\n")
    model.processor.take_words(tmp_path / "words")
    for words in ([], ["Quillan"]):
        assert not asked(model, words).ngrams
    model.processor.take_ngrams(tmp_path / "pairs")
    for words in ([], ["Quillan"]):
        assert asked(model, words).ngrams.after("said")["the"] == 0.25
    model.save_pretrained(tmp_path / "out")
    again = GPA.from_pretrained(tmp_path / "out", device="cpu")
    assert again.info()["ngrams"] == 4 and again.processor.ngrams.after("said")["the"] == 0.25
    (tmp_path / "out" / "ngrams.txt.xz").rename(tmp_path / "out" / "bigrams.txt.xz")  # as it once was
    assert GPA.from_pretrained(tmp_path / "out", device="cpu").info()["ngrams"] == 4
    (tmp_path / "broken").write_bytes(b"said 3 the")
    with pytest.raises(CheckpointError, match="no compressed list of words"):
        model.processor.take_ngrams(tmp_path / "broken")
