"""`gpa lab NAME`: tools that made the shipped models once; nothing else needs them."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence

from gpa.errors import UsageError, exit_code

log = logging.getLogger(__name__)
TOOLS = {
    "ngram_list": "an n-gram model, as a list that recognition weighs by",
    "export_speechop": "the export of a SpeechOp run as a checkpoint that people load",
    "merge": "the weighted mean of two exported networks",
    "pronunciation_list": "CMU's dictionary as a list by which speech is asked for",
    "samples": "a page of sound from an evaluation's folder",
    "segments": "a token folder with its clips also cut at pauses",
    "synthesis": "sentences read aloud by Flite, with a manifest",
    "word_list": "words of training texts and how often they are said",
}
HELP = "usage: gpa lab NAME ...\n\n" + (__doc__ or "").partition(": ")[2] + "\n\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Run a tool by its name; UsageError, with all names, for one that there is not."""
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(HELP + "\n".join(f"  {tool:<20}{about}" for tool, about in TOOLS.items()))
    elif name not in TOOLS:
        raise UsageError(f"gpa lab {name}: no such tool; known: {', '.join(TOOLS)}")
    else:
        importlib.import_module(f"gpa.lab.{name}").main(rest)


if __name__ == "__main__":
    raise SystemExit(exit_code(main, log))
