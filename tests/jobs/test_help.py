"""The help of every command: the keys read from source text are those of the config classes themselves."""

import dataclasses
import importlib
import subprocess
import types
import typing
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from rdpm.jobs.cli import COMMANDS, main
from rdpm.jobs.help import keys_help
from rdpm.pipeline.foundation.config import field_docs
from rdpm.pipeline.foundation.config_keys import NAME, keys_of, parsed_configs

WITHOUT_KEYS = {"run", "status", "completion"}
PLACES = sorted({place for module, _ in COMMANDS.values() for place in parsed_configs(module)})


def keys_by_import(kind: Any, prefix: str = "", made: Any = dataclasses.MISSING) -> Iterator[tuple]:
    """(name, whether its parts follow, default as JSON data or MISSING, meaning, choices) of an imported config."""
    hints = typing.get_type_hints(kind)
    docs = field_docs(kind)
    for field in dataclasses.fields(kind):
        default = getattr(made, field.name, dataclasses.MISSING)
        if made is dataclasses.MISSING:
            has_factory = field.default_factory is not dataclasses.MISSING
            default = field.default_factory() if has_factory else field.default
        hint, named = hints[field.name], False
        if typing.get_origin(hint) is dict:
            hint, named = typing.get_args(hint)[1], True
        parts = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
        inner = next((part for part in parts if dataclasses.is_dataclass(part)), None)
        name = prefix + field.name
        if inner is None:
            choices = ("true", "false") if bool in parts else ()
            if typing.get_origin(hint) is typing.Literal:
                choices = tuple(map(str, typing.get_args(hint)))
            yield name, False, default, docs[field.name], choices
            continue
        within = f"{name}.{NAME}" if named else name
        yield within, True, default, docs[field.name], ()
        holds = default if dataclasses.is_dataclass(default) and not named else dataclasses.MISSING
        yield from keys_by_import(inner, f"{within}.", holds)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place[1])
def test_the_keys_of_the_source_are_those_of_the_class(place):
    kind = getattr(importlib.import_module(place[0]), place[1])
    wanted, found = list(keys_by_import(kind)), keys_of(*place)
    assert [key.name for key in found] == [name for name, *_ in wanted]
    for key, (name, group, default, meaning, choices) in zip(found, wanted, strict=True):
        assert (key.meaning, key.choices, not key.kind) == (meaning, choices, group), name
        assert meaning, name
        if default is dataclasses.MISSING:
            assert key.default is None, name
        elif not group:
            plain = list(default) if isinstance(default, tuple) else default
            assert yaml.safe_load(key.default) == plain or float(key.default) == plain, name


def test_every_command_lists_its_keys():
    for command, (module, _) in COMMANDS.items():
        assert bool(parsed_configs(module)) == (command not in WITHOUT_KEYS), command


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_key_once_with_type_default_and_meaning(command, capsys):
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: rdpm {command} ")
    for place in parsed_configs(COMMANDS[command][0]):
        for key in keys_of(*place):
            default = "must be given" if key.default is None else f"default {key.default}"
            written = f"  {key.name}={key.kind}  ({default})" if key.kind else f"  {key.name}.  (a group of keys)"
            assert f"\n{written}\n" in shown
            assert key.meaning.split()[-1] in shown


def test_the_widths_of_lines_follow_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    meanings = [line for line in keys_help("rdpm.jobs.tokenize_images", True).splitlines() if line.startswith("      ")]
    assert max(map(len, meanings)) <= 70


def test_help_and_completion_load_nothing_heavy(python, repository):
    code = (
        "import sys; from rdpm.jobs.cli import COMMANDS, main\n"
        "for name in COMMANDS: main([name, '--help'])\n"
        "from rdpm.jobs.completion import script; script('bash'); print(*sys.modules)"
    )
    done = subprocess.run([*python, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not {"torch", "numpy", "ray", "pydantic", "fsspec", "rich", "yaml"} & loaded


def test_help_into_a_closed_pager_is_no_error(python, repository):
    command = f"{python[0]} -m rdpm train-generator --help | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0"
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["init", "serve", "train-generator"])
def test_help_names_a_config_only_where_one_is_taken(name, capsys):
    assert main([name, "--help"]) == 0
    usage, *lines = capsys.readouterr().out.splitlines()
    heading = next(line for line in lines if line.startswith("Keys"))
    assert ("CONFIG.yaml" in heading) == ("CONFIG.yaml" in usage) == (name == "train-generator")
