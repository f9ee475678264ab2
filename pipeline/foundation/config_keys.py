"""The keys of config classes, read from their source text, so that help and completion import no torch.

What is understood is what configs are made of: dataclasses and their bases, annotations of builtin types, `Literal`,
`tuple`, `dict` and other configs, defaults that are literals, constants or configs. A test holds that the classes
themselves, imported, have the same keys, choices and defaults.
"""

import ast
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parents[2]  # rdpm, in which jobs, models and pipeline lie
_PLAIN = {"int": "int", "float": "float", "str": "text", "bool": "true|false"}
NAME = "NAME"
"""Stands in a key for a name that the user gives, as in samplers.NAME.guidance."""


@dataclass(frozen=True)
class Key:
    """One key of a config."""

    name: str
    """As it is written before the =, with dots: optimizer.lr."""
    kind: str
    """What a value is: int, float, text, true|false, choices a|b, [int, ...]. Empty for a group of keys that follow."""
    default: str | None
    """As YAML; None where the key must be given."""
    meaning: str
    """The documentation of the field."""
    choices: tuple[str, ...] = ()
    """All values, if they are few words."""


def docs_below(body: ast.ClassDef) -> dict[str, str]:
    """The string literal below each annotated field in the body of a class."""
    docs = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = " ".join(text.split())
    return docs


def keys_of(module: str, name: str) -> list[Key]:
    """The keys of the config class of this name in a module of rdpm, nested ones after the field that holds them."""
    found = _module(module).find(name)
    assert found, f"{module} has no {name}"
    return list(_keys(*found, "", {}))


def parsed_configs(module: str) -> list[tuple[str, str]]:
    """(module, class) of every config that a job's module gives to `parse` or `load_config`, in its order."""
    source, found = _module(module), []
    for node in ast.walk(source.tree):
        match node:
            case ast.Call(func=ast.Name(id="parse" | "load_config"), args=[ast.Name(id=name), *_]):
                place = source.find(name)
                if place and isinstance(place[1], ast.ClassDef):
                    found.append((place[0].name, place[1].name))
    return list(dict.fromkeys(found))


class _Module:
    """The names at the top of a module, and those that it imports from rdpm anywhere."""

    def __init__(self, name: str) -> None:
        self.name = name
        base = _PACKAGE.joinpath(*name.split(".")[1:])
        path = base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self._defined: dict[str, ast.AST] = {}
        self._imported: dict[str, tuple[str, str]] = {}
        for node in self.tree.body:
            match node:
                case ast.ClassDef(name=defined):
                    self._defined[defined] = node
                case ast.Assign(targets=[ast.Name(id=defined)], value=constant):
                    self._defined[defined] = constant
                case ast.AnnAssign(target=ast.Name(id=defined), value=ast.expr() as constant):
                    self._defined[defined] = constant
        for inner in ast.walk(self.tree):
            if isinstance(inner, ast.ImportFrom) and (inner.module or "").startswith("rdpm."):
                for alias in inner.names:
                    self._imported[alias.asname or alias.name] = (str(inner.module), alias.name)

    def find(self, name: str) -> "tuple[_Module, ast.AST] | None":
        """What a name means, and the module that defines it; None for what does not come from rdpm."""
        if name in self._defined:
            value = self._defined[name]
            further = self.find(value.id) if isinstance(value, ast.Name) and value.id != name else None
            return further or (self, value)
        if name in self._imported:
            module, original = self._imported[name]
            return _module(module).find(original)
        return None


@functools.cache
def _module(name: str) -> _Module:
    return _Module(name)


@dataclass(frozen=True)
class _Field:
    """A field of a config, in the module whose names its parts use."""

    module: _Module
    annotation: ast.expr
    value: ast.expr | None
    """What makes the default: a literal, a class or a call; None where there is no default."""
    meaning: str


def _fields(module: _Module, body: ast.ClassDef) -> dict[str, _Field]:
    """The fields of a dataclass, those of its bases first."""
    fields: dict[str, _Field] = {}
    for base in body.bases:
        found = module.find(base.id) if isinstance(base, ast.Name) else None
        if found and isinstance(found[1], ast.ClassDef):
            fields |= _fields(found[0], found[1])
    docs = docs_below(body)
    for node in body.body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=value):
                if "ClassVar" not in ast.unparse(annotation):
                    inherited = fields[name].meaning if name in fields else ""
                    fields[name] = _Field(module, annotation, _made_by(value), docs.get(name, inherited))
    return fields


