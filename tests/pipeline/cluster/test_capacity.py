"""What fits Ray, and what is refused because it never can. Several nodes are in test_nodes."""

import os
from dataclasses import replace

import pytest

from rdpm.pipeline.cluster.capacity import pool_for
from rdpm.pipeline.cluster.session import Resources

MIB = 2**20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"actors": 2, "actor_cpus": 1.9, "actor_memory_mb": 0, "task_memory_mb": 0},
            "2 model replicas need 1.9 CPUs each and a decoding task 1 CPU, and the 1 nodes of Ray have 4 CPUs: "
            "at most 1 fit",
        ),
        ({"actors": 7}, "7 model replicas need 0.5 CPUs, 512 MiB each and a decoding task 1 CPU, 512 MiB"),
        ({"task_cpus": 5}, "a decoding task 5 CPUs, 512 MiB, and the 1 nodes of Ray have 4 CPUs, "),
        ({"task_memory_mb": 10**7}, "a decoding task 1 CPU, 10000000 MiB"),
        ({"actors": 1, "actor_memory_mb": 10**7}, "a model replica needs 0.5 CPUs, 10000000 MiB"),
        ({"min_gpus": 1}, "there are 0 GPUs, fewer than resources.min_gpus 1; add GPUs or lower it"),
    ],
)  # fmt: skip
def test_what_can_never_run_on_this_machine_is_refused_with_the_numbers(running, change, words) -> None:
    with pytest.raises(ValueError) as refused:
        pool_for(replace(running, **change), False, True, 1, 100)
    assert words in str(refused.value)


@pytest.mark.slow
def test_what_just_fits_is_taken(running) -> None:
    pool = pool_for(replace(running, actors=6), False, True, 1, 100)
    assert pool.least == pool.first == pool.most == 6
    assert pool_for(replace(running, actors=8), False, False, 1, 100).most == 8  # no tasks beside them
    assert pool_for(replace(running, actors=6), False, True, 1, 4).most == 4  # no more than shards
    with pytest.raises(ValueError, match=r"8 model replicas need .* at most 6 fit"):
        pool_for(replace(running, actors=8), False, True, 1, 100)


@pytest.mark.slow
def test_the_number_of_replicas_follows_the_cores_unless_less_fits(running) -> None:
    few = replace(running, actors=0)
    assert pool_for(few, False, True, 1, 100).most == min(6, max(1, (os.cpu_count() or 2) // 2))
    assert pool_for(replace(few, actor_cpus=2.9), False, True, 1, 100).most == 1


@pytest.mark.slow
def test_memory_is_reserved_by_the_size_of_a_shard_unless_the_config_says_how_much(running) -> None:
    usual = pool_for(running, False, True, 100 * MIB, 10)
    assert usual.task == {"CPU": 1.0, "memory": 712 * MIB}
    assert usual.replica == {"CPU": 0.5, "memory": 712 * MIB}
    said = pool_for(replace(running, actor_memory_mb=0, task_memory_mb=300), False, True, 100 * MIB, 10)
    assert said.task == {"CPU": 1.0, "memory": 300 * MIB}
    assert said.replica == {"CPU": 0.5}
    assert pool_for(running, False, False, 1, 10).task == {}


@pytest.mark.slow
def test_a_replica_on_a_gpu_is_refused_where_there_is_none(running) -> None:
    with pytest.raises(ValueError, match=r"a model replica needs 0.5 CPUs, 1 GPU, 512 MiB.* 0 GPUs.* does not fit"):
        pool_for(replace(running, actors=1), True, True, 1, 10)


@pytest.mark.slow
def test_the_defaults_fit_a_machine_of_four_cpus(running) -> None:
    assert pool_for(Resources(), False, True, 1, 10).least >= 1
