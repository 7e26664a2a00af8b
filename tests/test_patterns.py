"""Codebook patterns: exact inverses, streams that are refused, and legal ids at every step."""

import numpy as np
import pytest

from gpa.codec.patterns import Delay, Flatten, Pattern, legal_mask
from gpa.errors import VocabError

C = 5
PATTERNS = [
    Flatten(1, C),
    Flatten(3, C),
    Delay(1, C),
    Delay(3, C),
    Delay(4, C),
    Delay(3, C, (0, 0, 0)),
    Delay(3, C, (2, 0, 1)),
    Delay(3, C, (0, 0, 3)),
]


def codes_for(pattern: Pattern, frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, C, (pattern.n_codebooks, frames))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("frames", [0, 1, 2, 7])
def test_round_trip(pattern: Pattern, frames: int) -> None:
    codes = codes_for(pattern, frames)
    ids = pattern.build(codes)
    assert ids.dtype == np.int64
    assert ids.shape == (pattern.length(frames),)
    assert ids.size == 0 or (ids.min() >= 0 and ids.max() < pattern.n_ids)
    back = pattern.parse(ids.tolist())
    assert back.shape == codes.shape
    np.testing.assert_array_equal(back, codes)


def test_layouts_as_documented() -> None:
    codes = np.array([[0, 1], [2, 3], [4, 0]])
    assert Flatten(3, C).build(codes).tolist() == [0, 7, 14, 1, 8, 10]
    pad = 15
    assert Delay(3, C).build(codes).tolist() == [0, pad, pad, 1, 7, pad, pad, 8, 14, pad, pad, 10]
    assert Delay(3, C, (0, 0, 0)).build(codes).tolist() == Flatten(3, C).build(codes).tolist()


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_every_built_id_is_legal_and_the_end_is_found(pattern: Pattern) -> None:
    for frames in (1, 2, 4):
        ids = pattern.build(codes_for(pattern, frames))
        for step, i in enumerate(ids):
            known = pattern.frames(ids[:step])
            assert known in (None, frames)
            assert legal_mask(pattern, step, known)[i], (frames, step)
            assert legal_mask(pattern, step, frames)[i]
            assert not pattern.may_stop(step, frames)
        assert pattern.may_stop(len(ids), pattern.frames(ids))
        assert not legal_mask(pattern, len(ids), frames).any()


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_whatever_the_masks_allow_parses(pattern: Pattern) -> None:
    for seed in range(20):
        random = np.random.default_rng(seed)
        ids: list[int] = []
        while not pattern.may_stop(len(ids), pattern.frames(ids)) or (
            pattern.frames(ids) is None and random.random() < 0.7
        ):
            ids.append(int(random.choice(np.flatnonzero(legal_mask(pattern, len(ids), pattern.frames(ids))))))
        codes = pattern.parse(ids)
        assert codes.shape[1] >= 1
        np.testing.assert_array_equal(pattern.build(codes), ids)


@pytest.mark.parametrize("pattern", [Flatten(3, C), Delay(3, C), Delay(3, C, (1, 0, 2))], ids=str)
def test_any_single_change_to_another_codebook_is_refused(pattern: Pattern) -> None:
    ids = pattern.build(codes_for(pattern, 3))
    for step in range(len(ids)):
        own = pattern.legal(step, 3)
        wrong = ids.copy()
        wrong[step] = next(i for i in range(pattern.n_ids) if i not in own)
        with pytest.raises(VocabError, match=f"step {step}"):
            pattern.parse(wrong)


@pytest.mark.parametrize("pattern", [Flatten(3, C), Delay(3, C)], ids=str)
def test_malformed_input_is_refused(pattern: Pattern) -> None:
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


def test_delay_refuses_what_cannot_be_a_clip() -> None:
    pattern = Delay(3, C)
    with pytest.raises(VocabError, match="too short"):
        pattern.parse([pattern.pad] * 6)
    for delays in ((0, 1), (1, 2, 3), (0, -1, 2)):
        with pytest.raises(VocabError, match="delays"):
            Delay(3, C, delays)
