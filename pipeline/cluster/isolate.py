"""Which images kill their worker: shards that died are taken apart, part by part in processes of their own."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
import ray.exceptions

from rdpm.pipeline.cluster.attempts import persistently
from rdpm.pipeline.cluster.capacity import Needs, options

Rehearse = Callable[[int, range], None]
"""function(shard, images) does the work of a shard on some of its images, and writes nothing."""
_ALONE = 2  # fresh processes that an image must kill
_DEATHS = (
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
)  # a single image is tried again, so the death of a node accuses nobody
_Part = tuple[int, range]


def find_killers(
    rehearse: Rehearse, images: Mapping[int, int], needs: Needs, minutes: float
) -> dict[int, tuple[int, ...]]:
    """The images of these shards that kill two fresh processes, each alone in a process and with no other running.

    images: by shard, their number; they are numbered from 0. needs: of a process. minutes: the deadline of a shard,
    which is less for a part. Returns the killers by shard, for shards that have any. Shards are halved until single
    images are left, so this takes about twice the work of a shard for each killer. Raises the ValueError or OSError of
    the work.
    """

    def die(parts: Sequence[_Part]) -> list[_Part]:
        shares = [max(0.1, len(part) / images[shard]) for shard, part in parts]
        runs = [
            _process(needs).remote(rehearse, *part, minutes * share) for part, share in zip(parts, shares, strict=True)
        ]
        return [part for part, run in zip(parts, runs, strict=True) if _died(run)]

    parts, suspects = [half for shard, count in images.items() for half in _halves((shard, range(count)))], []
    while parts:
        died = die(parts)
        suspects += [part for part in died if len(part[1]) == 1]
        parts = [half for part in died if len(part[1]) > 1 for half in _halves(part)]
    killers: dict[int, tuple[int, ...]] = {}
    for suspect in sorted(suspects, key=lambda part: (part[0], part[1].start)):
        if all(die([suspect]) for _ in range(_ALONE)):
            shard, image = suspect[0], suspect[1].start
            killers[shard] = (*killers.get(shard, ()), image)
    return killers


def _halves(part: _Part) -> list[_Part]:
    shard, images = part
    middle = len(images) // 2
    return [(shard, half) for half in (images[:middle], images[middle:]) if half]


def _process(needs: Needs) -> Any:
    """A task that runs once, in a process that has done nothing else and ends with it."""
    fresh = {"env_vars": {"RDPM_PROCESS": uuid.uuid4().hex}}  # Ray shares no process between different environments
    return ray.remote(max_retries=0, max_calls=1, runtime_env=fresh, **options(needs))(_run)


def _run(rehearse: Rehearse, shard: int, images: range, minutes: float) -> Exception | None:
    try:
        persistently(lambda: rehearse(shard, images), minutes)
    except (ValueError, OSError) as error:
        return error
    return None


def _died(run: ray.ObjectRef) -> bool:
    try:
        error = ray.get(run)
    except _DEATHS:
        return True
    if error is not None:
        raise error
    return False
