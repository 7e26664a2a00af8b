"""`gpa bench speechop`: does guidance by a text keep the words, and the sound? On degraded recordings.

Here is the parser and what loads model and judges; how it is measured is in the files beside.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

from gpa.cli import commands, options
from gpa.errors import UsageError

MODEL, SPLIT = "speechop-mini", "dev"
N, STEPS, SWEPT = 24, 32, 6
QUICK = {"n": 3, "steps": 8, "swept": 2}


def add(sub: Any) -> None:
    """Add `speechop` to the measurements of `gpa bench`."""
    p = options.command(
        sub, "speechop", run, "SpeechOp on degraded recordings: words, voice, quality, and composition", """\
  gpa bench speechop runs/speechop/export --data DATA
  gpa bench speechop runs/speechop/export --data DATA -n 20 --sweep --save-wavs
  gpa bench speechop runs/speechop/export --data DATA --quick

held-out recordings get held-out noise; every row of the table restores the same clips. prints Markdown: the
table, and which of the paper's orderings hold. OUT gets report.json, table.md, ROW.jsonl with every
item, and with --sweep pictures. a run that was killed goes on where it was: start it again. everything runs
offline; a judge that is not installed is reported as not measured. needs the extra eval.
"""
    )  # fmt: skip
    p.add_argument("model", nargs="?", default=MODEL, help=f"SpeechOp model (default {MODEL})")
    p.add_argument("--recogniser", metavar="M", default=commands.DEFAULT_MODEL,
        help=f"GPA model whose transcripts ITC follows (default {commands.DEFAULT_MODEL})")  # fmt: skip
    what = p.add_argument_group("what is measured")
    what.add_argument("--data", metavar="DIR", help="data folder (default: GPA_DATA)")
    what.add_argument("--split", nargs="+", default=[SPLIT], metavar="S",
        help=f"held-out splits (default {SPLIT})")  # fmt: skip
    what.add_argument("-n", type=int, metavar="N", help=f"clips of 2 to 8 s, 0 for all (default {N})")
    what.add_argument("--seed", type=int, default=0, help="of clips, noise and model (default 0)")
    what.add_argument("--steps", type=int, metavar="K", help=f"of the sampler (default {STEPS})")
    what.add_argument("--sweep", nargs="?", type=int, const=0, metavar="M",
        help=f"also other gammas, steps and TC-Avg shares, on M clips (default {SWEPT})")  # fmt: skip
    what.add_argument("--quick", action="store_true", help="3 clips, 8 steps, a sweep on 2")
    what.add_argument("--without", nargs="*", default=["voice_2"], metavar="JUDGE",
        help="leave out a judge, as `gpa eval` does (default voice_2)")  # fmt: skip
    what.add_argument("--noise", type=Path, metavar="DIR", help="recorded noise (default DATA/noise)")
    what.add_argument("--snr", nargs=2, type=float, default=[0.0, 10.0], metavar=("LOW", "HIGH"),
        help="of the noise, dB (default 0 10)")  # fmt: skip
    what.add_argument("--rooms", type=Path, metavar="DIR", help="impulse responses (default DATA/rooms)")
    where = p.add_argument_group("results")
    where.add_argument("--out", type=Path, metavar="DIR",
        help="folder (default runs/bench/MODEL-HASH, the hash being that of all settings)")  # fmt: skip
    where.add_argument("--save-wavs", action="store_true", help="keep what was made in OUT/wavs")
    where.add_argument("--fresh", action="store_true", help="measure again what OUT already holds")
    machine = p.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    options.threads(machine)
    machine.add_argument("--offline", action="store_true", help="never use the network")
    machine.add_argument("-v", "--verbose", action="store_true", help="say more, on stderr")
    options.json(p, "print the report as JSON")


def run(args: argparse.Namespace) -> None:
    """Measure; UsageError for counts that cannot be."""
    _check(args)
    from gpa.evals import items, report_file, results_cache
    from gpa.evals.judges import all_judges
    from gpa.evals.restoration import measure, systems

    all_judges.require()
    quick = QUICK if args.quick else {"n": N, "steps": STEPS, "swept": SWEPT}
    data = items.data_root(args.data)
    cases = measure.choose(
        items.read_manifest(data), args.split, quick["n"] if args.n is None else args.n, args.seed
    )
    began = time.perf_counter()
    scene = _scene(args, data, quick["steps"] if args.steps is None else args.steps)
    logging.getLogger("faster_whisper").setLevel(logging.WARNING)
    hashes = {"model": scene.op.path, "recogniser": getattr(scene.recogniser, "path", None)}
    fixed = measure.settings(
        scene, {f"{name}_sha256": report_file.folder_hash(path) for name, path in hashes.items()}, args.split
    )
    out = args.out or Path("runs/bench") / f"{Path(args.model).name}-{report_file.digest(fixed)[:8]}"
    scene.bench.wavs = out / "wavs" if args.save_wavs else None
    names = systems.names([*systems.table_rows(scene), *systems.sweep_rows(scene)])
    sweep = 0 if args.sweep is None else args.sweep or quick["swept"]
    outcome = measure.run(
        scene, cases, sweep, results_cache.ResultsCache(out, fixed, names, args.fresh), commands.say
    )
    more = {
        "command": ["gpa", *args.argv],
        "taken": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "timing": {"wall_seconds": round(time.perf_counter() - began, 1)},
    }
    sealed, text = measure.write(out, scene, outcome, fixed, more)
    print(json.dumps(sealed, ensure_ascii=False) if args.json else text, flush=True)
    if outcome.kept:
        commands.say(f"{outcome.kept} items were there from before; --fresh measures again")
    commands.say(f"written to {out}")


def _check(args: argparse.Namespace) -> None:
    for name, least in (("n", 0), ("steps", 1), ("seed", 0), ("sweep", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UsageError(f"--{name} {value}: at least {least}")
    if args.quick and args.sweep is None:
        args.sweep = 0


def _scene(args: argparse.Namespace, data: Path, steps: int) -> Any:
    """Model, recogniser, noise and judges."""
    from gpa.evals.judges import all_judges
    from gpa.evals.measurement import Bench
    from gpa.evals.restoration.distance import open_ratings
    from gpa.evals.restoration.noisy_clips import NoisyClips
    from gpa.evals.restoration.systems import Scene
    from gpa.speechop import SpeechOp

    degrade = NoisyClips(args.noise or data / "noise", args.rooms or data / "rooms", args.seed, args.snr)
    op = SpeechOp.from_pretrained(args.model, device=args.device, offline=args.offline, threads=args.threads)
    recogniser = op.load_recogniser(args.recogniser)
    ratings, absent = open_ratings()
    judges = all_judges.open_judges(without=args.without)
    bench = Bench(data, judges=judges, seed=args.seed, split=args.split[0])
    return Scene(bench, op, recogniser, degrade, steps, ratings, absent)
