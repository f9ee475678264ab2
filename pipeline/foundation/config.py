"""Typed configuration: defaults < YAML file < `key=value` on the command line; an unknown key is an error.

A config is a frozen dataclass. Every field has its documentation in the string below it. Three marks are read here:

- metadata `EXECUTION` on a field: it says where or how fast, never what comes out, so it is outside every identity;
- `RENAMED`, a class variable {old key: new key}: a user is told the new name, and saved settings are read by it;
- `upgrade`, a static method from saved settings of any release to their current form.
"""

import ast
import dataclasses
import difflib
import inspect
import textwrap
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
    return from_dict(kind, tree)


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
    """A config as plain JSON data, with every value."""
    return pydantic.TypeAdapter(type(config)).dump_python(config, mode="json")


def from_dict(kind: type[T], tree: dict[str, Any]) -> T:
    """Inverse of to_dict. Raises ValueError, in one sentence, for a value of the wrong type."""
    try:
        return pydantic.TypeAdapter(kind).validate_python(tree)
    except pydantic.ValidationError as error:
        raise ValueError(_sentence(error)) from None


def from_saved(kind: type[T], tree: dict[str, Any]) -> T:
    """A config from what an export, a plan or a record of any release says of it.

    A key that is not there means its default, which never changes without a version. Fields that only say how
    something runs get their defaults too, whatever was saved.
    """
    return from_dict(kind, saved_identity(kind, tree))


def identity_of(config: Any) -> dict[str, Any]:
    """What of a config decides the result: all of it but the fields marked EXECUTION, as JSON data."""
    return saved_identity(type(config), to_dict(config))


def saved_identity(kind: Any, tree: Any) -> Any:
    """`identity_of` the config of this kind whose settings were saved, as JSON data, by any release.

    Old keys are renamed, old forms upgraded, and missing keys get their defaults.
    """
    kind = _dataclass_in(kind)
    if kind is None or not isinstance(tree, dict):
        return tree
    renamed = getattr(kind, "RENAMED", {})
    tree = {renamed.get(key, key): value for key, value in tree.items()}
    if hasattr(kind, "upgrade"):
        tree = kind.upgrade(tree)
    hints = typing.get_type_hints(kind)
    found = {}
    for field in dataclasses.fields(kind):
        if field.metadata.get("execution"):
            continue
        if field.name in tree:
            found[field.name] = saved_identity(hints[field.name], tree[field.name])
        elif (default := _default(field)) is not dataclasses.MISSING:
            value = pydantic.TypeAdapter(hints[field.name]).dump_python(default, mode="json")
            found[field.name] = saved_identity(hints[field.name], value)
    return found


def _default(field: dataclasses.Field) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _dataclass_in(kind: Any) -> Any:
    """The dataclass that a type is, or the one in `X | None`; None when there is none."""
    if isinstance(kind, types.UnionType):
        kind = next((k for k in typing.get_args(kind) if dataclasses.is_dataclass(k)), None)
    return kind if dataclasses.is_dataclass(kind) else None


def field_docs(kind: type) -> dict[str, str]:
    """The documentation of every field of a config: the string below it, in its class or the one it comes from."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return {field.name: found[field.name] for field in dataclasses.fields(kind) if field.name in found}


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
    """Walk dataclasses and refuse keys that they do not have. Raises ValueError."""
    if typing.get_origin(kind) is dict and isinstance(tree, dict):
        for key, value in tree.items():
            _check_keys(typing.get_args(kind)[1], value, f"{prefix}{key}.")
    kind = _dataclass_in(kind)
    if kind is None or not isinstance(tree, dict):
        return
    known = typing.get_type_hints(kind)
    known = {field.name: known[field.name] for field in dataclasses.fields(kind)}
    for key, value in tree.items():
        if key not in known:
            raise ValueError(f"unknown config key {prefix}{key}; {_hint(kind, key, known, prefix)}")
        _check_keys(known[key], value, f"{prefix}{key}.")


def _hint(kind: type, key: str, known: dict[str, Any], prefix: str) -> str:
    renamed = getattr(kind, "RENAMED", {})
    if key in renamed:
        return f"it is now called {prefix}{renamed[key]}"
    near = difflib.get_close_matches(str(key), known, n=1)
    return f"did you mean {prefix}{near[0]}?" if near else f"known keys: {', '.join(known)}"


def _sentence(error: pydantic.ValidationError) -> str:
    """The first of pydantic's findings as one sentence."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if not str(part).endswith("]"))
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    if first["type"] in ("missing", "missing_argument"):
        return f"config key {place} is missing; give it in the file or as {place}=..."
    return f"config key {place} is {first['input']!r}: {first['msg'].lower()}"
