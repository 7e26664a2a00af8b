"""`gpa eval`: its parser, and what it does: load what the suites need, measure, write one report.

What is measured and by whom is in `gpa.evals`; docs/evaluation.md explains the numbers.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from gpa.cli import commands, options
from gpa.errors import GPAError, UsageError
from gpa.text.wordlist import read_text

SPLIT = "dev-unseen-speaker"
EXAMPLES = """\
  gpa eval --data DATA                            the standard suite on the shipped model
  gpa eval --data DATA --quick                    a few items of each, two minutes
  gpa eval runs/mini/export --data DATA --baselines --save-wavs
  gpa eval gpa-mini --suite tts tts-flite -n 100 --data DATA
  gpa eval MODEL --suite instructions --data DATA  do wordings alone decide? (docs/evaluation.md)
  gpa eval --suite asr-noise --noise MY_SOUNDS    words invented a minute where nobody speaks
  gpa eval --split dev-many --suite codec asr tts-clip vc-codec vc-lm -n 0        many speakers: choose by it
  gpa eval --split dev-many --suite asr -n 0 --snr 0 10   the same clips in noise that training never hears
  gpa eval --codec runs/codec/export --suite codec --data DATA
  gpa eval --compare before/report.json after/report.json

prints a Markdown table, what RESULTS.md quotes. OUT gets report.json (one file with every number, settings
and a hash of its own), SUITE.jsonl (every item with what was heard), table.md and pictures. a run that was
killed goes on where it was: start it again. everything runs offline on the CPU; what is not installed is
reported as not measured. needs the extra eval; docs/evaluation.md says who judges and how to compare.
"""


def add(sub: Any) -> None:
    """Add `eval` to the commands of `gpa`."""
    p = options.command(sub, "eval", run, "measure a model: error rates, voices, quality, speed", EXAMPLES)
    options.which(p)
    what = p.add_argument_group("what is measured")
    what.add_argument("--suite", nargs="+", default=["mini"], metavar="NAME", help="mini (floor codec tts"
        " tts-clip asr asr-noise vc-lm vc-codec) or some, tts-best, tts-clip-best, instructions")  # fmt: skip
    what.add_argument("--baselines", action="store_true",
        help="also espeak-ng, flite, pocketsphinx, Opus and Codec2 on the same items")  # fmt: skip
    what.add_argument("--data", metavar="DIR", help="data folder (default: GPA_DATA)")
    what.add_argument("--noise", type=Path, metavar="DIR",
        help="sounds without speech, for asr-noise (default: DATA/noise)")  # fmt: skip
    what.add_argument("--snr", nargs=2, type=float, metavar=("LOW", "HIGH"),
        help="start from noisy copies: held-out noises at LOW to HIGH dB, half in a room")  # fmt: skip
    what.add_argument("--split", default=SPLIT, metavar="S", help=f"held-out split (default {SPLIT})")
    what.add_argument("-n", type=int, metavar="N", help="items of every suite, 0 for all (default: 40 to 80)")
    what.add_argument("--quick", action="store_true", help="4 items of every suite")
    what.add_argument("--seed", type=int, default=0, help="chooses the items and seeds the model (default 0)")
    what.add_argument("--without", nargs="+", default=[], metavar="JUDGE",
        help="leave out words_2, voice, voice_2, quality, quality_2 or phonemes")  # fmt: skip
    _more(p)
    p.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"),
        help="two reports or their folders: is B better? measures nothing")  # fmt: skip
    options.json(p, "print the report, or the comparison, as JSON")
    options.device(p)


def _more(p: argparse.ArgumentParser) -> None:
    """Where results go, and what only some models need."""
    where = p.add_argument_group("results")
    where.add_argument("--out", type=Path, metavar="DIR",
        help="folder (default runs/eval/MODEL-HASH, the hash being that of all settings)")  # fmt: skip
    where.add_argument("--save-wavs", action="store_true", help="keep what was made in OUT/wavs")
    where.add_argument("--fresh", action="store_true", help="measure again what OUT already holds")
    model = p.add_argument_group("the model")
    model.add_argument("--voices", nargs="+", default=[], metavar="V", help="of tts (default: shipped ones)")
    model.add_argument("--speaker", nargs="+", default=[], metavar="V=S", dest="speakers",
        help="whose a shipped voice is, of the manifest's speakers (default: of that name)")  # fmt: skip
    model.add_argument("--seen", type=Path, nargs="+", default=[], metavar="JSONL",
        help="whose `text` was trained on as well")  # fmt: skip
    model.add_argument("--codec", metavar="DIR",
        help="another codec for the codec suite; an export or .pt of a training run does")  # fmt: skip
    model.add_argument("--features", type=Path, metavar="DIR", help="encoder, where the codec has none")
    model.add_argument("--judges", type=int, metavar="N",
        help="judges that listen at once (default: the usable cores, at most 4)")  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Measure, or compare two reports."""
    if args.compare:
        _compare(args)
        return
    from gpa.evals import results_cache, suites
    from gpa.evals import run as runner
    from gpa.evals.judges import all_judges

    all_judges.require()
    wanted = runner.sizes(_names(args), args.n, args.quick)
    bench = _bench(args)
    began = time.perf_counter()
    timing = _load(args, bench, {suites.SUITES[name].needs for name in wanted})
    bench.judges = all_judges.open_judges(args.judges or _cores(), args.without)
    logging.getLogger("faster_whisper").setLevel(logging.WARNING)
    if not args.verbose:  # who did not stop by itself is counted, and need not be said of every item
        logging.getLogger("gpa.models.gpa").setLevel(logging.ERROR)
    fixed = runner.settings(bench, timing.pop("hashes"))
    out = args.out or Path("runs/eval") / f"{timing['name']}-{_short(fixed)}"
    bench.wavs = out / "wavs" if args.save_wavs else None
    outcome = runner.run(
        bench, wanted, results_cache.ResultsCache(out, fixed, suites.SUITES, args.fresh), commands.say
    )
    timing["wall_seconds"] = round(time.perf_counter() - began, 1)
    more = {"command": ["gpa", *args.argv], "wanted": wanted, "taken": _now(), "timing": timing}
    sealed = runner.write(out, bench, outcome, fixed, more)
    print(json.dumps(sealed, ensure_ascii=False) if args.json else runner.markdown(bench, outcome, sealed))
    if outcome.kept:
        commands.say(f"{outcome.kept} items were there from before; --fresh measures again")
    commands.say(f"written to {out}")


