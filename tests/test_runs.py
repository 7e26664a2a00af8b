"""What ends a run early: signals, a second run in its folder, a full disk, damaged files. Real processes."""

import json
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpa import audio, disk, hub
from gpa.errors import CheckpointError, DiskError, UsageError
from gpa.train import checkpoint, metrics
from gpa.train.command import main
from training import lm_tree, write_recipe, write_tokens

STEPS = 400
HERE = Path(__file__).parent
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of many quick steps, which leaves the export of a network alone."""
    root = tmp_path_factory.mktemp("data")
    tree = lm_tree(write_tokens(root / "tokens"))
    tree["train"] |= {"steps": STEPS, "save_every": STEPS, "eval_every": STEPS, "workers": 1}
    return write_recipe(root / "lm.yaml", tree)


def started(*command: str, limit: int = 0) -> subprocess.Popen[str]:
    """A process in a group of its own, which may write files of `limit` bytes."""

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored for us
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, *command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code, and what was said on stderr."""
    _, said = process.communicate(timeout=120)
    return process.returncode, said


def gpa(*command: Any, limit: int = 0) -> tuple[int, str]:
    program = ("-m", "gpa.train") if command[0] == "train" else ("-m", "gpa", command[0])
    return ended(started(*program, *map(str, command[1:]), limit=limit))


