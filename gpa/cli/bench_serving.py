"""`gpa bench decode`, `stream`, `load` and `serve`: the engine alone, as a user hears it, under load, served.

Here are the parsers and what the commands print; each measurement has a file of its own in gpa/bench.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from gpa.cli import commands, options
from gpa.errors import GenerationError, UsageError

SHARES = ["speech=1", "events=1", "transcription=1", "conversion=1"]  # of gpa bench serve


def add(sub: Any) -> None:
    """Add the measurements of the engine to those of `gpa bench`."""
    _decode(sub)
    _stream(sub)
    _load(sub)
    _serve(sub)


def _decode(sub: Any) -> None:
    p = options.command(
        sub, "decode", run_decode, "ids per second of the language model, beside other engines", """\
  gpa bench decode
  gpa bench decode --batch 1 16 --rounds 5 --threads 1 --json --png decode.png
  gpa bench decode --shape 0.3b --ids 16 --only gpa transformers
  gpa bench decode --device cuda --dtype bfloat16

every decoder gets the same prompts and makes as many ids, in a process of its own, in turn: round 1 of all,
round 2 of all, ... prints ids per second, how near that is to what reading the weights takes, ratios with
their range over the rounds, and the most memory. what is not installed is left out, and the table says so.
a shape of 0.3 B parameters takes minutes a round; let nothing else run meanwhile.
"""
    )  # fmt: skip
    options.which(p)
    p.add_argument("--shape", metavar="S",
        help="random weights of this shape instead of a model: 0.3b, or a recipe of kind gpa")  # fmt: skip
    size = p.add_argument_group("how much")
    size.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], metavar="B",
        help="rows that are decoded together (default 1 8 32)")  # fmt: skip
    size.add_argument("--ids", type=int, default=64, metavar="N", help="new ids of each row (default 64)")
    size.add_argument("--prompt", type=int, default=32, metavar="N", help="ids of each prompt (default 32)")
    size.add_argument("--rounds", type=int, default=3, metavar="N", help="turns of each decoder (default 3)")
    size.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these decoders and no others")
    _machine(p, "cpu", "float32")
    _results(p)


def run_decode(args: argparse.Namespace) -> None:
    """Measure decoding."""
    commands.at_least_one(args, "ids", "prompt", "rounds", "threads", *(["batch"] if args.batch else []))
    from gpa.bench import decode

    settings = decode.Settings(
        model=args.model,
        shape=args.shape,
        batches=tuple(args.batch),
        prompt=args.prompt,
        ids=args.ids,
        rounds=args.rounds,
        threads=args.threads,
        device=args.device,
        dtype=args.dtype,
        only=tuple(args.only),
        offline=args.offline,
    )
    _show(args, decode, decode.measure(settings, commands.say))


def _stream(sub: Any) -> None:
    p = options.command(
        sub, "stream", run_stream, "speech as a listener gets it, alone and in many streams", """\
  gpa bench stream
  gpa bench stream --streams 1 16 --sentences 48 --lookahead 4 --json --png stream.png
  gpa bench stream --only programs --kokoro ~/kokoro
  gpa bench stream --device cuda --dtype bfloat16 --streams 1 64 160 --sentences 320 --only streams loop

