"""Runs of shards on Ray: what workers get, refusals, and shards that kill their process.

Workers and records are defined inside functions, so that they are pickled by value; Ray's processes import no tests.
"""

import ctypes
import os
import pickle
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest

from rdpm.pipeline.cluster.capacity import pool_for
from rdpm.pipeline.cluster.probe import probe_of
from rdpm.pipeline.cluster.session import Resources
from rdpm.pipeline.cluster.shards import Preparation, ShardDone, ShardsDied, Work, run_shards
from rdpm.pipeline.foundation import files

RESOURCES = Resources(cpus=4, object_store_mb=128, actors=2, actor_cpus=0.5)


def start(
    shards: list[int], preparation: Preparation | None, worker: type, store: Path, resources=RESOURCES, **arguments
) -> Iterator[ShardDone]:
    """The run of these shards in the session that is open."""
    pool = pool_for(resources, False, preparation is not None, 1, len(shards))
    return run_shards(shards, Work(preparation, worker, arguments), resources, pool, probe_of([str(store)]))


def run(*arguments, **named) -> list[ShardDone]:
    return list(start(*arguments, **named))


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
def test_shards_that_kill_their_process_or_are_stuck_are_given_up_and_named_after_three_deaths(
    running, tmp_path, part
) -> None:
    """Shard 3 kills. Shard 1 holds the interpreter, as a C library may, so no Python code could end it from within."""
    deaths = tmp_path / "deaths"

    def die(here: str, shard: int) -> None:
        if here == part and shard in (1, 3):
            with deaths.open("a") as file:
                file.write(str(shard))
            if shard == 3:
                os._exit(1)
            ctypes.PyDLL(None).sleep(100)

    numbers = numbers_times_ten()

    def prepare(shard: int):
        die("preparation", shard)
        return numbers.prepare(shard)

    class Worker:
        def __call__(self, shard: int, rows) -> ShardDone:
            die("worker", shard)
            return ShardDone(shard, int(rows.value[1]))

    resources, done = replace(RESOURCES, shard_minutes=0.02), []
    shards = start(list(range(6)), Preparation(prepare, numbers.record), Worker, tmp_path / "store", resources)
    with pytest.raises(ShardsDied) as died:
        done.extend(each.rows for each in shards)
    assert str(died.value).startswith(
        "shards [1, 3] (2 in all) killed their worker 3 times each, or took longer than resources.shard_minutes 0.02"
    )
    assert sorted(done) == [0, 20, 40, 50]
    assert sorted(deaths.read_text()) == ["1"] * 3 + ["3"] * 3
    assert died.value.stages == dict.fromkeys((1, 3), {"preparation": "task", "worker": "actor"}[part])


@pytest.mark.slow
def test_a_shard_whose_storage_fails_is_tried_again_and_at_last_fails_alone(running, tmp_path, monkeypatch) -> None:
    """Shard 1 fails twice, shard 2 always, and shard 3 is reset by its peer once."""
    tries = tmp_path / "tries"
    tries.mkdir()

    class Worker:
        def __call__(self, shard: int) -> ShardDone:
            name = tries / f"{shard}-{len(list(tries.glob(f'{shard}-*')))}"
            name.touch()
            if name.name in ("1-0", "1-1") or shard == 2:
                raise files.StorageUnavailable(f"the bucket is throttled for shard {shard}")
            if name.name == "3-0":
                raise ConnectionResetError(104, "Connection reset by peer")
            return ShardDone(shard, shard)

    done = []
    with pytest.raises(files.StorageUnavailable, match=r"shards \[2\] failed at every try \(the bucket is throttled"):
        done.extend(each.rows for each in start(list(range(5)), None, Worker, tmp_path / "store"))
    assert sorted(done) == [0, 1, 3, 4]
    assert Counter(int(path.name[0]) for path in tries.iterdir()) == {0: 1, 1: 3, 2: 3, 3: 2, 4: 1}
