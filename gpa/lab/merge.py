"""`gpa lab merge FIRST SECOND --share S -o OUT`: the weighted mean of two exported networks.

Of a run and of one that went on from it under other conditions the mean is often better than both (model
soups, Wortsman et al. 2022); of unrelated runs it is nothing.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from safetensors.torch import save_file

from gpa import hub
from gpa.codec.trained import HEADS
from gpa.errors import CheckpointError, UsageError


def average(first: Path, second: Path, share: float, out: Path) -> None:
    """Write `first` with every tensor (1 - share) first + share second, in float32; counts are the second's.

    The heads of a codec, which only training uses, stay those of the first. CheckpointError where the two
    hold different tensors, UsageError for a share outside 0 .. 1.
    """
    if not 0 <= share <= 1:
        raise UsageError(f"--share {share}: between 0 and 1")
    one, other = hub.read_state(first), hub.read_state(second)
    sizes = [{name: tuple(tensor.shape) for name, tensor in state.items()} for state in (one, other)]
    if sizes[0] != sizes[1]:
        differs = sorted(sizes[0].items() ^ sizes[1].items())
        raise CheckpointError(f"{second}: not a network like {first}: {differs[0][0]} differs")
    mean = {
        name: tensor.float().lerp(other[name].float(), share) if tensor.is_floating_point() else other[name]
        for name, tensor in one.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    for path in first.iterdir():
        if path.name == HEADS or (path.suffix == ".json" and not path.name.endswith(".index.json")):
            shutil.copy(path, out / path.name)
    save_file(mean, out / "model.safetensors", metadata={"format": "pt"})


def main(argv: list[str] | None = None) -> None:
    """Entry point of `gpa lab merge`."""
    parser = argparse.ArgumentParser(prog="gpa lab merge", description=average.__doc__)
    parser.add_argument("first", type=Path, help="export folder of a run")
    parser.add_argument("second", type=Path, help="that of a run which went on from it")
    parser.add_argument("--share", type=float, default=0.5, help="of the second (default 0.5)")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args(argv)
    average(args.first, args.second, args.share, args.out)
