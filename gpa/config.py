"""Files of settings -> typed dataclasses; an unknown key is an error that lists the known ones.

JSON and YAML are read here and nowhere else: UTF-8, of bounded size and depth, every key once, every number
finite. `build` checks types and bounds (`Annotated[int, Within(1, 64)]`) of any dataclass.
"""

from __future__ import annotations

import codecs
import dataclasses
import difflib
import json
import math
import reprlib
import types
import typing
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml

from gpa.errors import CheckpointError, GPAError, UsageError

T = TypeVar("T")
MOST_BYTES = 64 << 20  # of a JSON file; the largest are tokenizers, some 20 MB
MOST_YAML = 1 << 20  # bytes; recipes have some 5 kB, and reading YAML is slow
MOST_VALUES = 100_000  # of a YAML file, what its aliases stand for included
DEEPEST = 64  # sections within sections


@dataclass(frozen=True)
class Within:
    """Bounds, both included, of a number or of the length of a list."""

    least: float = -math.inf
    most: float = math.inf


Size = Annotated[int, Within(1, 1 << 24)]  # of a tensor's dimension
Layers = Annotated[int, Within(0, 512)]
Rate = Annotated[int, Within(1, 1 << 20)]  # samples or samples per second
Share = Annotated[float, Within(0, 1)]
INT64 = Within(-(1 << 63), (1 << 63) - 1)
OPTION_TYPES = {
    "bool": bool,
    "int": Integral,
    "float": Real,
    "str": str,
    "Mapping[str, str]": Mapping,
    "Iterable[str]": Iterable,
}


def read_text(path: str | Path, error: type[GPAError] = UsageError, most: int | None = MOST_BYTES) -> str:
    """Content of a UTF-8 file; `error` says why there is none: absent, a folder, other encoding, too long."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(-1 if most is None else most + 1)
    except OSError as e:
        raise error(f"{path}: cannot be read ({e.strerror or e})") from e
    if most is not None and len(content) > most:
        raise error(f"{path}: more than {most} bytes, too long for such a file")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content[:1000]:
        raise error(f"{path}: not UTF-8 but UTF-16, or no text at all; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = content.count(b"\n", 0, e.start) + 1
        raise error(
            f"{path}: not UTF-8 (byte {content[e.start]:#04x} in line {line}; Latin-1 or Windows-1252?); "
            "save it as UTF-8"
        ) from e


def read_json(path: str | Path, error: type[GPAError] = UsageError) -> dict[str, Any]:
    """The JSON object in a file; `error` naming the file and what is wrong with it."""
    text = read_text(path, error)
    try:
        tree = json.loads(text, object_pairs_hook=_once, parse_constant=_finite, parse_float=_finite)
        _check_depth(tree)
    except ValueError as e:
        raise error(f"{path}: not valid JSON ({e})") from e
    except RecursionError as e:
        raise error(f"{path}: more than {DEEPEST} sections within sections") from e
    if not isinstance(tree, dict):
        raise error(f"{path}: expected a JSON object, found {type(tree).__name__}")
    return tree


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    section = dict(pairs)
    if len(section) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r:.80} is given twice")
    return section


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text:.20} is not a finite number")
    return number


def _check_depth(tree: Any) -> None:
    level, depth = [tree], 0
    while level := [part for part in level if isinstance(part, (dict, list))]:
        if (depth := depth + 1) > DEEPEST:
            raise RecursionError
        level = [v for part in level for v in (part.values() if isinstance(part, dict) else part)]


class _Loader(yaml.SafeLoader):
    """YAML without keys given twice, and without aliases that stand for more than a file may hold."""

    def get_single_node(self) -> Any:
        root = super().get_single_node()
        left, count = [(root, 1)], 0
        while left:
            node, depth = left.pop()
            count += 1
            if count > MOST_VALUES or depth > DEEPEST:
                raise RecursionError
            parts = node.value if isinstance(node, yaml.CollectionNode) else ()
            if isinstance(node, yaml.MappingNode):
                parts = [part for pair in node.value for part in pair]
            left += [(part, depth + 1) for part in parts]
        return root

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if twice := {name for name in names if names.count(name) > 1}:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {min(twice)!r:.80} is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path, error: type[GPAError] = UsageError) -> dict[str, Any]:
    """The sections of a YAML file, none for an empty one; `error` as `read_json`."""
    tree = _parse(read_text(path, error, MOST_YAML), str(path), error)
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise error(f"{path}: expected a section of keys, got {shown(tree)}")
    return tree


def load_yaml(path: str | Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """Content of a YAML file with `a.b=value` overrides laid over it (values are parsed as YAML)."""
    if not Path(path).exists():
        raise UsageError(f"{path}: no such recipe; the shipped ones are in recipes/")
    tree = read_yaml(path)
    for item in overrides or []:
        _override(tree, item)
    return tree


def _parse(text: str, where: str, error: type[GPAError] = UsageError) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, OverflowError) as e:
        raise error(f"{where}: not valid YAML: {e}") from e
    except RecursionError as e:
        raise error(
            f"{where}: more than {DEEPEST} sections within sections, or {MOST_VALUES} values with its aliases"
        ) from e


def shown(value: Any) -> str:
    """A value in a message: short, however large or deep it is."""
    return reprlib.repr(value)[:120]


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

    UsageError for unknown, missing or mistyped keys, for numbers beyond their bounds, which are int64 and
    finite where the class gives no others; `where` names the section in its message.
    """
    if not isinstance(raw, dict):
        raise UsageError(f"{where or cls.__name__}: expected a section of keys, got {shown(raw)}")
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted((key for key in raw if key not in fields), key=str)
    if unknown:
        near = difflib.get_close_matches(str(unknown[0]), fields, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"{where or 'recipe'}: unknown keys {shown(unknown)}; known: {sorted(fields)}{hint}")
    missing = [n for n, f in fields.items() if n not in raw and _required(f)]
    if missing:
        raise UsageError(f"{where or 'recipe'}: missing keys {missing}")
    return cls(
        **{name: _convert(hints[name], value, f"{where}.{name}".lstrip(".")) for name, value in raw.items()}
    )


