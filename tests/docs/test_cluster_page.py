"""docs/cluster.md: its ranks fit, Ray takes its configs, and the settings that it names exist."""

import re

import pytest
import yaml

from rdpm.pipeline.cluster.session import Resources
from rdpm.pipeline.foundation.config import field_docs
from rdpm.pipeline.training.run_config import RunConfig
from tests.docs.pages import blocks, commands, config_of


@pytest.fixture(scope="module")
def page(repository) -> str:
    return (repository / "docs" / "cluster.md").read_text()


def test_the_ranks_of_every_training_fit(page, repository, monkeypatch) -> None:
    monkeypatch.chdir(repository)
    trainings = 0
    for command in (command for block in blocks(page, "bash") for command in commands(block.text)):
        config = config_of(command)
        if isinstance(config, RunConfig):
            started = command.number("--nproc-per-node")
            if started:
                started *= command.number("--nnodes") or 1
                assert config.ranks == started, command
            else:
                assert "deepspeed" in command.launcher
                assert config.ranks == 32
            assert config.batch % (config.micro_batch_on(config.ranks) * config.ranks) == 0
            trainings += 1
    assert trainings == 3


def test_ray_takes_the_cluster_config(page) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    (config,) = [yaml.safe_load(block.text) for block in blocks(page, "yaml") if "cluster_name" in block.text]
    prepared = prepare_config(config)
    validate_config(prepared)  # raises for a key that Ray does not know
    assert prepared["provider"]["worker_ips"] == ["node2", "node3"]


def test_the_entrypoint_of_the_rayjob_makes_a_config(page, repository, monkeypatch) -> None:
    monkeypatch.chdir(repository)
    (job,) = [yaml.safe_load(block.text) for block in blocks(page, "yaml") if "RayJob" in block.text]
    (command,) = commands(job["spec"]["entrypoint"])
    config = config_of(command)
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
    assert f"`resources.wait_seconds` ({Resources().wait_seconds:g})" in page
