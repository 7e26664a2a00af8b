"""`python -m gpa.train RECIPE [key=value ...] [--run DIR]`: parse the recipe, choose the family, call the loop."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from gpa import config
from gpa.errors import UsageError
from gpa.train.loop import Family, train


def _family(tree: dict[str, Any]) -> tuple[Family, Any]:
    kind = tree.get("kind")
    if kind == "codec":
        from gpa.train.codec import CodecFamily, CodecRecipe

        recipe = config.build(CodecRecipe, tree)
        return CodecFamily(recipe), recipe
    if kind == "gpa":
        from gpa.train.ar import LMFamily, LMRecipe

        lm = config.build(LMRecipe, tree)
        return LMFamily(lm), lm
    raise UsageError(f"recipe kind {kind!r}: choose one of codec, gpa")


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="gpa train", description="Train from a recipe; an interrupted run resumes by the same command.")
    parser.add_argument("recipe", type=Path, help="a YAML file of recipes/")
    parser.add_argument("overrides", nargs="*", help="recipe keys to change, e.g. optim.lr=3e-4 train.steps=10")
    parser.add_argument("--run", type=Path, help="run folder (default runs/<recipe name>)")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    tree = config.load_yaml(args.recipe, args.overrides)
    family, recipe = _family(tree)
    run = args.run or Path("runs") / args.recipe.stem
    run.mkdir(parents=True, exist_ok=True)
    (run / "recipe.yaml").write_text(config.dump(recipe))
    train(family, recipe.train, recipe.optim, run)


if __name__ == "__main__":
    main()