sentences are spoken by one engine, some at a time: when one is done, the next begins. beside it transformers'
generate and the codec; recognition beside Whisper tiny.en on the same clips; `gpa tts` as a whole program
beside espeak-ng, flite and Kokoro-82M. everyone in a process of its own, in turn. prints time to first audio,
how long a player would have to wait later on, real-time factors, CPU seconds and the most memory.
"""
    )  # fmt: skip
    options.which(p)
    size = p.add_argument_group("how much")
    size.add_argument("--streams", type=int, nargs="+", default=[1, 8, 16], metavar="N",
        help="sentences that are spoken at a time (default 1 8 16)")  # fmt: skip
    size.add_argument("--sentences", type=int, default=32, metavar="N", help="a round (default 32)")
    size.add_argument("--rounds", type=int, default=3, metavar="N", help="turns of everyone (default 3)")
    size.add_argument("--only", nargs="+", default=[], metavar="PART",
        help="of streams, loop, recognition, programs")  # fmt: skip
    _speech(p)
    peers = p.add_argument_group("peers")
    peers.add_argument("--clips", nargs="+", default=[], metavar="FILE",
        help="recordings to recognise (default: sentences that the model speaks)")  # fmt: skip
    peers.add_argument("--kokoro", type=Path, metavar="DIR",
        help="with kokoro.onnx and voices.npz; pip install kokoro-onnx, or DIR/venv has it")  # fmt: skip
    _machine(p, "cpu", "float32")
    _results(p)


def run_stream(args: argparse.Namespace) -> None:
    """Measure speech, recognition and whole programs."""
    commands.at_least_one(args, "streams", "sentences", "rounds", "threads", "max_new_tokens")
    from gpa.bench import stream

    given = {name: getattr(args, name) for name in ("gamma", "lookahead", "max_new_tokens")}
    settings = stream.Settings(
        model=args.model,
        streams=tuple(args.streams),
        sentences=args.sentences,
        rounds=args.rounds,
        options={name: value for name, value in given.items() if value is not None},
        clips=tuple(args.clips),
        kokoro=args.kokoro,
        only=tuple(args.only),
        threads=args.threads,
        device=args.device,
        dtype=args.dtype,
        offline=args.offline,
    )
    _show(args, stream, stream.measure(settings, commands.say))


def _load(sub: Any) -> None:
    p = options.command(
        sub, "load", run_load, "many mixed requests on one engine, some of them cancelled", """\
  gpa bench load
  gpa bench load -n 1000 --rate 20 --json --png load.png
  gpa bench load --rate 0 --rows 64 --device cuda --dtype bfloat16

requests to speak (with and without guidance), recognise (greedy and by beams) and convert come at random
times, each with a seed of its own; a fifth is cancelled, a twentieth asks what cannot be. prints how long
they waited and took, and what stays afterwards: rows, memory. some are asked again alone: their ids must be
the same. exits with 6 where a row leaks, a request ends in an error, or ids differ (float32 on a CPU).
"""
    )  # fmt: skip
    options.which(p)
    size = p.add_argument_group("how much")
    size.add_argument("-n", type=int, default=200, metavar="N", help="requests (default 200)")
    size.add_argument("--rate", type=float, default=8.0, metavar="R",
        help="requests that come in a second, on average; 0: all at once (default 8)")  # fmt: skip
    size.add_argument("--rows", type=int, metavar="N", help="of the engine (default: its own)")
    size.add_argument("--checks", type=int, default=10, metavar="N", help="asked again alone (default 10)")
    size.add_argument("--seed", type=int, default=0, help="of arrivals, inputs and seeds (default 0)")
    _machine(p, "cpu", "float32")
    _results(p)


def run_load(args: argparse.Namespace) -> None:
    """Measure an engine under load."""
    commands.at_least_one(args, "n", "rows", "threads")
    if not 0 <= args.rate < float("inf") or args.checks < 0:
        raise UsageError("--rate and --checks: at least 0")
    from gpa.bench import load

    names = ("model", "n", "rate", "rows", "checks", "seed", "threads", "device", "dtype", "offline")
    settings = load.Settings(**{name: getattr(args, name) for name in names})
    _show(args, load, load.measure(settings, commands.say))


def _serve(sub: Any) -> None:
    p = options.command(
        sub, "serve", run_serve, "a real server under mixed streams, over loopback", """\
  gpa bench serve
  gpa bench serve --streams 16 --seconds 60 --runs 3 --json --png serve.png
  gpa bench serve --share speech=4 events=4 transcription=1 --lookahead 4
  gpa bench serve path/to/checkpoint --device cuda --dtype bfloat16 --streams 64 --bound 128

