"""What the parsers of `gpa`'s commands share: their frame and the options that mean the same everywhere."""

from __future__ import annotations

import argparse
from typing import Any

from gpa.cli import commands

_CHECKPOINT: dict[str, Any] = {
    "default": commands.DEFAULT_MODEL,
    "help": f"directory, owner/name, or shipped name (default {commands.DEFAULT_MODEL})",
}


class Raw(argparse.RawDescriptionHelpFormatter):
    """Keeps our line breaks, and options in one readable column."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)


def command(
    sub: Any, name: str, run: Any, about: str, examples: str, **options: Any
) -> argparse.ArgumentParser:
    """One sub-command that calls `run` with its parsed arguments."""
    parser = sub.add_parser(
        name,
        help=about,
        description=about,
        epilog=f"examples:\n{examples}",
        formatter_class=Raw,
        allow_abbrev=False,
        **options,
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


def voice(p: argparse.ArgumentParser) -> None:
    """Whose voice speaks."""
    p.add_argument(
        "--voice",
        metavar="V",
        help="name of a shipped voice, a recording, or a JSON file of `gpa voice` (default: a shipped one)",
    )


def output(p: argparse.ArgumentParser, default: str) -> None:
    """Where the sound goes."""
    p.add_argument(
        "-o",
        "--output",
        default=default,
        help=f"WAV, or by suffix FLAC or Ogg; - writes WAV to stdout (default {default})",
    )


def sampling(p: argparse.ArgumentParser) -> None:
    """How ids are drawn."""
    group = p.add_argument_group(
        "generation", "whatever is not given takes the model's own default for the task"
    )
    group.add_argument("--seed", type=int, help="the same seed gives the same result")
    group.add_argument("--temperature", type=float, metavar="T", help="0 always takes the likeliest id")
    group.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest ids")
    group.add_argument(
        "--top-p", type=float, metavar="P", help="draw from the likeliest ids of total probability P"
    )
    group.add_argument(
        "--repetition-penalty", type=float, metavar="R", help="above 1 discourages generated ids"
    )
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="most ids to generate")


def model(p: argparse.ArgumentParser) -> None:
    """Which checkpoint, and where it runs, as options."""
    p.add_argument("--model", metavar="M", **_CHECKPOINT)
    device(p)


def engine(p: argparse.ArgumentParser) -> None:
    """Who computes the next id."""
    p.add_argument(
        "--engine",
        default="",
        metavar="E",
        help="instead of gpa's own: llamacpp:FILE.gguf, vllm:http://HOST:PORT or sglang:... "
        "with the same weights (`gpa export`, docs/serving.md)",
    )


def which(p: argparse.ArgumentParser) -> None:
    """Which checkpoint, as the argument."""
    p.add_argument("model", nargs="?", **_CHECKPOINT)


def device(p: argparse.ArgumentParser, dtype: str = "auto") -> None:
    """Where and in which precision it runs."""
    group = p.add_argument_group("machine")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    group.add_argument(
        "--dtype",
        default=dtype,
        help=f"of the language model: auto, float32, bfloat16, float16 (default {dtype})",
    )
    threads(group)
    group.add_argument("--offline", action="store_true", help="never use the network")
    group.add_argument("-v", "--verbose", action="store_true", help="say more, on stderr")


def threads(p: Any) -> None:
    """How many threads of the processor compute."""
    p.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="of the processor (default: GPA_THREADS, else as many as the model needs; 0: torch's choice)",
    )


def json(p: argparse.ArgumentParser, about: str) -> None:
    """One line for machines."""
    p.add_argument("--json", action="store_true", help=about)
