"""Typed configuration: defaults < YAML file < `key=value` on the command line. An unknown key is an error.

A config is a frozen dataclass. The string literal below a field documents it. This module reads three marks:

- metadata `EXECUTION` on a field: it says where or how fast something runs, never what comes out, so no identity
  contains it;
- `RENAMED`, a class variable {old key: new key}: an error tells a user the new name, and saved settings with the old
  key are still understood;
- `upgrade`, a static method that turns saved settings of any release into their current form.
"""

import ast
import dataclasses
import difflib
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

import pydantic
import yaml

from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.config_keys import docs_below
from rdpm.pipeline.foundation.secrets import masked

T = typing.TypeVar("T")


def load_config(kind: type[T], job: str, path: str | None, overrides: list[str]) -> T:
    """The config dataclass `kind` of a job, from its file and overrides.

    A file may name its job with `job: NAME`; that must be this job. Raises ValueError, in one sentence, for a missing
    file, an unknown key, a value of the wrong type, and credentials, which would end up in records and logs.
    """
    tree = _read_yaml(path) if path else {}
    file_job = tree.pop("job", job)
    if file_job != job:
        raise ValueError(f"{path} is a config for {file_job!r}, not for {job!r}; run rdpm {file_job}")
    for override in overrides:
        _apply(tree, override)
    _check_keys(kind, tree, "")
    _refuse_secrets(tree, "")
    return from_dict(kind, tree)


def config_job(path: str) -> str:
    """The job that a config file names with its `job` key. Raises ValueError when there is no such key."""
    tree = _read_yaml(path)
    if "job" not in tree:
        raise ValueError(f"{path} has no `job` key; name the job it is for")
    return tree["job"]


def save_config(path: str, job: str, config: Any) -> None:
    """Write a config as a YAML file that load_config can read."""
    files.write_bytes(
        path, yaml.safe_dump({"job": job, **to_dict(config)}, sort_keys=False, allow_unicode=True).encode()
    )


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON data, with the value of every field."""
    return pydantic.TypeAdapter(type(config)).dump_python(config, mode="json")


def from_dict(kind: type[T], tree: dict[str, Any]) -> T:
    """Inverse of to_dict. Raises ValueError, in one sentence, for a value of the wrong type."""
    try:
        return pydantic.TypeAdapter(kind).validate_python(tree)
    except pydantic.ValidationError as error:
        raise ValueError(_sentence(error)) from None


def from_saved(kind: type[T], tree: dict[str, Any]) -> T:
    """A config from the settings that a card, a plan or a record of any release holds.

    A missing key means its default, because a default never changes without a version. Fields marked EXECUTION get
    their defaults, whatever was saved. Raises ValueError for a key that this release does not know.
    """
    for key in _unknown_keys(kind, tree):
        raise ValueError(f"saved settings have the key {key}, which this release does not know; update rdpm")
    return from_dict(kind, saved_identity(kind, tree))


def identity_of(config: Any) -> dict[str, Any]:
    """The part of a config that decides the result, as JSON data: every field that is not marked EXECUTION."""
    return saved_identity(type(config), to_dict(config))


def saved_identity(kind: Any, tree: Any) -> Any:
    """`identity_of` a config of this type, from the settings that any release saved as JSON data.

    Old keys are renamed, old forms are upgraded, and missing keys get their defaults. Unknown keys are left out.
    """
    if (inside := _inside(kind, tree)) is not None:
        values = {key: saved_identity(hint, tree[key]) for key, hint in inside.items()}
        return values if isinstance(tree, dict) else list(values.values())
    owner = _dataclass_in(kind)
    if owner is None or not isinstance(tree, dict):
        return tree
    tree = _current(owner, tree)
    hints = typing.get_type_hints(owner)
    identity = {}
    for field in dataclasses.fields(owner):
        if field.metadata.get("execution"):
            continue
        if field.name in tree:
            identity[field.name] = saved_identity(hints[field.name], tree[field.name])
        elif (default := _default(field)) is not dataclasses.MISSING:
            value = pydantic.TypeAdapter(hints[field.name]).dump_python(default, mode="json")
            identity[field.name] = saved_identity(hints[field.name], value)
    return identity


def _unknown_keys(kind: Any, tree: Any, prefix: str = "") -> Iterator[str]:
    """Full names of the keys in saved settings that no release up to this one has."""
    if (inside := _inside(kind, tree)) is not None:
        for key, hint in inside.items():
            yield from _unknown_keys(hint, tree[key], f"{prefix}{key}.")
    owner = _dataclass_in(kind)
    if owner is None or not isinstance(tree, dict):
        return
    hints = _field_types(owner)
    for key, value in _current(owner, tree).items():
        if key not in hints:
            yield f"{prefix}{key}"
        else:
            yield from _unknown_keys(hints[key], value, f"{prefix}{key}.")


def _current(kind: type, tree: dict[str, Any]) -> dict[str, Any]:
    """Saved settings of one dataclass under their current names and in their current form."""
    renamed = getattr(kind, "RENAMED", {})
    tree = {renamed.get(key, key): value for key, value in tree.items()}
    return kind.upgrade(tree) if hasattr(kind, "upgrade") else tree


def _inside(kind: Any, tree: Any) -> dict[Any, Any] | None:
    """{key or position: type} of the values of a dict or a tuple, given its type; None for anything else."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict and isinstance(tree, dict):
        return dict.fromkeys(tree, arguments[1])
    if origin is tuple and isinstance(tree, list | tuple):
        items = arguments[:1] * len(tree) if arguments[-1] is Ellipsis else arguments
        return dict(zip(range(len(tree)), items, strict=False))
    return None


