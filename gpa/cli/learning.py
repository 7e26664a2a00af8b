"""The commands that train, as options: `gpa train`, `config`, `plot`, `lab`, `finetune`, `pairs`, `plan`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gpa.cli import commands, options


def add(sub: Any) -> None:
    """Add the commands to the parser."""
    for each in (_train, _config, _finetune, _pairs, _plan, _lab):
        each(sub)


def _train(sub: Any) -> None:
    options.command(
        sub, "train", commands.train, "train from a recipe", """\
  gpa train recipes/gpa/codec.yaml
  gpa train recipes/gpa/codec.yaml train.steps=10 --run runs/try
  gpa train recipes/gpa/own.yaml data.tokens=tokens --dry-run     steps, memory, the first batch in words

the same as `python -m gpa.train`; its own --help says more.
""", add_help=False
    )  # fmt: skip
    p = options.command(
        sub, "plot", commands.plot, "draw the metrics of training runs", """\
  gpa plot runs/mini                       writes and prints RUN/loss.png
  gpa plot runs/mini -o recipes/gpa/history/runs     mini.png and mini.jsonl, a log small enough to commit
"""
    )  # fmt: skip
    p.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, finished or not")
    p.add_argument("-o", "--out", type=Path, metavar="DIR", help="write there, with a log to keep")


def _config(sub: Any) -> None:
    p = options.command(
        sub, "config", commands.schema, "print the JSON Schema of recipes", """\
  gpa config --schema > recipe.schema.json

an editor with a YAML language server then completes and checks the keys of a recipe whose first line is
  # yaml-language-server: $schema=recipe.schema.json
"""
    )  # fmt: skip
    p.add_argument("--schema", action="store_true", required=True, help="print it")


def _lab(sub: Any) -> None:
    options.command(
        sub, "lab", commands.lab, "tools that made the shipped models", """\
  gpa lab --help
  gpa lab merge runs/a/export runs/b/export -o runs/mean
""", add_help=False
    )  # fmt: skip


def _finetune(sub: Any) -> None:
    p = options.command(
        sub, "finetune", commands.finetune, "teach a model a new voice from a folder of recordings", """\
  gpa finetune --voice recordings/anna --plan          say what it would take, train nothing
  gpa finetune --voice recordings/anna -o anna
  gpa tts "It is me." --model anna/model --voice anna

FOLDER holds audio files, with a .txt of the same name where the words are known, or a label file such as
metadata.csv (docs/data.md); what has no text is transcribed by the model and marked so. prints a plan, learns
what carries the voice (speaker vector, changes of the decoder, timbre, pitch) and ends with a table before
and after; other voices keep their sound to the bit. --adapt-lm trains an adapter of the language model as
well, while it rehearses what it could do before; exits with 1 if an old task lost more than --limit points.
a run that was killed goes on where it was: start it again. use your own voice, or one whose owner agreed.
docs/finetuning.md says what was measured.
"""
    )  # fmt: skip
    p.add_argument("--voice", type=Path, required=True, metavar="FOLDER", help="recordings, or a manifest")
    p.add_argument("-o", "--output", type=Path, metavar="DIR", help="default runs/voice-NAME")
    p.add_argument("--plan", action="store_true", help="print the plan and stop")
    p.add_argument("--name", default="", help="of the voice (default: the folder's)")
    p.add_argument("--licence", default="", metavar="L", help="of recordings that state none")
    p.add_argument(
        "--transcriber", choices=("model", "judge"), default="model", help="fills in texts (default model)"
    )
    how = p.add_argument_group("training")
    how.add_argument(
        "--voice-rank",
        type=int,
        default=4,
        help="of the decoder's changes; 0: none (default 4)",
    )
    how.add_argument("--voice-steps", type=int, default=100, help="of the voice (default 100)")
    how.add_argument("--seed", type=int, default=0, help="default 0")
    how = p.add_argument_group("the language model, with --adapt-lm")
    how.add_argument("--adapt-lm", action="store_true", help="train it too: recognition of the voice gains")
    how.add_argument("--rank", type=int, help="of the adapter; 0 trains all weights (default 16)")
    how.add_argument("--steps", type=int, help="default: eight passes over the voice")
    how.add_argument("--lr", type=float, help="default 1e-3, for all weights 1e-4")
    how.add_argument("--batch-ids", type=int, metavar="N", help="of a step (default 2048)")
    how.add_argument("--replay", metavar="DIR", help="a prepared folder to rehearse from")
    seen = p.add_argument_group("the table")
    seen.add_argument("--items", type=int, default=12, metavar="N", help="of each line; 0: no table")
    seen.add_argument("--judge", choices=("auto", "extra", "own"), default="auto", help="who listens")
    seen.add_argument("--limit", type=float, default=10.0, metavar="POINTS", help="of loss (default 10)")
    options.model(p)


def _pairs(sub: Any) -> None:
    p = options.command(
        sub, "pairs", _make_pairs, "takes of texts as pairs for preference training (DPO)", """\
  gpa pairs sentences.txt -o pairs
  gpa pairs sentences.txt --model runs/own/export --takes 8 -o pairs
  gpa train recipes/gpa/dpo.yaml init=gpa-mini data.pairs=pairs

