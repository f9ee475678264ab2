"""Runs of shards on Ray: what fits it, what workers get, refusals, failures, and what kills a process.

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
import ray

from rdpm.pipeline.cluster.capacity import pool_for
from rdpm.pipeline.cluster.isolate import find_killers
from rdpm.pipeline.cluster.probe import probe_of
from rdpm.pipeline.cluster.session import Resources, session
from rdpm.pipeline.cluster.shards import Preparation, ShardDone, ShardsDied, Work, run_shards
from rdpm.pipeline.foundation import files

RESOURCES = Resources(cpus=4, object_store_mb=128, actors=2, actor_cpus=0.5)


@pytest.fixture(scope="module")
def running() -> Iterator[None]:
    """A session that all tests of this file share."""
    with session(RESOURCES):
        yield
    assert not ray.is_initialized()


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
@pytest.mark.parametrize(
    "part", ["worker", *(pytest.param(part, marks=pytest.mark.long) for part in ("preparation", "constructor"))]
)
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


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"actors": 2, "actor_cpus": 1.9, "actor_memory_mb": 0, "task_memory_mb": 0},
            "2 model replicas need 1.9 CPUs each and a decoding task 1 CPU, and Ray's node has 4 CPUs: "
            "at most 1 fit",
        ),
        ({"actors": 7}, "7 model replicas need 0.5 CPUs, 512 MiB each and a decoding task 1 CPU, 512 MiB"),
        ({"task_cpus": 5}, "a decoding task 5 CPUs, 512 MiB, and Ray's node has 4 CPUs, "),
        ({"task_memory_mb": 10**7}, "a decoding task 1 CPU, 10000000 MiB"),
        ({"actors": 1, "actor_memory_mb": 10**7}, "a model replica needs 0.5 CPUs, 10000000 MiB"),
        ({"min_gpus": 1}, "there are 0 GPUs, fewer than resources.min_gpus 1; add GPUs or lower it"),
    ],
)  # fmt: skip
def test_what_can_never_run_on_this_machine_is_refused_with_the_numbers(running, change, words) -> None:
    with pytest.raises(ValueError) as refused:
        pool_for(replace(RESOURCES, **change), False, True, 1, 100)
    assert words in str(refused.value)


@pytest.mark.slow
def test_what_just_fits_is_taken(running) -> None:
    pool = pool_for(replace(RESOURCES, actors=6), False, True, 1, 100)
    assert pool.least == pool.first == pool.most == 6
    assert pool_for(replace(RESOURCES, actors=8), False, False, 1, 100).most == 8  # no tasks beside them
    assert pool_for(replace(RESOURCES, actors=6), False, True, 1, 4).most == 4  # no more than shards
    with pytest.raises(ValueError, match=r"8 model replicas need .* at most 6 fit"):
        pool_for(replace(RESOURCES, actors=8), False, True, 1, 100)


@pytest.mark.slow
def test_the_number_of_replicas_follows_the_cores_unless_less_fits(running) -> None:
    few = replace(RESOURCES, actors=0)
    assert pool_for(few, False, True, 1, 100).most == min(6, max(1, (os.cpu_count() or 2) // 2))
    assert pool_for(replace(few, actor_cpus=2.9), False, True, 1, 100).most == 1


@pytest.mark.slow
def test_memory_is_reserved_by_the_size_of_a_shard_unless_the_config_says_how_much(running) -> None:
    usual = pool_for(RESOURCES, False, True, 100 * 2**20, 10)
    assert usual.task == {"CPU": 1.0, "memory": 712 * 2**20}
    assert usual.replica == {"CPU": 0.5, "memory": 712 * 2**20}
    said = pool_for(replace(RESOURCES, actor_memory_mb=0, task_memory_mb=300), False, True, 100 * 2**20, 10)
    assert said.task == {"CPU": 1.0, "memory": 300 * 2**20}
    assert said.replica == {"CPU": 0.5}
    assert pool_for(RESOURCES, False, False, 1, 10).task == {}


@pytest.mark.slow
def test_a_replica_on_a_gpu_is_refused_where_there_is_none(running) -> None:
    with pytest.raises(ValueError, match=r"a model replica needs 0.5 CPUs, 1 GPU, 512 MiB.* 0 GPUs.* does not fit"):
        pool_for(replace(RESOURCES, actors=1), True, True, 1, 10)


@pytest.mark.slow
def test_the_defaults_fit_a_machine_of_four_cpus(running) -> None:
    assert pool_for(Resources(), False, True, 1, 10).least >= 1


@pytest.mark.long
def test_the_images_that_kill_two_processes_alone_are_found_and_one_that_dies_once_is_not(running, tmp_path) -> None:
    """Of shard 7, image 2 kills, and image 4 is the victim of something else once. Of shard 8 nothing kills alone."""

    def rehearse(shard: int, images: range) -> None:
        with Path(tmp_path, "pids").open("a") as file:
            file.write(f"{os.getpid()} ")
        victim = Path(tmp_path, "victim")
        if shard == 7 and len(images) == 1 and 4 in images and not victim.exists():
            victim.touch()
            os._exit(1)
        if shard == 7 and 2 in images:
            os._exit(1)

    found = find_killers(rehearse, {7: 5, 8: 2}, {"CPU": 1.0}, 1.0)
    assert found == {7: (2,)}
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == len(set(pids))  # every part in a process of its own


@pytest.mark.long
def test_a_refusal_of_the_work_is_raised(running) -> None:
    def rehearse(shard: int, images: range) -> None:
        raise ValueError(f"shard {shard} wants another tokenizer")

    with pytest.raises(ValueError, match=r"^shard 3 wants another tokenizer$"):
        find_killers(rehearse, {3: 4}, {"CPU": 1.0}, 0)
