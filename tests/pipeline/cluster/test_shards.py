"""Runs of shards on Ray: what workers get, refusals, and shards that kill their process.

Workers and records are defined inside functions, so that they are pickled by value; Ray's processes import no tests.
"""

import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest
import ray

from rdpm.pipeline.cluster.session import Resources, session
from rdpm.pipeline.cluster.shards import Preparation, ShardDone, forget_attempts, run_shards

RESOURCES = Resources(cpus=4, object_store_mb=128, actors=2, actor_cpus=0.5)


@pytest.fixture(scope="module")
def running() -> Iterator[None]:
    """A session that all tests of this file share."""
    with session(RESOURCES):
        yield
    assert not ray.is_initialized()


def run(shards: list[int], preparation: Preparation | None, worker: type, store: Path, **arguments) -> list[ShardDone]:
    return list(run_shards(shards, preparation, worker, arguments, RESOURCES, str(store)))


def numbers_times_ten() -> Preparation:
    """Two rows per shard, which hold ten times its number."""

    @dataclass(frozen=True)
    class Numbers:
        value: np.ndarray

    return Preparation(lambda shard: Numbers(np.full(2, 10 * shard)), Numbers)


@pytest.mark.slow
def test_a_prepared_record_reaches_the_worker_with_its_dtypes_shapes_and_values(running, tmp_path) -> None:
    @dataclass(frozen=True)
    class Rows:
        pixels: np.ndarray
        label: np.ndarray
        seed: np.ndarray
        latent: np.ndarray
        flag: np.ndarray
        key: np.ndarray

    def prepare(shard: int) -> Rows:
        draw, n = np.random.default_rng(shard), 3 + shard
        return Rows(
            pixels=draw.integers(0, 256, (n, 8, 8, 1), np.uint8),
            label=np.arange(n, dtype=np.int32),
            seed=draw.integers(2**63, 2**64, n, np.uint64),
            latent=draw.random((n, 4, 2, 2)).astype(np.float16),
            flag=draw.random(n) < 0.5,
            key=np.array(["é" * row for row in range(n)], object),
        )

    class Worker:
        def __init__(self, folder: str) -> None:
            self.folder = folder

        def __call__(self, shard: int, rows: Rows) -> ShardDone:
            columns = {field.name: getattr(rows, field.name) for field in fields(rows)}
            Path(self.folder, str(shard)).write_bytes(pickle.dumps(columns))
            return ShardDone(shard, len(rows.label), rejected=1)

    done = run([0, 1, 2], Preparation(prepare, Rows), Worker, tmp_path / "store", folder=str(tmp_path))
    assert sorted(done, key=lambda each: each.shard) == [ShardDone(shard, 3 + shard, 1) for shard in range(3)]
    for shard in range(3):
        received = pickle.loads((tmp_path / str(shard)).read_bytes())
        for name, expected in vars(prepare(shard)).items():
            assert received[name].dtype == expected.dtype, name
            assert received[name].shape == expected.shape, name
            assert np.array_equal(received[name], expected), name


@pytest.mark.slow
def test_without_a_preparation_a_worker_gets_the_number_of_the_shard(running, tmp_path) -> None:
    class Worker:
        def __init__(self, factor: int) -> None:
            self.factor = factor

        def __call__(self, shard: int) -> ShardDone:
            return ShardDone(shard, self.factor * shard)

    assert sorted(done.rows for done in run([1, 4, 7], None, Worker, tmp_path, factor=3)) == [3, 12, 21]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["preparation", "worker", "constructor"])
def test_a_refusal_is_raised_in_its_own_words(running, tmp_path, part) -> None:
    def refuse(here: str) -> None:
        if here == part:
            raise ValueError(f"the {here} wants other input; give it that")

    numbers = numbers_times_ten()

    def prepare(shard: int):
        refuse("preparation")
        return numbers.prepare(shard)

    class Worker:
        def __init__(self) -> None:
            refuse("constructor")

        def __call__(self, shard: int, rows) -> ShardDone:
            refuse("worker")
            return ShardDone(shard, len(rows.value))

    with pytest.raises(ValueError, match=rf"^the {part} wants other input; give it that$"):
        run([0, 1], Preparation(prepare, numbers.record), Worker, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["preparation", pytest.param("worker", marks=pytest.mark.long)])
def test_a_shard_that_kills_its_process_is_given_up_after_three_deaths(running, tmp_path, part) -> None:
    deaths = tmp_path / "deaths"

    def die(here: str, shard: int) -> None:
        if here == part and shard == 3:
            with deaths.open("a") as file:
                file.write("x")
            os._exit(1)

    numbers = numbers_times_ten()

    def prepare(shard: int):
        die("preparation", shard)
        return numbers.prepare(shard)

    class Worker:
        def __call__(self, shard: int, rows) -> ShardDone:
            die("worker", shard)
            return ShardDone(shard, int(rows.value[1]))

    done = []
    shards = run_shards(
        list(range(6)), Preparation(prepare, numbers.record), Worker, {}, RESOURCES, str(tmp_path / "store")
    )
    with pytest.raises(ValueError, match=r"shards \[3\] \(1 in all\) killed their worker 3 times"):
        done.extend(each.rows for each in shards)
    assert sorted(done) == [0, 10, 20, 40, 50]
    assert deaths.read_text() == "xxx"
    attempts = tmp_path / "store" / ".attempts"
    stage = {"preparation": "task", "worker": "actor"}[part]
    markers = [path.name for path in attempts.rglob("*") if path.is_file()]
    assert [name.startswith(f"3-{stage}-") for name in markers] == [True] * 3
    forget_attempts(str(tmp_path / "store"))
    assert not attempts.exists()


@pytest.mark.slow
def test_tasks_and_replicas_must_differ_in_cpus() -> None:
    with pytest.raises(ValueError, match=r"actor_cpus and task_cpus are both 1.0; make them differ"):
        Resources(actor_cpus=1.0)
