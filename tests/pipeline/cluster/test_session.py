"""Which Ray a job uses: its own, whatever else is on the machine, or the cluster that it names."""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rdpm.pipeline.cluster.session import Resources, cluster_device, session
from tests.faults.ray_nodes import RayCluster

SHOW = """
import json, os, sys
import psutil, ray
from rdpm.pipeline.cluster.session import Resources, session
with session(Resources(cpus=3, object_store_mb=128, address=sys.argv[1])):
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    heard = [c.laddr.ip for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    mine = ray.get_runtime_context().gcs_address
    print(json.dumps({"cpus": ray.cluster_resources()["CPU"], "address": mine, "heard": heard}), flush=True)
    sys.stdin.read()
print(json.dumps({"left": os.environ.get("RAY_AUTH_TOKEN", "")}))
"""


class Job:
    """A process in a session of Ray. `facts` are what it saw there."""

    def __init__(self, repository: Path, address: str = "", **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SHOW, address], cwd=repository, text=True, env={**os.environ, **environment},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self._process.stderr.read()
        self.facts = json.loads(line)

    def end(self) -> dict:
        """End the session. Returns what the process saw afterwards."""
        out, err = self._process.communicate("")
        assert self._process.returncode == 0, err
        return json.loads(out)


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short name, because Ray makes sockets under it."""
    with tempfile.TemporaryDirectory(prefix="rdpm-", dir="/tmp") as folder:
        yield Path(folder)


def left_behind(folder: Path, address: str) -> dict[str, str]:
    """The environment of a machine on which `ray start` once wrote this address."""
    (folder / "ray").mkdir(parents=True, exist_ok=True)
    (folder / "ray" / "ray_current_cluster").write_text(address)
    return {"RAY_TMPDIR": str(folder)}


@pytest.mark.long
def test_a_stale_file_and_a_stale_variable_are_not_followed_and_ray_hears_loopback_only(short, repository) -> None:
    job = Job(repository, **left_behind(short, "127.0.0.1:9"), RAY_ADDRESS="127.0.0.1:9")
    assert job.facts["cpus"] == 3
    assert len(job.facts["heard"]) > 4
    assert {ip.removeprefix("::ffff:") for ip in job.facts["heard"]} == {"127.0.0.1"}
    assert job.end() == {"left": ""}


@pytest.mark.long
def test_a_live_ray_of_someone_else_is_used_only_if_the_address_says_so(short, tmp_path, repository) -> None:
    foreign = RayCluster(tmp_path)
    try:
        foreign.add(cpus=1)
        around = {**foreign.environment, **left_behind(short, foreign.address)}
        alone = Job(repository, **around)
        assert alone.facts["cpus"] == 3
        stranger = Job.__new__(Job)  # who knows the address of a job's own Ray, but not its token
        with pytest.raises(AssertionError, match="there is no Ray cluster to use"):
            stranger.__init__(repository, alone.facts["address"], **foreign.environment)
        assert alone.end() == {"left": foreign.environment["RAY_AUTH_TOKEN"]}
        for address in ("auto", foreign.address):
            joined = Job(repository, address, **around)
            assert joined.facts["cpus"] == 1
            joined.end()
    finally:
        foreign.close()


@pytest.mark.parametrize("address", ["127.0.0.1:9", "auto", "nowhere"])
def test_an_address_without_a_cluster_is_refused_soon(address, monkeypatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    start = time.monotonic()
    with (
        pytest.raises(ValueError, match=rf"no Ray cluster to use at resources.address '{address}' \(.+\); give"),
        session(Resources(address=address)),
    ):
        pass
    assert time.monotonic() - start < 20


def test_the_device_of_a_job_on_this_machine_is_decided_there(monkeypatch) -> None:
    assert cluster_device("auto", Resources()) == "auto"
    assert cluster_device("auto", Resources(min_gpus=1)) == "cuda"
    assert cluster_device("cpu", Resources(address="127.0.0.1:9")) == "cpu"


def test_a_gpu_that_this_machine_lacks_is_refused_for_a_job_on_it_alone(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(
        ValueError, match=r"device is cuda, and .* has no GPU; use device=cpu, or give resources.address"
    ):
        cluster_device("cuda", Resources())
    assert cluster_device("cuda", Resources(address="127.0.0.1:9")) == "cuda"


def test_impossible_resources_are_refused() -> None:
    with pytest.raises(ValueError, match=r"actor_cpus and task_cpus are both 1.0; make them differ"):
        Resources(actor_cpus=1.0)
    for settings, message in (
        ({"wait_seconds": -1}, "resources.wait_seconds is -1; use 0 or more"),
        ({"shard_minutes": math.nan}, "resources.shard_minutes is nan; use 0 or more"),
        ({"actors": -1}, "resources.actors is -1; use 0 or more"),
        ({"task_memory_mb": -5}, "resources.task_memory_mb is -5; use 0 or more"),
        ({"object_store_mb": 1}, "resources.object_store_mb is 1; use 75 or more, or 0 for Ray's own choice"),
    ):
        with pytest.raises(ValueError, match=message):
            Resources(**settings)
