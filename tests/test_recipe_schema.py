"""The JSON Schema of recipes: it accepts what is shipped and refuses what `gpa train` refuses by name."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from gpa import config
from gpa.errors import UsageError
from gpa.train.command import KINDS, kind_of
from gpa.train.recipe_schema import schema
from headers import run

jsonschema = pytest.importorskip("jsonschema")
ROOT = Path(__file__).resolve().parent.parent
FREE = (
    "model",
    "tasks",
    "speaker_encoder",
)  # mappings that the recipe's own code checks
RECIPES = sorted(path for name in ("gpa", "speechop") for path in (ROOT / "recipes" / name).glob("*.yaml"))


@pytest.fixture(scope="module")
def check() -> Any:
    found = schema({kind: kind_of(kind)[0] for kind in KINDS})
    jsonschema.Draft7Validator.check_schema(found)
    return jsonschema.Draft7Validator(found)


def accepted(tree: dict[str, Any]) -> bool:
    try:
        config.build(kind_of(tree["kind"])[0], tree)
    except UsageError:
        return False
    return True


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_accepted_and_a_misspelt_key_of_any_section_is_not(
    path: Path, check: Any
) -> None:
    tree = config.load_yaml(path)
    check.validate(tree)
    typed = [k for k, v in tree.items() if isinstance(v, dict) and k not in FREE]
    for section in (tree, *(tree[key] for key in typed)):
        section["misspelt"] = 1
        assert not check.is_valid(tree) and not accepted(tree)
        del section["misspelt"]
    check.validate(tree)


@pytest.mark.parametrize(
    "override",
    [
        "train.steps=many",
        "train.steps=1.5",
        "train.compile=1",
        "optim.lr=fast",
        "optim.lr=true",
        "data.tokens=5",
        "data.tokens=[a, 5]",
        "tasks.tts.share=much",
        "tasks=5",
        "kind=gpt",
        "train=",
    ],
)
def test_what_training_refuses_by_type_the_schema_refuses(override: str, check: Any) -> None:
    path = ROOT / "recipes" / "gpa" / "mini.yaml"
    tree = config.load_yaml(path, [override])
    assert not check.is_valid(tree)
    with pytest.raises(UsageError):
        config.build(kind_of(tree["kind"])[0], tree)


@pytest.mark.parametrize(
    "override", ["optim.lr=3e-4", "optim.lr=1", "data.tokens=[a, b]", "tasks.tts.share=", "train.zero=2"]
)
def test_what_training_accepts_the_schema_accepts(override: str, check: Any) -> None:
    tree = config.load_yaml(ROOT / "recipes" / "gpa" / "mini.yaml", [override])
    check.validate(tree)
    assert accepted(tree)


def test_required_keys_are_asked_for(check: Any) -> None:
    tree = config.load_yaml(ROOT / "recipes" / "gpa" / "mini.yaml")
    for name in ("kind", "data", "model"):
        assert not check.is_valid({key: value for key, value in tree.items() if key != name})


def test_the_command_prints_it_with_the_comments_of_the_source(tmp_path: Path, check: Any) -> None:
    done = run([sys.executable, "-m", "gpa", "config", "--schema"], tmp_path)
    found = json.loads(done.stdout)
    assert found == check.schema
    steps = found["definitions"]["arguments.TrainArgs"]["properties"]
    assert steps["steps"] == {"type": "integer"}
    assert steps["accumulate"]["description"] == "micro-batches of each process per step"