def _made_by(value: ast.expr | None) -> ast.expr | None:
    """What makes the default of a field, without `field(...)` and `lambda:` around it."""
    match value:
        case ast.Call(func=ast.Name(id="field"), keywords=options):
            given = {option.arg: option.value for option in options}
            return given["default"] if "default" in given else _made_by(given.get("default_factory"))
        case ast.Lambda(body=body):
            return body
    return value


def _keys(module: _Module, body: ast.AST, prefix: str, given: dict[str, tuple[_Module, ast.expr]]) -> Iterator[Key]:
    """The keys of a config class. given: what the config that holds it has instead of the defaults."""
    assert isinstance(body, ast.ClassDef)
    for name, field in _fields(module, body).items():
        inner, named = _config_in(field.module, field.annotation)
        where, value = given.get(name, (field.module, field.value))
        if inner is None:
            kind, choices = _kind(field.module, field.annotation)
            default = None if value is None else _yaml(_value(where, value))
            yield Key(prefix + name, kind, default, field.meaning, choices)
            continue
        within = f"{prefix}{name}.{NAME}." if named else f"{prefix}{name}."
        yield Key(within[:-1], "", None if value is None else "", field.meaning)
        options = {}
        if isinstance(value, ast.Call) and not named:
            options = {option.arg: (where, option.value) for option in value.keywords if option.arg}
        yield from _keys(*inner, within, options)


def _config_in(module: _Module, annotation: ast.expr) -> tuple[tuple[_Module, ast.ClassDef] | None, bool]:
    """The config class that an annotation is, or the one in `X | None` and `dict[str, X]`; and whether in a dict."""
    match annotation:
        case ast.Name(id=name):
            found = module.find(name)
            if found and isinstance(found[1], ast.ClassDef):
                return (found[0], found[1]), False
            return _config_in(found[0], found[1]) if found and isinstance(found[1], ast.expr) else (None, False)
        case ast.BinOp(left=inside) | ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[inside, *_])):
            return _config_in(module, inside)
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[_, value])):
            return _config_in(module, value)[0], True
    return None, False


def _kind(module: _Module, annotation: ast.expr) -> tuple[str, tuple[str, ...]]:
    """How a value of this type is written, and all values, if they are few."""
    match annotation:
        case ast.Name(id=name) if name in _PLAIN:
            return _PLAIN[name], ("true", "false") if name == "bool" else ()
        case ast.Name(id=name) if (found := module.find(name)) and isinstance(found[1], ast.expr):
            return _kind(found[0], found[1])
        case ast.Constant(value=None):
            return "null", ("null",)
        case ast.Constant(value=str(text)):
            return _kind(module, ast.parse(text, mode="eval").body)
        case ast.BinOp(left=left, right=right):
            (one, few), (other, more) = _kind(module, left), _kind(module, right)
            return f"{one}|{other}", (*few, *more) if few else ()
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inside):
            words = inside.elts if isinstance(inside, ast.Tuple) else [inside]
            choices = tuple(str(_value(module, word)) for word in words)
            return "|".join(choices), choices
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=elements)):
            return f"[{', '.join(_kind(module, element)[0] for element in elements)}]", ()
        case ast.Constant(value=kind) if kind is Ellipsis:
            return "...", ()
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[_, value])):
            return f"{{{NAME}: {_kind(module, value)[0]}}}", ()
    return ast.unparse(annotation), ()


def _value(module: _Module, value: ast.expr) -> Any:
    """The value of an expression of literals, named constants and empty builtins. Raises ValueError for any other."""
    match value:
        case ast.Name(id=name):
            if name in ("dict", "tuple", "list"):
                return {} if name == "dict" else []
            found = module.find(name)
            if found is None or not isinstance(found[1], ast.expr):
                raise ValueError(f"{module.name}: {name} is no constant")
            return _value(found[0], found[1])
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return [_value(module, element) for element in elements]
        case ast.Dict(keys=keys, values=values):
            return {_value(module, k): _value(module, v) for k, v in zip(keys, values, strict=True) if k}
    return ast.literal_eval(value)


def _yaml(value: Any) -> str:
    """A value as the user would write it after the =."""
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, str):
        return value if value and value.isidentifier() else json.dumps(value)
    return json.dumps(value) if value is None or isinstance(value, bool | dict) else str(value)
