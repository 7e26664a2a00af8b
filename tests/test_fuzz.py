"""A few random bad inputs for every surface; `make fuzz` tries for ten minutes."""

import pytest

import fuzzing


@pytest.mark.parametrize("surface", fuzzing.SURFACES)
def test_bad_input_is_read_or_refused(surface):
    found = [fuzzing.outcome(surface, seed) for seed in range(12)]
    faults = [text for text in found if text not in ("read", "refused")]
    assert not faults, faults[0]
    assert set(found) == {"read", "refused"}, "the surface makes only one kind of input"
