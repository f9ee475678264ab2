"""JSON data to frozen records, with every key and every type checked."""

import dataclasses
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")

_PLAIN = {int: "a whole number", str: "a text", bool: "true or false"}


def check_version(data: Any, newest: int, name: str) -> int:
    """The schema version of a record. Raises ValueError when it has none, or one that this release does not know."""
    if not isinstance(data, dict) or "schema_version" not in data:
        raise ValueError(f"{name} has no schema_version; restore it or make it again")
    version = data["schema_version"]
    if type(version) is not int or not 1 <= version <= newest:
        raise ValueError(f"{name} has schema version {version}, and this release knows 1 to {newest}; update rdpm")
    return version


def parse(kind: type[T], data: Any, name: str, **parsed: Any) -> T:
    """The record of this kind whose fields are the keys of `data`. Lists become tuples, objects become records.

    name: what the record is, for error messages. parsed: fields that the caller has parsed, which replace those in
    `data`. Raises ValueError for a key that is missing or unknown, and for a value of the wrong type.
    """
    if not isinstance(data, dict):
        raise _refusal(name, data, "keys and values")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in data.keys() - fields.keys():
        raise ValueError(f"{name} has the unknown key {key!r}; restore it or make it again")
    for key, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and key not in data and key not in parsed:
            raise ValueError(f"{name} lacks the key {key}; restore it or make it again")
    values = {key: _value(hints[key], value, f"{name}: {key}") for key, value in data.items() if key not in parsed}
    return kind(**values, **parsed)


def _value(hint: Any, value: Any, name: str) -> Any:
    """A value of this type, from JSON data. Raises ValueError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return parse(typing.cast(type, hint), value, name)
    if origin in (types.UnionType, typing.Union):  # X | None
        (inner,) = (argument for argument in arguments if argument is not types.NoneType)
        return None if value is None else _value(inner, value, name)
    if origin is typing.Literal:
        if value not in arguments:
            raise _refusal(name, value, f"one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _refusal(name, value, "a list")
        return tuple(_values(arguments[0], value, name))
    if origin is dict:
        if not isinstance(value, dict):
            raise _refusal(name, value, "keys and values")
        return dict(zip(value, _values(arguments[1], list(value.values()), name), strict=True))
    if hint is float:
        if type(value) not in (int, float):
            raise _refusal(name, value, "a number")
        return float(value)
    if type(value) is not hint:
        raise _refusal(name, value, _PLAIN[hint])
    return value


def _values(hint: Any, values: list | tuple, name: str) -> list | tuple:
    """Many values of one type. A manifest may hold a million, so plain ones are only looked at."""
    if hint is Any:
        return values
    if hint not in _PLAIN:
        return [_value(hint, value, name) for value in values]
    for value in values:
        if type(value) is not hint:
            raise _refusal(name, value, _PLAIN[hint])
    return values


def _refusal(name: str, value: Any, wanted: str) -> ValueError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return ValueError(f"{name} is {shown}, not {wanted}; restore it or make it again")
