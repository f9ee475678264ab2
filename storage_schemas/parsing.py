"""JSON data to frozen records, with every key and every type checked by pydantic."""

import dataclasses
import functools
import json
import typing
from typing import Any, TypeVar

import pydantic

T = TypeVar("T")
_adapter = functools.cache(pydantic.TypeAdapter)


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
        raise ValueError(f"{name} is {_short(data)}, not keys and values; restore it or make it again")
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
    try:
        return _adapter(hint).validate_json(json.dumps(value), strict=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
    place = ".".join([name, *map(str, first["loc"])])
    raise ValueError(f"{place} is {_short(first['input'])}: {first['msg'].lower()}; restore it or make it again")


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