def _names(args: argparse.Namespace) -> list[str]:
    """The suites asked for, `mini` spelled out, each once."""
    from gpa.evals import suites

    names = [name for given in args.suite for name in (suites.MINI if given == "mini" else [given])]
    return list(dict.fromkeys([*names, *(suites.BASELINES if args.baselines else ())]))


def _bench(args: argparse.Namespace) -> Any:
    """The data and what was asked for; a split that cannot be used is refused before anything is loaded."""
    from gpa.evals import items, suites
    from gpa.evals.measurement import Bench
    from gpa.evals.restoration.noisy_clips import NoisyClips

    alone = args.noise is not None and _names(args) == [suites.NOISE]
    if args.noise is not None and not args.noise.is_dir():
        raise UsageError(f"--noise {args.noise}: not a folder")
    data = args.noise if alone else items.data_root(args.data)
    speakers = dict(_pair(text) for text in args.speakers)
    bench = Bench(
        data, voices=args.voices, speakers=speakers, seen=[text for path in args.seen for text in _seen(path)]
    )
    bench.seed, bench.split, bench.noise = args.seed, args.split, args.noise
    if args.snr:
        bench.degrade = NoisyClips(args.noise or data / "noise", data / "rooms", args.seed, args.snr)
    if not alone:
        items.dev_clips(bench.manifest, 1, args.seed, args.split)
    return bench


def _load(args: argparse.Namespace, bench: Any, needs: set[str]) -> dict[str, Any]:
    """Load the model and the codec into the bench where a suite needs them; what is known of them."""
    from gpa.evals import report_file
    from gpa.nn import threads

    began = time.perf_counter()
    found: dict[str, Any] = {"name": "baselines", "hashes": {"model_sha256": None, "codec_sha256": None}}
    if args.codec:
        threads.settle(None, args.threads)
        bench.codec = _codec(args)
        found["name"] = Path(args.codec).name or "codec"
        found["hashes"]["codec_sha256"] = report_file.folder_hash(args.codec)
    if "model" in needs or ("codec" in needs and not args.codec):
        bench.model = commands.load(args)
        bench.voices = bench.voices or sorted(bench.model.voices)
        found["name"] = Path(str(args.model)).name
        found["hashes"]["model_sha256"] = report_file.folder_hash(bench.model.path)
        found["load_seconds"] = round(time.perf_counter() - began, 2)
        _warm(bench)
        found["peak_memory_mb"] = report_file.peak_memory_mb()  # before any judge is loaded
    return found


def _warm(bench: Any) -> None:
    """Every task once, so that the first item's time is that of any other."""
    if not bench.manifest:
        return
    try:
        clip = bench.clip(min(bench.manifest, key=lambda row: abs(float(row["duration"]) - 4)))
        voice = bench.voices[0] if bench.voices else (clip, 16_000)
        bench.model.tts("The sun came out after the rain.", voice=voice)
        bench.model.asr((clip, 16_000))
    except GPAError as error:  # an untrained model may say nothing: its items will tell
        logging.getLogger(__name__).info("warming up: %s", error)


def _codec(args: argparse.Namespace) -> Any:
    if args.features:
        from gpa.codec import trained

        return trained.load(args.codec, args.features)
    from gpa.codec import load_codec

    return load_codec(args.codec)


def _seen(path: Path) -> list[str]:
    """Texts of a manifest or of pairs, machine transcripts included; a row of speech alone has none."""
    from gpa.evals import items

    try:
        rows = [json.loads(line) for line in read_text(path).splitlines()]
        if not all("text" in row for row in rows):
            raise LookupError("text")
        return [text.strip() for text in items.texts_of(rows)]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"--seen {path}: lines of JSON with a text are needed ({error!r})") from error


def _pair(text: str) -> tuple[str, str]:
    voice, _, speaker = text.partition("=")
    if not voice or not speaker:
        raise UsageError(f"--speaker {text}: write VOICE=SPEAKER, such as linda=ljspeech")
    return voice, speaker


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return max(1, min(4, len(affinity(0)) if affinity else os.cpu_count() or 1))


def _short(settings: dict[str, Any]) -> str:
    from gpa.evals import report_file

    return report_file.digest(settings)[:8]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _compare(args: argparse.Namespace) -> None:
    from gpa.evals import report_file, significance

    a, b = (report_file.read(path) for path in args.compare)
    for key in ("split", "seed", "data_sha256", "normaliser"):
        if a["settings"][key] != b["settings"][key]:
            commands.say(f"warning: A and B differ in {key}; only items with equal text are compared")
    found = significance.reports(a, b, args.seed)
    shown = found if args.verbose else [difference for difference in found if difference.headline]
    print(
        json.dumps(significance.plain(found), ensure_ascii=False) if args.json else significance.table(shown)
    )
