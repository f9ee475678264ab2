"""Every code block of README, CONTRIBUTING and docs/: Python runs, commands have a config, or the page says why not."""

import functools
import re
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from rdpm.jobs.cli import COMMANDS
from rdpm.pipeline.evaluation import inputs
from rdpm.pipeline.evaluation.classifier import ClassifierConfig
from tests.docs.pages import LANGUAGES, NOT_RUN, PAGES, REPOSITORY, blocks, commands, config_of

ALONE = "docs/token-store.md"  # test_token_store_page runs it without rdpm


def name_of(page: Path) -> str:
    """As in docs/python.md."""
    return str(page.relative_to(REPOSITORY))


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)
with_python = [page for page in PAGES if blocks(page.read_text(), "python") and name_of(page) != ALONE]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch):
    """A classifier of a few steps; the number of threads is restored."""
    monkeypatch.setattr(inputs, "ClassifierConfig", functools.partial(ClassifierConfig, steps=3, batch=8))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("page", with_python, ids=name_of)
def test_the_python_runs_from_top_to_bottom(page: Path, place: Path, monkeypatch, quick) -> None:
    monkeypatch.chdir(place)
    known: dict = {"__name__": page.name}
    for block in blocks(page.read_text(), "python"):
        if not block.reason:
            code = "\n" * block.line + block.text  # so that a traceback names the line of the page
            exec(compile(code, str(page), "exec"), known)
    assert known.keys() - {"__name__", "__builtins__"}  # the page has done something


@every_page
def test_every_command_has_a_config_and_every_script_parses(page: Path, place: Path, monkeypatch) -> None:
    monkeypatch.chdir(place)
    runs: set[str] = set()
    for block in blocks(page.read_text(), "sh", "bash"):
        done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        for command in commands(block.text):
            config = config_of(command, runs)
            if command.name == "init":
                runs.add(config.out)
        for target in re.findall(r"^make ([a-z-]+)", block.text, flags=re.MULTILINE):
            assert f"\n{target}:" in (REPOSITORY / "Makefile").read_text(), target
        for path in re.findall(r"python (?:-m pytest (?:-\w+ )*)?([\w/.-]+\.py)", block.text):
            assert (REPOSITORY / path).is_file(), path
        for module in re.findall(r"python -m (benchmarks[\w.]*)", block.text):
            path = REPOSITORY / module.replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


@every_page
def test_the_page_names_commands_that_exist_and_its_yaml_parses(page: Path) -> None:
    text = page.read_text()
    assert set(re.findall(r"`rdpm ([a-z-]+)", text)) <= {*COMMANDS, "help"}
    for block in blocks(text):
        assert block.language in LANGUAGES, f"{page.name}:{block.line}"
        if block.language == "yaml":
            yaml.safe_load(block.text)
    assert text.count(NOT_RUN) == sum(bool(block.reason) for block in blocks(text)) or page.name == "CONTRIBUTING.md"


def test_a_block_is_left_out_only_with_its_reason_above_it() -> None:
    why = f"*{NOT_RUN} it needs a GPU.*"
    page = f"{why}\n\n```python\n1 / 0\n```\n\nText.\n\n```python\n1\n```\n\n- In a list:\n\n  ```sh\n  ls\n  ```\n"
    found = blocks(page)
    assert [(block.language, block.reason) for block in found] == [
        ("python", "it needs a GPU."),
        ("python", ""),
        ("sh", ""),
    ]
    assert [block.line for block in found] == [3, 9, 15]
    assert [block.text for block in blocks(page, "sh")] == ["ls\n"]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("rdpm sample configs/digits/samples.yaml per_clas=3", "per_class"),
        ("rdpm sample configs/digits/sample.yaml", "sample.yaml"),
        ("rdpm evaluate configs/digits/samples.yaml", "not for 'evaluate'"),
        ("rdpm init pictures", "pictures"),
        ("rdpm run runs/nowhere", "runs/nowhere"),
    ],
)
def test_a_command_that_would_be_refused_fails(line: str, named: str, repository: Path, monkeypatch) -> None:
    monkeypatch.chdir(repository)
    (command,) = commands(line)
    with pytest.raises((ValueError, OSError), match=named):
        config_of(command)
