"""Model replicas of a sampling job: the number of a work item to a committed shard. They run as Ray actors."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rdpm.models.sampler import SamplerConfig
from rdpm.pipeline.cluster.shards import ShardDone
from rdpm.pipeline.inference.batches import device_of_kind
from rdpm.pipeline.inference.rdpm import RDPM
from rdpm.pipeline.sampling.plan import labels_and_seeds
from rdpm.pipeline.stores.writer import leave_environment, write_shard
from rdpm.storage_schemas.manifest import Plan


@dataclass(frozen=True)
class SetToDraw:
    """One sample set of a job, as another process on another machine sees it."""

    generator: str
    """Path or URL of the generator's export."""
    tokenizer: str
    """Path or URL of the tokenizer's export."""
    store: str
    """Path or URL of the sample store."""
    plan: Plan
    """Plan of the store."""


class ShardSampler:
    """Both models of the set that is drawn; another set's models take their place when its first shard comes."""

    def __init__(self, sets: list[SetToDraw], threads: int) -> None:
        torch.set_num_threads(threads)
        self.sets = sets
        self.model = functools.lru_cache(maxsize=1)(self._load)

    def _load(self, position: int) -> RDPM:
        one = self.sets[position]
        identity = one.plan.samples
        leave_environment(one.store)
        return RDPM.from_pretrained(
            one.generator,
            one.tokenizer,
            batch=identity.batch,
            precision=identity.precision,
            compile=identity.compile,
            attention=identity.attention or "sdpa",
            device=device_of_kind(identity.device),
        )

    def __call__(self, number: int) -> ShardDone:
        """Draw, write and commit one shard."""
        position, shard = locate(number, [one.plan for one in self.sets])
        one, model = self.sets[position], self.model(position)
        identity, rows = one.plan.samples, one.plan.shard_range(shard)
        indices = np.arange(rows.start, rows.stop, dtype=np.int64)
        labels, seeds = labels_and_seeds(indices, identity.per_class, identity.labels, identity.seed)
        configs = [SamplerConfig(**identity.sampler)] * len(rows)
        drawn = model.draw(labels.astype(np.int64), seeds.view(np.int64), configs)
        columns = {"images": drawn.images, "codes": drawn.codes, "label": labels, "seed": seeds}
        index = {"index": indices, "label": labels, "seed": seeds}
        commit = write_shard(one.store, one.plan, shard, columns, index)
        return ShardDone(number, commit.rows)


def locate(number: int, plans: Sequence[Plan]) -> tuple[int, int]:
    """The set, and the shard of that set, of a work item. Items count through the shards of all sets."""
    for position, plan in enumerate(plans):
        if number < plan.num_shards:
            return position, number
        number -= plan.num_shards
    raise AssertionError(number)
