"""`gpa export`: the language model in the format of another engine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gpa.cli import options
from gpa.engine.backends.export_gguf import PRECISIONS, export_gguf
from gpa.engine.backends.export_onnx import export_onnx
from gpa.errors import UsageError

ONNX = ("float32",)


def add(sub: Any) -> None:
    """Add the command to the parser."""
    p = options.command(
        sub, "export", run, "write the language model for llama.cpp or onnxruntime", """\
  gpa export gpa-mini mini.gguf --gguf f16
  gpa tts "The rain has stopped." --gamma 0 --engine llamacpp:mini.gguf
  gpa export gpa-mini mini-onnx --onnx float32
  gpa tts "The rain has stopped." --engine onnx:mini-onnx

codec, text and voices stay with the model, which the other engine completes prompts for. vLLM and SGLang read
the model's own folder. docs/serving.md says which engine to take when. prints the path.
"""
    )  # fmt: skip
    p.add_argument("model", help="directory, owner/name, or shipped name")
    p.add_argument("out", type=Path, metavar="OUT", help="file (GGUF) or directory (ONNX) to write")
    how = p.add_mutually_exclusive_group(required=True)
    how.add_argument(
        "--gguf",
        choices=PRECISIONS,
        help="for llama.cpp; q8_0 takes 8.5 bits a weight, q4_k 4.5",
    )
    how.add_argument("--onnx", choices=ONNX, help="for onnxruntime")
    p.add_argument("--offline", action="store_true", help="never use the network")


def run(args: argparse.Namespace) -> None:
    """Write the file or the folder, whole or not at all."""
    if args.gguf and args.out.exists():
        raise UsageError(f"{args.out} exists: remove it, or choose another name")
    from gpa import disk
    from gpa.engine.network import Network
    from gpa.models.gpa.checkpoint_gpa import find

    network, _ = Network.load(find(args.model, offline=args.offline))
    if args.gguf:
        partial = args.out.with_name(f".{args.out.name}.part")
        try:
            export_gguf(network, partial, args.gguf)
            partial.rename(args.out)
        finally:
            partial.unlink(missing_ok=True)
    else:
        with disk.written_whole(args.out) as folder:
            export_onnx(network, folder)
    print(args.out)
