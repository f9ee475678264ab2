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
    """What a Ray job may use; 0 leaves the choice to the machine.

    address: a running cluster ("auto" or host:port); empty starts one here with `cpus` logical CPUs (0: its cores, at
    least 4) and `object_store_mb` MiB of shared memory (0: Ray's own share). actors: model replicas (0: one a GPU, else
    one for two cores), each with actor_cpus, and actor_gpus where there are GPUs. task_cpus: CPUs of a decoding task.
    """

    address: str = ""
    cpus: int = 0
    object_store_mb: int = 0
    actors: int = 0
    actor_cpus: float = 0.9
    actor_gpus: float = 1.0
    task_cpus: float = 1.0

    def __post_init__(self) -> None:
        if self.actor_cpus == self.task_cpus:
            raise ValueError(
                f"actor_cpus and task_cpus are both {self.task_cpus}; make them differ, or Ray fuses the two stages"
            )


def start(resources: Resources) -> None:
    """Connect to Ray, or start it, quietly."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # real failures arrive as exceptions
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if resources.address:
        ray.init(address=resources.address, **options)
    else:
        cpus = resources.cpus or max(4, os.cpu_count() or 4)
        store = (resources.object_store_mb << 20) or None
        ray.init(num_cpus=cpus, object_store_memory=store, include_dashboard=False, **options)
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
    gpus = ray.cluster_resources().get("GPU", 0)
    actors = resources.actors or int(gpus / resources.actor_gpus if gpus else max(1, (os.cpu_count() or 2) // 2))
    dataset: ray.data.Dataset = ray.data.from_items(work, override_num_blocks=len(work))
    if prepare is not None:
        dataset = dataset.map_batches(prepare, batch_size=None, num_cpus=resources.task_cpus)
    dataset = dataset.map_batches(
        actor,
        fn_constructor_kwargs=actor_args,
        batch_size=None,
        num_cpus=resources.actor_cpus,
        num_gpus=resources.actor_gpus if gpus else 0,
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(work))),
    )
    try:
        yield from dataset.iter_rows()
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ValueError):  # bad input found by a worker: its sentence, without Ray's frames
            raise error.cause from None
        raise
