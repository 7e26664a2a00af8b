"""One rank of a test's launch: the training commands of a plan, in turn, in one group of processes.

    python -m torch.distributed.run --standalone --nproc_per_node 2 tests/ranks.py PLAN.json

A plan names cases; each is a command line, and perhaps `kill`: [rank, batch], where SIGKILL comes instead of
that batch. told-RANK.json beside the plan says per case its weights' hash, or why it was refused.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gpa.errors import GPAError
from gpa.train import command as command
from gpa.train.loop import train

ROOT = Path(__file__).resolve().parent.parent


class Mortal:
    """A family whose process is killed instead of giving batch `at`, or a later one."""

    def __init__(self, family: Any, at: int) -> None:
        self.family, self.at = family, at

    def __getattr__(self, name: str) -> Any:
        return getattr(self.family, name)

    def batch(self, step: int) -> Any:
        if step >= self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.family.batch(step)


def launch(*command: str) -> subprocess.CompletedProcess[str]:
    """A module as a command, in the repository."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    line = [sys.executable, "-m", *command]
    return subprocess.run(line, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=1800)


def ranks(folder: Path, plan: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Run a plan on two processes."""
    folder.mkdir(exist_ok=True)
    path = folder / "plan.json"
    path.write_text(json.dumps(plan))
    return launch("torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__, str(path))


def digest(module: torch.nn.Module) -> str:
    state = hashlib.sha256()
    for tensor in (*module.parameters(), *module.buffers()):
        whole = getattr(tensor.detach(), "full_tensor", tensor.detach)()  # of FSDP2's shards
        state.update(whole.float().contiguous().numpy().tobytes())
    return state.hexdigest()


def run(case: dict[str, Any]) -> str:
    """Return the hash of this rank's weights, or `refused: ` and the reason."""
    hashes = []

    def mortal(family: Any, *args: Any, **options: Any) -> Any:
        rank, at = case.get("kill", (-1, 0))
        module = train(Mortal(family, at) if rank == dist.get_rank() else family, *args, **options)
        hashes.append(digest(module))

    command.train = mortal
    try:
        command.main(case["argv"])
    except GPAError as error:
        return f"refused: {error}"
    return hashes[0]


def main(plan: Path) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    told: dict[str, str] = {}
    for name, case in json.loads(plan.read_text()).items():
        told[name] = run(case)
        plan.with_name(f"told-{dist.get_rank()}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
