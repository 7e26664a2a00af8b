"""CTC alignment against brute force, and the frames of text pieces."""

import itertools
import math

import numpy as np
import pytest

from gpa.data.alignment import align, piece_spans
from gpa.text.letters import LETTERS, letter_targets, letters_of
from gpa.text.tokenizer import TextTokenizer
from training import write_tokens


def collapse(path: tuple[int, ...]) -> list[int]:
    """CTC's rule: repeats merge, then blanks vanish."""
    return [symbol for symbol, _ in itertools.groupby(path) if symbol]


def slow_align(log_probs: np.ndarray, targets: list[int]) -> tuple[float, list[int]] | None:
    """Return the best score and first frames over every path there is; None if no path spells the targets."""
    best: tuple[float, list[int]] | None = None
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        score = sum(row[symbol] for row, symbol in zip(log_probs, path, strict=True))
        if collapse(path) == targets and (best is None or score > best[0]):
            starts = [t for t, s in enumerate(path) if s and (t == 0 or path[t - 1] != s)]
            best = score, starts
    return best


@pytest.mark.parametrize("targets", [[1], [1, 2], [1, 1], [2, 1, 2], [1, 1, 2], [2, 2, 2], [1, 2, 1, 1]])
@pytest.mark.parametrize("frames", [1, 2, 3, 5, 7])
def test_viterbi_equals_brute_force(targets: list[int], frames: int) -> None:
    for seed in range(3):
        logits = np.random.default_rng((frames, seed)).normal(size=(frames, 3)) * 2
        log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        expected, got = slow_align(log_probs, targets), align(log_probs, targets)
        if expected is None:
            assert got is None
        else:
            assert got is not None and got.tolist() == expected[1]


def test_impossible_alignments_are_none() -> None:
    even = np.full((3, 5), math.log(0.2))
    assert align(even, [1, 2, 3, 4]) is None  # four letters in three frames
    assert align(even, [1, 1, 1]) is None  # repeats need blanks between them
    assert align(even[:0], [1]) is None
    barred = even.copy()
    barred[:, 2] = -np.inf
    assert align(barred, [1, 2]) is None


def test_nothing_to_align_is_empty() -> None:
    assert align(np.full((3, 5), math.log(0.2)), []).tolist() == []  # type: ignore[union-attr]
    assert letter_targets("?! ...") == []


def test_letters_of_a_transcript() -> None:
    assert letters_of("  It's a WELL-known; question?  ") == "it's a well known question"
    assert [LETTERS[c - 1] for c in letter_targets("Ab c'")] == list("ab c'")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    pytest.importorskip("sentencepiece")
    return TextTokenizer.from_file(write_tokens(tmp_path_factory.mktemp("tokens")))


def test_spans_by_hand() -> None:
    #            h  e  l  l  o  _  w  o   r   l   d
    first = [2, 4, 5, 6, 7, 8, 10, 12, 14, 16, 18]
    pieces = ["▁hel", "lo", ",", "▁w", "orld", "."]
    spans = piece_spans(pieces, "hello world", first, 22)
    # A mark without letters ends where the next spelled piece begins, and lasts two frames.
    assert spans.tolist() == [[2, 6], [6, 10], [8, 10], [10, 12], [12, 22], [20, 22]]


def test_byte_pieces_have_their_letters() -> None:
    spans = piece_spans(["▁", "<0x71>", "u", "<0xC3>", "iz"], "quiz", [1, 3, 5, 7], 9)
    assert spans[[1, 2, 4]].tolist() == [[1, 3], [3, 5], [5, 9]]


def test_a_letter_that_was_not_aligned_is_passed_over() -> None:
    assert piece_spans(["x", "ab"], "ab", [1, 3], 6)[1].tolist() == [1, 6]


@pytest.mark.parametrize(
    "text", ["hello world.", "it's a well-known question; who knows!", "the danger trail, philip steels"]
)
def test_spans_of_real_pieces_tile_the_clip(tokenizer: TextTokenizer, text: str) -> None:
    letters = letters_of(text)
    first = [3 + 2 * i for i in range(len(letters))]
    frames = first[-1] + 5
    pieces = tokenizer.pieces(text)
    spans = piece_spans(pieces, letters, first, frames)
    spelled = [n for n, piece in enumerate(pieces) if any(c in LETTERS[1:] for c in piece)]
    at, cursor = [], 0
    for n in spelled:  # the slow twin: walk the letters of each piece through the transcript
        wanted = [c for c in pieces[n] if c in LETTERS[1:]]
        places = []
        for c in wanted:
            cursor = letters.index(c, cursor)
            places.append(cursor)
            cursor += 1
        at.append(first[places[0]])
    assert cursor == len(letters)
    assert spans[spelled, 0].tolist() == at
    assert spans[spelled, 1].tolist() == [*at[1:], frames]
    assert (spans[:, 1] > spans[:, 0]).all() and spans.min() >= 0 and spans.max() <= frames
