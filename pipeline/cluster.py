"""The door to Ray: starting it, running one graph of whole shards, and showing how far it is."""

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
import ray.exceptions


@dataclass(frozen=True)
class Resources:
    """What a Ray job may use.

    address: a running cluster ("auto" or host:port); empty starts one on this machine with `cpus` logical CPUs and
    `object_store_mb` MiB of shared memory. actors: model replicas, each with actor_cpus and actor_gpus.
    """

    address: str = ""
    cpus: int = 4
    object_store_mb: int = 512
    actors: int = 1
    actor_cpus: float = 0.9
    actor_gpus: float = 0.0
    task_cpus: float = 1.0

    def __post_init__(self) -> None:
        if self.actor_cpus == self.task_cpus:
            raise ValueError(
                f"actor_cpus and task_cpus are both {self.task_cpus}; Ray would fuse decoding into the actors"
            )


def start(resources: Resources) -> None:
    """Connect to Ray, or start it, quietly."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # real failures arrive as exceptions
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if resources.address:
        ray.init(address=resources.address, **options)
    else:
        store = resources.object_store_mb << 20
        ray.init(num_cpus=resources.cpus, object_store_memory=store, include_dashboard=False, **options)
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = None  # one block stays one whole shard
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def stop() -> None:
    """Leave Ray; a Ray started here ends."""
    ray.shutdown()


def run_shards(
    work: list[dict[str, Any]],
    prepare: Callable[[dict], dict] | None,
    actor: type,
    actor_args: dict[str, Any],
    resources: Resources,
) -> Iterator[dict[str, Any]]:
    """Run every work item as one block through `prepare` (tasks) and `actor` (model replicas).

    `prepare` takes a batch that holds one work item and returns the columns of its shard; `actor` takes those and
    returns one row. Yields the rows as they are done, in any order.
    """
    dataset: ray.data.Dataset = ray.data.from_items(work, override_num_blocks=len(work))
    if prepare is not None:
        dataset = dataset.map_batches(prepare, batch_size=None, num_cpus=resources.task_cpus)
    dataset = dataset.map_batches(
        actor,
        fn_constructor_kwargs=actor_args,
        batch_size=None,
        num_cpus=resources.actor_cpus,
        num_gpus=resources.actor_gpus,
        compute=ray.data.ActorPoolStrategy(size=min(resources.actors, len(work))),
    )
    try:
        yield from dataset.iter_rows()
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ValueError):  # bad input found by a worker: its sentence, without Ray's frames
            raise error.cause from None
        raise