def steps(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def until_it_steps(process: subprocess.Popen[str], run: Path) -> None:
    """Wait for two more lines of metrics than now."""
    before, end = steps(run), time.monotonic() + 60
    while steps(run) < before + 2:
        assert process.poll() is None and time.monotonic() < end, process.communicate()[1]
        time.sleep(0.02)


def left(folder: Path) -> list[str]:
    """Names of temporary files."""
    return [p.name for p in folder.rglob("*") if re.search(r"\.(tmp|partial|old)\b", p.name)]


# Signals ----------------------------------------------------------------------------------------------------


def test_signals_save_and_the_run_goes_on_as_if_nothing_had_been(recipe: Path, tmp_path: Path) -> None:
    """Each comes to the whole group, workers too, as a terminal and a scheduler send it.

    SIGTERM and SIGUSR1 come to ranks, below.
    """
    run = tmp_path / "run"
    for number, code in ((signal.SIGHUP, 129), (signal.SIGINT, 130)):
        program = ("-m", "gpa", "train") if number == signal.SIGHUP else ("-m", "gpa.train")
        process = started(*program, str(recipe), "--run", str(run))
        until_it_steps(process, run)
        os.killpg(process.pid, number)
        found, said = ended(process)
        assert found == code and "Traceback" not in said, said
        newest = checkpoint.found(run)[-1]
        assert f"checkpoint saved at step {int(newest.stem[5:])} of {STEPS}" in said
        assert int(newest.stem[5:]) == metrics.read(run / "metrics.jsonl")[-1]["step"] and not left(run)
    main([str(recipe), "--run", str(run)])
    main([str(recipe), "--run", str(tmp_path / "other")])
    one, other = (torch.load(checkpoint.found(path)[-1])["module"] for path in (run, tmp_path / "other"))
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize(("stage", "number"), [("0", signal.SIGTERM), ("2", signal.SIGUSR1)])
def test_all_ranks_stop_at_the_step_at_which_one_was_asked(
    stage: str, number: int, recipe: Path, tmp_path: Path
) -> None:
    if stage != "0":
        pytest.importorskip("deepspeed")
    run = tmp_path / "run"
    argv = ("-m", "gpa.train", str(recipe), f"train.zero={stage}", "--run-folder", str(run))
    process = started(*TWO, *argv)
    until_it_steps(process, run)
    ranks = subprocess.check_output(["ps", "-o", "pid=,args=", "--ppid", str(process.pid)], text=True)
    second = [int(line.split()[0]) for line in ranks.splitlines() if "gpa.train" in line][1]
    os.kill(second, number)
    _, said = ended(process)
    last = int(metrics.read(run / "metrics.jsonl")[-1]["step"])
    assert said.count(f"checkpoint saved at step {last} of {STEPS}") == 2, said
    assert f"exitcode  : {128 + number}" in said and "gpa/train/" not in said
    [path] = checkpoint.found(run, shards=stage != "0")
    assert int(path.stem[5:]) == last and not left(run)


GROUP_IN_USE = """
import builtins, os, runpy, torch
from pathlib import Path
import torch.distributed as dist
from gpa.train import command

def main():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    builtins.kept = dist.group.WORLD  # as DeepSpeed keeps it
    dist.all_reduce(torch.ones(1))
    for thread in Path("/proc/self/task").iterdir():
        # Its turn comes after whatever else there is to do.
        if thread.exists() and "gloo_runloop" in (thread / "comm").read_text():
            os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))
    for _ in range(20000):
        dist.broadcast(torch.ones(100), 0, async_op=True)
    dist.destroy_process_group()
    print("done")

command.main = main
runpy.run_module("gpa.train", run_name="__main__")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are ordered by Linux's means")
def test_a_rank_that_is_done_is_not_aborted_by_what_still_holds_its_group() -> None:
    """By "terminate called without an active exception", as happened after the last step under ZeRO-3."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "RANK": "0"}
    command = [sys.executable, "-c", GROUP_IN_USE]
    done = subprocess.run(command, env=env, cwd=HERE.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr


def test_a_job_that_runs_out_of_time_saves_and_is_queued_again(recipe: Path, tmp_path: Path) -> None:
    """The batch script of recipes/launch, which Slurm sends a signal; scontrol takes notes."""
    run, told = tmp_path / "run", tmp_path / "told"
    scripts = {
        "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
        "scontrol": f'echo "$@" > {told}',
    }
    for name, line_ in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line_}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_GPUS_ON_NODE": "1", "SLURM_JOB_ID": "17", "OMP_NUM_THREADS": "1"}
    env = os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = HERE.parent / "recipes" / "launch" / "requeue.sbatch"
    command = ["bash", str(script), str(recipe), "train.async_save=true", "--run-folder", str(run)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True)
    until_it_steps(process, run)
    process.send_signal(signal.SIGUSR1)  # to the script alone
    _, said = ended(process)
    last = int(metrics.read(run / "metrics.jsonl")[-1]["step"])
    assert told.read_text() == "requeue 17\n" and f"checkpoint saved at step {last} of {STEPS}" in said, said
    [path_] = checkpoint.found(run)
    assert int(path_.stem[5:]) == last < STEPS and not left(run)
    told.unlink()
    (tmp_path / "torchrun").write_text("#!/bin/sh\nexit 4\n")  # not for its time, so for nobody's queue
    assert subprocess.run(command, env=env).returncode == 4 and not told.exists()


# The lock ---------------------------------------------------------------------------------------------------


def test_a_second_run_is_refused_and_a_killed_one_does_not_block(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started("-m", "gpa", "train", str(recipe), "--run", str(run))
    until_it_steps(process, run)
    process.send_signal(signal.SIGSTOP)  # or it may end before the other asks
    code, said = gpa("train", recipe, "--run", run)
    assert code == 2 and f"(process {process.pid} on {platform.node()})" in said
    process.kill()  # the main process alone: its worker is still there
    process.wait()
    main([str(recipe), "--run", str(run), "train.max_seconds=0.01"])


def test_a_lock_is_for_one_and_forked_children_do_not_keep_it(tmp_path: Path) -> None:
    with disk.held(tmp_path, "run"), pytest.raises(UsageError, match="in use by run .process"):
        with disk.held(tmp_path, "run"):
            pass
    parent = (
        "import os, pathlib, sys, time\n"
        "from gpa import disk\n"
        "with disk.held(pathlib.Path(sys.argv[1]), 'run'):\n"
        "    child = os.fork() or time.sleep(60)\n"
        "    print(child, flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = started("-c", parent, str(tmp_path))
    assert process.stdout
    child = int(process.stdout.readline())
    with pytest.raises(UsageError, match=f"process {process.pid} on"), disk.held(tmp_path, "run"):
        pass
    time.sleep(0.2)
    process.kill()
    process.wait()
    try:
        with disk.held(tmp_path, "run"):
            os.kill(child, 0)  # is there
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate()


# A full disk ------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_run_that_meets_a_full_disk_names_it(recipe: Path, small_disk: Path) -> None:
    code, said = gpa("train", recipe, "--run", small_disk / "run", "train.save_every=1")
    assert code == DiskError.exit_code and f"disk is full: it is the one at {small_disk}" in said, said
    assert "Traceback" not in said and not left(small_disk)
    run = small_disk / "run"
    assert not checkpoint.found(run) or checkpoint.newest(run) == checkpoint.found(run)[-1]


WRITERS: dict[str, Callable[[Path], Any]] = {}


def writer(write: Callable[[Path], Any]) -> Callable[[Path], Any]:
    WRITERS[write.__name__] = write
    return write


@writer
def torch_zip(folder: Path) -> None:
    with disk.file_whole(folder / "a.pt") as path:
        torch.save(torch.zeros(1 << 18), path)


@writer
def torch_old(folder: Path) -> None:
    with disk.file_whole(folder / "a.pt") as path:
        torch.save(torch.zeros(1 << 18), path, _use_new_zipfile_serialization=False)


@writer
def safetensors(folder: Path) -> None:
    from safetensors.torch import save_file

    with disk.written_whole(folder / "model") as path:
        save_file({"a": torch.zeros(1 << 18)}, path / "model.safetensors")


@writer
def text(folder: Path) -> None:
    disk.write_text(folder / "a.json", "a" * (1 << 20))


@writer
def line(folder: Path) -> None:
    disk.append(folder / "a.jsonl", "a" * (1 << 20))


@writer
def picture(folder: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(20, 20))
    axes.imshow(torch.rand(900, 900))
    with disk.file_whole(folder / "a.png") as path:
        figure.savefig(path)


@writer
def arrow(folder: Path) -> None:
    from datasets import Value

    from gpa.data import token_folder

    rows = ({"a": "y" * 1000} for _ in range(1000))
    token_folder.write_arrow(folder / "a.arrow", rows, {"a": Value("string")}, folder)


@writer
def sound(folder: Path) -> None:
    audio.save(folder / "a.wav", np.zeros(1 << 18, np.float32), 16000)


@writer
def flac(folder: Path) -> None:
    noise = np.random.default_rng(0).standard_normal(1 << 18).astype(np.float32) / 8
    with audio.writing(folder / "a.flac", 16000) as write:
        write(noise)


@writer
def codec(folder: Path) -> None:
    with disk.written_whole(folder / "codec") as path:
        hub.write_model(path, {"a": torch.zeros(1 << 18)}, {"model_type": "bicodec"})


@writer
def tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models

    with disk.file_whole(folder / "tokenizer.json") as path:
        words = {f"word {n}": n for n in range(1 << 15)}
        Tokenizer(models.WordLevel(words, unk_token="word 0")).save(str(path))


@pytest.mark.parametrize("name", sorted(WRITERS))
@pytest.mark.parametrize("kind", ["disk", "limit"])
def test_every_library_says_it_is_the_disk(kind: str, name: str, request: Any, tmp_path: Path) -> None:
    folder = request.getfixturevalue("small_disk") if kind == "disk" else tmp_path
    (folder / "a.jsonl").write_text("before\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if kind == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, hard))
    try:
        with pytest.raises(DiskError, match=r"the disk (is full|may not hold|took only).* MiB free"):
            WRITERS[name](folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in folder.iterdir()] == ["a.jsonl"]
    assert (folder / "a.jsonl").read_text() == "before\n"


def test_another_error_stays_what_it_is(tmp_path: Path) -> None:
    for error in (OSError(13, "Permission denied"), RuntimeError("shapes differ"), ValueError("no")):
        with pytest.raises(type(error)), disk.room(tmp_path):
            raise error


# Damage -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("made") / "run"
    main([str(recipe), "--run", str(run), "train.steps=2", "train.save_every=1"])
    return run


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


def test_no_bit_of_a_checkpoint_flips_unseen(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    size = 8 * checkpoint.found(made)[-1].stat().st_size
    for bit in (0, 7, *range(size // 30, size, size // 30), size - 1):
        shutil.copytree(made, run)
        one, two = checkpoint.found(run)
        flip(two, bit)
        assert checkpoint.newest(run) == one and not two.exists(), bit
        flip(one, bit)
        with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
            checkpoint.newest(run)
        shutil.rmtree(run)


def test_a_damaged_checkpoint_falls_back_loudly(
    made: Path, recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(made, run)
    flip(checkpoint.found(run)[-1], 4000)
    main([str(recipe), "--run", str(run), "train.steps=2", "train.save_every=1"])
    assert "step-00000002.pt: damaged (it is not what was written" in caplog.text
    one, other = (torch.load(checkpoint.found(path)[-1])["module"] for path in (run, made))
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert (run / "checkpoints" / "step-00000002.pt.damaged").is_file()


@pytest.mark.parametrize("damage", ["edited", "cut", "gone", "empty"])
@pytest.mark.parametrize("name", ["recipe.yaml", "metrics.jsonl"])
def test_a_damaged_recipe_or_metrics_end_the_run(
    name: str, damage: str, made: Path, recipe: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(made, run)
    path = run / name
    content = path.read_text()
    if damage == "gone":
        path.unlink()
    else:
        changes = {
            "edited": content.replace('"lr"', '"lr').replace("lr: ", "mr: "),
            "cut": content[5:],
            "empty": "",
        }
        path.write_text(changes[damage])
    if (name, damage) == ("metrics.jsonl", "empty"):  # of a run that logs seldom
        return
    rate = ["optim.lr=0.5"] if name == "recipe.yaml" else []
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        main([str(recipe), "--run", str(run), "train.steps=3", "train.save_every=1", *rate])


@pytest.mark.usefixtures("threads_kept")
def test_overrides_may_follow_options(recipe: Path, tmp_path: Path) -> None:
    main([str(recipe), "--run", str(tmp_path / "run"), "train.steps=1", "--threads", "1", "optim.lr=0.01"])
    told = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert told["lr"] < 0.01 and "steps: 1\n" in (tmp_path / "run" / "recipe.yaml").read_text()


# Trust ------------------------------------------------------------------------------------------------------


class Evil:
    """What a pickle can do when it is read: here, leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def try_to_execute(recipe: Path, folder: Path) -> None:
    """At all stages, in one group of processes, which DeepSpeed can have but once."""
    from torch import distributed

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    for stage in (1, 2, 3):
        run, trace = folder / str(stage), folder / f"executed-{stage}"
        argv = [
            str(recipe),
            "--run",
            str(run),
            f"train.zero={stage}",
            "train.save_every=1",
            "train.workers=0",
        ]
        main([*argv, "train.steps=1"])
        main([*argv, "train.steps=2"])  # what DeepSpeed itself stores is read
        newest = checkpoint.found(run, shards=True)[-1]
        for file in newest.rglob("*.pt"):
            torch.save({"module": Evil(trace)}, file)
        (newest / checkpoint.SUMS).unlink()
        checkpoint.publish(newest.rename(newest.with_suffix(".partial")), newest, run)
        with pytest.raises(CheckpointError, match="holds more than tensors"):
            main([*argv, "train.steps=3"])
        assert not trace.exists()
        print("refused", stage)


def test_resuming_zero_executes_nothing(recipe: Path, tmp_path: Path) -> None:
    """Nor where somebody has written the digests anew, who could also write the files."""
    pytest.importorskip("deepspeed")
    code = "import sys, pathlib, test_runs; test_runs.try_to_execute(*map(pathlib.Path, sys.argv[1:]))"
    process = started(
        "-c", f"import sys; sys.path.insert(0, {str(HERE)!r}); {code}", str(recipe), str(tmp_path)
    )
    told, said = process.communicate(timeout=120)
    assert told.count("refused") == 3, said
