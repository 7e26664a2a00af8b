"""Codebooks in one stream: exact inverses, and streams that are refused."""

import numpy as np
import pytest

from gpa.codec.patterns import Flatten
from gpa.errors import VocabError

C = 5
PATTERNS = [Flatten(1, C), Flatten(3, C)]


def codes_for(pattern: Flatten, frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, C, (pattern.n_codebooks, frames))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("frames", [0, 1, 2, 7])
def test_round_trip(pattern: Flatten, frames: int) -> None:
    codes = codes_for(pattern, frames)
    ids = pattern.build(codes)
    assert ids.dtype == np.int64
    assert ids.shape == (pattern.n_codebooks * frames,)
    assert ids.size == 0 or (ids.min() >= 0 and ids.max() < pattern.n_ids)
    back = pattern.parse(ids.tolist())
    assert back.shape == codes.shape
    np.testing.assert_array_equal(back, codes)


def test_layouts_as_documented() -> None:
    codes = np.array([[0, 1], [2, 3], [4, 0]])
    assert Flatten(3, C).build(codes).tolist() == [0, 7, 14, 1, 8, 10]


def test_any_single_change_to_another_codebook_is_refused() -> None:
    pattern = Flatten(3, C)
    ids = pattern.build(codes_for(pattern, 3))
    for step in range(len(ids)):
        own = range(step % 3 * C, (step % 3 + 1) * C)
        wrong = ids.copy()
        wrong[step] = next(i for i in range(pattern.n_ids) if i not in own)
        with pytest.raises(VocabError, match=f"step {step}"):
            pattern.parse(wrong)


def test_malformed_input_is_refused() -> None:
    pattern = Flatten(3, C)
    ids = pattern.build(codes_for(pattern, 3))
    for bad in (
        ids[:-1],
        ids.reshape(3, -1),
        ids.astype(float),
        np.where(ids == ids[0], -1, ids),
        ids + pattern.n_ids,
    ):
        with pytest.raises(VocabError):
            pattern.parse(bad)
    for codes in (
        np.zeros((2, 3), int),
        np.full((3, 2), C),
        np.full((3, 2), -1),
        np.zeros((3, 2)),
        np.zeros(3, int),
    ):
        with pytest.raises(VocabError):
            pattern.build(codes)
