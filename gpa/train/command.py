"""`gpa train RECIPE [key=value ...] [--run DIR]`: parse the recipe, choose the family, call the loop."""

from __future__ import annotations

import argparse
import logging
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpa import config, disk
from gpa.errors import UsageError
from gpa.train import checkpoint, environment, launch
from gpa.train.loop import train
from gpa.train.metrics import plot

if TYPE_CHECKING:
    from gpa.train.families.base import Family

log = logging.getLogger(__name__)
KINDS = ("codec", "gpa", "latent", "speechop", "text", "voice")


def family_of(tree: dict[str, Any]) -> tuple[Family, Any]:
    kind = tree.get("kind")
    if kind == "codec":
        from gpa.train.families.codec import CodecFamily, CodecRecipe

        recipe = config.build(CodecRecipe, tree)
        return CodecFamily(recipe), recipe
    if kind == "gpa":
        from gpa.train.families.lm import LMFamily, LMRecipe

        lm = config.build(LMRecipe, tree)
        return LMFamily(lm), lm
    if kind == "latent":
        from gpa.train.families.latent import LatentFamily, LatentRecipe

        latent = config.build(LatentRecipe, tree)
        return LatentFamily(latent), latent
    if kind == "speechop":
        from gpa.train.families.diffusion import DiffusionFamily, DiffusionRecipe

        speechop = config.build(DiffusionRecipe, tree)
        return DiffusionFamily(speechop), speechop
    if kind == "voice":
        from gpa.train.families.speaker_adaptation import VoiceFamily, VoiceRecipe

        voice = config.build(VoiceRecipe, tree)
        return VoiceFamily(voice), voice
    raise UsageError(f"recipe kind {kind!r}: choose one of {', '.join(KINDS)}")


def main(argv: list[str] | None = None) -> None:
    """Entry point of `gpa train` and `python -m gpa.train`; raises GPAError."""
    parser = argparse.ArgumentParser(
        prog="gpa train", description="Train from a recipe; an interrupted run resumes by the same command."
    )
    parser.add_argument("recipe", type=Path, help="a YAML file of recipes/")
    parser.add_argument(
        "overrides", nargs="*", help="recipe keys to change, e.g. optim.lr=3e-4 train.steps=10"
    )
    about = "default runs/<recipe name>; torchrun takes the short option for one of its own"
    parser.add_argument("--run", "--run-folder", type=Path, metavar="DIR", help=about)
    parser.add_argument(
        "--threads", type=int, metavar="N", help="of the processor, as train.threads=N (default: GPA_THREADS)"
    )
    args = parser.parse_intermixed_args(argv)  # keys may also follow --run
    launched = launch.Launched.read()
    # What is trained and where belongs to the result; of several processes one says it.
    logging.getLogger("gpa.train").setLevel(logging.INFO if launched.rank == 0 else logging.ERROR)
    tree = config.load_yaml(args.recipe, args.overrides)
    run = args.run or Path("runs") / args.recipe.stem
    if tree.get("kind") == "text":
        return _text(tree, run)
    if args.threads is not None:
        tree["train"] = {**(tree.get("train") or {}), "threads": args.threads}
    launch.resolve(tree, launched)
    family, recipe = family_of(tree)
    with closing(launch.start(recipe.train, launched)) as parallel, ExitStack() as held:
        parallel.on_rank_zero(lambda: held.enter_context(disk.held(run, "run")))
        parallel.on_rank_zero(lambda: checkpoint.claim(run, recipe))
        data = parallel.on_rank_zero(lambda: environment.fingerprint(recipe.data))
        train(family, recipe.train, recipe.optim, run, parallel=parallel, about={"data": data})
        parallel.on_rank_zero(lambda: plot(run))


def _text(tree: dict[str, Any], run: Path) -> None:
    """A text tokenizer has no steps: it is made at once."""
    from gpa.train.families.text_tokenizer import TextRecipe, train_text

    recipe = config.build(TextRecipe, tree)
    with disk.held(run, "run"), disk.room(run):
        checkpoint.claim(run, recipe)
        found = train_text(recipe, run)
    log.info("%s  %s", run / "export", "  ".join(f"{name} {value:.4g}" for name, value in found.items()))
