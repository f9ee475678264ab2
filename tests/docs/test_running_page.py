"""docs/running.md: every command has a config and ranks that fit, every block parses, and its sizes are computed."""

import importlib
import math
import re
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rdpm.jobs.arguments import parse
from rdpm.jobs.cli import COMMANDS
from rdpm.pipeline.cluster.session import Resources
from rdpm.pipeline.costs.describe import describe_generator
from rdpm.pipeline.foundation.config import field_docs
from rdpm.pipeline.stream.token_stream import StreamConfig
from rdpm.pipeline.training.generator.config import TrainGeneratorConfig
from rdpm.pipeline.training.run_config import RunConfig
from rdpm.storage_schemas.manifest import Plan
from rdpm.storage_schemas.tokens import token_arrays

SHELL = {"SLURM_NNODES": "4", "SLURM_CPUS_PER_TASK": "96", "address": "node1:20123"}  # what SLURM and a script set


@dataclass(frozen=True)
class Command:
    """A command of rdpm on the page."""

    name: str
    """The job."""
    arguments: list[str]
    """What follows."""
    launcher: list[str]
    """What precedes it on the line."""

    def number(self, option: str) -> int | None:
        """The value of an option of the launcher."""
        return int(self.launcher[self.launcher.index(option) + 1]) if option in self.launcher else None


def page_of(repository: Path) -> str:
    return (repository / "docs" / "running.md").read_text()


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


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


def config_of(command: Command, repository: Path, monkeypatch) -> Any:
    """The config that the command's own parser makes."""
    monkeypatch.chdir(repository)
    given = [argument.removeprefix("/app/") for argument in command.arguments if not argument.startswith("--wait")]
    module = importlib.import_module(COMMANDS[command.name][0])
    return parse(module.Config, command.name, given)


@pytest.fixture(scope="module")
def page(repository) -> str:
    return page_of(repository)


def test_every_command_makes_a_config_and_its_ranks_fit(page, repository, monkeypatch) -> None:
    jobs = [command for block in blocks(page, "bash") for command in commands(block)]
    assert {command.name for command in jobs} == {"tokenize", "train-generator", "describe"}
    trainings = 0
    for command in jobs:
        if command.name == "describe":
            continue
        config = config_of(command, repository, monkeypatch)
        if isinstance(config, RunConfig):
            started = command.number("--nproc-per-node")
            if started:
                started *= command.number("--nnodes") or 1
                assert config.ranks == started, command
            elif "deepspeed" in command.launcher:
                assert config.ranks == 32
            micro_batch = config.micro_batch_on(config.ranks)
            assert config.batch % (micro_batch * config.ranks) == 0
            trainings += 1
    assert trainings == 4


def test_every_script_and_every_yaml_parses(page) -> None:
    for script in blocks(page, "bash"):
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert len(blocks(page, "yaml")) == 2
    for text in blocks(page, "yaml"):
        assert isinstance(yaml.safe_load(text), dict)


def test_ray_takes_the_cluster_config(page) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    (config,) = [yaml.safe_load(text) for text in blocks(page, "yaml") if "cluster_name" in text]
    prepared = prepare_config(config)
    validate_config(prepared)  # raises for a key that Ray does not know
    assert prepared["provider"]["worker_ips"] == ["node2", "node3"]


def test_the_entrypoint_of_the_rayjob_makes_a_config(page, repository, monkeypatch) -> None:
    (job,) = [yaml.safe_load(text) for text in blocks(page, "yaml") if "RayJob" in text]
    (command,) = commands(job["spec"]["entrypoint"])
    config = config_of(command, repository, monkeypatch)
    gpus = sum(
        group["replicas"] * int(container["resources"]["limits"]["nvidia.com/gpu"])
        for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        for container in group["template"]["spec"]["containers"]
    )
    assert config.resources.min_gpus == gpus == 8
    assert config.resources.address == "auto"


def test_the_page_names_settings_that_exist_with_their_defaults(page) -> None:
    named = set(re.findall(r"`resources\.(\w+)`", page))
    assert named <= field_docs(Resources).keys()
    for name in ("wait_seconds", "shard_minutes"):
        assert f"`resources.{name}` ({getattr(Resources(), name):g})" in page


def test_the_sizes_are_those_of_plans_and_of_the_cache(page, stores) -> None:
    arrays = token_arrays(10, (32, 16, 16), with_accumulated=True, with_latents=False)
    rows = {spec.name: spec.row_shape for spec in arrays}
    cached = sum(
        np.dtype(spec.dtype).itemsize * math.prod(spec.row_shape) for spec in arrays if spec.name != "accumulated"
    )
    assert math.prod(rows["accumulated"]) * 2 == 16_384
    assert f"cache of a training: {cached:,} bytes per row" in page
    plans = [Plan("tokens", count, 4096, 256, arrays, stores.IDENTITY) for count in (2 * 1_281_167, 10**9)]
    objects = len(plans[0].objects(0)) + 1

    def line(what: str, numbers: list[float], unit: Callable[[float], str]) -> str:
        return f"| {what} | {' | '.join(unit(number) for number in numbers)} |"

    for what, numbers in {
        "rows": [plan.rows for plan in plans],
        "shards": [plan.num_shards for plan in plans],
        f"objects in the store, {objects} per shard": [objects * plan.num_shards for plan in plans],
    }.items():
        assert line(what, numbers, "{:,}".format) in page
    for what, numbers in {
        "codes, seeds, labels, index: 3,924 bytes per row": [3924 * plan.rows for plan in plans],
        "`accumulated`, at most 16,384 bytes per row": [16_384 * plan.rows for plan in plans],
        "manifest, 77 bytes per shard": [77 * plan.num_shards for plan in plans],
        f"cache of a training: {cached:,} bytes per row": [cached * plan.rows for plan in plans],
        "or of two windows of 64 shards": [2 * 64 * 4096 * cached] * 2,
    }.items():
        assert line(what, numbers, bytes_in_words) in page, line(what, numbers, bytes_in_words)
    assert f"of ImageNet are {20 * 1_281_167 * cached / 2**30:.1f} GiB" in page


def bytes_in_words(count: float) -> str:
    """As in 48 kB, 19 MB, 13.1 GB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


@pytest.mark.slow
def test_the_memory_is_what_describe_says(page, repository, monkeypatch) -> None:
    (command,) = [c for block in blocks(page, "bash") for c in commands(block) if c.name == "describe"]
    monkeypatch.chdir(repository)
    config = parse(TrainGeneratorConfig, "train-generator", command.arguments)
    facts = describe_generator(config)
    rank, image = facts["memory_bytes_per_rank"]["zero_2"] / 2**30, facts["peak_bytes_per_sample"] / 2**20
    assert (
        f"a rank needs {rank:.1f} GiB, and\n  {image:.0f} MiB for each of its {config.micro_batch_on(32)} images"
        in page
    )
    assert f"are {4 * 4 * facts['parameters'] / 1e9:.1f} GB each" in page


def test_the_memory_of_a_worker_is_what_ray_is_asked_for(page) -> None:
    assert f"512 MiB: {(4096 * 256 * 256 * 3 >> 19) + 512:,} MiB at 256" in page
    assert f"`stream.cache_gib` ({StreamConfig().cache_gib:g})" in page
    assert f"`stream.window`\n  ({StreamConfig().window})" in page
