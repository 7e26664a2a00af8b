"""Pronunciations: the dictionary's file, texts of sounds and where they come from, alignments of them."""

import lzma
import re
from pathlib import Path

import numpy as np
import pytest

from conftest import speechlike
from gpa.data.alignment import piece_spans, respelt_letters
from gpa.errors import CheckpointError, PromptError, UsageError
from gpa.lab import pronunciation_list as pronunciations
from gpa.models.gpa import GPA
from gpa.prompt.formats import InstructFormat
from gpa.text import wordlist
from gpa.text.letters import letters_of
from gpa.text.normaliser import normalise_text
from gpa.text.pronunciations import SYMBOLS, Pronunciations, Verbatim, of_cmudict, symbols

CMUDICT = """\
stupid S T UW1 P AH0 D
alice AE1 L AH0 S
bus B AH1 S
cat K AE1 T
cat's K AE1 T S
read R EH1 D
read(2) R IY1 D
use Y UW1 S
use(2) Y UW1 Z
family F AE1 M AH0 L IY0
family(2) F AE1 M L IY0 # quick
a.m. EY2 EH1 M
"""


@pytest.fixture(scope="module")
def dictionary() -> Pronunciations:
    return of_cmudict(CMUDICT.splitlines())


def test_symbols_are_one_character_each_and_never_of_normalised_text() -> None:
    assert len(set(SYMBOLS.values())) == len(SYMBOLS) == 40
    for symbol in SYMBOLS.values():
        assert symbol.isascii() and symbol.isprintable() and symbol not in normalise_text(f"a {symbol} b")
    assert symbols("T AH0 M EY1 T OW0") == 'T@M"2T4' and symbols("K AE1 T") == "K&T"


@pytest.mark.parametrize("phones", ["K A T", "K1 AE1 T", "K AE T", "k ae1 t", "K AE3 T"])
def test_other_phones_are_refused(phones: str) -> None:
    with pytest.raises(UsageError, match="phone"):
        symbols(phones)


def test_words_whose_sound_depends_on_what_is_meant_stay_out(dictionary: Pronunciations) -> None:
    assert sorted(dictionary.phones) == ["alice", "bus", "cat", "family", "stupid"]
    assert dictionary.phones["family"] == "F AE1 M AH0 L IY0"


@pytest.mark.parametrize(
    ("word", "phones"),
    [
        ("alice's", "AE1 L AH0 S IH0 Z"),
        ("cat's", "K AE1 T S"),
        ("stupid's", "S T UW1 P AH0 D Z"),
        ("'cat'", "K AE1 T"),
    ],
)
def test_what_is_somebodys_is_derived(dictionary: Pronunciations, word: str, phones: str) -> None:
    assert dictionary.sounds(word) == symbols(phones)
    assert dictionary.sounds("dog's") is None and dictionary.sounds("'") is None


def test_every_character_knows_its_origin(dictionary: Pronunciations) -> None:
    text = "read, alice's stupid cat - dogs!"
    found = dictionary.respelt(text)
    assert found.text == 'read, "&L@S1Z ST"UP@D K&T - dogs!' and isinstance(found.text, Verbatim)
    assert len(found.origins) == len(found.text) and found.origins == sorted(found.origins)
    assert [text[at] for c, at in zip(*found, strict=True) if c in ",- !"] == list(",    - !")
    assert dictionary.respelt(text, lambda word: word == "cat").text.endswith("cat - dogs!")
    assert dictionary.respelt("") == ("", [])


def test_files_come_back(dictionary: Pronunciations, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "cmudict.dict").write_text(CMUDICT)
    (tmp_path / "LICENSE").write_text("Copyright (C) 1993\n\nRedistribution ...")
    made, licence = tmp_path / "said.txt.xz", ["--licence", str(tmp_path / "LICENSE")]
    pronunciations.main([str(tmp_path / "cmudict.dict"), *licence, "-o", str(made)])
    assert capsys.readouterr().out == "5 words\n"
    assert Pronunciations.read(made).phones == dictionary.phones
    assert Pronunciations.read(made).notice == "Copyright (C) 1993\n\nRedistribution ..."
    assert made.read_bytes() == Pronunciations.read(made).content() != dictionary.content()
    assert b"stupid S T UW1 P AH0 D\n" in lzma.decompress(made.read_bytes())
    for content in (b"stupid S T", lzma.compress(b"\xff\xfe")):
        with pytest.raises(CheckpointError, match=r"said.*no compressed list of words"):
            Pronunciations.parse(content, "said")
    for line in ("stupid", "stupid S D Q", "Stupid S T", "said 3 the"):
        with pytest.raises(CheckpointError, match="a word and its phones"):
            Pronunciations.parse(wordlist.pack([line]), "said")
    with pytest.raises(CheckpointError, match="No such file"):
        Pronunciations.read(tmp_path / "none")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(UsageError, match="no words"):
        pronunciations.main([str(tmp_path / "empty"), *licence, "-o", str(made)])


