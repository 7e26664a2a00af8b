"""`gpa bench decode`: every decoder makes as many ids, equal ones where it should; who makes fewer fails.

No time is asserted.
"""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpa.bench import decode, figures, machine
from gpa.bench.decode import Settings, measure
from gpa.bench.decoders import DECODERS, GPA, TRANSFORMERS
from gpa.cli import main
from gpa.errors import GenerationError, UsageError

SHAPE = {
    "vocab_size": 90,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, threads_kept: None) -> None:
    """Decoders share this process, and bandwidth is that of a few numbers: seconds instead of minutes."""
    monkeypatch.setattr(machine, "alone", lambda function, *args: function(*args))
    monkeypatch.setattr(machine, "SWEPT", 1 << 16)


def short(model: Path, **changes: Any) -> Settings:
    settings = Settings(str(model), batches=(3, 1), prompt=5, ids=7, rounds=2, threads=1, offline=True)
    return replace(settings, **changes)


def test_everyone_makes_as_many_ids(tiny: Path, here: None) -> None:
    said: list[str] = []
    tree = measure(short(tiny), said.append)
    assert not tree["failed"] and tree["batches"] == [1, 3]
    names = [row["name"] for row in tree["decoders"]]
    assert names == [name for name in DECODERS if name not in tree["skipped"]] and TRANSFORMERS in names
    assert len(said) == 2 * len(names)
    for row in tree["decoders"]:
        for batch, each in zip((1, 3), row["batches"], strict=True):
            assert each["batch"] == batch and len(each["rounds"]) == 2 and each["peak"] > 0
            for turn in each["rounds"]:
                assert turn["ids_per_s"] * turn["seconds"] == pytest.approx(7 * batch)
            assert each["floor_ids_per_s"] > 0 and set(each["gpa_over"]) == {"ratio", "low", "high"}
            if not row["name"].startswith("llamacpp"):  # rounds weights
                assert each["same_rows"] == (1.0 if DECODERS[row["name"]].same else None), row["name"]
    ours, every = (
        next(row for row in tree["decoders"] if row["name"] == name) for name in (GPA, "gpa-every")
    )
    assert all(each["gpa_over"]["ratio"] == 1 for each in ours["batches"])
    assert ours["bytes_per_step"] < every["bytes_per_step"] == 4 * tree["weights_read"]["vocabulary"]
    json.dumps(tree)


def test_legal_ids_only(tiny: Path, here: None) -> None:
    """Ours makes ids of the task; `same` would tell if another did not make the argmax's."""
    settings = short(tiny, only=(GPA,), rounds=1)
    with ExitStack() as stack:
        work, weights = decode._work(settings, stack, lambda _: None)
        turns = decode.take_turn(GPA, work)
    made = {token_id for turn in turns.values() for row in turn.ids for token_id in row}
    assert made <= set(work.legal) and work.stop not in made
    assert weights.read(weights.vocab) == weights.total


@pytest.mark.parametrize("fault", ["fewer ids", "fewer rows", "an exception"])
def test_a_decoder_that_does_less_has_no_speed(
    fault: str, tiny: Path, here: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whoever makes less would be the fastest: its row is gone, its reason is told, and the command fails."""
    real = DECODERS[GPA].open

    def opened(work: Any, closing: ExitStack) -> Any:
        honest = real(work, closing)

        def lazy(prompts: Any, ids: int) -> Any:
            if fault == "an exception":
                raise RuntimeError("no kernel")
            return honest(prompts, ids - 1) if fault == "fewer ids" else honest(prompts, ids)[1:]

        return lazy

    monkeypatch.setitem(DECODERS, TRANSFORMERS, replace(DECODERS[TRANSFORMERS], open=opened))
    words = [str(tiny), "--batch", "1", "--ids", "4", "--prompt", "3", "--rounds", "2", "--threads", "1"]
    command = ["bench", "decode", *words, "--only", GPA, TRANSFORMERS, "--offline", "--json"]
    assert main.main(command) == GenerationError.exit_code
    out, err = capfd.readouterr()
    tree = json.loads(out)
    assert [row["name"] for row in tree["decoders"]] == [GPA] and list(tree["failed"]) == [TRANSFORMERS]
    reason = "no kernel" if fault == "an exception" else "instead of 4 each"
    assert reason in tree["failed"][TRANSFORMERS] and reason in err
    assert tree["decoders"][0]["batches"][0]["over_transformers"] is None


def test_command_measures_a_shape_in_processes_of_their_own(tmp_path: Path) -> None:
    """As a user runs it: a recipe's shape, a table, JSON of the same keys, a picture."""
    recipe, png = tmp_path / "shape.yaml", tmp_path / "decode.png"
    recipe.write_text(json.dumps({"kind": "gpa", "model": SHAPE}), encoding="utf-8")
    command = [sys.executable, "-m", "gpa", "bench", "decode", "--shape", str(recipe), "--batch", "1", "2"]
    command += ["--ids", "5", "--prompt", "4", "--rounds", "1", "--threads", "1", "--only", GPA, "gpa-every"]
    done = subprocess.run(
        [*command, "--png", str(png), "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    tree = json.loads(done.stdout)
    assert tree["shape"] == str(recipe) and tree["parameters"] == tree["weights_read"]["vocabulary"]
    assert tree["weights_read"]["legal"] == tree["parameters"] - (90 - 45 - 1) * 16
    assert [row["name"] for row in tree["decoders"]] == [GPA, "gpa-every"] and not tree["failed"]
    assert png.read_bytes()[:4] == b"\x89PNG" and "round 1: gpa, any id, greedy" in done.stderr
    assert any("ids/s" in line for line in decode.lines(tree))


def test_a_process_of_its_own_tells_how_it_ended() -> None:
    assert machine.alone(os.path.basename, "a/b") == "b"
    with pytest.raises(ZeroDivisionError):
        machine.alone(divmod, 1, 0)
    with pytest.raises(GenerationError, match="ended with 3"):
        machine.alone(os._exit, 3)


def test_what_cannot_be_measured_is_refused(tiny: Path) -> None:
    with pytest.raises(UsageError, match="no such decoder: nobody"):
        measure(short(tiny, only=("nobody",)))
    assert main.main(["bench", "decode", str(tiny), "--ids", "0"]) == UsageError.exit_code
    assert main.main(["bench", "decode", str(tiny), "--batch", "1", "0"]) == UsageError.exit_code


def test_figures() -> None:
    values = [float(n) for n in range(1, 101)]
    assert figures.quantiles(values) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}
    assert figures.quantiles([3.0]) == {"p50": 3.0, "p95": 3.0, "p99": 3.0} and figures.quantiles([]) is None
    assert figures.Ratio.of([2.0, 4.0, 9.0], [1.0, 2.0, 3.0]) == figures.Ratio(2.0, 2.0, 3.0)
    assert list(figures.table(("a", "b"), [("long", "1")])) == ["a     b", "long  1"]
