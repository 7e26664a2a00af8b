"""YAML plus dotted overrides -> typed dataclasses; an unknown key is an error that lists the known ones."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

import yaml

from gpa.errors import UsageError

T = TypeVar("T")
OPTION_TYPES = {
    "bool": bool,
    "int": Integral,
    "float": Real,
    "str": str,
    "Mapping[str, str]": Mapping,
    "Iterable[str]": Iterable,
}


def load_yaml(path: str | Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """Content of a YAML file with `a.b=value` overrides laid over it (values are parsed as YAML)."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such recipe; the shipped ones are in recipes/")
    tree = _parse(path.read_text(encoding="utf-8"), str(path))
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise UsageError(f"{path}: expected a section of keys, got {tree!r:.80}")
    for item in overrides or []:
        _override(tree, item)
    return tree


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise UsageError(f"{where}: not valid YAML: {e}") from e


def _override(tree: dict[str, Any], item: str) -> None:
    key, sep, value = item.partition("=")
    *parents, last = key.split(".")
    if not sep or not all((*parents, last)):
        raise UsageError(f"override '{item}' is not of the form key=value, e.g. optim.lr=3e-4")
    node = tree
    for name in parents:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise UsageError(f"override '{item}': '{name}' is a value, not a section")
    node[last] = _parse(value, f"override '{item}'")


def build(cls: type[T], raw: dict[str, Any], where: str = "") -> T:
    """Fill dataclass `cls` from a mapping, recursing into dataclass fields.

    UsageError for unknown, missing or mistyped keys; `where` names the section in its message.
    """
    if not isinstance(raw, dict):
        raise UsageError(f"{where or cls.__name__}: expected a section of keys, got {raw!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted((key for key in raw if key not in fields), key=str)
    if unknown:
        raise UsageError(f"{where or 'recipe'}: unknown keys {unknown}; known: {sorted(fields)}")
    missing = [n for n, f in fields.items() if n not in raw and _required(f)]
    if missing:
        raise UsageError(f"{where or 'recipe'}: missing keys {missing}")
    return cls(
        **{name: _convert(hints[name], value, f"{where}.{name}".lstrip(".")) for name, value in raw.items()}
    )


def _required(f: dataclasses.Field) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)  # type: ignore[arg-type]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, types.UnionType):  # `X | None`, or one `X | tuple[X, ...]`
        if value is None and types.NoneType in arguments:
            return None
        several = isinstance(value, (list, tuple)) and typing.get_origin(arguments[1]) is tuple
        return _convert(arguments[1 if several else 0], value, where)
    if origin is tuple:  # `tuple[X, ...]`; a lone string would pass as its letters
        if not isinstance(value, (list, tuple)):
            raise UsageError(f"{where}: expected a list, got {value!r}")
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise UsageError(f"{where}: expected a section of keys, got {value!r}")
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    return _plain_value(hint, value, where)


def _plain_value(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 3e-4 as a string
        except ValueError:
            raise UsageError(f"{where}: expected a number, got {value!r}") from None
    known = hint in (int, str, bool, float)
    if known and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise UsageError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def dump(config: Any) -> str:
    """YAML of a dataclass, the inverse of `build`."""
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def stated(settings: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not at their default, recursively.

    What a fingerprint should hold: a setting that is new here changes nothing for who does not use it.
    """
    values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    kept = {f.name: values[f.name] for f in dataclasses.fields(settings) if values[f.name] != _default(f)}
    return {name: stated(v) if dataclasses.is_dataclass(v) else v for name, v in kept.items()}


def _default(f: dataclasses.Field) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


def check_options(options: Mapping[str, Any], group: type) -> None:
    """UsageError for an option that a `TypedDict` of options does not have, with the valid names, or for a
    value of another type.
    """
    if strange := sorted(set(options) - set(group.__annotations__)):
        raise UsageError(f"unknown option {strange[0]!r}: choose from {', '.join(group.__annotations__)}")
    for name, value in options.items():
        # A string, since modules of options have their annotations as text.
        hint = getattr(group.__annotations__[name], "__forward_arg__", "")
        known = OPTION_TYPES.get(hint.removesuffix(" | None"))
        if known and not (isinstance(value, known) or (value is None and hint.endswith("None"))):
            raise UsageError(f"{name}={value!r}: expected {hint}")
