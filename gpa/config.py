"""YAML plus dotted overrides -> typed dataclasses; an unknown key or a wrong type is an error that lists what is known."""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from gpa.errors import UsageError

T = TypeVar("T")


def load_yaml(path: str | Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """Content of a YAML file with `a.b=value` overrides laid over it (values are parsed as YAML)."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such recipe; the shipped ones are in recipes/")
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as e:
        raise UsageError(f"{path}: not valid YAML: {e}") from e
    for item in overrides or []:
        key, sep, value = item.partition("=")
        if not sep:
            raise UsageError(f"override '{item}' is not of the form key=value, e.g. optim.lr=3e-4")
        node = tree
        *parents, last = key.split(".")
        for name in parents:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise UsageError(f"override '{item}': '{name}' is a value, not a section")
        node[last] = yaml.safe_load(value)
    return tree


def build(cls: type[T], raw: dict[str, Any], where: str = "") -> T:
    """Fill dataclass `cls` from a mapping, recursing into dataclass fields; UsageError for unknown, missing or mistyped keys."""
    if not isinstance(raw, dict):
        raise UsageError(f"{where or cls.__name__}: expected a section of keys, got {raw!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(raw) - set(fields))
    if unknown:
        raise UsageError(f"{where or 'recipe'}: unknown keys {unknown}; known: {sorted(fields)}")
    missing = [n for n, f in fields.items() if n not in raw and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    if missing:
        raise UsageError(f"{where or 'recipe'}: missing keys {missing}")
    return cls(**{name: _convert(hints[name], value, f"{where}.{name}".lstrip(".")) for name, value in raw.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)  # type: ignore[arg-type]
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 3e-4 as a string
        except ValueError:
            raise UsageError(f"{where}: expected a number, got {value!r}") from None
    if isinstance(hint, types.UnionType) and value is None:
        return None
    plain = {int: int, str: str, bool: bool, float: float}.get(hint)
    if plain is not None and (not isinstance(value, plain) or (plain is int and isinstance(value, bool))):
        raise UsageError(f"{where}: expected {plain.__name__}, got {value!r}")
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        return tuple(value)
    return value


def dump(config: Any) -> str:
    """YAML of a dataclass, the inverse of `build`."""
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
