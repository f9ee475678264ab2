"""The pages: README, CONTRIBUTING and docs/, their code blocks, and the commands of rdpm in these."""

import importlib
import re
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from rdpm.jobs.arguments import parse
from rdpm.jobs.cli import COMMANDS

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
LANGUAGES = {"", "text", "python", "sh", "bash", "yaml", "json", "sql", "{eval-rst}", "{toctree}"}
NOT_RUN = "Not run by the tests:"
"""How the line above a block begins that says why the tests do not run it."""
SHELL = {"SLURM_NNODES": "4", "SLURM_CPUS_PER_TASK": "96", "address": "node1:20123"}  # what SLURM and a script set

WITHOUT_CONFIG = {"verify", "inspect", "status", "completion"}


@dataclass(frozen=True)
class Block:
    """A code block."""

    language: str
    """The word after the fence; empty where there is none."""
    text: str
    """The lines between the fences."""
    line: int
    """Line of the opening fence, from 1."""
    reason: str
    """Why the tests do not run it; empty where they do."""


@dataclass(frozen=True)
class Command:
    """A command of rdpm on a page."""

    name: str
    """The job."""
    arguments: list[str]
    """What follows."""
    launcher: list[str]
    """What precedes it on the line."""

    def number(self, option: str) -> int | None:
        """The value of an option of the launcher."""
        return int(self.launcher[self.launcher.index(option) + 1]) if option in self.launcher else None


def blocks(page: str, *languages: str) -> list[Block]:
    """The code blocks of a page, in their order; only those in `languages`, if any are given."""
    found, before = [], ""
    for token in MarkdownIt().parse(page):
        if token.type == "fence":
            reason = before.strip("*").removeprefix(NOT_RUN).strip() if NOT_RUN in before else ""
            found.append(Block(token.info.strip().split(" ")[0], token.content, token.map[0] + 1, reason))
        before = token.content if token.type == "inline" else before if token.type == "paragraph_close" else ""
    return [block for block in found if not languages or block.language in languages]


def commands(text: str) -> list[Command]:
    """The commands of rdpm in a script, with the variables of a shell filled in."""
    found = []
    text = re.sub(r"\\\n\s*", " ", text)
    for name, value in SHELL.items():
        text = re.sub(rf"\$\{{?{name}\}}?", value, text)
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        words = [part for word in words for part in (shlex.split(word) if "rdpm tokenize" in word else [word])]
        at = next((n for n, word in enumerate(words[:-1]) if word.endswith("rdpm") and words[n + 1] in COMMANDS), None)
        if at is not None:
            rest = [word for word in words[at + 2 :] if word != "&"]
            found.append(Command(words[at + 1], rest, words[:at]))
    return found


class _Parsed(Exception):
    """Ends a command as soon as it has its config, which is its argument."""


def config_of(command: Command, runs: Collection[str] = ()) -> Any:
    """The config that the command makes of its arguments, in the folder that its files are found from.

    runs: folders that an earlier `rdpm init` would have made. None for a command without a config, and for one on such
    a folder. Raises ValueError for a command that would be refused.
    """
    given = [argument.removeprefix("/app/") for argument in command.arguments if not argument.startswith("--wait")]
    if command.name in WITHOUT_CONFIG or given[0] in runs:
        return None
    module = importlib.import_module(COMMANDS[command.name][0])

    def parsed(*arguments: Any) -> None:
        raise _Parsed(parse(*arguments))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "parse", parsed)
        try:
            module.main(given)
        except _Parsed as ended:
            return ended.args[0]
    raise AssertionError(f"rdpm {command.name} {' '.join(given)} has made no config")
