"""A session on Ray: connect to a running cluster, or start Ray on this machine."""

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.data


@dataclass(frozen=True)
class Resources:
    """What a Ray job may use."""

    address: str = ""
    """Address of a running cluster: "auto" or host:port. Empty starts Ray on this machine."""
    cpus: int = 0
    """Logical CPUs of a Ray started here; 0 for the machine's cores, at least 4."""
    object_store_mb: int = 0
    """MiB of shared memory of a Ray started here; 0 for Ray's own choice."""
    actors: int = 0
    """Model replicas; 0 for one per GPU, or one per two cores where there is no GPU."""
    actor_cpus: float = 0.9
    """CPUs per model replica."""
    actor_gpus: float = 1.0
    """GPUs per model replica, on clusters that have GPUs."""
    task_cpus: float = 1.0
    """CPUs per decoding task."""

    def __post_init__(self) -> None:
        if self.actor_cpus == self.task_cpus:
            raise ValueError(
                f"actor_cpus and task_cpus are both {self.task_cpus}; make them differ, or Ray fuses the two stages"
            )


@contextlib.contextmanager
def session(resources: Resources) -> Iterator[None]:
    """Connect to Ray, or start it, without its log output. At the end disconnect, which stops a Ray started here."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # failures that matter arrive as exceptions
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if resources.address:
        ray.init(address=resources.address, **options)
    else:
        cpus = resources.cpus or max(4, os.cpu_count() or 4)
        store = (resources.object_store_mb << 20) or None
        ray.init(num_cpus=cpus, object_store_memory=store, include_dashboard=False, **options)
    try:
        context = ray.data.DataContext.get_current()
        context.target_max_block_size = None  # so that one block remains one whole shard
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        yield
    finally:
        ray.shutdown()


def gpus() -> float:
    """Number of GPUs of the session's cluster."""
    return ray.cluster_resources().get("GPU", 0)
