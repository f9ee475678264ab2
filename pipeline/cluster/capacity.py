"""How many model replicas fit beside a decoding task; waiting for what a cluster lacks, refusing what can never run."""

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from rdpm.pipeline.cluster.session import Resources, gpus
from rdpm.pipeline.foundation.progress import say

Needs = Mapping[str, float]
"""Amounts by Ray's names: CPU, GPU, and memory in bytes. There is no entry for 0."""
_QUIET = 2.0  # seconds before a line says what is waited for


@dataclass(frozen=True)
class Pool:
    """What a job asks of Ray."""

    replica: Needs
    """Of a model replica."""
    task: Needs
    """Of a decoding task; empty where there are none."""
    least: int
    """Fewest replicas: one on a cluster, and all of them on this machine, where none can come."""
    first: int
    """Replicas at the start."""
    most: int
    """Most replicas, where a cluster grows."""


def pool_for(resources: Resources, on_gpus: bool, with_tasks: bool, shard_bytes: int, shards: int) -> Pool:
    """The pool of a job on the session's Ray, once that can start it.

    on_gpus: whether replicas use GPUs. with_tasks: whether tasks decode. shard_bytes: size of a shard's images. Says
    what it waits for. Raises ValueError, with the numbers, for what can never run on this machine, and for what a
    cluster does not have within `wait_seconds`.
    """
    usual = (shard_bytes >> 19) + 512  # MiB: images, a copy of them, and the process itself
    replica = _needs(resources.actor_cpus, resources.actor_memory_mb, usual, resources.actor_gpus if on_gpus else 0)
    task = _needs(resources.task_cpus, resources.task_memory_mb, usual) if with_tasks else {}
    if not resources.address:
        wanted = min(shards, resources.actors or _by_hardware(replica, os.cpu_count() or 2))
        if not resources.actors and "GPU" not in replica:
            wanted = max(1, min(wanted, _room(replica, task)))
        lack = _lack(replica, task, wanted, resources.min_gpus)
        if lack:
            raise ValueError(lack)
        return Pool(replica, task, wanted, wanted, wanted)
    _wait(replica, task, resources)
    wanted = min(shards, resources.actors or _by_hardware(replica, int(ray.cluster_resources().get("CPU", 0))))
    first = max(1, min(wanted, _room(replica, task)))
    return Pool(replica, task, 1, first, min(shards, resources.actors or shards))


def _needs(cpus: float, memory_mb: int | None, usual_mb: int, gpus: float = 0) -> dict[str, float]:
    memory = (usual_mb if memory_mb is None else memory_mb) << 20
    return {name: value for name, value in (("CPU", cpus), ("GPU", gpus), ("memory", memory)) if value}


def _by_hardware(replica: Needs, cpus: int) -> int:
    return max(1, int(gpus() / replica["GPU"]) if "GPU" in replica else cpus // 2)


def _nodes() -> list[Needs]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _fit(node: Needs, needs: Needs, most: int) -> int:
    """How often these needs fit one node, at most `most` times."""
    return min((int(node.get(name, 0) / amount + 1e-6) for name, amount in needs.items()), default=most)


def _room(replica: Needs, task: Needs, most: int = 1 << 20) -> int:
    """How many replicas fit all nodes together beside one task; 0 also where the task fits no node."""
    nodes = _nodes()
    alone = [_fit(node, replica, most) for node in nodes]
    lost = [
        before - _fit({name: value - task.get(name, 0) for name, value in node.items()}, replica, most)
        for node, before in zip(nodes, alone, strict=True)
        if not task or _fit(node, task, 1) >= 1
    ]
    return sum(alone) - min(lost) if lost else 0


def _lack(replica: Needs, task: Needs, replicas: int, min_gpus: int) -> str:
    """The sentence that says why the job cannot run on the nodes of now; "" if it can."""
    if gpus() < min_gpus:
        return f"there are {gpus():g} GPUs, fewer than resources.min_gpus {min_gpus}; add GPUs or lower it"
    room = _room(replica, task)
    if room >= replicas:
        return ""
    which = (
        f"{replicas} model replicas need {_words(replica)} each"
        if replicas > 1
        else f"a model replica needs {_words(replica)}"
    )
    beside = f" and a decoding task {_words(task)}" if task else ""
    nodes = _nodes()
    names = ("CPU", *(name for name in ("GPU", "memory") if name in replica or name in task))
    have = "; ".join(sorted({_words({name: node.get(name, 0) for name in names}) for node in nodes}))
    whose = "Ray's node has" if len(nodes) == 1 else f"Ray's {len(nodes)} nodes have"
    fit = f"at most {room} fit" if room else "that does not fit"
    return (
        f"{which}{beside}, and {whose} {have}: {fit}; lower resources.actors, actor_cpus, "
        "task_cpus, actor_memory_mb or task_memory_mb, or give Ray more (resources.cpus, or larger nodes)"
    )


def _wait(replica: Needs, task: Needs, resources: Resources) -> None:
    """Return once a replica, a task and `min_gpus` GPUs can be had at the same time.

    A placement group asks for them, so an autoscaler starts nodes. Raises ValueError if the nodes lack them after
    `wait_seconds`; for GPUs that other jobs use it waits on.
    """
    more_gpus = [{"GPU": 1.0}] * (resources.min_gpus - math.ceil(replica.get("GPU", 0)))  # beside the replica's
    group = placement_group([bundle for bundle in (dict(replica), dict(task), *more_gpus) if bundle] or [{"CPU": 0.01}])
    start, said = time.monotonic(), False
    try:
        while True:
            lack = _lack(replica, task, 1, resources.min_gpus)
            if group.wait(0.5) and not lack:
                return
            waited = time.monotonic() - start
            if lack and waited > resources.wait_seconds:
                raise ValueError(f"{lack} (waited {waited:.0f} s)")
            if waited > _QUIET and not said:
                said = True
                missing = _words({"GPU": resources.min_gpus}) if resources.min_gpus else _words(replica)
                bound = f"at most {resources.wait_seconds:g} s" if lack else "which other jobs use"
                say(f"waiting for {missing}, {bound}")
    finally:
        remove_placement_group(group)


def _words(needs: Needs) -> str:
    """As in "0.9 CPUs, 1 GPU, 2048 MiB"."""
    units = {"CPU": "CPUs", "GPU": "GPUs"}
    parts = [
        f"{value / 2**20:.0f} MiB" if name == "memory" else f"{value:g} {name if value == 1 else units[name]}"
        for name, value in needs.items()
    ]
    return ", ".join(parts) or "nothing"


def options(needs: Needs) -> dict[str, Any]:
    """The needs as options of Ray's tasks and actors."""
    return {name: needs.get(key, 0) for name, key in (("num_cpus", "CPU"), ("num_gpus", "GPU"), ("memory", "memory"))}
