"""One graph of whole shards on Ray Data, whose retries are bounded. What Ray passes around stays in this file.

Between stages a shard is one block: a dict of columns with the shard's number among them. Rooms see a number going in,
a record of equally long columns between the stages, and a `ShardDone` coming out.
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
_SHARD, _GIVEN_UP, _REFUSED = "shard", "given_up", "refused"  # columns of ours

P = TypeVar("P")


@dataclass(frozen=True)
class ShardDone:
    """What a worker says of a shard that it has committed."""

    shard: int
    """Number of the shard."""
    rows: int
    """Rows of the shard."""
    rejected: int = 0
    """Rows that hold no image."""


@dataclass(frozen=True)
class Preparation(Generic[P]):
    """What CPU tasks do with a shard before a model sees it."""

    prepare: Callable[[int], P]
    """A shard's number to a record of equally long columns."""
    record: type[P]
    """The dataclass of that record; its fields are numpy arrays."""


@dataclass(frozen=True)
class _Attempts:
    """How often a shard took down the process that worked on it, in this start of a job; Ray itself retries for ever.

    An attempt leaves a mark under `folder`, and removes it however it ends, unless its process dies.
    """

    folder: str

    def run(self, stage: str, shard: int, work: Callable[[], dict]) -> dict:
        """The work's result, or that the shard was given up, or that its input was refused."""
        marks = [name for name in files.list_names(self.folder) if name.startswith(f"{shard}-{stage}-")]
        if len(marks) >= _MOST_DEATHS:
            return {_SHARD: [shard], _GIVEN_UP: [True]}
        mark = files.join(self.folder, f"{shard}-{stage}-{uuid.uuid4().hex}")
        files.write_bytes(mark, b"")
        try:
            return work()
        except ValueError as error:  # bad input: the driver says so, in these words and not in Ray's
            return _refusal(shard, error)
        finally:
            files.remove(mark)


def _refusal(shard: int, error: ValueError) -> dict:
    return {_SHARD: [shard], _REFUSED: [pickle.dumps(error)]}


def _columns(shard: int, record: Any) -> dict:
    """A record as the columns of a block."""
    columns = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    rows = len(next(iter(columns.values())))
    return {**columns, _SHARD: np.full(rows, shard)}


class _Replica:
    """A model replica with its attempts counted."""

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
    """Delete what the attempts at a store's shards have left under it."""
    files.remove(files.join(store, _ATTEMPTS))


def run_shards(
    shards: list[int],
    preparation: Preparation | None,
    worker: Callable[..., Any],
    arguments: dict[str, Any],
    resources: Resources,
    store: str,
) -> Iterator[ShardDone]:
    """Run every shard of a store through `preparation` (in tasks, if given) and a worker (in model replicas).

    worker: a class; an instance made with `arguments` is called with a shard's number, and the prepared record if any,
    and returns ShardDone. Yields shards as they are done, in any order. Raises ValueError, after the last one, that
    names the shards which killed their worker three times.
    """
    there = gpus()
    actors = resources.actors or int(there / resources.actor_gpus if there else max(1, (os.cpu_count() or 2) // 2))
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
        num_gpus=resources.actor_gpus if there else 0,
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(shards))),
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
            f"shards {sorted(given_up)[:20]} ({len(given_up)} in all) killed their worker {_MOST_DEATHS} times each; "
            "the others are committed: remove the cause (out of memory?) and run the job again"
        )
