"""Processor threads: decided once where a model is loaded, the same in every step and every later thread."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpa.cli import doctor, main
from gpa.errors import UsageError
from gpa.nn.threads import choose

ROOT = Path(__file__).resolve().parent.parent
HOME = "gpa/nn/threads.py"
MILLION = 1_000_000

SEEN = """
import json, sys, threading
import torch
import gpa

own, seen = torch.get_num_threads(), {}

def watch(owner, name):
    made = getattr(owner, name)
    def watched(*args, **options):
        seen.setdefault(name, set()).add(torch.get_num_threads())
        return made(*args, **options)
    setattr(owner, name, watched)

options = json.loads(sys.argv[2])
if len(sys.argv) > 3:  # a program that has chosen a number of its own
    torch.set_num_threads(int(sys.argv[3]))
model = gpa.GPA.from_pretrained(sys.argv[1], device="cpu", **options)
watch(type(model.network.packed), "__call__")
watch(model.codec, "stream")
brief = {"voice": "anna", "max_new_tokens": 4}
model.tts("hello", **brief)
def born():
    seen["thread"] = {torch.get_num_threads()}
    model.tts("hello", **brief)
later = threading.Thread(target=born)
later.start()
later.join()
seen["after"] = {torch.get_num_threads()}
print(json.dumps({"own": own, "seen": {name: sorted(found) for name, found in seen.items()}}))
"""


def seen(model: Path, *words: str, options: dict | None = None, **variables: str) -> tuple[int, dict]:
    """Torch's own number, and those met in a step, in decoding, in a later thread and afterwards."""
    free = {k: v for k, v in os.environ.items() if k not in ("GPA_THREADS", "OMP_NUM_THREADS")}
    command = [sys.executable, "-c", SEEN, str(model), json.dumps(options or {}), *words]
    done = subprocess.run(command, env={**free, **variables}, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["seen"]) == {"__call__", "stream", "thread", "after"}
    return found["own"], found["seen"]


def same(number: int) -> dict[str, list[int]]:
    return dict.fromkeys(("__call__", "stream", "thread", "after"), [number])


def test_one_thread_for_a_small_model_everywhere(tiny: Path) -> None:
    _, found = seen(tiny, "3")  # more than one, also on a machine of one core
    assert found == same(1)


def test_what_is_asked_for_decides(tiny: Path) -> None:
    _, found = seen(tiny, options={"threads": 3}, GPA_THREADS="2", OMP_NUM_THREADS="1")
    assert found == same(3)


def test_openmps_variable_is_respected(tiny: Path) -> None:
    own, found = seen(tiny, OMP_NUM_THREADS="2")  # of a machine of one core torch makes 1
    assert found == same(own)


def test_zero_leaves_the_programs_own_number(tiny: Path) -> None:
    _, found = seen(tiny, "3", options={"threads": 0})
    assert found == same(3)


def test_the_rule() -> None:
    assert [choose(n * MILLION, 16, environment={}).threads for n in (0, 6, 50, 51, 312, 3000)] == [
        *(1, 1, 1, 2, 7, 16)
    ]
    assert choose(3000 * MILLION, 2, environment={}).threads == 2  # never more than torch's own
    assert (
        choose(None, 8, environment={}).threads == 8 and "training" in choose(None, 8, environment={}).reason
    )
    both = {"GPA_THREADS": "3", "OMP_NUM_THREADS": "2"}
    assert choose(1, 8, 4, both).threads == 4 and choose(1, 8, None, both).threads == 3
    assert choose(1, 8, 0).threads == choose(1, 8, None, {"GPA_THREADS": "0"}).threads == 0
    assert choose(1, 8, None, {"OMP_NUM_THREADS": "2"}).threads == 0  # torch has read it
    for name, value in (("GPA_THREADS", "two"), ("GPA_THREADS", "-1")):
        with pytest.raises(UsageError, match=f"{name}={value}"):
            choose(1, 8, environment={name: value})
    with pytest.raises(UsageError, match="threads=-2"):
        choose(1, 8, -2)


LOADS = """
import torch
from gpa.nn import threads
torch.set_num_threads(8)
def now(*args, **options):
    threads.settle(*args, **options)
    return torch.get_num_threads()
print([now(1), now(300_000_000), now(1), now(None), now(1)])
print([now(1, 3), now(300_000_000), now(None), now(1, 2), now(1, 0), now(1)])
"""


def test_what_several_models_and_training_do_to_each_other() -> None:
    """The one that needs most decides; what was asked for stays until something else is asked for."""
    free = {k: v for k, v in os.environ.items() if k not in ("GPA_THREADS", "OMP_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", LOADS], env=free, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines() == ["[1, 6, 6, 8, 8]", "[3, 3, 3, 2, 2, 2]"], done.stderr


TRAINS = """
import torch
from gpa.train import launch
from gpa.train.arguments import TrainArgs
import sys
torch.set_num_threads(5)
launch.start(TrainArgs(threads=int(sys.argv[1]))).close()
print(torch.get_num_threads())
"""


def test_training_settles_at_its_start() -> None:
    free = {k: v for k, v in os.environ.items() if k not in ("GPA_THREADS", "OMP_NUM_THREADS")}
    command = [sys.executable, "-c", TRAINS, "3"]
    done = subprocess.run(command, env=free, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["3"], done.stderr


def test_one_place_sets_the_number() -> None:
    setters = ("set_num_threads", "set_num_interop_threads", "omp_set_num_threads")
    found = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "gpa").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and node.attr in setters)
        or (isinstance(node, ast.Name) and node.id in setters)
        or (isinstance(node, ast.alias) and node.name in setters)
    }
    assert found == {HOME}


def test_every_command_that_loads_a_model_takes_the_option() -> None:
    parser = main._parser()
    a = ["x.wav"]
    for words in (
        ["tts", "hello"], ["asr", *a], ["vc", *a], ["voice", *a], ["verify"], ["demo"], ["eval"],
        ["prepare", "f", "-o", "g"], ["finetune", "--voice", "f"], ["enhance", *a], ["separate", *a],
        ["extract", *a, "--voice", "v"], ["match", *a, "--like", "v"], ["edit", *a, "t", "--span", "0", "1"],
        ["bench", "train"], ["bench", "speechop"],
    ):  # fmt: skip
        args, rest = parser.parse_known_args([*words, "--threads", "3"])
        assert args.threads == 3 and not rest, words


def test_doctor_says_what_was_chosen_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("GPA_THREADS", raising=False)
    (check,) = doctor._threads()
    assert check.ok and "gpa-mini takes 1 (" in check.detail and "M weights" in check.detail
    monkeypatch.setenv("GPA_THREADS", "4")
    (check,) = doctor._threads()
    assert check.ok and "takes 4 (GPA_THREADS=4)" in check.detail
    monkeypatch.setenv("GPA_THREADS", "many")
    (check,) = doctor._threads()
    assert check.ok is False and "GPA_THREADS=many" in check.detail and "GPA_THREADS" in check.fix
