"""The parts of a cluster that the tests of faults break: buckets behind a proxy, small disks, hosts, Ray nodes."""

import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import fsspec
import pytest

from tests.faults.processes import Family
from tests.faults.proxy import Proxy
from tests.faults.ray_nodes import RayCluster
from tests.faults.slurm import Slurm
from tests.pipeline.sampling.conftest import config_of, run, store
from tests.pipeline.training.conftest import inputs

__all__ = ["config_of", "inputs", "run", "store"]  # fixtures of other rooms


@pytest.fixture
def faulty_s3(s3_server, monkeypatch) -> Iterator[Callable[..., tuple[str, Proxy]]]:
    """Maker of an empty bucket behind a proxy: (seed, shares, latency) to (s3://..., proxy)."""
    proxies = []
    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)

    def make(seed: int = 0, shares: Mapping[str, float] | None = None, latency: float = 0.0) -> tuple[str, Proxy]:
        proxy = Proxy(s3_server["AWS_ENDPOINT_URL"], seed, shares or {}, latency)
        proxies.append(proxy)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        fsspec.filesystem("s3").clear_instance_cache()
        bucket = f"bucket-{uuid.uuid4().hex}"
        direct = fsspec.filesystem("s3", endpoint_url=s3_server["AWS_ENDPOINT_URL"], use_listings_cache=False)
        direct.mkdir(bucket)
        return f"s3://{bucket}", proxy

    yield make
    fsspec.filesystem("s3").clear_instance_cache()
    for proxy in proxies:
        proxy.close()


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Family]:
    """A family of processes that ends with the test."""
    made = Family(tmp_path / "printed.log")
    yield made
    made.close()


@pytest.fixture
def ray_cluster(tmp_path: Path) -> Iterator[RayCluster]:
    """A Ray cluster without nodes; they end with the test."""
    cluster = RayCluster(tmp_path)
    yield cluster
    cluster.close()


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    """A SLURM of one node, which ends with the test."""
    made = Slurm(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.close()
