"""Which word follows which: probabilities that sum to one, files and their faults, counts of two corpora."""

import lzma
import math
import re
from pathlib import Path

import pytest

from gpa.errors import CheckpointError, UsageError
from gpa.lab import bigram_list as command
from gpa.models.gpa import GPA
from gpa.text import wordlist
from gpa.text.bigrams import MOST, Bigrams, Wording
from gpa.text.lexicon import END, Lexicon

LETTERS = "abcdefghijklmnopqrstuvwxyz'" + END
SHARES = {"said": {"the": 0.25, "they": 0.125, "to": 0.06}, "is": {"said": 0.5, "to": 0.5, "a": 0.25}}


@pytest.fixture(scope="module")
def wording() -> Wording:
    lexicon = Lexicon.of_texts(["the cat said that they are the cats", "he is"])
    return Wording(lexicon, Bigrams.of_shares(SHARES, "whose it is"))


@pytest.mark.parametrize("before", ["", "said", "is", "cat"])
@pytest.mark.parametrize("prefix", ["", "t", "th", "the", "they", "sai", "zz", "a"])
def test_what_follows_sums_to_one(wording: Wording, before: str, prefix: str) -> None:
    total = sum(math.exp(wording.log_prob(before, prefix, letter)) for letter in LETTERS)
    assert math.isclose(total, 1.0, rel_tol=1e-9)


def test_a_whole_word_is_an_interpolation(wording: Wording) -> None:
    """The product of its letters is the share of the pair, plus what is left times the lexicon's."""

    def whole(before: str, word: str) -> float:
        return math.exp(sum(wording.log_prob(before, word[:i], c) for i, c in enumerate(word + END)))

    followers = wording.bigrams.after("said")
    assert followers == {"the": 0.25, "they": 0.125, "to": 0.0625}
    rest = 1 - sum(followers.values())
    for word in ("the", "they", "to", "cat", "zebra"):
        expected = followers.get(word, 0.0) + rest * whole("", word)
        assert whole("said", word) == pytest.approx(expected, rel=1e-9)
        assert whole("unknown", word) == pytest.approx(whole("", word), rel=1e-9)


def test_absurdly_long_words_are_finite() -> None:
    long = "t" * 3000
    wording = Wording(Lexicon.of_texts(["the cat"]), Bigrams.of_shares({"said": {long: 0.5}}))
    assert math.isfinite(wording.log_prob("said", long[:2500], "t"))
    assert wording.log_prob("said", long[:2500], "t") > wording.log_prob("", long[:2500], "t")
    assert math.isfinite(wording.log_prob("said", long * 2, "t"))


def test_something_is_left_to_words_never_seen(wording: Wording) -> None:
    assert sum(wording.bigrams.after("is").values()) == pytest.approx(MOST)


def test_files_come_back(tmp_path: Path) -> None:
    made = Bigrams.of_shares(SHARES, "whose it is\n\nand how")
    path = tmp_path / "bigrams.txt.xz"
    path.write_bytes(made.content())
    again = Bigrams.read(path)
    assert (again.lines, again.notice) == (made.lines, made.notice)
    assert again.content() == made.content()
    assert again.lines["said"] == "2 the 3 they 4 to"
    assert not Bigrams.parse(Bigrams({}).content(), "none")
    assert "rare" not in Bigrams.of_shares({"rare": {}}).lines


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
    ],
)
def test_other_lines_are_refused(line: str) -> None:
    with pytest.raises(CheckpointError, match="mine, line 2"):
        Bigrams.parse(wordlist.pack(["a 3 b", line]), "mine")


@pytest.mark.parametrize("content", [b"", b"said 3 the", lzma.compress(b"\xff\xfe")])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError, match="no compressed list of words"):
        Bigrams.read(tmp_path / "x")
    with pytest.raises(CheckpointError, match="No such file"):
        Bigrams.read(tmp_path / "y")


def test_counts_of_two_corpora(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Pairs counted in ten times as much text: after "accordance" comes nothing but "with"."""
    (tmp_path / "pairs").write_text(
        "accordance with 1000\nsaid the 2000\nsaid he 500\nsaid no 0\n\u00e9t\u00e9 a 5\nq z 9\n"
    )
    (tmp_path / "words").write_text("\ufeffaccordance 100\nsaid 800\nthe 9000\nq 0\n", encoding="utf-8")
    (tmp_path / "licence").write_text("yours")
    out = tmp_path / "out"
    told = ["--words", str(tmp_path / "words"), "--licence", str(tmp_path / "licence"), "-o", str(out)]
    command.main([str(tmp_path / "pairs"), *told])
    assert capsys.readouterr().out == "3 pairs of 2 words\n"
    made = Bigrams.read(out)
    assert made.lines == {"accordance": "0 with", "said": "2 the 4 he"} and made.notice.endswith("yours")
    for bad in ("said the", "said the many", "said 5"):
        (tmp_path / "pairs").write_text(bad + "\n")
        with pytest.raises(UsageError, match=re.escape("2 word(s) and a count")):
            command.main([str(tmp_path / "pairs"), *told])
    (tmp_path / "pairs").write_text("other pair 5\n")
    with pytest.raises(UsageError, match="none of the pairs"):
        command.main([str(tmp_path / "pairs"), *told])
    with pytest.raises(UsageError, match="No such file"):
        command.main([str(tmp_path / "absent"), *told])


def asked(model: GPA, words: list[str]) -> Wording:
    """What recognition searches by."""
    return model.processor.search(2, words).prior.wording  # type: ignore[union-attr]


def test_a_checkpoint_carries_them(tiny: Path, tmp_path: Path) -> None:
    model = GPA.from_pretrained(tiny, device="cpu")
    assert not model.processor.bigrams and model.info()["bigrams"] == 0
    (tmp_path / "pairs").write_bytes(Bigrams.of_shares(SHARES).content())
    with pytest.raises(CheckpointError, match=r"words\.txt: it is needed"):
        model.processor.take_bigrams(tmp_path / "pairs")
    (tmp_path / "words").write_text("the 3\nhe 1\n")
    model.processor.take_words(tmp_path / "words")
    for words in ([], ["Quillan"]):
        assert not asked(model, words).bigrams
    model.processor.take_bigrams(tmp_path / "pairs")
    for words in ([], ["Quillan"]):
        assert asked(model, words).bigrams.after("said")["the"] == 0.25
    model.save_pretrained(tmp_path / "out")
    again = GPA.from_pretrained(tmp_path / "out", device="cpu")
    assert again.info()["bigrams"] == 2 and again.processor.bigrams.after("said")["the"] == 0.25
    (tmp_path / "broken").write_bytes(b"said 3 the")
    with pytest.raises(CheckpointError, match="no compressed list of words"):
        model.processor.take_bigrams(tmp_path / "broken")
