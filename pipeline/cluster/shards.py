"""Run whole shards through Ray Data with a bounded number of retries. Ray's own data format is used in this file only.

Between Ray's stages a shard is one block: a dict of columns, one of which holds the shard's number. Callers see shard
numbers, the record of a prepared shard, and `ShardDone`.
"""

import dataclasses
import os
import pickle
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import ray.data

from rdpm.pipeline.cluster.session import Resources, gpus
from rdpm.pipeline.foundation import files

_ATTEMPTS = ".attempts"  # folder under a store, while its job runs
_MOST_DEATHS = 3
_SHARD, _GIVEN_UP, _REFUSED = "shard", "given_up", "refused"  # columns beside those of a record

P = TypeVar("P")


@dataclass(frozen=True)
class ShardDone:
    """What a worker reports about a shard that it has committed."""

    shard: int
    """Number of the shard."""
    rows: int
    """Rows of the shard."""
    rejected: int = 0
    """Rows that hold no image."""


@dataclass(frozen=True)
class Preparation(Generic[P]):
    """What CPU tasks do with a shard before a worker gets it."""

    prepare: Callable[[int], P]
    """A function from a shard's number to its prepared record."""
    record: type[P]
    """The dataclass of that record. Its fields are numpy arrays of equal length; strings have dtype object."""


@dataclass(frozen=True)
class _Attempts:
    """Counts how often a shard killed the process that worked on it, in this run of a job. Ray itself retries forever.

    Every attempt writes a marker file, and removes it when it ends, unless its process dies.
    """

    folder: str
    """Folder or URL of the marker files."""

    def run(self, stage: str, shard: int, work: Callable[[], dict]) -> dict:
        """The result of the work, or a block which says that the shard was given up or its input refused."""
        markers = [name for name in files.list_names(self.folder) if name.startswith(f"{shard}-{stage}-")]
        if len(markers) >= _MOST_DEATHS:
            return {_SHARD: [shard], _GIVEN_UP: [True]}
        marker = files.join(self.folder, f"{shard}-{stage}-{uuid.uuid4().hex}")
        files.write_bytes(marker, b"")
        try:
            return work()
        except ValueError as error:  # refused input: the driver raises this error itself, without Ray's traceback
            return _refusal(shard, error)
        finally:
            files.remove(marker)


def _refusal(shard: int, error: ValueError) -> dict:
    return {_SHARD: [shard], _REFUSED: [pickle.dumps(error)]}


def _columns(shard: int, record: Any) -> dict:
    """The block of a prepared shard."""
    columns = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    rows = len(next(iter(columns.values())))
    return {**columns, _SHARD: np.full(rows, shard)}


class _Replica:
    """The Ray actor around a worker: counts its attempts, and turns refusals into blocks."""

    def __init__(
        self, worker: Callable[..., Any], arguments: dict[str, Any], record: type | None, attempts: _Attempts
    ) -> None:
        self._attempts, self._record = attempts, record
        self._refused: ValueError | None = None
        try:
            self._worker = worker(**arguments)
        except ValueError as error:
            self._refused = error

    def __call__(self, batch: dict) -> dict:
        shard = int(batch[_SHARD][0])
        if _GIVEN_UP in batch or _REFUSED in batch:
            return batch
        if self._refused:
            return _refusal(shard, self._refused)
        return self._attempts.run("actor", shard, lambda: self._work(shard, batch))

    def _work(self, shard: int, batch: dict) -> dict:
        prepared: tuple[Any, ...] = ()
        if self._record is not None:
            prepared = (self._record(**{field.name: batch[field.name] for field in dataclasses.fields(self._record)}),)
        done: ShardDone = self._worker(shard, *prepared)
        return {name: [value] for name, value in dataclasses.asdict(done).items()}


def forget_attempts(store: str) -> None:
    """Delete the marker files of all attempts under a store."""
    files.remove(files.join(store, _ATTEMPTS))


def run_shards(
    shards: list[int],
    preparation: Preparation | None,
    worker: Callable[..., Any],
    arguments: dict[str, Any],
    resources: Resources,
    store: str,
) -> Iterator[ShardDone]:
    """Run every shard of a store through `preparation` (in tasks, where it is given) and a worker (in replicas).

    worker: a class whose instances are created with `arguments`. An instance is called with a shard's number, and with
    the prepared record where there is one, and returns ShardDone. arguments: must be picklable. store: the folder or
    URL under which attempts are counted. Needs an open session. Yields shards as they are done, in any order. Raises
    the ValueError of a worker or preparation, and, after the last shard, a ValueError that names the shards which
    killed their worker three times.
    """
    gpu_replicas = bool(gpus() and resources.actor_gpus)
    by_hardware = int(gpus() / resources.actor_gpus) if gpu_replicas else (os.cpu_count() or 2) // 2
    replicas = resources.actors or max(1, by_hardware)
    attempts = _Attempts(files.join(files.absolute(store), _ATTEMPTS, uuid.uuid4().hex))

    def prepare(batch: dict) -> dict:
        assert preparation is not None
        shard, work = int(batch[_SHARD][0]), preparation.prepare
        return attempts.run("task", shard, lambda: _columns(shard, work(shard)))

    dataset: ray.data.Dataset = ray.data.from_items(
        [{_SHARD: shard} for shard in shards], override_num_blocks=len(shards)
    )
    if preparation is not None:
        dataset = dataset.map_batches(prepare, batch_size=None, num_cpus=resources.task_cpus)
    record = preparation.record if preparation else None
    dataset = dataset.map_batches(
        _Replica,
        fn_constructor_kwargs={"worker": worker, "arguments": arguments, "record": record, "attempts": attempts},
        batch_size=None,
        num_cpus=resources.actor_cpus,
        num_gpus=resources.actor_gpus if gpu_replicas else 0,
        compute=ray.data.ActorPoolStrategy(size=min(replicas, len(shards))),
    )
    given_up = []
    for row in dataset.iter_rows():
        if row.get(_REFUSED):
            raise pickle.loads(row[_REFUSED])
        if row.get(_GIVEN_UP):
            given_up.append(row[_SHARD])
        else:
            yield ShardDone(**{field.name: row[field.name] for field in dataclasses.fields(ShardDone)})
    if given_up:
        raise ValueError(
            f"shards {sorted(given_up)[:20]} ({len(given_up)} in all) killed their worker {_MOST_DEATHS} times each, "
            "and the others are committed; remove the cause (is memory short?) and run the job again"
        )
