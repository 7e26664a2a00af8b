"""Random bad input for every surface that takes some: read right, refused with a typed error, or a fault.

A surface is a module `tests/fuzz_NAME.py` with `trial(random, folder) -> bool`: it makes one input from a
seeded generator in an empty folder, tries it, and says whether it was read (True) or refused (False). A
`GPAError` counts as refused; whatever else it raises is a fault. `make fuzz` tries for ten minutes and prints
the counts; tests/test_fuzz.py tries a few of each.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from gpa.errors import GPAError

SURFACES = sorted(path.stem.removeprefix("fuzz_") for path in Path(__file__).parent.glob("fuzz_*.py"))


def outcome(surface: str, seed: int) -> str:
    """What one trial came to: "read", "refused", or the traceback of a fault."""
    trial = importlib.import_module(f"fuzz_{surface}").trial
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return "read" if trial(np.random.default_rng(seed), Path(folder)) else "refused"
        except GPAError:
            return "refused"
        except Exception:  # noqa: BLE001 - what is looked for
            return traceback.format_exc()


def main() -> int:
    """Try every surface in turn until the time is over; 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the first trial; each next one has the next")
    parser.add_argument("surfaces", nargs="*", default=SURFACES, metavar="SURFACE")
    options = parser.parse_args()
    counts, seed = {name: Counter[str]() for name in options.surfaces}, options.seed
    end = time.monotonic() + 60 * options.minutes
    while time.monotonic() < end:
        for name, count in counts.items():
            found = outcome(name, seed)
            count[found if found in ("read", "refused") else "fault"] += 1
            if found not in ("read", "refused"):
                print(f"{name} {seed}: {found}")
        seed += 1
    for name, count in counts.items():
        print(f"{name:12} read {count['read']:6}  refused {count['refused']:6}  faults {count['fault']:4}")
    return int(any(count["fault"] for count in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
