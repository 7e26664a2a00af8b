"""`gpa export`: the language model as a file for llama.cpp."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gpa.cli import options
from gpa.engine.backends.export_gguf import PRECISIONS, export_gguf
from gpa.errors import UsageError


def add(sub: Any) -> None:
    """Add the command to the parser."""
    p = options.command(
        sub, "export", run, "write the language model for llama.cpp", """\
  gpa export gpa-mini mini.gguf --gguf f16
  gpa tts "The rain has stopped." --gamma 0 --engine llamacpp:mini.gguf

codec, text and voices stay with the model, which the other engine completes prompts for. vLLM and SGLang read
the model's own folder. docs/serving.md says which engine to take when. prints the path.
"""
    )  # fmt: skip
    p.add_argument("model", help="directory, owner/name, or shipped name")
    p.add_argument("out", type=Path, metavar="OUT", help="file to write")
    p.add_argument(
        "--gguf",
        choices=PRECISIONS,
        required=True,
        help="bits of a weight; q8_0 takes 8.5, q4_k 4.5",
    )
    p.add_argument("--offline", action="store_true", help="never use the network")


def run(args: argparse.Namespace) -> None:
    """Write the file, whole or not at all."""
    if args.out.exists():
        raise UsageError(f"{args.out} exists: remove it, or choose another name")
    from gpa import disk
    from gpa.engine.network import Network
    from gpa.models.gpa.checkpoint_gpa import find

    network, _ = Network.load(find(args.model, offline=args.offline))
    with disk.file_whole(args.out) as partial:
        export_gguf(network, partial, args.gguf)
    print(args.out)
