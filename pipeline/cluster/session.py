"""A session on Ray: connect to a running cluster, or start Ray on this machine for this job alone."""

import contextlib
import functools
import logging
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import ray
import ray.data
import torch
from ray._private import ray_constants, services
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

_LONGEST_CONNECT = 10  # seconds to wait for the head of a cluster to answer


@dataclass(frozen=True)
class Resources:
    """What a Ray job may use, and how long it waits."""

    address: str = ""
    """Address of a running cluster: "auto" or host:port. Empty starts a Ray for this job alone on this machine."""
    cpus: int = 0
    """Logical CPUs of a Ray started here; 0 for the machine's cores, at least 4."""
    object_store_mb: int = 0
    """MiB of shared memory of a Ray started here; 0 for Ray's own choice."""
    actors: int = 0
    """Model replicas; 0 for one per GPU, or one per two CPUs where the job uses no GPU. On a cluster their number
    follows the nodes that come and go, and this is the most."""
    actor_cpus: float = 0.9
    """CPUs per model replica."""
    actor_gpus: float = 1.0
    """GPUs per model replica of a job on GPUs."""
    actor_memory_mb: int | None = None
    """MiB of memory to reserve per model replica; null for twice the images of a shard plus 512, 0 for none."""
    task_cpus: float = 1.0
    """CPUs per decoding task."""
    task_memory_mb: int | None = None
    """MiB of memory to reserve per decoding task; null for twice the images of a shard plus 512, 0 for none. A PNG of
    179 megapixels takes 4,300 to decode."""
    min_gpus: int = 0
    """GPUs without which the job does not start; device auto is then cuda. 0 starts with what there is."""
    wait_seconds: float = 600.0
    """How long to wait for GPUs, CPUs and memory that a cluster does not have yet."""
    shard_minutes: float = 600.0
    """Deadline of the work on one shard. A process that takes longer is ended, which counts as a death; 0 for none."""

    def __post_init__(self) -> None:
        if self.actor_cpus == self.task_cpus:
            raise ValueError(
                f"actor_cpus and task_cpus are both {self.task_cpus}; make them differ, or Ray fuses the two stages"
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not value >= 0:  # also for NaN
                raise ValueError(f"resources.{field.name} is {value:g}; use 0 or more")
        least = ray_constants.OBJECT_STORE_MINIMUM_MEMORY_BYTES >> 20
        if 0 < self.object_store_mb < least:
            raise ValueError(
                f"resources.object_store_mb is {self.object_store_mb}; use {least} or more, or 0 for Ray's own choice"
            )


@contextlib.contextmanager
def session(resources: Resources) -> Iterator[None]:
    """Connect to Ray, or start it, without its log output. At the end disconnect, which stops a Ray started here.

    A Ray started here has nothing to do with any other one on the machine. It listens on loopback only, and serves only
    who knows its random token. Raises ValueError when there is no cluster at the address.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # failures that matter arrive as exceptions
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with contextlib.nullcontext() if resources.address else _private():
        _read_token_again()
        _connect(resources)
        try:
            context = ray.data.DataContext.get_current()
            context.target_max_block_size = None  # so that one block remains one whole shard
            context.enable_progress_bars = False
            context.max_consecutive_actor_init_deaths = 2
            logging.getLogger("ray.data").setLevel(logging.ERROR)
            yield
        finally:
            ray.shutdown()


def _connect(resources: Resources) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not resources.address:
        cpus = resources.cpus or max(4, os.cpu_count() or 4)
        store = (resources.object_store_mb << 20) or None
        ray.init(  # "local", or it would connect to what RAY_ADDRESS or an old file names
            address="local", num_cpus=cpus, object_store_memory=store, include_dashboard=False, **options
        )
        return
    try:
        _require_answer(resources.address)
        ray.init(address=resources.address, **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"there is no Ray cluster to use at resources.address {resources.address!r} ({reason}); give the address "
            "of a running one, or none to start Ray on this machine"
        ) from None


def _require_answer(address: str) -> None:
    """Raise OSError unless something listens at the address. Ray itself would try for minutes."""
    host, _, port = (services.canonicalize_bootstrap_address(address) or "").rpartition(":")
    if host:
        socket.create_connection((host.strip("[]"), int(port)), _LONGEST_CONNECT).close()


@contextlib.contextmanager
def _private() -> Iterator[None]:
    """A Ray that is started in this block listens on loopback only and has a token of its own.

    A user who sets RAY_AUTH_MODE=disabled gets no token.
    """
    former = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    if former["RAY_AUTH_MODE"] != "disabled":
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    several_machines = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False  # so that Ray takes 127.0.0.1 for the node's address, and binds to that
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = several_machines
        for name, value in former.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        _read_token_again()


def _read_token_again() -> None:
    """Make Ray forget the token that this process has read from the environment before."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def cluster_device(wanted: str, resources: Resources) -> str:
    """The device that a config's `device` (auto, cpu or cuda) means for a job with these resources.

    On a cluster, auto is what its nodes have, not what this machine has. Stays "auto" for a job on this machine alone.
    Raises ValueError for cuda where such a job finds no GPU.
    """
    if wanted == "cuda" and not resources.address and not torch.cuda.is_available():
        raise ValueError(
            f"device is cuda, and {socket.gethostname()} has no GPU; use device=cpu, or give resources.address of a "
            "cluster with GPUs"
        )
    if wanted != "auto":
        return wanted
    if resources.min_gpus:
        return "cuda"
    return _device_of(resources) if resources.address else "auto"


@functools.cache
def _device_of(resources: Resources) -> str:
    with session(resources):
        return "cuda" if gpus() else "cpu"


def gpus() -> float:
    """Number of GPUs of the session's cluster."""
    return ray.cluster_resources().get("GPU", 0)
