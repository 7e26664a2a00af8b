"""`gpa codec import`: a codec's files, original ones too, become a directory that everything here reads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gpa.cli import options


def add(sub: Any) -> None:
    """Add the command to the parser."""
    p = sub.add_parser("codec", help="codecs for models of your own", allow_abbrev=False)
    commands = p.add_subparsers(dest="codec_command", metavar="COMMAND", required=True)
    p = options.command(
        commands, "import", run, "make a codec's directory, with as many codebooks as you want", """\
  gpa codec import encodec_24khz-d7cc33bc.th encodec --codebooks 4
  gpa codec import facebook/encodec_24khz encodec --codebooks 4
  gpa prepare corpus -o tokens --codec encodec

reads the original .th file of EnCodec's 24 kHz model, or a directory or repository of EnCodec, Mimi or DAC
of transformers. each codebook makes speech better and every sequence longer. prints the path.
"""
    )  # fmt: skip
    p.add_argument("source", help="file, directory or repository")
    p.add_argument("out", type=Path, metavar="OUT", help="directory to write")
    p.add_argument("--codebooks", type=int, metavar="K", help="keep the first K (default: all)")
    p.add_argument("--offline", action="store_true", help="never use the network")


def run(args: argparse.Namespace) -> None:
    """Write the directory, whole or not at all."""
    from gpa import disk
    from gpa.codec import load_codec

    codec = load_codec(args.source, offline=args.offline, n_codebooks=args.codebooks)
    with disk.written_whole(args.out) as folder:
        codec.save_pretrained(folder)
    print(args.out)
