"""JSON Schema of recipes, read off their dataclasses, so that an editor completes and checks keys.

What `gpa.config.build` accepts in a section of known keys, the schema accepts; free mappings (the sizes of a
network) and what a recipe's own code checks are left to training. Source: JSON Schema, draft 7.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any

DRAFT = "http://json-schema.org/draft-07/schema#"
# YAML 1.1, which reads recipes, takes 3e-4 for a string
NUMBER = {"type": ["number", "string"], "pattern": r"^[-+]?[0-9.]+([eE][-+]?[0-9]+)?$"}
PLAIN: dict[Any, dict[str, Any]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: NUMBER,
    str: {"type": "string"},
    types.NoneType: {"type": "null"},
}


def schema(kinds: Mapping[str, type]) -> dict[str, Any]:
    """The schema of recipes of several kinds, each with its dataclass; `kind` tells which one holds."""
    known: dict[str, Any] = {}
    chosen = [
        {"if": {"properties": {"kind": {"const": kind}}}, "then": _section(recipe, known)}
        for kind, recipe in kinds.items()
    ]
    kind = {"enum": list(kinds), "description": "what is trained"}
    top = {"$schema": DRAFT, "title": "A recipe of gpa train", "type": "object"}
    return {**top, "properties": {"kind": kind}, "required": ["kind"], "allOf": chosen, "definitions": known}


def _section(cls: type, known: dict[str, Any]) -> dict[str, Any]:
    """A reference to a dataclass, which is put among the known definitions."""
    name = f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"
    if name not in known:
        known[name] = {}  # a section may hold its own kind
        hints = typing.get_type_hints(cls, include_extras=True)
        fields = dataclasses.fields(cls)
        comments = _comments(cls)
        known[name] = {
            "type": "object",
            "description": inspect.cleandoc(cls.__doc__ or ""),
            "properties": {
                f.name: {**_hint(hints[f.name], known), **comments.get(f.name, {})} for f in fields
            },
            "required": [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING],
            "additionalProperties": False,
        }
    return {"$ref": f"#/definitions/{name}"}


def _comments(cls: type) -> dict[str, dict[str, str]]:
    """What the source says of each field, behind it."""
    lines = re.findall(r"^    (\w+): .*?  # (.+)$", inspect.getsource(cls), re.MULTILINE)
    return {name: {"description": comment} for name, comment in lines}


def _hint(hint: Any, known: dict[str, Any]) -> dict[str, Any]:
    if dataclasses.is_dataclass(hint):
        return _section(hint, known)  # type: ignore[arg-type]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return {**_hint(arguments[0], known), **_bounds(arguments[0], arguments[1].least, arguments[1].most)}
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [_hint(argument, known) for argument in arguments]}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        pair = {} if arguments[-1] is Ellipsis else _bounds(tuple, len(arguments), len(arguments))
        return {"type": "array", "items": _hint(arguments[0], known), **pair}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": _hint(arguments[1], known)}
    return PLAIN.get(hint, {})


def _bounds(hint: Any, least: float, most: float) -> dict[str, float]:
    listed = hint is tuple or typing.get_origin(hint) is tuple
    names = ("minItems", "maxItems") if listed else ("minimum", "maximum")
    return {name: end for name, end in zip(names, (least, most), strict=True) if math.isfinite(end)}