def test_alignments_follow(dictionary: Pronunciations) -> None:
    """A sound begins with the letter that stands at its share of the word; spelt words as they were."""
    text = "the cat, stupid!"
    letters = letters_of(text)
    first = list(range(0, 2 * len(letters), 2))
    found = dictionary.respelt(text)
    said, frames = respelt_letters(text, found, first)
    assert said == 'the K&T ST"UP@D'
    pieces = [f"<0x{ord(c):02X}>" if c in '&"@' else c for c in "\u2581".join(found.text.split(" "))]
    spans = piece_spans(pieces, said, frames, 40)
    begins = {piece: int(begin) for piece, (begin, _) in zip(pieces, spans, strict=True)}
    assert begins["K"] == 8 and begins["<0x26>"] == 10 and begins["h"] == 2
    assert spans[-1].tolist() == [38, 40] and (np.diff(spans[:, 0]) >= 0).all()
    assert respelt_letters(text, Pronunciations({}).respelt(text), first) == (letters, first)


# A model ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tiny: Path, tmp_path_factory: pytest.TempPathFactory, dictionary: Pronunciations) -> GPA:
    """The tiny checkpoint with a dictionary, saved and loaded."""
    folder = tmp_path_factory.mktemp("said")
    (folder / "said").write_bytes(dictionary.content())
    plain = GPA.from_pretrained(tiny, device="cpu")
    assert not plain.processor.pronunciations and plain.info()["pronunciations"] == 0
    plain.processor.take_pronunciations(folder / "said")
    return GPA.from_pretrained(plain.save_pretrained(folder / "model"), device="cpu")


def test_speech_is_asked_for_by_sound(model: GPA) -> None:
    assert model.info()["pronunciations"] == 5
    ids = model.prompt("tts", text="The Cat, please.", voice="anna")
    said = model.format.parse(ids)
    assert isinstance(model.format, InstructFormat) and said.text == "the K&T, please."
    first = model.tts("the cat", voice="anna", max_new_tokens=8)
    other = model.tts("the cat", voice="anna", max_new_tokens=8, pronunciations={"Cat": "D AO1 G"})
    same = model.tts("the cat", voice="anna", max_new_tokens=8, pronunciations={"cat": "K AE1 T"})
    assert first.tokens.tolist() == same.tokens.tolist() != other.tokens.tolist()


def test_long_sounds_are_parts_too(model: GPA) -> None:
    """A text is cut so that what it sounds like fits, be it by the call's own pronunciations."""
    voice, long = model.resolve_voice("anna").codes, {"cat": " ".join(["K AE1 T"] * 25)}
    text = " ".join(["cat"] * 12)
    known = model.processor.dictionary(long)
    parts = [passage.text for passage in model.processor.passages(text, voice, known)]
    assert len(parts) > len(list(model.processor.passages(text, voice))) and " ".join(parts) == text
    for part in parts:
        said = model.processor.pronounced(part, known)
        ids = model.prompt("tts", text=said, voice="anna")
        assert len(ids) + model.processor.spoken_ids(part)[1] <= model.processor.context


def test_pronunciations_that_are_none_are_refused(model: GPA, tiny: Path) -> None:
    for word, phones in (("cat", "miau"), ("two words", "K AE1 T"), ("cat", ""), ("", "K"), ("cat", ["K"])):
        with pytest.raises(UsageError, match=re.compile("phone|pronunciations")):
            model.tts("the cat", voice="anna", pronunciations={word: phones})  # type: ignore[dict-item]
    with pytest.raises(UsageError, match="has no pronunciations"):
        GPA.from_pretrained(tiny, device="cpu").tts("hi", voice="anna", pronunciations={"hi": "HH AY1"})
    with pytest.raises(PromptError):
        model.tts("  ", voice="anna", pronunciations={"cat": "K AE1 T"})


def test_a_conversions_transcript_is_given_by_sound(model: GPA, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    build = model.format.build
    monkeypatch.setattr(
        model.format,
        "build",
        lambda task, **given: (asked.append(given.get("text")), build(task, **given))[1],
    )
    model.vc((speechlike(1.2), 16_000), voice="anna", transcript="The cat", max_new_tokens=4)
    assert "the K&T" in asked
