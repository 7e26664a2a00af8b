"""Clips cut where their reader pauses: every piece is a stretch of its clip, words and ids alike."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpa.errors import CheckpointError, UsageError
from gpa.lab import segments
from gpa.text.letters import letters_of
from training import read_rows, write_rows

TEXT = "He came in, well-known -- and sat down."  # the dashes spell nothing, the hyphen two words


def row_of(text: str = TEXT, pause: int = 12, **more: Any) -> dict[str, Any]:
    """A clip with three ids a letter and a pause after "in," and after "--"."""
    words, first, at = letters_of(text).split(), [], 2
    for n, word in enumerate(words):
        first += [at + 3 * k for k in range(len(word))]
        at = first[-1] + 3
        if n + 1 < len(words):
            first.append(at)
            at += pause if word in ("in", "known") else 0
    n_ids = at + 5
    row = {"id": "a", "split": "train", "speaker": "s", "text": text, "global": [1, 2], "letters": first}
    row["seconds"] = n_ids / 25
    return {**row, "semantic": list(range(n_ids)), "copies": [list(range(1000, 1000 + n_ids))], **more}


def test_cuts_lie_in_the_pauses() -> None:
    row = row_of()
    cuts = segments.pauses(row["text"], row["letters"], len(row["semantic"]))
    assert [words for words, _ in cuts] == [0, 3, 4, 8]  # the dashes belong to what follows
    letters = letters_of(TEXT)
    for (_, at), after in zip(cuts[1:-1], ("he came in", "he came in well known"), strict=True):
        assert letters.startswith(after + " ")
        last, following = row["letters"][len(after) - 1], row["letters"][len(after) + 1]
        assert following - last >= segments.PAUSE and last < at < following
    hurried = row_of(pause=0)
    assert len(segments.pauses(TEXT, hurried["letters"], len(hurried["semantic"]))) == 2


def test_a_piece_is_a_stretch_of_its_clip() -> None:
    row = row_of()
    made = list(segments.segments(row, np.random.default_rng(0), 1, 1000, 100))
    parts = ["He came in,", "well-known", "-- and sat down."]
    assert sorted(p["text"] for p in made) == sorted([*parts, " ".join(parts[:2]), " ".join(parts[1:])])
    for piece in made:
        begin = piece["semantic"][0]
        assert piece["semantic"] == row["semantic"][begin : begin + len(piece["semantic"])]
        assert piece["copies"] == [[1000 + i for i in piece["semantic"]]]
        spelled, whole = letters_of(piece["text"]), letters_of(TEXT)
        at = whole.index(spelled)
        assert piece["letters"] == [t - begin for t in row["letters"][at : at + len(spelled)]]
        assert min(piece["letters"]) >= 0 and max(piece["letters"]) < len(piece["semantic"])
        assert (piece["speaker"], piece["global"], piece["split"]) == ("s", [1, 2], "train")
    assert len({piece["id"] for piece in made} | {"a"}) == len(made) + 1


def test_a_silence_goes_with_its_stretch() -> None:
    """Counted from the segment's start where it lies inside; none where a cut goes through it."""
    row = row_of()
    (_, at), (_, then) = segments.pauses(row["text"], row["letters"], len(row["semantic"]))[1:3]
    for silence, left in (([at - 2, at + 2], None), ([at + 3, then - 1], [3, then - 1 - at])):
        made = segments.segments({**row, "silence": silence}, np.random.default_rng(0), 1, 1000, 100)
        found = {piece["text"]: piece["silence"] for piece in made}
        assert found["well-known"] == (left or [])
        assert found["He came in, well-known"] == silence
        assert found["-- and sat down."] == []


def test_bounds_of_pieces() -> None:
    row = row_of()
    assert not list(segments.segments(row, np.random.default_rng(0), 1000, 2000, 9))
    few = list(segments.segments(row, np.random.default_rng(0), 1, 60, 2))
    assert len(few) == 2 and all(len(piece["semantic"]) <= 60 for piece in few)
    again = list(segments.segments(row, np.random.default_rng(0), 1, 60, 2))
    assert few == again


def test_a_folder_with_pieces(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, out = tmp_path / "tokens", tmp_path / "out"
    silent = {**row_of(), "text": "", "split": "train-notext", "letters": []}
    at_once = row_of(silence=[2, 5])
    at_once["letters"][0] = 0  # stored ids have one type, whatever is counted
    write_rows(source, [at_once, row_of(split="dev", silence=[]), silent], codes=2000)
    segments.main([str(source), "--least", "1", "-o", str(out)])
    found, rows = read_rows(out), read_rows(source)
    assert [row for row in found if "@" not in row["id"]] == rows  # dev and clips without text are not cut
    assert len(found) == len(rows) + 4
    assert all(0 < row["length"] < rows[0]["length"] for row in found if "@" in row["id"])
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    with pytest.raises(UsageError, match="nothing can be cut"):
        segments.main([str(source), "--least", "9", "--most", "3", "-o", str(out)])
    with pytest.raises(UsageError, match="folder of their own"):
        segments.main([str(source), "-o", str(source)])
    write_rows(tmp_path / "untimed", [{**row_of(), "letters": []}], codes=2000)
    with pytest.raises(UsageError, match="no letters' times.*gpa prepare --align"):
        segments.main([str(tmp_path / "untimed"), "-o", str(out)])
    with pytest.raises(CheckpointError, match="not prepared"):
        segments.main([str(tmp_path / "nothing"), "-o", str(out)])
