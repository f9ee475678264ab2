"""A session of Ray that the tests of this room share."""

from collections.abc import Iterator

import pytest
import ray

from rdpm.pipeline.cluster.session import Resources, session

RESOURCES = Resources(cpus=4, object_store_mb=128, actors=2, actor_cpus=0.5)


@pytest.fixture(scope="package")
def running() -> Iterator[Resources]:
    """A session of its own Ray with four CPUs, and the resources that it was started with."""
    with session(RESOURCES):
        yield RESOURCES
    assert not ray.is_initialized()
