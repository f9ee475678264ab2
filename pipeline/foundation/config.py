"""Typed configuration: defaults < YAML file < `key=value` on the command line; an unknown key is an error."""

import dataclasses
import difflib
import types
import typing
from typing import Any

import pydantic
import yaml

from rdpm.pipeline.foundation import files

T = typing.TypeVar("T")


def load_config(kind: type[T], job: str, path: str | None, overrides: list[str]) -> T:
    """The config dataclass `kind` of a job, from its file and overrides.

    A file may say `job: NAME`; it must then be this job. Raises ValueError, in one sentence, on a missing file, an
    unknown key or a value of the wrong type.
    """
    tree = _read_yaml(path) if path else {}
    named = tree.pop("job", job)
    if named != job:
        raise ValueError(f"{path} is a config for {named!r}, not for {job!r}; run rdpm {named}")
    for override in overrides:
        _apply(tree, override)
    _check_keys(kind, tree, "")
    try:
        return pydantic.TypeAdapter(kind).validate_python(tree)
    except pydantic.ValidationError as error:
        raise ValueError(_sentence(error)) from None


def config_job(path: str) -> str:
    """The job that a config file names with its `job` key. Raises ValueError when it names none."""
    tree = _read_yaml(path)
    if "job" not in tree:
        raise ValueError(f"{path} has no `job` key; name the job it is for")
    return tree["job"]


def save_config(path: str, job: str, config: Any) -> None:
    """Write a config as the YAML file that load_config reads it from."""
    files.write_bytes(
        path, yaml.safe_dump({"job": job, **to_dict(config)}, sort_keys=False, allow_unicode=True).encode()
    )


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON data."""
    return pydantic.TypeAdapter(type(config)).dump_python(config, mode="json")


def from_dict(kind: type[T], tree: dict[str, Any]) -> T:
    """Inverse of to_dict."""
    return pydantic.TypeAdapter(kind).validate_python(tree)


def _read_yaml(path: str) -> dict[str, Any]:
    if not files.exists(path):
        raise ValueError(f"config {path!r} does not exist; give the path of a YAML file")
    try:
        tree = yaml.safe_load(files.read_bytes(path)) or {}
    except OSError as error:
        raise ValueError(f"config {path!r} cannot be read ({error.strerror}); give the path of a YAML file") from None
    except yaml.YAMLError as error:
        raise ValueError(f"config {path!r} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"config {path!r} holds a {type(tree).__name__}; it must hold keys and values")
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"override {override!r} is not of the form key=value")
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ValueError(f"override {override!r} names a key under {parent!r}, which is a plain value")
    try:
        tree[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"override {override!r} is not YAML: {' '.join(str(error).split())}") from None


def _check_keys(kind: Any, tree: Any, prefix: str) -> None:
    """Walk dataclasses and refuse keys they do not have."""
    if isinstance(kind, types.UnionType):
        kind = next((k for k in typing.get_args(kind) if dataclasses.is_dataclass(k)), kind)
    if typing.get_origin(kind) is dict and isinstance(tree, dict):
        for key, value in tree.items():
            _check_keys(typing.get_args(kind)[1], value, f"{prefix}{key}.")
    if not dataclasses.is_dataclass(kind) or not isinstance(tree, dict):
        return
    known = typing.get_type_hints(kind)
    for key, value in tree.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known keys: {', '.join(known)}"
            raise ValueError(f"unknown config key {prefix}{key}; {hint}")
        _check_keys(known[key], value, f"{prefix}{key}.")


def _sentence(error: pydantic.ValidationError) -> str:
    """The first of pydantic's findings as one sentence."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if not str(part).endswith("]"))
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    if first["type"] in ("missing", "missing_argument"):
        return f"config key {place} is missing; give it in the file or as {place}=..."
    return f"config key {place} is {first['input']!r}: {first['msg'].lower()}"
