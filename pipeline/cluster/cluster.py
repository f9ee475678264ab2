"""The door to Ray: starting it, and running one graph of whole shards, whose retries are bounded."""

import logging
import os
import pickle
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.data

from rdpm.pipeline.foundation import files

_ATTEMPTS = ".attempts"  # folder under a store, while its job runs
_MOST_DEATHS = 3
_GIVEN_UP, _REFUSED = "given_up", "refused"  # columns that take the place of a shard's own


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


@dataclass(frozen=True)
class _Attempts:
    """How often a shard took the process down that worked on it, in this start of a job; Ray itself retries for ever.

    An attempt leaves a mark under `folder`, and removes it however it ends, unless its process dies.
    """

    folder: str

    def run(self, stage: str, shard: int, work: Callable[[dict], dict], batch: dict) -> dict:
        """The work's result, or that the shard was given up, or that its input was refused."""
        marks = [name for name in files.list_names(self.folder) if name.startswith(f"{shard}-{stage}-")]
        if len(marks) >= _MOST_DEATHS:
            return {"shard": [shard], _GIVEN_UP: [True]}
        mark = files.join(self.folder, f"{shard}-{stage}-{uuid.uuid4().hex}")
        files.write_bytes(mark, b"")
        try:
            return work(batch)
        except ValueError as error:  # bad input: the driver says so, in these words and not in Ray's
            return _refusal(shard, error)
        finally:
            files.remove(mark)


def _refusal(shard: int, error: ValueError) -> dict:
    return {"shard": [shard], _REFUSED: [pickle.dumps(error)]}


class _Replica:
    """An actor with its attempts counted."""

    def __init__(self, actor: type, arguments: dict[str, Any], attempts: _Attempts) -> None:
        self._attempts = attempts
        try:
            self._work = actor(**arguments)
        except ValueError as error:
            refusal = error
            self._work = lambda batch: _refusal(int(batch["shard"][0]), refusal)

    def __call__(self, batch: dict) -> dict:
        if _GIVEN_UP in batch or _REFUSED in batch:
            return batch
        return self._attempts.run("actor", int(batch["shard"][0]), self._work, batch)


def forget_attempts(store: str) -> None:
    """Delete what the attempts at a store's shards have left under it."""
    files.remove(files.join(store, _ATTEMPTS))


def run_shards(
    shards: list[int],
    prepare: Callable[[dict], dict] | None,
    actor: type,
    actor_args: dict[str, Any],
    resources: Resources,
    store: str,
) -> Iterator[dict[str, Any]]:
    """Run every shard of a store as one block through `prepare` (tasks) and `actor` (model replicas).

    `prepare` takes {"shard": [number]} and returns the columns of the shard, that one among them; `actor` takes those
    and returns one row. Yields the rows as they are done, in any order. Raises ValueError, after the last one, that
    names the shards which killed their worker three times.
    """
    gpus = ray.cluster_resources().get("GPU", 0)
    actors = resources.actors or int(gpus / resources.actor_gpus if gpus else max(1, (os.cpu_count() or 2) // 2))
    attempts = _Attempts(files.join(files.absolute(store), _ATTEMPTS, uuid.uuid4().hex))

    def guarded(batch: dict) -> dict:
        assert prepare is not None
        return attempts.run("task", int(batch["shard"][0]), prepare, batch)

    items = [{"shard": shard} for shard in shards]
    dataset: ray.data.Dataset = ray.data.from_items(items, override_num_blocks=len(items))
    if prepare is not None:
        dataset = dataset.map_batches(guarded, batch_size=None, num_cpus=resources.task_cpus)
    dataset = dataset.map_batches(
        _Replica,
        fn_constructor_kwargs={"actor": actor, "arguments": actor_args, "attempts": attempts},
        batch_size=None,
        num_cpus=resources.actor_cpus,
        num_gpus=resources.actor_gpus if gpus else 0,
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(items))),
    )
    given_up = []
    for row in dataset.iter_rows():
        if row.get(_REFUSED):
            raise pickle.loads(row[_REFUSED])
        if row.get(_GIVEN_UP):
            given_up.append(row["shard"])
        else:
            yield row
    if given_up:
        raise ValueError(
            f"shards {sorted(given_up)[:20]} ({len(given_up)} in all) killed their worker {_MOST_DEATHS} times each; "
            "the others are committed: mend what kills it (memory?) and run the job again"
        )