def _default(field: dataclasses.Field) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _field_types(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}  # type: ignore[arg-type]


def _dataclass_in(kind: Any) -> Any:
    """The dataclass that a type is, or the one in `X | None`; None when there is none."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        kind = next((k for k in typing.get_args(kind) if dataclasses.is_dataclass(k)), None)
    return kind if dataclasses.is_dataclass(kind) else None


def field_docs(kind: type) -> dict[str, str]:
    """The documentation of every field of a config: the string below it, in its class or a base class."""
    docs: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(body, ast.ClassDef)
        docs |= docs_below(body)
    return {field.name: docs[field.name] for field in dataclasses.fields(kind) if field.name in docs}


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
        raise ValueError(f"config {path!r} holds a {type(tree).__name__}; write keys and values")
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"override {override!r} does not have the form key=value")
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ValueError(f"override {override!r} names a key under {parent!r}, which is a plain value")
    try:
        tree[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"override {override!r} is not YAML: {' '.join(str(error).split())}") from None


def _check_keys(kind: Any, tree: Any, prefix: str, top: Any = None) -> None:
    """Refuse keys that the dataclasses in this type do not have. top: the type of the whole config, with all its keys.

    Raises ValueError.
    """
    top = top or kind
    if (inside := _inside(kind, tree)) is not None:
        for key, hint in inside.items():
            _check_keys(hint, tree[key], f"{prefix}{key}.", top)
    owner = _dataclass_in(kind)
    if owner is None or not isinstance(tree, dict):
        return
    known = _field_types(owner)
    for key, value in tree.items():
        if key not in known:
            raise ValueError(f"unknown config key {prefix}{key}; {_hint(owner, key, known, prefix, top)}")
        _check_keys(known[key], value, f"{prefix}{key}.", top)


def _refuse_secrets(value: Any, key: str) -> None:
    if isinstance(value, dict | list):
        for name, inside in value.items() if isinstance(value, dict) else enumerate(value):
            _refuse_secrets(inside, f"{key}.{name}".lstrip("."))
    elif isinstance(value, str) and masked(value) != value:
        raise ValueError(
            f"config key {key} is {masked(value)!r}, which contains credentials; set them in the environment "
            "(AWS_ACCESS_KEY_ID and so on) or in fsspec's configuration"
        )


def _hint(kind: type, key: str, known: dict[str, Any], prefix: str, top: Any) -> str:
    """What was meant: a key beside it, or the same key in another part of the config; else all that are beside it."""
    renamed = getattr(kind, "RENAMED", {})
    if key in renamed:
        return f"it is now called {prefix}{renamed[key]}"
    beside = difflib.get_close_matches(str(key), known, n=1)
    if beside and beside[0] != key:
        return f"did you mean {prefix}{beside[0]}?"
    elsewhere = list(_full_names(top, ""))
    parts = {name.rsplit(".", 1)[-1] for name in elsewhere}
    near = difflib.get_close_matches(str(key), parts, n=1)
    meant = [name for name in elsewhere if near and name.rsplit(".", 1)[-1] == near[0]]
    return f"did you mean {' or '.join(meant[:3])}?" if meant else f"known keys: {', '.join(known)}"


def _full_names(kind: Any, prefix: str) -> Iterator[str]:
    """The keys of a config with their dots, without those under names that the user gives."""
    owner = _dataclass_in(kind)
    for key, hint in _field_types(owner).items() if owner else ():
        yield f"{prefix}{key}"
        yield from _full_names(hint, f"{prefix}{key}.")


def _sentence(error: pydantic.ValidationError) -> str:
    """The first error that pydantic reports, as one sentence."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if not str(part).endswith("]"))
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    if first["type"] in ("missing", "missing_argument"):
        return f"config key {key} is missing; give it in the file or as {key}=..."
    return f"config key {key} is {first['input']!r}: {first['msg'].lower()}"
