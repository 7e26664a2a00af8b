"""`gpa export` and `gpa push`: a model as others take it, and to where they find it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gpa import hub
from gpa.cli import options
from gpa.engine.backends.export_gguf import PRECISIONS, export_gguf
from gpa.errors import CheckpointError, UsageError


def add(sub: Any) -> None:
    """Add the commands to the parser."""
    _export(sub)
    _push(sub)


def _export(sub: Any) -> None:
    p = options.command(
        sub, "export", export, "write a model to publish, or its network for llama.cpp", """\
  gpa export runs/own/export anna --report report     a checkpoint with a card of what gpa eval measured
  gpa export gpa-mini mini.gguf --gguf f16
  gpa tts "The rain has stopped." --gamma 0 --engine llamacpp:mini.gguf

OUT becomes a whole checkpoint directory. a card (README.md) comes along; where there is none, one is written.
of a run's export OUT also gets training.jsonl and training.png, the run's log and its picture.
with --gguf OUT is a file of the network alone: codec, text and voices stay with the model, which the other
engine completes prompts for. vLLM and SGLang read the model's own folder. docs/serving.md says which engine
to take when. prints the path.
"""
    )  # fmt: skip
    p.add_argument("model", help="directory, owner/name, or shipped name")
    p.add_argument("out", type=Path, metavar="OUT", help="directory, or with --gguf file, to write")
    p.add_argument("--gguf", choices=PRECISIONS, help="bits of a weight; q8_0 takes 8.5, q4_k 4.5")
    p.add_argument("--report", type=Path, metavar="R", help="of `gpa eval` on this model, for the card")
    p.add_argument("--offline", action="store_true", help="never use the network")


def _push(sub: Any) -> None:
    p = options.command(
        sub, "push", push, "publish a checkpoint directory on the Hugging Face hub", """\
  gpa push anna owner/anna --private
  gpa tts "Good morning." --model owner/anna

makes the repository where it is missing. needs a token that may write: HF_TOKEN, or `hf auth login`. what the
hub has already is not sent again, so a push that was cut goes on by the same command. prints the address.
"""
    )  # fmt: skip
    p.add_argument("folder", type=Path, metavar="DIR", help="checkpoint directory with a card (README.md)")
    p.add_argument("repo", metavar="OWNER/NAME", help="repository to write into")
    p.add_argument("--private", action="store_true", help="only you and those you allow can read it")
    p.add_argument("-m", "--message", default="", metavar="M", help="of the commit")


def export(args: argparse.Namespace) -> None:
    """Write the file or the directory, whole or not at all."""
    if args.out.exists():
        raise UsageError(f"{args.out} exists: remove it, or choose another name")
    if args.gguf and args.report:
        raise UsageError("--report is for the card of a checkpoint directory: leave out --gguf")
    from gpa.models.gpa.checkpoint_gpa import find

    path = find(args.model, offline=args.offline)
    _network(path, args.out, args.gguf) if args.gguf else _checkpoint(path, args.out, args.report)
    print(args.out)


def _network(path: Path, out: Path, precision: str) -> None:
    from gpa import disk
    from gpa.engine.network import Network

    network, _ = Network.load(path)
    with disk.file_whole(out) as partial:
        export_gguf(network, partial, precision)


def _checkpoint(path: Path, out: Path, measured: Path | None) -> None:
    from gpa import disk
    from gpa.evals import report_file
    from gpa.models.gpa import GPA
    from gpa.train import metrics, model_card

    report = report_file.read(measured) if measured else None
    if report and report["settings"].get("model_sha256") != report_file.folder_hash(path):
        raise UsageError(f"{measured}: is about other files than {path}: run `gpa eval {path}` again")
    model = GPA.from_pretrained(path, device="cpu")
    with disk.written_whole(out) as folder:
        model.save_pretrained(folder)
        if (path.parent / metrics.LOG).is_file():  # the export of a run
            metrics.keep(path.parent, folder / model_card.TRAINING)
        model_card.complete(model, folder, report)


def push(args: argparse.Namespace) -> None:
    """Upload a checkpoint directory that has a card; the token is huggingface_hub's own."""
    folder, repo = args.folder, args.repo
    for names, remedy in (
        (("gpa.json", "speechop.json", "config.json"), "name a checkpoint directory, as runs/own/export"),
        (("README.md",), "a model without a card is not published: `gpa export MODEL OUT` writes one"),
    ):
        if not any((folder / name).is_file() for name in names):
            raise CheckpointError(f"{folder}: no {' or '.join(names)}: {remedy}")
    from huggingface_hub import HfApi

    api = HfApi(library_name="gpa-audio")
    with hub.refusals(repo, "could not be pushed", "then push again: what is there is not sent twice"):
        api.create_repo(repo, private=args.private or None, exist_ok=True)
        if args.private and not api.model_info(repo).private:
            raise CheckpointError(
                f"{repo} is public already: change that on its page, or choose another name"
            )
        message = args.message or f"gpa push {folder.resolve().name}"
        done = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    print(done.commit_url)
