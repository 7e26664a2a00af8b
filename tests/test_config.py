"""Recipes: unknown, missing and mistyped keys, overrides, and every shipped recipe."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpa import config
from gpa.codec.bicodec import BiCodecConfig
from gpa.errors import UsageError
from gpa.train.command import KINDS
from gpa.train.families.codec import CodecRecipe
from gpa.train.families.ctc_letters import CTCRecipe
from gpa.train.families.diffusion import DiffusionRecipe
from gpa.train.families.latent import LatentRecipe
from gpa.train.families.lm import LMRecipe
from gpa.train.families.preference import PreferenceRecipe
from gpa.train.families.text_tokenizer import TextRecipe

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted(path for name in ("gpa", "speechop") for path in (ROOT / "recipes" / name).glob("*.yaml"))
CLASSES: dict[str, type] = {
    "codec": CodecRecipe,
    "ctc": CTCRecipe,
    "dpo": PreferenceRecipe,
    "gpa": LMRecipe,
    "latent": LatentRecipe,
    "speechop": DiffusionRecipe,
    "text": TextRecipe,
}


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    names: tuple[str, ...] = ("a",)


@dataclass(frozen=True)
class Outer:
    count: int
    inner: Inner = field(default_factory=Inner)
    free: dict[str, Any] = field(default_factory=dict)
    flag: bool = False
    name: str = ""
    limit: float | None = None


def build(text: str) -> Outer:
    return config.build(Outer, yaml.safe_load(text))


def test_build_fills_nested_sections_and_keeps_defaults() -> None:
    got = build("{count: 2, inner: {rate: 3e-4, names: [x, y]}, free: {any: [1]}, limit: 2}")
    assert got == Outer(2, Inner(3e-4, ("x", "y")), {"any": [1]}, limit=2.0)
    assert isinstance(build("{count: 1, inner: {rate: 1}}").inner.rate, float)
    assert build("{count: 1, limit: null}").limit is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{count: 1, cuont: 2}", r"recipe: unknown keys \['cuont'\]; known: \['count', 'flag'"),
        ("{count: 1, inner: {rat: 2}}", r"inner: unknown keys \['rat'\]; known: \['names', 'rate'\]"),
        ("{count: 1, 5: 2, x: 3}", "unknown keys"),
        ("{flag: true}", r"recipe: missing keys \['count'\]"),
        ("{count: 1.5}", "count: expected int, got 1.5"),
        ("{count: true}", "count: expected int, got True"),
        ("{count: '1'}", "count: expected int, got '1'"),
        ("{count: 1, flag: 1}", "flag: expected bool, got 1"),
        ("{count: 1, name: 5}", "name: expected str, got 5"),
        ("{count: 1, inner: {rate: fast}}", "inner.rate: expected a number, got 'fast'"),
        ("{count: 1, inner: {rate: true}}", "inner.rate: expected float, got True"),
        ("{count: 1, inner: {names: train}}", "inner.names: expected a list, got 'train'"),
        ("{count: 1, inner: {names: [a, 2]}}", r"inner.names\[1\]: expected str, got 2"),
        ("{count: 1, inner: 5}", "inner: expected a section of keys, got 5"),
        ("{count: 1, free: 5}", "free: expected a section of keys, got 5"),
        ("{count: 1, limit: x}", "limit: expected a number, got 'x'"),
        ("[1]", "Outer: expected a section"),
    ],
)
def test_wrong_recipes_are_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(text)


def test_overrides_are_laid_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("count: 1\ninner: {rate: 0.1}\n")
    tree = config.load_yaml(path, ["inner.rate=2e-3", "free.a.b=[1, 2]", "flag=true", "name=a=b"])
    got = config.build(Outer, tree)
    assert got == Outer(1, Inner(2e-3), {"a": {"b": [1, 2]}}, True, "a=b")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("count", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("inner..rate=3", "not of the form key=value"),
        ("count.x=3", "'count' is a value, not a section"),
        ("count=[", "override 'count=\\[': not valid YAML"),
    ],
)
def test_wrong_overrides_are_refused(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("count: 1\n")
    with pytest.raises(UsageError, match=message):
        config.load_yaml(path, [override])


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such recipe; the shipped ones are in recipes/"):
        config.load_yaml(tmp_path / "absent.yaml")
    path = tmp_path / "r.yaml"
    path.write_text("a: [")
    with pytest.raises(UsageError, match="not valid YAML"):
        config.load_yaml(path)
    path.write_text("- a\n")
    with pytest.raises(UsageError, match="expected a section of keys"):
        config.load_yaml(path, ["a=1"])
    path.write_text("")
    assert config.load_yaml(path, ["a=1"]) == {"a": 1}


def test_there_are_recipes_of_every_kind() -> None:
    written = {"voice"}  # by `gpa finetune`, beside the voice
    shipped = {yaml.safe_load(path.read_text())["kind"] for path in RECIPES}
    assert shipped == set(KINDS) - written == set(CLASSES)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_parse_and_round_trip(path: Path) -> None:
    tree = config.load_yaml(path)
    recipe = config.build(CLASSES[tree["kind"]], tree)
    assert config.build(type(recipe), yaml.safe_load(config.dump(recipe))) == recipe
    assert f"recipes/{path.relative_to(ROOT / 'recipes')}" in path.read_text(), "the header has the command"
    if isinstance(recipe, CodecRecipe) and not recipe.init:
        sizes = BiCodecConfig.from_dict(recipe.model)
        assert BiCodecConfig.from_dict(sizes.to_dict()) == sizes


def test_stated_leaves_out_what_is_at_its_default() -> None:
    """A setting that is added later changes no fingerprint of those who do not use it."""

    @dataclass(frozen=True)
    class Inner:
        size: int
        extra: float = 0.0

    @dataclass(frozen=True)
    class Outer:
        inner: Inner
        maybe: Inner | None = None
        rates: tuple[int, ...] = field(default_factory=tuple)

    assert config.stated(Outer(Inner(3))) == {"inner": {"size": 3}}
    full = Outer(Inner(0, 1.5), Inner(1), (2, 3))
    assert config.stated(full) == {"inner": {"size": 0, "extra": 1.5}, "maybe": {"size": 1}, "rates": (2, 3)}