def build_stored(cls: type[T], raw: dict[str, Any], file: str, section: str = "settings") -> T:
    """`build`, of what a checkpoint's file holds: CheckpointError that names the file."""
    try:
        return build(cls, raw, section)
    except UsageError as error:
        raise CheckpointError(f"{file}: {error}") from error


def require(condition: bool, message: str) -> None:
    """UsageError with a message where a condition fails."""
    if not condition:
        raise UsageError(message)


def _required(f: dataclasses.Field) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)  # type: ignore[arg-type]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _bounded(_convert(arguments[0], value, where), arguments[1], where)
    if origin in (types.UnionType, typing.Union):  # `X | None`, `int | float`, or `X | tuple[X, ...]`
        if value is None and types.NoneType in arguments:
            return None
        return _convert(next((a for a in arguments if _of_kind(value, a)), arguments[0]), value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise UsageError(f"{where}: {shown(value)}; choose one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        return _convert_list(arguments, value, where)
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise UsageError(f"{where}: expected a section of keys, got {shown(value)}")
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    return _plain_value(hint, value, where)


def _of_kind(value: Any, hint: Any) -> bool:
    kind = typing.get_origin(hint) or hint
    return isinstance(kind, type) and isinstance(value, (list, tuple) if kind is tuple else kind)


def _convert_list(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    """A `tuple[X, ...]` or `tuple[X, X]`; a lone string would pass as its letters."""
    if not isinstance(value, (list, tuple)):
        raise UsageError(f"{where}: expected a list, got {shown(value)}")
    if arguments[-1] is not Ellipsis and len(value) != len(arguments):
        raise UsageError(f"{where}: expected {len(arguments)} values, got {len(value)}")
    return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))


def _plain_value(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            value = float(value)  # YAML 1.1 reads 3e-4 as a string
        except (ValueError, OverflowError):
            raise UsageError(f"{where}: expected a number, got {shown(value)}") from None
    known = hint in (int, str, bool, float)
    if known and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise UsageError(f"{where}: expected {hint.__name__}, got {shown(value)}")
    return _bounded(value, INT64, where) if hint is int else _bounded(value, Within(), where)


def _bounded(value: T, bounds: Within, where: str) -> T:
    if isinstance(value, bool) or not isinstance(value, (int, float, tuple)):
        return value
    found, what = (len(value), " values") if isinstance(value, tuple) else (value, "")
    if isinstance(found, float) and not math.isfinite(found):
        raise UsageError(f"{where}: {found} is not a finite number")
    if not bounds.least <= found <= bounds.most:
        raise UsageError(f"{where}: {shown(found)}{what} is outside {bounds.least} to {bounds.most}")
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
