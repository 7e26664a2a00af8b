"""`gpa train RECIPE [key=value ...] [--run DIR]`: parse the recipe, choose the family, call the loop."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
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
KINDS = ("codec", "ctc", "dpo", "gpa", "latent", "speechop", "text", "voice")


def kind_of(name: Any) -> tuple[type[Any], Callable[[Any], Family] | None]:
    """Recipe and family of a kind; no family where nothing has steps. UsageError for an unknown kind."""
    if name == "codec":
        from gpa.train.families.codec import CodecFamily, CodecRecipe

        return CodecRecipe, CodecFamily
    if name == "ctc":
        from gpa.train.families.ctc_letters import CTCFamily, CTCRecipe

        return CTCRecipe, CTCFamily
    if name == "dpo":
        from gpa.train.families.preference import PreferenceFamily, PreferenceRecipe

        return PreferenceRecipe, PreferenceFamily
    if name == "gpa":
        from gpa.train.families.lm import LMFamily, LMRecipe

        return LMRecipe, LMFamily
    if name == "latent":
        from gpa.train.families.latent import LatentFamily, LatentRecipe

        return LatentRecipe, LatentFamily
    if name == "speechop":
        from gpa.train.families.diffusion import DiffusionFamily, DiffusionRecipe

        return DiffusionRecipe, DiffusionFamily
    if name == "text":
        from gpa.train.families.text_tokenizer import TextRecipe

        return TextRecipe, None
    if name == "voice":
        from gpa.train.families.speaker_adaptation import VoiceFamily, VoiceRecipe

        return VoiceRecipe, VoiceFamily
    raise UsageError(f"recipe kind {name!r}: choose one of {', '.join(KINDS)}")


def family_of(tree: dict[str, Any]) -> tuple[Family, Any]:
    """The family of a recipe, with its data at hand, and the recipe."""
    make, family = kind_of(tree.get("kind"))
    recipe = config.build(make, tree)
    if family is None:
        raise UsageError(f"recipe kind {recipe.kind!r}: it has no steps; `gpa train` makes it at once")
    return family(recipe), recipe


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
    about = "say what the run would do: recipe, steps, memory, the first batch in words; write nothing"
    parser.add_argument("--dry-run", action="store_true", help=about)
    args = parser.parse_intermixed_args(argv)  # keys may also follow --run
    launched = launch.Launched.read()
    # What is trained and where belongs to the result; of several processes one says it.
    logging.getLogger("gpa.train").setLevel(logging.INFO if launched.rank == 0 else logging.ERROR)
    tree = config.load_yaml(args.recipe, args.overrides)
    run = args.run or Path("runs") / args.recipe.stem
    if tree.get("kind") == "text":
        return _text(tree, run, args.dry_run)
    if args.threads is not None:
        tree["train"] = {**(tree.get("train") or {}), "threads": args.threads}
    launch.resolve(tree, launched)
    family, recipe = family_of(tree)
    if args.dry_run:
        from gpa.train import dry_run

        return print(*dry_run.lines(family, recipe, launched.world), sep="\n")
    with closing(launch.start(recipe.train, launched)) as parallel, ExitStack() as held:
        parallel.on_rank_zero(lambda: held.enter_context(disk.held(run, "run")))
        begun = parallel.on_rank_zero(lambda: checkpoint.claim(run, recipe))
        if slow := launch.slow_bfloat16(recipe.train, recipe.optim.name, parallel.device):
            log.warning("%s", slow)
        data = parallel.on_rank_zero(lambda: environment.fingerprint(recipe.data))
        parallel.on_rank_zero(lambda: environment.check_data(run, data) if begun else None)
        train(family, recipe.train, recipe.optim, run, parallel=parallel, about={"data": data})
        parallel.on_rank_zero(lambda: plot(run))
        parallel.on_rank_zero(lambda: print(run / "export", flush=True))


def _text(tree: dict[str, Any], run: Path, dry: bool) -> None:
    """A text tokenizer has no steps: it is made at once."""
    from gpa.train.families.text_tokenizer import TextRecipe, train_text

    recipe = config.build(TextRecipe, tree)
    if dry:
        return print(config.dump(recipe) + "\nno steps: a text tokenizer is made at once")
    with disk.held(run, "run"), disk.room(run):
        checkpoint.claim(run, recipe)
        found = train_text(recipe, run)
    log.info("%s  %s", run / "export", "  ".join(f"{name} {value:.4g}" for name, value in found.items()))
