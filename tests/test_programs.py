"""Programs of others: what goes wrong with them is an error that names them."""

import pytest

from gpa.errors import GenerationError
from gpa.evals import programs
from gpa.evals.programs import call


def test_a_program_that_fails_is_an_error_of_the_item(monkeypatch: pytest.MonkeyPatch) -> None:
    call("true")
    with pytest.raises(GenerationError, match="false exited with 1"):
        call("false")
    with pytest.raises(GenerationError, match="no-such-program"):
        call("no-such-program")
    monkeypatch.setattr(programs, "TIMEOUT", 0.05)
    with pytest.raises(GenerationError, match="timed out"):
        call("sleep", "5")
