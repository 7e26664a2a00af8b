"""Codebooks in one stream: exact inverses, and streams that are refused."""

import numpy as np
import pytest

from gpa.codec.patterns import Flatten
from gpa.errors import VocabError

C = 5


def codes_for(pattern: Flatten, frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, C, (pattern.n_codebooks, frames))


@pytest.mark.parametrize("codebooks", [1, 3, 4])
@pytest.mark.parametrize("frames", [0, 1, 2, 7])
def test_round_trip(codebooks: int, frames: int) -> None:
    pattern = Flatten(codebooks, C)
    codes = codes_for(pattern, frames)
    ids = pattern.build(codes)
    assert ids.dtype == np.int64 and ids.shape == (codebooks * frames,)
    assert all(i // C == step % codebooks for step, i in enumerate(ids))  # an id says its codebook
    back = pattern.parse(ids.tolist())
    assert back.shape == codes.shape
    np.testing.assert_array_equal(back, codes)


def test_layout_as_documented() -> None:
    assert Flatten(3, C).build(np.array([[0, 1], [2, 3], [4, 0]])).tolist() == [0, 7, 14, 1, 8, 10]


def test_any_single_change_to_another_codebook_is_refused() -> None:
    pattern = Flatten(3, C)
    ids = pattern.build(codes_for(pattern, 3))
    for step in range(len(ids)):
        wrong = ids.copy()
        wrong[step] = (wrong[step] + C) % pattern.n_ids
        with pytest.raises(VocabError, match=f"step {step}"):
            pattern.parse(wrong)


def test_malformed_input_is_refused() -> None:
    pattern = Flatten(3, C)
    ids = pattern.build(codes_for(pattern, 3))
    bad_streams = (ids[:-1], ids.reshape(3, -1), ids.astype(float), np.where(ids == ids[0], -1, ids))
    for bad in (*bad_streams, ids + pattern.n_ids):
        with pytest.raises(VocabError):
            pattern.parse(bad)
    bad_codes = (np.zeros((2, 3), int), np.full((3, 2), C), np.full((3, 2), -1), np.zeros((3, 2)))
    for codes in (*bad_codes, np.zeros(3, int)):
        with pytest.raises(VocabError):
            pattern.build(codes)