one text a line; of a .tsv the last column. the model says each in one of its voices, several times, and a
judge writes down what it hears: the take with fewest wrong words is the better one, that with most the
worse one. texts without such a pair are counted, and named in rejected.jsonl. pairs are ids of the model
that spoke, and train no other. keep what an evaluation says out: gpa eval --seen pairs/pairs.jsonl
"""
    )  # fmt: skip
    p.add_argument("texts", type=Path, nargs="+", metavar="FILE", help="texts, one a line")
    p.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="a new folder")
    p.add_argument("--takes", type=int, default=4, metavar="N", help="of each text (default 4)")
    p.add_argument(
        "--margin", type=int, default=1, metavar="N", help="wrong words more in the worse take (default 1)"
    )
    p.add_argument(
        "--judge",
        choices=("auto", "extra", "own"),
        default="auto",
        help="who listens: Whisper (extra `eval`), the model itself (own), or Whisper if it is there (auto)",
    )
    options.sampling(p)
    options.model(p)


def _make_pairs(args: argparse.Namespace) -> None:
    from gpa.cli import pairing  # here: parsing needs none of it

    pairing.run(args)


def _plan(sub: Any) -> None:
    p = options.command(
        sub, "plan", commands.plan, "what training and serving would take: memory, days, cost, streams", """\
  gpa plan recipes/gpa/gpa_0_3b.yaml --gpus 64 --gpu h100 --hours 1000000
  gpa plan recipes/gpa/gpa_3b.yaml --gpus 256 --hours 200000 --epochs 3 --mfu 0.38
  gpa plan recipes/gpa/gpa_0_3b.yaml --memory 8      serve on a processor with 8 GiB

arithmetic only: nothing is allocated, no data is needed.
"""
    )  # fmt: skip
    p.add_argument("recipe", help="a recipe of kind gpa, with model.vocab_size")
    p.add_argument("--gpus", type=int, default=8, help="how many (default 8)")
    p.add_argument("--gpu", default="h100", help="a100, h100, h200 or rtx4090 (default h100)")
    p.add_argument("--hours", type=float, default=1000.0, help="hours of speech (default 1000)")
    p.add_argument("--epochs", type=float, default=1.0, help="passes over them (default 1)")
    p.add_argument("--mfu", type=float, default=0.4, help="share of peak reached (default 0.4; `gpa bench`)")
    p.add_argument("--price", type=float, help="dollars per GPU hour (default: a guess per kind)")
    p.add_argument(
        "--memory", type=float, metavar="GIB", help="of a processor that serves (default: the GPU serves)"
    )
