"""Run whole shards through Ray Data with a bounded number of retries. Ray's own data format is used in this file only.

Between Ray's stages a shard is one block: a dict of columns, one of which holds the shard's number. Callers see shard
numbers, the record of a prepared shard, and `ShardDone`.
"""

import dataclasses
import pickle
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import ray.data
import ray.exceptions

from rdpm.pipeline.cluster.attempts import (
    DIED,
    FAILED,
    MOST_DEATHS,
    REFUSED,
    SHARD,
    Attempts,
    attempts,
    ending,
    persistently,
)
from rdpm.pipeline.cluster.capacity import Pool, options
from rdpm.pipeline.cluster.probe import Probe
from rdpm.pipeline.cluster.session import Resources
from rdpm.pipeline.foundation import files

_MOST_FAILED = 20  # shards that storage or network failed, after which a run does not go on with others

TASK, ACTOR = "task", "actor"  # stages: the work of a preparation, and that of a worker

P = TypeVar("P")


class ShardsDied(ValueError):
    """Shards killed every process that worked on them. The others are committed."""

    def __init__(self, stages: dict[int, str], minutes: float) -> None:
        """stages: by shard, the work that killed: TASK or ACTOR. minutes: the deadline of a shard."""
        self.stages = stages
        late = f", or took longer than resources.shard_minutes {minutes:g}" if minutes else ""
        super().__init__(
            f"shards {sorted(stages)[:20]} ({len(stages)} in all) killed their worker {MOST_DEATHS} times each{late}, "
            "and the others are committed; remove the cause (is memory short?) and run the job again"
        )


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
class Work:
    """What is done with every shard of a job."""

    preparation: Preparation | None
    """What tasks do first; None if workers start from the shard's number."""
    worker: Callable[..., Any]
    """A class. Its instance is called with a shard's number, and the prepared record if there is one, and returns
    ShardDone."""
    arguments: dict[str, Any]
    """What the class is called with; picklable."""


def _columns(shard: int, record: Any) -> dict:
    """The block of a prepared shard."""
    columns = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    rows = len(next(iter(columns.values())))
    return {**columns, SHARD: np.full(rows, shard)}


class _Replica:
    """The Ray actor around a worker. It makes the worker, and turns what ends a shard into a block."""

    def __init__(self, work: Work, attempts: Attempts) -> None:
        self._attempts, self._work = attempts, work
        self._refused: ValueError | OSError | None = None
        try:
            attempts.probe.check()
            self._worker = persistently(lambda: work.worker(**work.arguments), attempts.minutes)
        except (ValueError, OSError) as error:
            self._refused = error

    def __call__(self, batch: dict) -> dict:
        shard = int(batch[SHARD][0])
        if {DIED, REFUSED, FAILED} & batch.keys():
            return batch
        if self._refused:
            return ending(shard, self._refused)
        return self._attempts.run(ACTOR, shard, lambda: self._call(shard, batch))

    def _call(self, shard: int, batch: dict) -> dict:
        prepared: tuple[Any, ...] = ()
        if self._work.preparation is not None:
            record = self._work.preparation.record
            prepared = (record(**{field.name: batch[field.name] for field in dataclasses.fields(record)}),)
        done: ShardDone = self._worker(shard, *prepared)
        return {name: [value] for name, value in dataclasses.asdict(done).items()}


def run_shards(
    shards: list[int], work: Work, resources: Resources, pool: Pool, probe: Probe
) -> Generator[ShardDone, None, None]:
    """Do the work on every shard: its preparation in tasks, its worker in replicas.

    pool: of the session that is open. probe: what every process proves first. Yields shards as they are done, in any
    order. Raises the ValueError or OSError of a worker, preparation or probe; after the last shard, StorageUnavailable
    if storage or network failed shards at every try; ShardsDied if shards killed their processes three times.
    """
    died, failed = {}, {}
    with attempts(probe, resources.shard_minutes) as counted:
        for row in _rows(_graph(shards, work, pool, counted)):
            if row.get(REFUSED):
                raise pickle.loads(row[REFUSED])
            if row.get(DIED):
                died[row[SHARD]] = row[DIED]
            elif row.get(FAILED):
                failed[row[SHARD]] = row[FAILED]
                if len(failed) >= _MOST_FAILED:
                    break
            else:
                yield ShardDone(**{field.name: row[field.name] for field in dataclasses.fields(ShardDone)})
    if failed:
        raise files.StorageUnavailable(
            f"shards {sorted(failed)[:20]} failed at every try ({next(iter(failed.values()))}), and those done are "
            "committed; run the job again when the storage is well"
        )
    if died:
        raise ShardsDied(died, resources.shard_minutes)


def _graph(shards: list[int], work: Work, pool: Pool, counted: Attempts) -> ray.data.Dataset:
    dataset: ray.data.Dataset = ray.data.from_items(
        [{SHARD: shard} for shard in shards], override_num_blocks=len(shards)
    )
    if work.preparation is not None:
        prepare = work.preparation.prepare

        def task(batch: dict) -> dict:
            shard = int(batch[SHARD][0])
            return counted.run(TASK, shard, lambda: _columns(shard, prepare(shard)))

        dataset = dataset.map_batches(task, batch_size=None, **options(pool.task))
    return dataset.map_batches_internal(  # map_batches refuses GPUs unless a number of rows cuts the blocks
        _Replica,
        fn_constructor_kwargs={"work": work, "attempts": counted},
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(min_size=pool.least, initial_size=pool.first, max_size=pool.most),
        **options(pool.replica),
    )


def _rows(dataset: ray.data.Dataset) -> Iterator[dict]:
    try:
        yield from dataset.iter_rows()
    except (ray.exceptions.RayActorError, ray.exceptions.RaySystemError) as error:
        raise ValueError(f"Ray could not go on ({' '.join(str(error).split())}); run the job again") from error