starts `gpa serve` anew for every run. first one stream asks, then as many as --streams: each sends its next
request when it has the answer to its last. speech (PCM, or events), transcription and conversion in turn, of
sentences and recordings that the server speaks itself. prints times to the first sound and to the end, how
long a player would have to wait, errors, memory; medians of the runs, and the worst. then more streams than
the server's bound ask: nothing but 429 may refuse them. exits with 6 where it does, or below the bound.
"""
    )  # fmt: skip
    options.which(p)
    size = p.add_argument_group("how much")
    size.add_argument("--streams", type=int, default=8, metavar="N",
        help="requests on their way at a time (default 8)")  # fmt: skip
    size.add_argument("--seconds", type=float, default=120.0, metavar="S",
        help="of a run, after a quarter of it one at a time (default 120)")  # fmt: skip
    size.add_argument("--runs", type=int, default=5, metavar="N", help="default 5")
    size.add_argument("--share", nargs="+", default=SHARES, metavar="KIND=N",
        help=f"how often each kind comes; one not named does not (default {' '.join(SHARES)})")  # fmt: skip
    size.add_argument("--bound", type=int, default=64, metavar="N",
        help="--requests and --per-client of the server (default 64)")  # fmt: skip
    size.add_argument("--above", type=float, default=10.0, metavar="S",
        help="seconds of BOUND + STREAMS streams at the end, 0 for none (default 10)")  # fmt: skip
    size.add_argument("--patience", type=float, default=30.0, metavar="S",
        help="seconds without a byte after which an answer counts as stalled (default 30)")  # fmt: skip
    _speech(p)
    _machine(p, "cpu", "float32")
    _results(p)


def run_serve(args: argparse.Namespace) -> None:
    """Measure a server."""
    commands.at_least_one(args, "streams", "runs", "bound", "threads", "max_new_tokens")
    if not 0 < args.seconds < float("inf") or not 0 < args.patience < float("inf") or not 0 <= args.above:
        raise UsageError("--seconds and --patience: more than 0; --above: at least 0")
    commands.say(f"runs: {args.runs}, of {args.seconds:g} s, each on a server of its own")
    from gpa.bench import closed_loop

    given = {
        "gamma": args.gamma,
        "max_new_tokens": args.max_new_tokens,
        "initial_chunk_tokens": args.lookahead,
    }
    size = ("streams", "seconds", "runs", "bound", "above", "patience")
    names = ("model", *size, "threads", "device", "dtype", "offline")
    settings = closed_loop.Settings(
        **{name: getattr(args, name) for name in names},
        options={name: value for name, value in given.items() if value is not None},
        shares=dict(map(_share, args.share)),
    )
    _show(args, closed_loop, closed_loop.measure(settings, commands.say))


def _share(word: str) -> tuple[str, int]:
    kind, _, share = word.partition("=")
    if not share.isdecimal():
        raise UsageError(f"--share {word}: KIND=N, such as speech=2")
    return kind, int(share)


# All of them ------------------------------------------------------------------------------------------------


def _speech(p: argparse.ArgumentParser) -> None:
    speech = p.add_argument_group("speech", "as in gpa tts")
    speech.add_argument("--gamma", type=float, metavar="G", help="how strongly the text guides")
    speech.add_argument("--lookahead", type=int, metavar="F", help="frames that the decoder waits for")
    speech.add_argument("--max-new-tokens", type=int, metavar="N", help="most ids of a sentence")


def _machine(p: argparse.ArgumentParser, device: str, dtype: str) -> None:
    group = p.add_argument_group("machine")
    group.add_argument("--device", default=device, help=f"cpu, cuda, cuda:1 (default {device})")
    group.add_argument("--dtype", default=dtype, choices=("float32", "bfloat16", "float16"),
        help=f"of the language model (default {dtype})")  # fmt: skip
    group.add_argument("--threads", type=int, metavar="N",
        help="of everyone (default: what gpa takes for this model)")  # fmt: skip
    group.add_argument("--offline", action="store_true", help="never use the network")
    group.add_argument("-v", "--verbose", action="store_true", help="say more, on stderr")


def _results(p: argparse.ArgumentParser) -> None:
    options.json(p, "print one JSON object: every figure and round, machine and settings")
    p.add_argument("--png", type=Path, metavar="FILE", help="also draw the figures into this file")


def _show(args: argparse.Namespace, bench: ModuleType, tree: dict[str, Any]) -> None:
    """Print a result and draw it; GenerationError, after that, where somebody failed."""
    print(json.dumps(tree) if args.json else "\n".join(bench.lines(tree)), flush=True)
    if args.png:
        from gpa.bench import figures

        figures.draw(args.png, f"gpa bench {tree['bench']}", bench.charts(tree))
        commands.say(f"drawn: {args.png}")
    if tree["failed"]:
        raise GenerationError(
            "failed: " + "; ".join(f"{name}: {why}" for name, why in tree["failed"].items())
        )
